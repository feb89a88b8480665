"""Data sets in PASCAL VOC's layout: image sets, an XML file for each image, checked while they are read."""

import codecs
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ssd300_vgg16 import boxes as box_math
from ssd300_vgg16.data.categories import folded, match_names
from ssd300_vgg16.data.dataset import (
    CATEGORY_LEFT_OUT,
    IMAGE_LEFT_OUT,
    MAX_COORDINATE,
    OBJECT_LEFT_OUT,
    READ_ALL_THE_SAME,
    UNKNOWN_CATEGORY,
    Category,
    Dataset,
    ImageRow,
    ObjectTable,
    Problems,
    report_boxes,
    samples_of,
    without_repeated,
)
from ssd300_vgg16.data.images import ImageError, image_size
from ssd300_vgg16.data.sizes import report_sizes
from ssd300_vgg16.data.voc_sets import ImageNames, ImageSet, image_names, joined_name, read_image_set, xml_file
from ssd300_vgg16.errors import UserError

SIDES = ("xmin", "ymin", "xmax", "ymax")


# In bytes: which encoding a file has is asked before it can be decoded.
_ENCODING = re.compile(rb"""(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")


DIFFICULT_TAKEN_FOR_0 = "object whose difficult is not 0 or 1, taken for 0"


class VocFault(Exception):
    """An annotation file that cannot be used; the message goes on from "annotation file ".

    where: more about this file, which differs from that of others with the same fault.
    """

    def __init__(self, message: str, where: str = ""):
        super().__init__(message)
        self.where = where


class VocObject(NamedTuple):
    """One object; number counts the file's objects from 1."""

    number: int
    name: str
    box: tuple[float, float, float, float]  # xyxy in pixels
    difficult: bool


class VocAnnotation(NamedTuple):
    """What a file says: the image's name and (height, width), None where absent, and its well-formed objects.

    faults: pairs of kind ("object without bndbox") and object ("object 2 (dog)") for what is wrong.
    """

    file_name: str | None
    size: tuple[int, int] | None
    objects: list[VocObject]
    faults: list[tuple[str, str]]


def read_voc_xml(path: Path) -> VocAnnotation:
    """The annotations of one image; boxes in continuous coordinates, x from 0 at the left edge to the width.

    VOC counts pixels from 1, the last one included: (xmin, ymin, xmax, ymax) is the box (xmin - 1, ymin - 1, xmax,
    ymax), and IoUs are those of VOC's own tool. A file with xmin = xmax comes from a tool that means no area by it,
    and gets none; so do corners in the wrong order. Objects that lack a name or four finite numbers are left out. An
    absent `difficult` is 0. Boxes of an object's parts are no objects. Raises VocFault for a file without use.
    """
    root = _parse(path)
    objects, faults = [], []
    for number, element in enumerate(root.iterfind("object"), start=1):
        name = (element.findtext("name") or "").strip()
        # Files are written by machines, on one line at times: an object is found by its number and name.
        where = f"object {number} ({name})" if name else f"object {number}"
        box = _box(element) if name else "object without name"
        if isinstance(box, str):
            faults.append((box, where))
            continue
        difficult = (element.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            faults.append((DIFFICULT_TAKEN_FOR_0, where))
        objects.append(VocObject(number, name, box, difficult == "1"))
    return VocAnnotation((root.findtext("filename") or "").strip() or None, _size(root), objects, faults)


def _parse(path: Path) -> ElementTree.Element:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise VocFault("missing") from None
    except OSError as error:
        raise VocFault(f"that cannot be read ({error.strerror})") from None
    if not data.strip():
        raise VocFault("that is empty")
    try:
        text = _decoded(data)
        # Entities can be defined in a DTD only. In UTF-16 and others it would go unnoticed before decoding.
        if "\0" in text or "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise VocFault("that is no plain XML (it has a DTD or null bytes)")
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise VocFault("that is not valid XML", str(error)) from None
    if root.tag != "annotation":
        raise VocFault("that is not VOC's: its outermost element is not <annotation>")
    return root


def _decoded(data: bytes) -> str:
    """The text of an XML file in the encoding that it declares, which Python knows more of than its XML parser."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    declared = _ENCODING.match(data)
    encoding = declared[1].decode() if declared else "utf-8-sig"
    return data.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)


def _box(element: ElementTree.Element) -> tuple[float, float, float, float] | str:
    """The object's own box xyxy, or what is wrong with it."""
    bndbox = element.find("bndbox")
    if bndbox is None:
        return "object without bndbox"
    try:
        xmin, ymin, xmax, ymax = (float(bndbox.findtext(side, "")) for side in SIDES)
    except ValueError:
        return "object whose bndbox is not 4 numbers"
    if not all(-MAX_COORDINATE < value < MAX_COORDINATE for value in (xmin, ymin, xmax, ymax)):
        return "object whose bndbox is not finite"
    # From the numbers of the first and the last pixel to edges between pixels.
    return xmin - 1, ymin - 1, xmax - (xmax <= xmin), ymax - (ymax <= ymin)


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """(height, width), None unless both are positive."""
    try:
        height, width = (float(root.findtext(f"size/{side}", "")) for side in ("height", "width"))
    except ValueError:
        return None
    usable = all(0 < side < MAX_COORDINATE and side == int(side) for side in (height, width))
    return (int(height), int(width)) if usable else None


MISSING_IMAGE = "image missing in"
NO_NAME = "image set entry that is not a name in Annotations"


class _Object(NamedTuple):
    image_index: int
    annotation_file: Path
    content: VocObject


def load_voc(
    image_sets: Sequence[Path],
    image_folder: Path | None = None,
    categories: tuple[Category, ...] | None = None,
    strict: bool = False,
) -> Dataset:
    """The data set of one or several image sets (VOC2007/ImageSets/Main/train.txt), joined in this order.

    The files in Annotations and JPEGImages, beside ImageSets, go with each; image_folder stands for all of the latter.
    A folder of XML files stands for an image set that lists them all (`read_image_set`); images without are left out.
    An image is the one with the name of its XML file, else the XML's <filename>. Its id is its number in the lists,
    counted from 1. Without categories, the names in the files get labels and ids 1..N in alphabetical order, which for
    VOC is VOC's own; with them, names are matched (`match_names`), ids are theirs, and those that no object has are
    left out.

    Images without a usable XML file or without the image file, and malformed objects, are dropped; odd boxes are kept
    as in `load_coco`. All this is counted in Dataset.problems. An absent size is read from the image file.
    Raises UserError when an image set cannot be read or nothing in it is usable, categories have no name in common
    with it, or, if strict, when there is any problem.
    """
    problems = Problems(joined_name(image_sets))
    images, objects = _read(image_sets, image_folder, problems)
    category_of = _categories(objects, categories, problems)
    objects = [entry for entry in objects if folded(entry.content.name) in category_of]
    table = _table(objects, category_of)

    def described(row: int) -> str:
        index, path, content = objects[row]
        return f"{path}, object {content.number} ({content.name}; {images[index]}): xyxy {content.box}"

    report_boxes(images, table, described, problems)
    samples = samples_of(images, without_repeated(table, described, problems))
    report_sizes(samples, problems)
    if strict:
        problems.refuse()
    chosen = tuple(sorted(category_of.values(), key=lambda category: category.label))
    return Dataset(problems.source, chosen, samples, problems, kind="voc")


def _read(
    image_sets: Sequence[Path], image_folder: Path | None, problems: Problems
) -> tuple[list[ImageRow], list[_Object]]:
    """Usable images, and well-formed objects. Raises UserError if there is not one object."""
    images: list[ImageRow] = []
    objects: list[_Object] = []
    # Each folder is listed once: to ask for each of 16,000 files takes long on a network drive.
    names_in = cache(image_names)
    listed = list(_listed_images(image_sets, problems))
    problems.totals["images"] = len(listed) + problems.counts.get(NO_NAME, 0)
    for number, (image_set, name) in enumerate(listed, start=1):
        path = xml_file(image_set.annotations, name)
        try:
            annotation = read_voc_xml(path)
        except VocFault as fault:
            where = f"{path} ({fault.where})" if fault.where else str(path)
            problems.add(f"annotation file {fault}", where, IMAGE_LEFT_OUT)
            continue
        pictures = image_folder or image_set.images
        image = _image(number, name, annotation, pictures, names_in(pictures), problems)
        if image:
            objects += [_Object(len(images), path, content) for content in annotation.objects]
            images.append(image)
            for kind, where in annotation.faults:
                is_read = kind == DIFFICULT_TAKEN_FOR_0
                problems.add(kind, f"{path}, {where}", READ_ALL_THE_SAME if is_read else OBJECT_LEFT_OUT)
    problems.totals["objects"] = len(objects) + problems.count(OBJECT_LEFT_OUT)
    if not images and any(kind.startswith(MISSING_IMAGE) for kind in problems.counts):
        options = "--train-images or --val-images"
        raise UserError(f"{problems.message()}\nNo image is left: name the folder that they are in with {options}.")
    if not objects:
        raise UserError(f"{problems.message()}\nNo object is left.")
    return images, objects


def _listed_images(image_sets: Sequence[Path], problems: Problems) -> Iterator[tuple[ImageSet, str]]:
    """Each name that the image sets list, once."""
    seen = set()
    for image_set in map(read_image_set, image_sets):
        for name in image_set.names:
            # A name that leads out of the folder of annotations is never opened.
            if "/" in name or "\\" in name or "\0" in name:
                problems.add(NO_NAME, f"{image_set.path}: {name[:80]}", IMAGE_LEFT_OUT)
            elif (image_set.annotations, name) in seen:
                problems.add("image listed twice", f"{image_set.path}: {name}", READ_ALL_THE_SAME)
            else:
                seen.add((image_set.annotations, name))
                yield image_set, name


def _image(
    number: int, name: str, annotation: VocAnnotation, folder: Path, names: ImageNames, problems: Problems
) -> ImageRow | None:
    file_name = _image_name(name, annotation.file_name, names)
    if file_name is None:
        problems.add(f"{MISSING_IMAGE} {folder}", name, IMAGE_LEFT_OUT)
        return None
    path, size = folder / file_name, annotation.size
    if size is None:
        try:
            size = image_size(path)
        except ImageError:
            problems.add("image without a size in its XML, whose file cannot be read", str(path), IMAGE_LEFT_OUT)
            return None
    return ImageRow(number, path, *size)


def _image_name(name: str, named_in_xml: str | None, names: ImageNames) -> str | None:
    """The image with the XML file's name, else the one that the XML names."""
    if name in names.by_stem:
        return names.by_stem[name]
    # Tools write the path on the machine of whoever labelled, with Windows' separators too.
    named = (named_in_xml or "").replace("\\", "/").rpartition("/")[2]
    if named in names.all:
        return named
    return names.by_stem.get(named) or names.by_stem.get(Path(named).stem)


def _categories(objects: list[_Object], given: tuple[Category, ...] | None, problems: Problems) -> dict[str, Category]:
    """The category of each name, by the name without regard to case, as far as the given ones have it."""
    counts = Counter(entry.content.name for entry in objects)
    spellings: dict[str, list[str]] = {}
    for name, _ in counts.most_common():
        spellings.setdefault(folded(name), []).append(name)
    for variants in spellings.values():
        if len(variants) > 1:
            problems.add("category in several spellings", " = ".join(map(repr, variants)), READ_ALL_THE_SAME)
    # Of several spellings the most frequent one is shown.
    names = {key: spellings[key][0] for key in sorted(spellings)}
    problems.totals["categories"] = len(names)
    if given is None:
        return {key: Category(label, label, name) for label, (key, name) in enumerate(names.items(), start=1)}
    matched = match_names(names, given, problems.source)
    for key in names.keys() - matched.keys():
        objects_of = sum(counts[name] for name in spellings[key])
        problems.add(UNKNOWN_CATEGORY, f"{names[key]!r} ({objects_of} objects)", CATEGORY_LEFT_OUT)
    return matched


def _table(objects: list[_Object], category_of: dict[str, Category]) -> ObjectTable:
    boxes = np.array([entry.content.box for entry in objects], dtype=np.float64)
    return ObjectTable(
        image_index=np.array([entry.image_index for entry in objects], dtype=np.int64),
        boxes=boxes,
        labels=np.array([category_of[folded(entry.content.name)].label for entry in objects], dtype=np.int64),
        crowd=np.zeros(len(objects), dtype=bool),
        areas=box_math.area(boxes),
        difficult=np.array([entry.content.difficult for entry in objects]),
    )
