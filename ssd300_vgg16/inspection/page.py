"""inspection.html: what was found in a data set, as one page that needs nothing beside it."""

import base64
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote
from xml.etree.ElementTree import Element

import numpy as np

from ssd300_vgg16.boxes import xyxy_to_cxcywh
from ssd300_vgg16.data.categories import same_name
from ssd300_vgg16.data.matching import MATCH_IOU
from ssd300_vgg16.draw import label_colour
from ssd300_vgg16.inspection.figures import Candidate, ClassCount, InputObjects
from ssd300_vgg16.inspection.report import describe_sizes, share_fitting
from ssd300_vgg16.inspection.split import PICTURES, Fit, Inspected, Picture
from ssd300_vgg16.report.html_page import node, static_page
from ssd300_vgg16.text import printable

PAGE = "inspection.html"
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
SIZE_LIMITS = (8, 16, 32, 64, 128, 256)  # between the rows of a table, in pixels of the network's input
TITLES = {"train": "Training", "val": "Validation"}
# The chart of shapes, in units of its own.
MAX_DOTS = 3000
SIDE, LEFT, BOTTOM, TOP = 480, 46, 40, 8
GRID = 120  # points along each axis, to find where default boxes fit


def inspection_page(splits: Sequence[Inspected], remarks: Sequence[str], chosen: Candidate, output: Path) -> str:
    """The page. remarks: sentences on how the splits go together; output: the folder that it will be in."""
    names = [node("p", f"{TITLES[each.split]}: {printable(each.dataset.name)}") for each in splits]
    figures = [panel for each in splits if each.fit for panel in _fit_panels(each, each.fit, chosen)]
    pictures = [panel for each in splits for panel in (_problems(each, output), _samples(each, output))]
    panels = [*map(_contents, splits), _classes(splits, remarks), *figures, *pictures]
    content = [
        node("header", node("h1", "What is in the data set"), *names),
        node("main", *panels, id="figures"),
    ]
    return static_page("inspection", "Data set", content)


def _panel(title: str, *parts: Element, wide: bool = True) -> Element:
    return node("section", node("h2", title), *parts, class_="panel wide" if wide else "panel")


def _table(name: str, heads: Sequence[Element | str], rows: Iterable[Sequence[Element | str]]) -> Element:
    """A table that scrolls in its place. An element is a cell as it stands; a text becomes one."""

    def cell(content: Element | str, tag: str = "td", **attributes: str) -> Element:
        return content if isinstance(content, Element) else node(tag, content, **attributes)

    head = node("tr", *(cell(one, "th", scope="col") for one in heads))
    body = [node("tr", cell(first, "th", scope="row"), *map(cell, others)) for first, *others in rows]
    table = node("table", node("thead", head), node("tbody", *body))
    return node("div", table, class_="scroll", tabindex=0, role="region", aria_label=name)


def _bar(text: str, **parts: float) -> Element:
    """A cell with a text and a bar of parts, each a class of the style with its share of the whole width."""
    bars, left = [], 0.0
    for kind, share in parts.items():
        bars.append(node("rect", class_=kind, x=f"{left:.2%}", width=f"{share:.2%}", height=12))
        left += share
    return node("td", text, node("svg", *bars, aria_hidden="true"), class_="bar-cell")


def _contents(inspected: Inspected) -> Element:
    found = inspected.contents
    numbers = {
        "images": found.images,
        "without objects": found.images_without_objects,
        "objects": found.objects,
        "median per image": found.median_per_image,
        "most per image": found.max_per_image,
    }
    others = {"difficult": found.difficult, "crowds": found.crowds, "of no area": found.flat}
    numbers |= {name: count for name, count in others.items() if count}
    shown = [
        node("div", node("dt", name), node("dd", f"{value:,g}" if value < 1e6 else f"{value:,}"))
        for name, value in numbers.items()
    ]
    sizes = node("p", f"Sizes: {describe_sizes(found.sizes)}.")
    return _panel(f"{TITLES[inspected.split]} images", node("dl", *shown, class_="numbers"), sizes, wide=False)


def _classes(splits: Sequence[Inspected], remarks: Sequence[str]) -> Element:
    """A row a class, in order of the first split's counts; splits may have other classes, and several of one name."""
    classes: dict[tuple[str, int], list[ClassCount | None]] = {}
    for place, inspected in enumerate(splits):
        repeated: Counter[str] = Counter()
        for one in inspected.classes:
            name = same_name(one.name)
            classes.setdefault((name, repeated[name]), [None] * len(splits))[place] = one
            repeated[name] += 1
    heads = [
        node("th", what, node("small", TITLES[each.split].lower()), scope="col")
        for each in splits
        for what in ("objects", "images", "share")
    ]
    totals = [max(1, sum(row.objects for row in each.classes)) for each in splits]
    most = max(row.objects / total for each, total in zip(splits, totals, strict=True) for row in each.classes) or 1
    rows = []
    for counts in classes.values():
        row = [_class_name(next(filter(None, counts)))]
        for counted, total in zip(counts, totals, strict=True):
            objects, images = (counted.objects, counted.images) if counted else (0, 0)
            share = objects / total
            row += [node("td", f"{objects:,}"), node("td", f"{images:,}"), _bar(f"{share:.1%}", share=share / most)]
        rows.append(row)
    said = [node("p", f"{remark[0].upper()}{remark[1:]}.", class_="said") for remark in remarks]
    return _panel("Classes", *said, _table("Classes", ["class", *heads], rows))


def _class_name(one: ClassCount) -> Element:
    square = node("rect", width=11, height=11, rx=3, fill=_colour(one.label))
    name = printable(one.name)
    return node("th", node("svg", square, class_="swatch", aria_hidden="true"), name, scope="row", title=name)


def _colour(label: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*label_colour(label))


def _fit_panels(inspected: Inspected, fit: Fit, chosen: Candidate) -> list[Element]:
    title, size = TITLES[inspected.split], f"{chosen.image_size} x {chosen.image_size}"
    key = [
        _key("region", f"IoU ≥ {MATCH_IOU} with one"),
        node("span", node("svg", node("path", d="M6 1v10M1 6h10", class_="shape")), "a default box"),
        node("span", "dots: objects, in their classes' colours"),
    ]
    columns = {"side (√area), px": (inspected.objects.sides, 1), "width / height": (inspected.objects.ratios, 2)}
    percentiles = [
        [name, *(f"{value:.{digits}f}" for value in np.percentile(values, PERCENTILES))]
        for name, (values, digits) in columns.items()
    ]
    shapes = _panel(
        f"{title}: shapes at {size}",
        node("p", f"Sizes are those of the images resized to {size}, without the crops of data augmentation."),
        *([node("p", inspected.tiles.strip())] if inspected.tiles else []),
        node("div", _shape_chart(inspected.objects, chosen), class_="chart"),
        node("div", *key, class_="key"),
        _table("Percentiles", ["percentile", *(f"{one} %" for one in PERCENTILES)], percentiles),
        wide=False,
    )
    bars = [
        _key("fits", f"IoU ≥ {MATCH_IOU}"),
        _key("below", "below: learnt by the one default box that is forced on it"),
    ]
    some = f", of {len(fit.objects):,} objects drawn at random" if len(fit.objects) < len(inspected.objects) else ""
    parts = [
        node("p", f"{chosen.model} with {chosen.box_sizes} default boxes{some}."),
        _fit_table(fit, chosen),
        node("div", *bars, class_="key"),
        node(
            "p",
            "Best IoU: mean of each object's highest. Lost: learnt by none, since another object has the default box.",
        ),
    ]
    if len(fit.ious) > 1:
        networks: list[list[Element | str]] = []
        for candidate, ious in fit.ious.items():
            mark = [node("small", "as above")] if candidate is chosen else []
            name = node("th", f"{candidate.model}, {candidate.box_sizes}", *mark, scope="row")
            networks.append([name, f"{share_fitting(ious):.1%}", f"{ious.mean():.2f}"])
        heads = ["--model, --default-boxes", f"IoU ≥ {MATCH_IOU}", "best IoU"]
        parts += [node("h3", "Other networks"), _table("Other networks", heads, networks)]
        parts += [node("p", node("strong", "Advice: "), line) for line in fit.advice]
    return [shapes, _panel(f"{title}: fit of the default boxes", *parts, wide=False)]


def _key(kind: str, text: str) -> Element:
    return node("span", node("svg", node("rect", width=12, height=12, class_=kind)), text)


def _fit_table(fit: Fit, chosen: Candidate) -> Element:
    """How the objects fit the chosen default boxes, by their side at the network's input."""
    sides, ious = fit.objects.sides, fit.ious[chosen]
    groups = {}
    for low, high in pairwise((0, *SIZE_LIMITS, np.inf)):
        name = f"< {high}" if low == 0 else f">= {low}" if high == np.inf else f"{low} - {high}"
        groups[name] = (sides >= low) & (sides < high)
    most = max(group.sum() for group in groups.values())
    rows: list[list[Element | str]] = []
    for name, group in groups.items():
        if objects := group.sum():
            fitting = (ious[group] >= MATCH_IOU).sum()
            bar = _bar(f"{fitting / objects:.0%}", fits=fitting / most, below=(objects - fitting) / most)
            rows.append([name, f"{objects:,}", f"{ious[group].mean():.2f}", bar, f"{fit.lost[group].sum():,}"])
    rows.append(["all", f"{len(ious):,}", f"{ious.mean():.2f}", f"{share_fitting(ious):.1%}", f"{fit.lost.sum():,}"])
    return _table("Fit by size", ["side, px", "objects", "best IoU", f"IoU ≥ {MATCH_IOU}", "lost"], rows)


def _shape_chart(objects: InputObjects, candidate: Candidate) -> Element:
    """Widths and heights of one object or more at the network's input, on logarithmic axes, with the shapes of its
    default boxes and the region in which one of these fits."""
    shapes = np.unique(np.rint(xyxy_to_cxcywh(candidate.default_boxes)[:, 2:] * 10) / 10, axis=0)
    sides = np.concatenate((objects.widths, objects.heights))
    low = float(np.clip(np.percentile(sides, 0.5), 1.0, shapes.min() / 2))
    high = candidate.image_size * 1.1

    def place(values: np.ndarray | float) -> np.ndarray:
        return SIDE * np.log(np.maximum(values, low) / low) / np.log(high / low)

    parts = [node("path", d=_region(np.geomspace(low, high, GRID), shapes), class_="region")]
    rows = np.random.default_rng(0).permutation(len(objects))[:MAX_DOTS]
    x, y, labels = place(objects.widths[rows]), SIDE - place(objects.heights[rows]), objects.labels[rows]
    for label in np.unique(labels).tolist():
        mine = labels == label
        dots = "".join(f"M{left:.0f} {top:.0f}h0" for left, top in zip(x[mine], y[mine], strict=True))
        style = {"stroke_width": 5, "stroke_linecap": "round"}
        parts.append(node("path", d=dots, stroke=_colour(label), class_="dots", **style))
    corners = zip(place(shapes[:, 0]), SIDE - place(shapes[:, 1]), strict=True)
    crosses = "".join(f"M{left - 5:.1f} {top:.1f}h10m-5 -5v10" for left, top in corners)
    parts += [node("path", d=crosses, class_="shape"), node("rect", width=SIDE, height=SIDE, class_="frame")]
    for side in (2, 4, *SIZE_LIMITS):
        if low <= side <= candidate.image_size:
            at = float(place(side))
            parts.append(node("text", str(side), x=f"{at:.0f}", y=SIDE + 16, text_anchor="middle"))
            parts.append(node("text", str(side), x=-7, y=f"{SIDE - at + 4:.0f}", text_anchor="end"))
    parts.append(node("text", "width, pixels", x=SIDE / 2, y=SIDE + 34, text_anchor="middle"))
    turned = f"rotate(-90) translate({-SIDE / 2} -34)"
    parts.append(node("text", "height, pixels", transform=turned, text_anchor="middle"))
    box = f"{-LEFT} {-TOP} {SIDE + LEFT + TOP} {SIDE + TOP + BOTTOM}"
    about = f"Widths and heights of {len(rows):,} of {len(objects):,} objects beside those of the default boxes"
    return node("svg", *parts, viewBox=box, class_="chart", role="img", aria_label=about)


def _region(sides: np.ndarray, shapes: np.ndarray) -> str:
    """Where a box of these sides [G] fits one of the shapes [K, 2] around its centre, as a path."""
    narrower, lower = (np.minimum(sides[:, None], shapes[:, axis]) for axis in (0, 1))
    shared = lower[:, None] * narrower[None]  # [height, width, K]
    areas = (sides[:, None] * sides)[..., None]
    fits = (shared / (areas + shapes.prod(axis=1) - shared)).max(axis=-1) >= MATCH_IOU
    step, path = SIDE / len(sides), []
    for row, line in enumerate(fits):
        ends = np.flatnonzero(np.diff(line, prepend=False, append=False)).reshape(-1, 2) * step
        top = SIDE - (row + 1) * step
        path += [f"M{a:.1f} {top:.1f}H{b:.1f}v{step}H{a:.1f}z" for a, b in ends.tolist()]
    return "".join(path)


def _problems(inspected: Inspected, output: Path) -> Element:
    problems = inspected.dataset.problems
    parts = [
        node("p", problems.message() if problems else "No problems in the annotations.", class_="said"),
        node("p", f"Image files read: {inspected.read:,}; not as annotated: {len(inspected.faults):,}."),
        *(node("p", line, class_="said") for line in inspected.remarks(PICTURES)),
    ]
    for problem in inspected.problems:
        shown = f"{len(problem.pictures)} of {problem.images:,}" if len(problem.pictures) < problem.images else "all"
        images = f"{problem.images:,} image{'s' * (problem.images != 1)}"
        heading = f"{problem.kind[0].upper()}{problem.kind[1:]}: {images}, {shown} shown"
        parts += [node("h3", heading), _pictures(problem.pictures, output)]
    return _panel(f"{TITLES[inspected.split]}: problems", *parts)


def _samples(inspected: Inspected, output: Path) -> Element:
    about = node("p", "Colours are those of the classes above. Crowds and difficult objects are dashed.")
    return _panel(f"{TITLES[inspected.split]}: sample images", about, _pictures(inspected.samples, output))


def _pictures(pictures: Sequence[Picture], output: Path) -> Element:
    return node("div", *(_figure(picture, output) for picture in pictures), class_="pictures")


def _figure(picture: Picture, output: Path) -> Element:
    # A percent-encoded relative path: no name can become another kind of address.
    link = quote(os.fsencode(os.path.relpath(picture.file, output)))
    name = printable(picture.file.name)
    if picture.jpeg:
        source = f"data:image/jpeg;base64,{base64.b64encode(picture.jpeg).decode()}"
        shown = node("img", src=source, alt=f"{name}: {picture.text}", loading="lazy")
    else:
        shown = node("div", "cannot be read", class_="unreadable")
    caption = node("figcaption", node("a", name, href=link), node("small", printable(picture.text, 400)))
    return node("figure", shown, caption)
