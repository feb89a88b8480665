"""One annotation file in PASCAL VOC's format."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from ssd300_vgg16.data.table import MAX_COORDINATE

SIDES = ("xmin", "ymin", "xmax", "ymax")


class VocFault(Exception):
    """An annotation file that cannot be used; the message goes on from "annotation file "."""


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
        where = f"object {number} ({name})" if name else f"object {number}"
        box = _box(element)
        fault = "object without name" if not name else box if isinstance(box, str) else None
        if fault:
            faults.append((fault, where))
            continue
        difficult = (element.findtext("difficult") or "0").strip()
        if difficult not in ("0", "1"):
            faults.append(("object whose difficult is not 0 or 1, taken for 0", where))
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
    # Entities can be defined in a DTD only; in UTF-16, which VOC's files are not in, it would go unnoticed here.
    if b"\0" in data or b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise VocFault("that is no plain XML (it has a DTD or null bytes)")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise VocFault(f"that is not valid XML ({error})") from None
    if root.tag != "annotation":
        raise VocFault("that is not VOC's: its outermost element is not <annotation>")
    return root


def _box(element: ElementTree.Element) -> tuple[float, float, float, float] | str:
    """The object's own box xyxy, or what is wrong with it."""
    bndbox = element.find("bndbox")
    if bndbox is None:
        return "object without bndbox"
    try:
        xmin, ymin, xmax, ymax = (float(bndbox.findtext(side)) for side in SIDES)
    except (TypeError, ValueError):
        return "object whose bndbox is not 4 numbers"
    if not all(-MAX_COORDINATE < value < MAX_COORDINATE for value in (xmin, ymin, xmax, ymax)):
        return "object whose bndbox is not finite"
    return xmin - 1, ymin - 1, xmax - (xmax <= xmin), ymax - (ymax <= ymin)


def _size(root: ElementTree.Element) -> tuple[int, int] | None:
    """(height, width), None unless both are positive."""
    try:
        height, width = (float(root.findtext(f"size/{side}")) for side in ("height", "width"))
    except (TypeError, ValueError):
        return None
    usable = all(0 < side < MAX_COORDINATE and side == int(side) for side in (height, width))
    return (int(height), int(width)) if usable else None
