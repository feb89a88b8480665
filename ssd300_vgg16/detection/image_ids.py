"""Which images of a COCO annotation file some files are."""

import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath

from ssd300_vgg16.data.coco import image_entries
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.text import listed, printable

ImageId = int | str  # as the file has it: pycocotools compares them, and takes both


def image_ids(annotations: Path, images: Sequence[Path]) -> dict[Path, ImageId]:
    """The ids of those images whose file names the annotation file has; folders decide where it has one twice.

    Raises UserError where they do not, and where none of the images is named.
    """
    entries: dict[str, list[tuple[tuple[str, ...], ImageId]]] = {}
    for entry in image_entries(annotations):
        parts = _parts(entry["file_name"].replace("\\", "/"))
        entries.setdefault(parts[0] if parts else "", []).append((parts, entry["id"]))
    pairs = []
    for image in images:
        parts = _parts(os.path.abspath(image))  # noqa: PTH100 - resolve() would follow links
        pairs += [(_agreeing(parts, theirs), image, id_) for theirs, id_ in entries.get(parts[0], [])]
    if not pairs:
        raise UserError(f"--image-ids {annotations} has none of the file names, such as {printable(images[0].name)}")
    # Those that agree in most folders go first; what is left for the others need not be theirs.
    chosen: dict[Path | ImageId, tuple[int, Path, ImageId]] = {}
    for pair in sorted(pairs, key=lambda pair: -pair[0]):
        rivals = [chosen[key] for key in pair[1:] if key in chosen]
        for agreeing, image, id_ in rivals:
            if agreeing == pair[0] and (image, id_) != pair[1:]:
                files = listed([str(path) for path in dict.fromkeys((image, pair[1]))])
                ids = " and ".join(map(str, dict.fromkeys((id_, pair[2]))))
                raise UserError(
                    f"--image-ids {annotations}: which of {files} is its image {ids} cannot be told by name"
                )
        if not rivals:
            chosen[pair[1]] = chosen[pair[2]] = pair
    return {image: id_ for _, image, id_ in chosen.values()}


def _parts(path: str) -> tuple[str, ...]:
    """File name first, then the folders, from the innermost out."""
    return PurePosixPath(path).parts[::-1]


def _agreeing(some: Sequence[str], others: Sequence[str]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(some, others, strict=False)))
