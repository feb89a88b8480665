"""Categories: those of COCO and VOC, and whose names mean the same."""

from collections.abc import Collection, Hashable
from typing import TypeVar

from ssd300_vgg16.data.dataset import MAX_NAME_LETTERS, Category, Fate, Problems
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.network.variants import MAX_CLASSES
from ssd300_vgg16.text import listed

# By id, from 1 on; "-" stands for ids that COCO does not use.
_COCO_NAMES = """
person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire hydrant, -, stop sign,
parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, giraffe, -, backpack, umbrella, -, -,
handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
surfboard, tennis racket, bottle, -, wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange,
broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted plant, bed, -, dining table, -, -, toilet, -, tv,
laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, -, book, clock, vase,
scissors, teddy bear, hair drier, toothbrush
"""
# Label = COCO id: the published weights have 91 outputs, background and one for each id, used or not.
COCO_CATEGORIES: tuple[Category, ...] = tuple(
    Category(label=id_, id=id_, name=name.strip())
    for id_, name in enumerate(_COCO_NAMES.split(","), start=1)
    if name.strip() != "-"
)

_VOC_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
VOC_CATEGORIES: tuple[Category, ...] = tuple(
    Category(label, label, name) for label, name in enumerate(_VOC_NAMES.split(), start=1)
)

# VOC's spelling, and COCO's of the same thing.
SPELLINGS = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}

Key = TypeVar("Key", bound=Hashable)


def same_name(name: str) -> str:
    """A key that is equal for names of the same thing: without regard to case, and in COCO's spelling."""
    name = folded(name)
    return SPELLINGS.get(name, name)


def folded(name: str) -> str:
    """The name without regard to case and blanks around it."""
    return name.strip().casefold()


def refuse_excessive(names: Collection[str], source: str) -> None:
    """Raises UserError for more names than a network has outputs for, or one that is a book."""
    if long := next((name for name in names if len(name) > MAX_NAME_LETTERS), None):
        raise UserError(
            f"{source}: a category's name has {len(long):,} letters, where {MAX_NAME_LETTERS:,} are the limit"
        )
    if len(names) >= MAX_CLASSES:
        raise UserError(f"{source}: {len(names):,} categories, of which {MAX_CLASSES - 1:,} are the limit")


def told_apart(names: dict[int, str], problems: Problems) -> dict[int, str]:
    """Names by id, those that are there already with their id: "cat (id 7)", or tables would lose a row.

    Names that differ in capitals only are noted, and no problem: data sets of letters have "a" and "A". Raises
    UserError as `refuse_excessive` does.
    """
    refuse_excessive(names.values(), problems.source)
    apart: dict[int, str] = {}
    taken: set[str] = set()
    first: dict[str, int] = {}
    alike: dict[str, dict[str, None]] = {}
    for id_, name in names.items():
        if first.setdefault(name, id_) != id_:
            problems.add("category name used twice", f"{name!r} (ids {first[name]} and {id_})", Fate.READ_ALL_THE_SAME)
        apart[id_] = name if name not in taken else f"{name} (id {id_})"
        taken.add(apart[id_])
        alike.setdefault(folded(name), {})[name] = None
    pairs = [" and ".join(map(repr, same)) for same in alike.values() if len(same) > 1]
    if pairs:
        problems.notes.append(f"{problems.source}: classes that differ in capitals only: {listed(pairs, max_names=3)}")
    return apart


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
        theirs = listed(list(names.values()))
        ours = listed([category.name for category in given])
        raise UserError(f"{source}: none of its categories ({theirs}) is one of the model's ({ours})")
    return matched
