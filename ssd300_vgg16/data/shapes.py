"""A small generated data set in COCO's format, to try training on within minutes and without a download.

Coloured shapes on muted, textured backgrounds: 1 to 5 an image, most of them medium to large. Each class has its
outline and its range of hues, so that a narrow network learns it from scratch in a few hundred steps.
"""

import glob
import json
import secrets
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from ssd300_vgg16 import reading
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import write_atomically
from ssd300_vgg16.folders import held

# Ids with gaps, as in COCO: nothing may take an id for an index.
CATEGORY_IDS = {"circle": 3, "square": 7, "triangle": 11, "star": 18, "ring": 24}
HUES = {"circle": 0, "square": 220, "triangle": 130, "star": 50, "ring": 290}  # degrees
HUE_SPREAD = 10
SPLITS = ("train", "val")
VERSION = 1  # of the pictures: another number, another data set

IMAGE_SIDES = (300, 420)
OBJECTS = (1, 5)
SIZES = (60, 170)  # of the longest side, about, in pixels
SMALL_SIZES = (24, 48)
SMALL_SHARE = 0.1
MIN_VISIBLE = 0.7  # of every object, once all are drawn
PLACEMENT_TRIALS = 20
SUPERSAMPLING = 4
JPEG_QUALITY = 90


def write_shapes(folder: str | Path, train_images: int, val_images: int, seed: int) -> None:
    """Write the data set: folder/{train,val}/*.jpg and folder/annotations/instances_{train,val}.json.

    The same arguments give the same bytes; an image depends on (seed, split, index) only, so more images keep those
    before them. The folder appears at once, when it is complete. One that holds this very data set is left alone.
    Raises UserError for a folder that holds anything else, and when it cannot be written.
    """
    folder = Path(folder).absolute()
    counts = {"train": train_images, "val": val_images}
    if _is_complete(folder, counts, seed):
        return
    # Beside its place, on the same disk, so that the last step is a renaming.
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.tmp")
    try:
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(
                f"{folder} holds something other than the complete generated data set of {train_images} + "
                f"{val_images} images with seed {seed}: remove it or name another folder"
            )
        _clear_up_after_killed(folder)
        (temporary / "annotations").mkdir(parents=True)
        with held(temporary, f"{temporary}: another process has begun to remove it: run it again"):
            for split in SPLITS:
                _write_split(temporary, split, counts, seed)
            temporary.replace(folder)
    except OSError as error:
        if not _is_complete(folder, counts, seed):  # another process may have been first
            raise UserError(f"cannot write the generated data set to {folder}: {error}; name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _clear_up_after_killed(folder: Path) -> None:
    """Remove what processes have left that were killed while they made this data set; nobody holds it."""
    for path in folder.parent.glob(f".{glob.escape(folder.name)}.{'[0-9a-f]' * 16}.tmp"):
        with suppress(UserError, OSError), held(path, "") as locked:
            if locked:
                shutil.rmtree(path)


def _info(counts: dict[str, int], seed: int) -> dict:
    return {"description": "Generated shapes", "version": VERSION, "seed": seed, "images": counts}


def _is_complete(folder: Path, counts: dict[str, int], seed: int) -> bool:
    """Whether folder holds the data set of these arguments, every image there."""
    for split in SPLITS:
        try:
            info = json.loads(reading.read_bytes(_annotation_path(folder, split), reading.ANNOTATION_BYTES))["info"]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if info != _info(counts, seed) or len(list((folder / split).glob("*.jpg"))) != counts[split]:
            return False
    return True


def _annotation_path(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}.json"


def _write_split(folder: Path, split: str, counts: dict[str, int], seed: int) -> None:
    (folder / split).mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(counts[split]):
        image, objects = draw_image(seed, split, index)
        name = f"{index + 1:06d}.jpg"
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        write_atomically(folder / split / name, jpeg.tobytes(), sync=False)
        images.append({"id": index + 1, "file_name": name, "height": image.shape[0], "width": image.shape[1]})
        for category, visible in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": CATEGORY_IDS[category],
                    "bbox": list(cv2.boundingRect(visible.astype(np.uint8))),
                    "area": int(np.count_nonzero(visible)),
                    "iscrowd": 0,
                }
            )
    categories = [{"id": number, "name": name} for name, number in CATEGORY_IDS.items()]
    content = {"info": _info(counts, seed), "images": images, "annotations": annotations, "categories": categories}
    write_atomically(_annotation_path(folder, split), json.dumps(content, indent=1) + "\n")


def draw_image(seed: int, split: str, index: int) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """One image, uint8 [H, W, 3] RGB, and its objects: class name and visible pixels, bool [H, W], of each.

    Sides are 300 to 420 pixels. Objects lie inside the image; at least 70 % of each can be seen.
    """
    # A generator for each image: more images leave those before them as they were.
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    height, width = (int(side) for side in rng.integers(IMAGE_SIDES[0], IMAGE_SIDES[1] + 1, 2))
    image = _background(height, width, rng)
    categories: list[str] = []
    masks: list[np.ndarray] = []
    full_areas: list[int] = []
    for _ in range(rng.integers(OBJECTS[0], OBJECTS[1] + 1)):
        category = str(rng.choice(list(CATEGORY_IDS)))
        placed = _place(category, masks, full_areas, height, width, rng)
        if placed is None:
            continue
        patch, window = placed
        # What is drawn later hides what is below it.
        image[window] = _paint(image[window], patch, _colour(category, rng), rng)
        for mask in masks:
            mask[window] &= patch < 0.5
        masks.append(np.zeros((height, width), dtype=bool))
        masks[-1][window] = patch >= 0.5
        categories.append(category)
        full_areas.append(np.count_nonzero(masks[-1]))
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8), list(zip(categories, masks, strict=True))


def _background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [H, W, 3]: a gradient between two muted colours, blotches and grain."""
    start, end = (rng.uniform(60, 190) + rng.uniform(-18, 18, 3).astype(np.float32) for _ in range(2))
    gradient = start + (end - start) * _ramp(height, width, rng)[..., None]
    coarse = rng.normal(0, rng.uniform(4, 16), rng.integers(4, 14, 2)).astype(np.float32)
    blotches = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    grain = rng.standard_normal((height, width), dtype=np.float32) * np.float32(rng.uniform(2, 9))
    return gradient + (blotches + grain)[..., None]


def _ramp(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [H, W]: 0 to 1 from one side of the image to the other, in some direction."""
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(angle) * np.linspace(-1, 1, width)[None, :] + np.sin(angle) * np.linspace(-1, 1, height)[:, None]
    return ((ramp - ramp.min()) / (ramp.max() - ramp.min())).astype(np.float32)


def _colour(category: str, rng: np.random.Generator) -> np.ndarray:
    """A strong colour of the class, float32 [3] RGB 0..255."""
    hue = (HUES[category] + rng.uniform(-HUE_SPREAD, HUE_SPREAD)) % 360
    hsv = np.array([[[hue, rng.uniform(0.75, 1.0), rng.uniform(190, 255)]]], dtype=np.float32)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)[0, 0]


def _paint(region: np.ndarray, patch: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The shape, a little darker towards one side, laid over a region [S, S, 3] of the image."""
    shade = 1 - np.float32(rng.uniform(0.0, 0.3)) * _ramp(patch.shape[0], patch.shape[1], rng)
    alpha = patch[..., None]
    return region * (1 - alpha) + (shade[..., None] * colour) * alpha


def _place(
    category: str, masks: list[np.ndarray], areas: list[int], height: int, width: int, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[slice, slice]] | None:
    """A shape's coverage [S, S] and where it goes, leaving enough of the others to see; None if no place was found.

    masks, areas: the visible pixels, bool [H, W], and the full area of every object so far.
    """
    for _ in range(PLACEMENT_TRIALS):
        size = rng.uniform(*(SMALL_SIZES if rng.random() < SMALL_SHARE else SIZES))
        patch = _shape_patch(category, size, rng)
        side = len(patch)
        top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
        window = (slice(top, top + side), slice(left, left + side))
        hidden = [np.count_nonzero(mask[window] & (patch >= 0.5)) for mask in masks]
        seen = [np.count_nonzero(mask) - pixels for mask, pixels in zip(masks, hidden, strict=True)]
        if all(pixels >= MIN_VISIBLE * area for pixels, area in zip(seen, areas, strict=True)):
            return patch, window
    return None


def _shape_patch(category: str, size: float, rng: np.random.Generator) -> np.ndarray:
    """Coverage of a shape of about size pixels in a square as small as can be, float32 [S, S] in 0..1."""
    side = int(np.ceil(size)) + 2
    canvas = np.zeros((side * SUPERSAMPLING, side * SUPERSAMPLING), dtype=np.uint8)
    for ring, value in OUTLINES[category](rng.uniform(-0.35, 0.35)):
        corners = (ring * size / 2 + side / 2) * SUPERSAMPLING
        cv2.fillPoly(canvas, [np.rint(corners).astype(np.int32)], (value,))
    # Drawn larger and made smaller, for edges as smooth as a camera's.
    return cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


# Outlines: polygons [K, 2] in -1..1, with the value each is filled with, in order.
Outline = list[tuple[np.ndarray, int]]


def _polygon(corners: int, turn: float, inner: float | None = None) -> np.ndarray:
    """A regular polygon, the first corner up, turned by turn radians; inner: every other corner at that radius."""
    angles = turn - np.pi / 2 + 2 * np.pi * np.arange(corners) / corners
    radii = np.ones(corners)
    if inner is not None:
        radii[1::2] = inner
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


OUTLINES: dict[str, Callable[[float], Outline]] = {
    "circle": lambda turn: [(_polygon(96, turn), 255)],
    "square": lambda turn: [(_polygon(4, turn + np.pi / 4), 255)],
    "triangle": lambda turn: [(_polygon(3, turn), 255)],
    "star": lambda turn: [(_polygon(10, turn, inner=0.45), 255)],
    "ring": lambda turn: [(_polygon(96, turn), 255), (_polygon(96, turn) * 0.55, 0)],
}
