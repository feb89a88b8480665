"""Data sets in PASCAL VOC's layout: image sets, an XML file for each image, checked while they are read."""

import codecs
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from ssd300_vgg16 import reading
from ssd300_vgg16.data.annotations import SHOWN, Box, ImageRow, ObjectRow, are_finite, dataset_of, is_side
from ssd300_vgg16.data.categories import folded, refuse_excessive
from ssd300_vgg16.data.dataset import Category, Dataset, Fate, Problems
from ssd300_vgg16.data.images import ImageError, image_size
from ssd300_vgg16.data.voc_layout import ImageSet, image_names, joined_name, read_image_set, xml_file

SIDES = ("xmin", "ymin", "xmax", "ymax")
ENCODINGS_OF_NAMES = ("punycode", "idna")  # of short ones: 400 kB of punycode take 20 seconds
# In bytes: which encoding a file has is asked before it can be decoded.
_ENCODING = re.compile(rb"""(?:\xef\xbb\xbf)?\s*<\?xml[^>]*?\sencoding\s*=\s*["']([A-Za-z0-9._-]+)["']""")


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
    VOC is VOC's own; of given ones (`dataset_of`) those that no object has are left out.
    Boxes are in continuous coordinates, x from 0 at the left edge to the width. VOC counts pixels from 1, the last one
    included: (xmin, ymin, xmax, ymax) is the box (xmin - 1, ymin - 1, xmax, ymax), and IoUs are those of VOC's own
    tool. A file with xmin = xmax comes from a tool that means no area by it, and gets none; so do corners in the wrong
    order. An absent `difficult` is 0. Boxes of an object's parts are no objects.
    Images without a usable XML file or without the image file, and objects that lack a name or four finite numbers, are
    dropped and counted in Dataset.problems. An absent size is read from the image file.
    Raises UserError when an image set cannot be read, and as `dataset_of` does.
    """
    sets = [read_image_set(path) for path in image_sets]
    problems = Problems(joined_name(sets))
    images: list[ImageRow] = []
    objects: list[ObjectRow] = []
    spellings: Counter[str] = Counter()
    # Each folder is listed once: to ask for each of 16,000 files takes long on a network drive.
    names_in = cache(image_names)
    advice = ""
    for number, (image_set, name) in enumerate(_listed_images(sets, problems), start=1):
        path = xml_file(image_set.annotations, name)
        try:
            root = _read_xml(path)
        except _Fault as fault:
            problems.add(f"annotation file {fault}", f"{path}{fault.detail}", Fate.IMAGE_LEFT_OUT)
            continue
        folder = image_folder or image_set.images
        file_name = _image_name(name, _text(root, "filename"), names_in(folder))
        if file_name is None:
            problems.add(f"image missing in {folder}", name, Fate.IMAGE_LEFT_OUT)
            advice = "Images are missing: name their folder with --train-images or --val-images."
            continue
        try:
            size = _size(root) or image_size(folder / file_name)
        except ImageError:
            kind = "image without a size in its XML, whose file cannot be read"
            problems.add(kind, str(folder / file_name), Fate.IMAGE_LEFT_OUT)
            continue
        for spelling, row in _read_objects(root, path, len(images), problems):
            spellings[spelling] += 1
            objects.append(row)
        images.append(ImageRow(number, folder / file_name, *size))
    return dataset_of("voc", images, objects, _names(spellings, problems), categories, problems, strict, advice)


def _listed_images(image_sets: Sequence[ImageSet], problems: Problems) -> Iterator[tuple[ImageSet, str]]:
    """Each name that the image sets list, once."""
    seen = set()
    for image_set in image_sets:
        for name in image_set.names:
            # A name that leads out of the folder of annotations is never opened.
            if "/" in name or "\\" in name or "\0" in name:
                kind = "image set entry that is not a name in Annotations"
                problems.add(kind, f"{image_set.path}: {name[:SHOWN]}", Fate.IMAGE_LEFT_OUT)
            elif (image_set.annotations, name) in seen:
                problems.add("image listed twice", f"{image_set.path}: {name}", Fate.READ_ALL_THE_SAME)
            else:
                seen.add((image_set.annotations, name))
                yield image_set, name


class _Fault(Exception):
    """An annotation file that cannot be used; the message goes on from "annotation file ".

    detail: more about this file, which differs from that of others with the same fault.
    """

    def __init__(self, message: str, detail: object = None):
        super().__init__(message)
        self.detail = f" ({detail})" if detail else ""


def _read_xml(path: Path) -> ElementTree.Element:
    try:
        data = reading.read_bytes(path, reading.LABEL_BYTES)
    except FileNotFoundError:
        raise _Fault("missing") from None
    except OSError as error:
        raise _Fault(f"that cannot be read ({error.strerror})") from None
    if not data.strip():
        raise _Fault("that is empty")
    try:
        text = _decoded(data)
        # Entities can be defined in a DTD only. In UTF-16 and others it would go unnoticed before decoding.
        if "\0" in text or "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise _Fault("that is no plain XML (it has a DTD or null bytes)")
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise _Fault("that is not valid XML", error) from None
    if root.tag != "annotation":
        raise _Fault("that is not VOC's: its outermost element is not <annotation>")
    return root


def _decoded(data: bytes) -> str:
    """The text of an XML file in the encoding that it declares, which Python knows more of than its XML parser."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    declared = _ENCODING.match(data)
    encoding = declared[1].decode() if declared else "utf-8-sig"
    if codecs.lookup(encoding).name in ENCODINGS_OF_NAMES:
        raise LookupError(f"it is no text in {encoding}")
    return data.decode("utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding)


def _text(element: ElementTree.Element, path: str) -> str:
    return element.findtext(path, "").strip()


def _image_name(name: str, named_in_xml: str, images: dict[str, str]) -> str | None:
    """The image with the XML file's name, else the one that the XML names."""
    # Tools write the path on the machine of whoever labelled, with Windows' separators too.
    named = named_in_xml.replace("\\", "/").rpartition("/")[2]
    return images.get(name) or images.get(named) or images.get(Path(named).stem)


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """(height, width), None unless both are positive."""
    try:
        height, width = (float(_text(root, f"size/{side}")) for side in ("height", "width"))
    except ValueError:
        return None
    return (int(height), int(width)) if is_side(height) and is_side(width) else None


def _read_objects(
    root: ElementTree.Element, path: Path, image_index: int, problems: Problems
) -> Iterator[tuple[str, ObjectRow]]:
    """The well-formed objects of one image, each with its name as it is written."""
    for number, element in enumerate(root.iterfind("object"), start=1):
        name = _text(element, "name")
        # Files are written by machines, on one line at times: an object is found by its number.
        where = f"{path}, object {number}"
        named = f"{where} ({name})" if name else where
        box = _box(element) if name else "object without name"
        if isinstance(box, str):
            problems.add(box, named, Fate.OBJECT_LEFT_OUT, image_index)
            continue
        difficult = _text(element, "difficult") or "0"
        if difficult not in ("0", "1"):
            problems.add("object whose difficult is not 0 or 1, taken for 0", named, Fate.READ_ALL_THE_SAME)
        yield name, ObjectRow(image_index, folded(name), box, where, difficult=difficult == "1")


def _box(element: ElementTree.Element) -> Box | str:
    """The object's own box xyxy, or what is wrong with it."""
    bndbox = element.find("bndbox")
    if bndbox is None:
        return "object without bndbox"
    try:
        xmin, ymin, xmax, ymax = (float(_text(bndbox, side)) for side in SIDES)
    except ValueError:
        return "object whose bndbox is not 4 numbers"
    if not are_finite((xmin, ymin, xmax, ymax)):
        return "object whose bndbox is not finite"
    # From the numbers of the first and the last pixel to edges between pixels.
    return xmin - 1, ymin - 1, xmax - (xmax <= xmin), ymax - (ymax <= ymin)


def _names(spellings: Counter[str], problems: Problems) -> dict[str, str]:
    """The most frequent spelling of each name, by the name without regard to case, in alphabetical order."""
    refuse_excessive(spellings, problems.source)
    variants: dict[str, list[str]] = {}
    for name, _ in spellings.most_common():
        variants.setdefault(folded(name), []).append(name)
    for same in variants.values():
        if len(same) > 1:
            problems.add("category in several spellings", " = ".join(map(repr, same)), Fate.READ_ALL_THE_SAME)
    return {key: variants[key][0] for key in sorted(variants)}
