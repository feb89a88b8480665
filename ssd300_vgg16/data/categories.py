"""Categories: those of COCO and VOC, and whose names mean the same."""

from collections.abc import Hashable
from typing import TypeVar

from ssd300_vgg16.data.dataset import Category
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.text import listed

# Label = COCO id: the published weights have 91 outputs, background and one for each id, used or not.
COCO_CATEGORIES: tuple[Category, ...] = tuple(
    Category(label=id_, id=id_, name=name)
    for id_, name in (
        (1, "person"),
        (2, "bicycle"),
        (3, "car"),
        (4, "motorcycle"),
        (5, "airplane"),
        (6, "bus"),
        (7, "train"),
        (8, "truck"),
        (9, "boat"),
        (10, "traffic light"),
        (11, "fire hydrant"),
        (13, "stop sign"),
        (14, "parking meter"),
        (15, "bench"),
        (16, "bird"),
        (17, "cat"),
        (18, "dog"),
        (19, "horse"),
        (20, "sheep"),
        (21, "cow"),
        (22, "elephant"),
        (23, "bear"),
        (24, "zebra"),
        (25, "giraffe"),
        (27, "backpack"),
        (28, "umbrella"),
        (31, "handbag"),
        (32, "tie"),
        (33, "suitcase"),
        (34, "frisbee"),
        (35, "skis"),
        (36, "snowboard"),
        (37, "sports ball"),
        (38, "kite"),
        (39, "baseball bat"),
        (40, "baseball glove"),
        (41, "skateboard"),
        (42, "surfboard"),
        (43, "tennis racket"),
        (44, "bottle"),
        (46, "wine glass"),
        (47, "cup"),
        (48, "fork"),
        (49, "knife"),
        (50, "spoon"),
        (51, "bowl"),
        (52, "banana"),
        (53, "apple"),
        (54, "sandwich"),
        (55, "orange"),
        (56, "broccoli"),
        (57, "carrot"),
        (58, "hot dog"),
        (59, "pizza"),
        (60, "donut"),
        (61, "cake"),
        (62, "chair"),
        (63, "couch"),
        (64, "potted plant"),
        (65, "bed"),
        (67, "dining table"),
        (70, "toilet"),
        (72, "tv"),
        (73, "laptop"),
        (74, "mouse"),
        (75, "remote"),
        (76, "keyboard"),
        (77, "cell phone"),
        (78, "microwave"),
        (79, "oven"),
        (80, "toaster"),
        (81, "sink"),
        (82, "refrigerator"),
        (84, "book"),
        (85, "clock"),
        (86, "vase"),
        (87, "scissors"),
        (88, "teddy bear"),
        (89, "hair drier"),
        (90, "toothbrush"),
    )
)

_NAMES = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
)
VOC_CATEGORIES: tuple[Category, ...] = tuple(
    Category(label, label, name) for label, name in enumerate(_NAMES.split(), start=1)
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
MAX_NAMES = 20  # in a message

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
        theirs = listed(list(names.values()), MAX_NAMES)
        ours = listed([category.name for category in given], MAX_NAMES)
        raise UserError(f"{source}: none of its categories ({theirs}) is one of the model's ({ours})")
    return matched
