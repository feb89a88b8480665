"""What is odd about images that are read all the same."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

MAX_NAMED = 10


class Note(NamedTuple):
    """What is odd about an image file: a kind of fault, the same for all files that have it, and more about this one.

    harmful: whether pixels may be wrong.
    """

    path: str
    what: str
    detail: str = ""
    harmful: bool = False

    def __str__(self) -> str:
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.path}: {self.what}{detail}"


class Notes:
    """Tells each note once, and of a kind the first MAX_NAMED; that there are more of it, once too."""

    def __init__(self, tell: Callable[[str], object]):
        self._tell = tell
        self._named: dict[str, set[str]] = {}

    def add(self, notes: Iterable[Note]) -> None:
        """Tell what of these was not told yet."""
        for note in notes:
            named = self._named.setdefault(note.what, set())
            if note.path in named or len(named) > MAX_NAMED:
                continue
            named.add(note.path)
            self._tell(str(note) if len(named) <= MAX_NAMED else f"and more images: {note.what}")
