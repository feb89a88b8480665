"""inspection.html: what was found in a data set, as one page that needs nothing beside it."""

import base64
import os
from collections import Counter
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from urllib.parse import quote
from xml.etree.ElementTree import Element

import numpy as np

from ssd300_vgg16.data.categories import same_name
from ssd300_vgg16.data.matching import MATCH_IOU
from ssd300_vgg16.draw import label_colour
from ssd300_vgg16.inspection.charts import shape_chart
from ssd300_vgg16.inspection.figures import Candidate, ClassCount, by_size
from ssd300_vgg16.inspection.report import describe_sizes, interval, share_fitting
from ssd300_vgg16.inspection.split import PICTURES, Fit, Inspected, Picture
from ssd300_vgg16.report.static_page import node, static_page
from ssd300_vgg16.text import printable

PAGE = "inspection.html"
PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
TITLES = {"train": "Training", "val": "Validation"}


def inspection_page(splits: Sequence[Inspected], remarks: Sequence[str], chosen: Candidate, output: Path) -> bytes:
    """The page. remarks: sentences on how the splits go together; output: the folder that it will be in."""
    names = [node("p", f"{TITLES[each.split]}: {printable(each.dataset.name)}") for each in splits]
    figures = [panel for each in splits for panel in _fit_panels(each, chosen)]
    pictures = [panel for each in splits for panel in (_problems(each, output), _samples(each, output))]
    panels = [*map(_contents, splits), _classes(splits, remarks), *figures, *pictures]
    style = resources.files(__package__).joinpath("page.css").read_text(encoding="utf-8")
    content = [
        node("header", node("h1", "What is in the data set"), *names),
        node("main", node("section", *panels, class_="figures")),
    ]
    return static_page("Data set", content, style)


def _panel(title: str, *parts: Element, wide: bool = True) -> Element:
    return node("section", node("h2", title), *parts, class_="panel wide" if wide else "panel")


def _contents(inspected: Inspected) -> Element:
    found = inspected.contents
    numbers = {
        "images": found.images,
        "without objects": found.images_without_objects,
        "objects": found.objects,
        "median per image": found.median_per_image,
        "most per image": found.max_per_image,
        "difficult": found.difficult,
        "crowds": found.crowds,
        "of no area": found.flat,
    }
    always = list(numbers)[:5]
    shown = [
        node("div", node("dt", name), node("dd", f"{value:,g}" if value < 1e6 else f"{value:,}"))
        for name, value in numbers.items()
        if value or name in always
    ]
    return _panel(
        f"{TITLES[inspected.split]} images",
        node("dl", *shown, class_="numbers"),
        node("p", f"Sizes: {describe_sizes(found.sizes)}."),
        wide=False,
    )


def _classes(splits: Sequence[Inspected], remarks: Sequence[str]) -> Element:
    """A row a class, in order of the first split's counts; splits may have other classes, and several of one name."""
    rows: dict[tuple[str, int], list[ClassCount | None]] = {}
    for place, inspected in enumerate(splits):
        repeated: Counter[str] = Counter()
        for one in inspected.classes:
            name = same_name(one.name)
            rows.setdefault((name, repeated[name]), [None] * len(splits))[place] = one
            repeated[name] += 1
    head = [
        node("th", what, node("small", TITLES[each.split].lower()), scope="col")
        for each in splits
        for what in ("objects", "images", "share")
    ]
    totals = [max(1, sum(row.objects for row in each.classes)) for each in splits]
    most = max(row.objects / total for each, total in zip(splits, totals, strict=True) for row in each.classes) or 1
    body = [node("tr", _class_name(counts), *_class_cells(counts, totals, most)) for counts in rows.values()]
    table = node("table", node("thead", node("tr", node("th", "class", scope="col"), *head)), node("tbody", *body))
    said = [node("p", f"{remark[0].upper()}{remark[1:]}.", class_="said") for remark in remarks]
    return _panel("Classes", *said, _scroll(table, "Classes"))


def _class_name(counts: Sequence[ClassCount | None]) -> Element:
    first = next(one for one in counts if one)
    square = node("rect", width=11, height=11, rx=3, fill=_colour(first.label))
    return node("th", node("svg", square, class_="swatch", aria_hidden="true"), printable(first.name), scope="row")


def _class_cells(counts: Sequence[ClassCount | None], totals: Sequence[int], most: float) -> list[Element]:
    cells = []
    for one, total in zip(counts, totals, strict=True):
        objects, images = (one.objects, one.images) if one else (0, 0)
        share = objects / total
        cells += [node("td", f"{objects:,}"), node("td", f"{images:,}"), _bar(f"{share:.1%}", share=share / most)]
    return cells


def _bar(text: str, **parts: float) -> Element:
    """A cell with a text and a bar of parts, each a class of the style with its share of the whole width."""
    bars, left = [], 0.0
    for kind, share in parts.items():
        bars.append(node("rect", class_=kind, x=f"{left:.2%}", width=f"{share:.2%}", height=12))
        left += share
    return node("td", text, node("svg", *bars, aria_hidden="true"), class_="bar-cell")


def _fit_panels(inspected: Inspected, chosen: Candidate) -> list[Element]:
    fit, title = inspected.fit, TITLES[inspected.split]
    if fit is None:
        return []
    size = f"{chosen.image_size} x {chosen.image_size}"
    key = [
        node("span", node("svg", node("rect", width=12, height=12, class_="region")), f"IoU ≥ {MATCH_IOU} with one"),
        node("span", node("svg", node("path", d="M6 1v10M1 6h10", class_="shape")), "a default box"),
        node("span", "dots: objects, in their classes' colours"),
    ]
    shapes = _panel(
        f"{title}: shapes at {size}",
        node("p", f"Sizes are those of the images resized to {size}, without the crops of data augmentation."),
        node("div", shape_chart(inspected.objects, chosen), class_="chart"),
        node("div", *key, class_="key"),
        _scroll(_percentiles(inspected), "Percentiles"),
        wide=False,
    )
    some = f", of {len(fit.objects):,} objects drawn at random" if len(fit.objects) < len(inspected.objects) else ""
    parts = [
        node("p", f"{chosen.model} with {chosen.box_sizes} default boxes{some}."),
        _scroll(_fit_table(fit, chosen), "Fit by size"),
        node(
            "p",
            "Best IoU: mean of each object's highest. Below: learnt by the one default box that is forced on it. "
            "Lost: learnt by none, since another object has the default box.",
        ),
    ]
    if len(fit.ious) > 1:
        parts += [node("h3", "Other networks"), _scroll(_candidates(fit, chosen), "Other networks")]
        parts += [node("p", node("strong", "Advice: "), line) for line in fit.advice]
    return [shapes, _panel(f"{title}: fit of the default boxes", *parts, wide=False)]


def _percentiles(inspected: Inspected) -> Element:
    rows = [
        ("side (√area), px", np.percentile(inspected.objects.sides, PERCENTILES), ".1f"),
        ("width / height", np.percentile(inspected.objects.ratios, PERCENTILES), ".2f"),
    ]
    head = node(
        "tr", node("th", "percentile", scope="col"), *(node("th", f"{one} %", scope="col") for one in PERCENTILES)
    )
    body = [
        node("tr", node("th", name, scope="row"), *(node("td", f"{value:{digits}}") for value in values))
        for name, values, digits in rows
    ]
    return node("table", node("thead", head), node("tbody", *body))


def _fit_table(fit: Fit, chosen: Candidate) -> Element:
    ious = fit.ious[chosen]
    rows = [(interval(row), row) for row in by_size(fit.objects.sides, ious, fit.lost) if row.objects]
    most = max(row.objects for _, row in rows)
    columns = ("side, px", "objects", "best IoU", f"IoU ≥ {MATCH_IOU}, below", "lost")
    head = node("tr", *(node("th", name, scope="col") for name in columns))
    body = []
    for name, row in rows:
        share = row.fitting / row.objects
        bar = _bar(f"{share:.0%}", fits=row.fitting / most, below=(row.objects - row.fitting) / most)
        cells = node("td", f"{row.objects:,}"), node("td", f"{row.mean_iou:.2f}"), bar, node("td", f"{row.lost:,}")
        body.append(node("tr", node("th", name, scope="row"), *cells))
    total = [f"{len(ious):,}", f"{ious.mean():.2f}", f"{share_fitting(ious):.1%}", f"{int(fit.lost.sum()):,}"]
    body.append(node("tr", node("th", "all", scope="row"), *(node("td", text) for text in total)))
    return node("table", node("thead", head), node("tbody", *body))


def _candidates(fit: Fit, chosen: Candidate) -> Element:
    head = node(
        "tr",
        *(node("th", name, scope="col") for name in ("--model, --default-boxes", f"IoU ≥ {MATCH_IOU}", "best IoU")),
    )
    body = []
    for candidate, ious in fit.ious.items():
        mark = [node("small", "as above")] if candidate is chosen else []
        name = node("th", f"{candidate.model}, {candidate.box_sizes}", *mark, scope="row")
        body.append(node("tr", name, node("td", f"{share_fitting(ious):.1%}"), node("td", f"{ious.mean():.2f}")))
    return node("table", node("thead", head), node("tbody", *body))


def _problems(inspected: Inspected, output: Path) -> Element:
    problems = inspected.dataset.problems
    parts = [node("p", problems.message() if problems else "No problems in the annotations.", class_="said")]
    parts.append(node("p", f"Image files read: {inspected.read:,}; not as annotated: {len(inspected.faults):,}."))
    parts += [node("p", line, class_="said") for line in inspected.remarks(PICTURES)]
    for problem in inspected.problems:
        shown = f"{len(problem.pictures)} of {problem.images:,}" if len(problem.pictures) < problem.images else "all"
        images = f"{problem.images:,} image{'s' * (problem.images != 1)}"
        parts += [
            node("h3", f"{problem.kind[0].upper()}{problem.kind[1:]}: {images}, {shown} shown"),
            _pictures(problem.pictures, output),
        ]
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


def _scroll(table: Element, name: str) -> Element:
    return node("div", table, class_="scroll", tabindex=0, role="region", aria_label=name)


def _colour(label: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*label_colour(label))
