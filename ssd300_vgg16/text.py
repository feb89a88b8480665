"""Names, as people see them on a terminal: whoever gave them, they take one line and no more than it."""

from collections.abc import Sequence

MAX_LETTERS = 120


def printable(name: str, max_letters: int = MAX_LETTERS) -> str:
    """The name without control characters, and shortened if need be."""
    # A name may come from a file that somebody else wrote: escape sequences in it would be obeyed by the terminal.
    clean = "".join(letter if letter.isprintable() else "?" for letter in name)
    return clean if len(clean) <= max_letters else f"{clean[: max_letters - 3]}..."


def listed(names: Sequence[str], max_names: int = 12) -> str:
    """Names in a line, printable; those beyond the first `max_names` are counted."""
    more = f", and {len(names) - max_names:,} more" if len(names) > max_names else ""
    return ", ".join(map(printable, names[:max_names])) + more


def spreadsheet_cell(text: str) -> str:
    """The text for a CSV file."""
    # Spreadsheets compute what begins like this, and names come from files that others wrote.
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
