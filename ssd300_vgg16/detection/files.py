"""The images that infer.sh detects on: their ids in detections.json, and where what belongs to each goes."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path, PurePosixPath

from ssd300_vgg16.data.coco import image_entries
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.folders import is_inside
from ssd300_vgg16.text import listed, printable

LABELS, CROPS = "labels", "crops"  # folders, called so by YOLOv5 too
ImageId = int | str  # as the file has it: pycocotools compares them, and takes both


@dataclass(frozen=True)
class ImageFile:
    """A file to detect on, its id in detections.json, and where its picture goes.

    output: the folder that all of it is below. labels: where YOLO's text goes too. crops: the folder beside the
    pictures that cut out objects go to too.
    """

    image_id: ImageId
    path: Path
    output: Path
    picture: Path
    labels: Path | None = None
    crops: Path | None = None


def image_files(ids: dict[Path, ImageId], output: Path, save_txt: bool, save_crop: bool) -> list[ImageFile]:
    """The images, and where what belongs to each goes: below output, as they lie below the folder that they share.

    Raises UserError if something would overwrite an image or another's.
    """
    places = [Path(os.path.abspath(image)) for image in ids]  # noqa: PTH100 - resolve() would follow links
    base = os.path.commonpath([place.parent for place in places])
    # Other formats keep their suffix, as a.jpg and a.png may lie side by side; and so may a.png and a.png.jpg.
    taken = {place for place in places if place.suffix == ".jpg"}
    pictures = []
    for place in places:
        name = place
        while place.suffix != ".jpg" and (name == place or name in taken):
            name = name.with_name(f"{name.name}.jpg")
        taken.add(name)
        pictures.append(output / name.relative_to(base))
    if lost := set(map(os.path.realpath, pictures)) & set(map(os.path.realpath, places)):
        raise UserError(f"--output-dir {output}: a picture would overwrite the image {min(lost)}; name another folder")
    labels = [output / LABELS / place.relative_to(base).with_suffix(".txt") if save_txt else None for place in places]
    twice, times = Counter(labels).most_common(1)[0]
    if save_txt and times > 1:
        some = [str(image) for image, label in zip(ids, labels, strict=True) if label == twice]
        raise UserError(f"--save-txt: {listed(some)} would share {twice}: give each a name of its own")
    crops = output / CROPS if save_crop else None
    if crops and (inside := [path for path in (*places, *pictures) if is_inside(path, crops)]):
        raise UserError(f"--save-crop: {inside[0]} is in {crops}, where crops go; name another --output-dir")
    rows = zip(ids.items(), pictures, labels, strict=True)
    return [ImageFile(id_, image, output, picture, label, crops) for (image, id_), picture, label in rows]


def image_ids(annotations: Path, images: Sequence[Path]) -> dict[Path, ImageId]:
    """The ids of those images whose file names a COCO annotation file has; folders decide where it has one twice.

    Raises UserError where they do not, and where none of the images is named.
    """
    entries: dict[str, list[tuple[tuple[str, ...], ImageId]]] = {}
    for entry in image_entries(annotations):
        parts = _parts(entry["file_name"].replace("\\", "/"))
        entries.setdefault(parts[0] if parts else "", []).append((parts, entry["id"]))
    pairs = []
    for image in images:
        parts = _parts(os.path.abspath(image))  # noqa: PTH100 - resolve() would follow links
        for theirs, id_ in entries.get(parts[0], []):
            agreeing = len(os.path.commonprefix([parts, theirs]))  # noqa: RUF071 - of tuples, item by item
            pairs.append((agreeing, image, id_))
    if not pairs:
        raise UserError(f"--image-ids {annotations} has none of the file names, such as {printable(images[0].name)}")
    ids: dict[Path, ImageId] = {}
    # Those that agree in most folders go first; what is left for the others need not be theirs.
    pairs.sort(key=lambda pair: -pair[0])
    for _, group in groupby(pairs, key=lambda pair: pair[0]):
        taken = set(ids.values())
        left = list(dict.fromkeys((image, id_) for _, image, id_ in group if image not in ids and id_ not in taken))
        counts = Counter(chain(*left))
        if doubtful := [pair for pair in left if max(counts[each] for each in pair) > 1]:
            alike = [pair for pair in doubtful if set(pair) & set(doubtful[0])]
            files, its_ids = (listed(list(dict.fromkeys(map(str, column)))) for column in zip(*alike, strict=True))
            raise UserError(
                f"--image-ids {annotations}: which of {files} is its image {its_ids} cannot be told by name"
            )
        ids.update(left)
    return {image: ids[image] for image in images if image in ids}


def _parts(path: str) -> tuple[str, ...]:
    """File name first, then the folders, from the innermost out."""
    return PurePosixPath(path).parts[::-1]
