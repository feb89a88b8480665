"""What is seen on one image: read, shown, and converted for other libraries."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from ssd300_vgg16.boxes import xyxy_to_xywh
from ssd300_vgg16.data.images import ImageLike, rgb
from ssd300_vgg16.draw import draw_detections
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.text import printable

SHOWN_ABOVE = 0.25  # as infer.sh: below it, most detections are of nothing
PRINTED = 10
PREVIEW_SIDE = 800  # in pixels: a notebook keeps its pictures
_KEYS = ("boxes", "scores", "labels", "names")


class Detection(NamedTuple):
    """One of `Detections`."""

    box: np.ndarray  # float32 [4] xyxy in pixels of the image
    score: float
    label: int
    name: str


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """N objects seen on one image, the best first: at most 200 (of each tile), scored above the detector's threshold.

    boxes: float32 [N, 4] xyxy (x1, y1, x2, y2) in pixels of the upright image, within it
    scores: float32 [N] in 0..1, falling
    labels: int64 [N], from 1 up
    names: of the labels, N strings
    category_ids: int64 [N], the labels' ids in the data set that was trained on, such as COCO's; None if they are not
        known, and `to_coco` takes the labels
    source: what the detector was called with, or None. A path is kept, not its pixels, and read again when it is
        shown; an array is kept itself, not copied, and shown as it is then

    `found.boxes` and `found["boxes"]` are the same; so with scores, labels and names, and `dict(found)` holds the four.
    The length is N, iteration gives each `Detection`, and any other index chooses some: `found[:5]`,
    `found[found.scores > 0.5]`. Printed, it is a table of the best ten; a notebook shows `picture()`.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    names: list[str]
    category_ids: np.ndarray | None = None
    source: ImageLike | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def __iter__(self) -> Iterator[Detection]:
        return map(Detection, self.boxes, self.scores.tolist(), self.labels.tolist(), self.names)

    def __contains__(self, key: object) -> bool:
        return key in _KEYS

    def keys(self) -> tuple[str, ...]:
        """The names of what `found[name]` reads."""
        return _KEYS

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in _KEYS:
                raise KeyError(key)
            return getattr(self, key)
        rows = np.atleast_1d(np.arange(len(self))[key])
        return replace(
            self,
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
            names=[self.names[row] for row in rows],
            category_ids=None if self.category_ids is None else self.category_ids[rows],
        )

    def __repr__(self) -> str:
        where = f" on {printable(os.fspath(self.source))}" if isinstance(self.source, str | os.PathLike) else ""
        lines = [f"{len(self)} detection{'' if len(self) == 1 else 's'}{where}"]
        names = [printable(name) for name in self.names[:PRINTED]]
        if names:
            width = max(map(len, ["name", *names]))
            lines.append(f"score  {'name':{width}}      x1      y1      x2      y2")
            for name, score, box in zip(names, self.scores, self.boxes, strict=False):
                lines.append(f"{score:5.3f}  {name:{width}}" + "".join(f"{value:8.1f}" for value in box))
        if len(self) > PRINTED:
            lines.append(f"... and {len(self) - PRINTED} more")
        return "\n".join(lines)

    @property
    def image(self) -> np.ndarray:
        """The image that the boxes refer to, uint8 [H, W, 3] RGB. Raises UserError if it was not kept or is gone."""
        if self.source is None:
            raise UserError("no image is kept with these detections: call the detector without keep_image=False")
        return rgb(self.source)

    def picture(self, score_threshold: float = SHOWN_ABOVE) -> Image.Image:
        """The image, in its size, with the boxes of detections scored above. Raises UserError as `image` does."""
        return Image.fromarray(self[self.scores > score_threshold].drawn_on(self.image))

    def drawn_on(self, image: np.ndarray) -> np.ndarray:
        """A copy of the image, uint8 [H, W, 3] RGB, with all boxes."""
        return draw_detections(image, self.boxes, self.scores, self.names, self.labels)

    def _repr_png_(self) -> bytes | None:
        """The picture, reduced, for a notebook; None, for which it takes the table, where there is no image."""
        try:
            picture = self.picture()
        except UserError:
            return None
        picture.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
        return picture._repr_png_()

    def to_coco(self, image_id: int) -> list[dict]:
        """COCO's results format, ready for json and pycocotools: bbox is x, y, width, height in pixels."""
        ids = self.labels if self.category_ids is None else self.category_ids
        bboxes = xyxy_to_xywh(self.boxes.astype(np.float64)).round(3).tolist()
        return [
            {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}
            for category_id, bbox, score in zip(ids.tolist(), bboxes, self.scores.tolist(), strict=True)
        ]

    def to_numpy(self) -> np.ndarray:
        """float32 [N, 6]: x1, y1, x2, y2 in pixels, score, label."""
        return np.column_stack((self.boxes, self.scores, self.labels.astype(np.float32)))

    def to_pandas(self) -> Any:
        """A DataFrame of N rows: x1, y1, x2, y2, score, label, name. Raises UserError where pandas is not installed."""
        boxes = dict(zip(("x1", "y1", "x2", "y2"), self.boxes.T, strict=True))
        return _installed("pandas").DataFrame(
            {**boxes, "score": self.scores, "label": self.labels, "name": np.array(self.names, dtype=object)}
        )

    def to_supervision(self) -> Any:
        """supervision's Detections: class_id is the label, data["class_name"] the name. UserError as `to_pandas`."""
        return _installed("supervision").Detections(
            xyxy=self.boxes,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )


def _installed(package: str) -> Any:
    if find_spec(package) is None:
        raise UserError(f"{package} is not installed: .venv/bin/python -m pip install {package}")
    return import_module(package)
