"""Names of categories: which are the same, and those of a data set matched to those of a model."""

from collections.abc import Hashable, Iterable
from typing import TypeVar

from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.errors import UserError

# VOC's spelling, and COCO's of the same thing.
SPELLINGS = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
NAMES_SHOWN = 20

Key = TypeVar("Key", bound=Hashable)


def same_name(name: str) -> str:
    """A key that is equal for names of the same thing: without regard to case, and in COCO's spelling."""
    name = folded(name)
    return SPELLINGS.get(name, name)


def folded(name: str) -> str:
    """The name without regard to case and blanks around it."""
    return name.strip().casefold()


def match_names(names: dict[Key, str], given: tuple[Category, ...], source: str) -> dict[Key, Category]:
    """The given category for each of a data set's categories (names by id or any key) that has one, each used once.

    Of several possible ones that with the same id goes first, then that with the same spelling.
    Raises UserError, about source, when there is none at all.
    """
    matched: dict[Key, Category] = {}
    for key in (lambda id_, name: (id_, folded(name)), lambda _, name: folded(name), lambda _, name: same_name(name)):
        used = {category.label for category in matched.values()}
        free = {key(category.id, category.name): category for category in reversed(given) if category.label not in used}
        for id_, name in names.items():
            if id_ not in matched and key(id_, name) in free:
                matched[id_] = free.pop(key(id_, name))
    if not matched:
        theirs, ours = _shown(names.values()), _shown(category.name for category in given)
        raise UserError(f"{source}: none of its categories ({theirs}) is one of the model's ({ours})")
    return matched


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    more = f", and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(names[:NAMES_SHOWN]) + more
