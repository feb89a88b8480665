"""Photographs for those parts of the suite that need some, where none are given."""

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from around_network import write_photograph

SIZE = (640, 480)
DIFFERENT = 8  # photographs; the others are links to these, which cost as much to read
COUNTS = {"train": 205, "val": 40}


def photographs(folder: Path) -> Path:
    """A data set in VOC's layout, made unless it is there: 640x480 pixels, 7 objects in each, of 20 classes."""
    if not folder.is_dir():
        aside = folder.with_name(f"{folder.name}.{os.getpid()}")
        for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (aside / name).mkdir(parents=True)
        for number in range(DIFFERENT):
            write_photograph(aside / "JPEGImages" / f"{number:06}.jpg", *SIZE, seed=number)
        start = 0
        for split, count in COUNTS.items():
            names = [f"{number:06}" for number in range(start, start + count)]
            for name in names:
                _write_sample(aside, name)
            (aside / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
            start += count
        aside.rename(folder)
    return folder


def _write_sample(folder: Path, name: str) -> None:
    image = folder / "JPEGImages" / f"{name}.jpg"
    if not image.exists():
        image.symlink_to(f"{int(name) % DIFFERENT:06}.jpg")
    (folder / "Annotations" / f"{name}.xml").write_text(ElementTree.tostring(_annotation(name), encoding="unicode"))


def _annotation(name: str) -> ElementTree.Element:
    from engines import random_objects

    def add(parent: ElementTree.Element, tag: str, text: object) -> None:
        ElementTree.SubElement(parent, tag).text = str(text)

    root = ElementTree.Element("annotation")
    add(root, "filename", f"{name}.jpg")
    size = ElementTree.SubElement(root, "size")
    for tag, value in zip(("width", "height", "depth"), (*SIZE, 3), strict=True):
        add(size, tag, value)
    [(boxes, labels)] = random_objects(1, SIZE[1], 21, seed=int(name))
    for box, label in zip(boxes.round().astype(int).tolist(), labels.tolist(), strict=True):
        found = ElementTree.SubElement(root, "object")
        add(found, "name", f"class {label}")
        bounds = ElementTree.SubElement(found, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            add(bounds, tag, max(value, 1))
    return root
