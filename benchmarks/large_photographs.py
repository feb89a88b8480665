"""Large photographs for `input_pipeline.py`: some of a folder's, enlarged, with noise as cameras have it.

Each size has a folder, WIDTHxHEIGHT. Either Python imports this, so what only one of them has is imported in functions.
"""

import time
from collections.abc import Callable
from pathlib import Path

SIZES = ((2592, 1944), (4000, 3000))
FILES, NOISE = 8, 8.0  # photographs of each size; levels


def seconds_by_size(folder: Path, prepared: Callable[[Path, int], object]) -> dict[str, float]:
    found = {}
    for size in SIZES:
        paths = sorted((folder / name_of(size)).iterdir())
        prepared(paths[0], 0)
        since = time.process_time()
        for number, path in enumerate(2 * paths):
            prepared(path, number)
        found[name_of(size)] = (time.process_time() - since) / (2 * len(paths))
    return found


def name_of(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def boxes_of(path: Path) -> list[list[float]]:
    """Some boxes in a photograph from `make_large`, by its folder's name."""
    width, height = map(int, path.parent.name.split("x"))
    parts = ((0.1, 0.1, 0.4, 0.5), (0.3, 0.2, 0.9, 0.9), (0.6, 0.5, 0.7, 0.7))
    return [[width * x1, height * y1, width * x2, height * y2] for x1, y1, x2, y2 in parts]


def make_large(data: Path, folder: Path) -> None:
    """Enlarged photographs of the data, by size."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(0)
    for width, height in SIZES:
        target = folder / name_of((width, height))
        target.mkdir()
        for path in sorted((data / "JPEGImages").glob("*.jpg"))[:FILES]:
            image = cv2.resize(cv2.imread(str(path)), (width, height), interpolation=cv2.INTER_CUBIC)
            noise = rng.normal(0, NOISE, (height, width, 1))
            cv2.imwrite(str(target / path.name), np.clip(image + noise, 0, 255).astype(np.uint8))


def differences(folder: Path) -> dict[str, dict[str, float]]:
    """By size, how what the network sees of reduced photographs differs from that of plain ones, in levels."""
    import numpy as np

    from ssd300_vgg16.data.augment import POLICIES, augment
    from ssd300_vgg16.data.images import decode_image

    found = {}
    for size in SIZES:
        levels = []
        for number, path in enumerate(sorted((folder / name_of(size)).iterdir())):
            pair = np.empty((2, 3, 300, 300), dtype=np.uint8)
            for out, min_side in zip(pair, (None, POLICIES["ssd"].min_side(300)), strict=True):
                decoded = decode_image(path, min_side=min_side)
                rng = np.random.default_rng([0, number])
                augment(decoded, np.float32(boxes_of(path)), np.ones(3, dtype=np.int64), rng, "ssd", out)
            levels.append(np.abs(pair[0].astype(int) - pair[1]))
        about = {"mean": np.mean(levels), "p99": np.percentile(levels, 99), "max": np.max(levels)}
        found[name_of(size)] = {"factor": decoded.factor, **{name: float(value) for name, value in about.items()}}
    return found
