"""The shapes of objects and default boxes as a chart in SVG."""

from xml.etree.ElementTree import Element

import numpy as np

from ssd300_vgg16.boxes import xyxy_to_cxcywh
from ssd300_vgg16.data.matching import MATCH_IOU
from ssd300_vgg16.draw import label_colour
from ssd300_vgg16.inspection.figures import SIZE_LIMITS, Candidate, InputObjects
from ssd300_vgg16.report.static_page import node

MAX_OBJECTS = 3000
SIDE, LEFT, BOTTOM, TOP = 480, 46, 40, 8
GRID = 120  # points along each axis, to find where default boxes fit


def shape_chart(objects: InputObjects, candidate: Candidate) -> Element:
    """Widths and heights of one object or more at the network's input, on logarithmic axes, with the shapes of its
    default boxes and the region in which one of these fits."""
    shapes = np.unique(np.rint(xyxy_to_cxcywh(candidate.default_boxes)[:, 2:] * 10) / 10, axis=0)
    sides = np.concatenate((objects.widths, objects.heights))
    low = float(np.clip(np.percentile(sides, 0.5), 1.0, shapes.min() / 2))
    high = candidate.image_size * 1.1

    def place(values: np.ndarray | float) -> np.ndarray:
        return SIDE * np.log(np.maximum(values, low) / low) / np.log(high / low)

    parts = [node("path", d=_region(np.geomspace(low, high, GRID), shapes), class_="region")]
    rows = np.random.default_rng(0).permutation(len(objects))[:MAX_OBJECTS]
    x, y, labels = place(objects.widths[rows]), SIDE - place(objects.heights[rows]), objects.labels[rows]
    for label in np.unique(labels).tolist():
        dots = "".join(
            f"M{left:.0f} {top:.0f}h0" for left, top in zip(x[labels == label], y[labels == label], strict=True)
        )
        stroke = "#{:02x}{:02x}{:02x}".format(*label_colour(label))
        style = {"stroke_width": 5, "stroke_linecap": "round", "stroke_opacity": 0.6}
        parts.append(node("path", d=dots, stroke=stroke, class_="dots", **style))
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
    """Where a box of these sides [G] fits one of the shapes [K, 2], as the path of a square of SIDE pixels."""
    fits = _centred_iou(sides, shapes) >= MATCH_IOU
    step, path = SIDE / len(sides), []
    for row, line in enumerate(fits):
        ends = np.flatnonzero(np.diff(line, prepend=False, append=False)).reshape(-1, 2) * step
        top = SIDE - (row + 1) * step
        path += [f"M{a:.1f} {top:.1f}H{b:.1f}v{step}H{a:.1f}z" for a, b in ends.tolist()]
    return "".join(path)


def _centred_iou(sides: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """[height, width]: highest IoU of a box of these sides [G] with any of the shapes [K, 2] around the same centre."""
    shared = np.minimum(sides[:, None], shapes[:, 0]), np.minimum(sides[:, None], shapes[:, 1])
    shared = shared[1][:, None] * shared[0][None]  # [G, G, K]
    areas = sides[:, None] * sides[None]
    return (shared / (areas[..., None] + shapes.prod(axis=1) - shared)).max(axis=-1)
