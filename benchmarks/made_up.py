"""Made-up images, objects, network answers and weights, the same for all sides.

numpy and the package are imported in the functions: a peer's process may have but one of them, and the package has to
come before numpy, whose BLAS chooses its kernels when it is loaded.
"""

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

OBJECTS_PER_IMAGE = 7  # as in COCO
SIZE = (640, 480)
DIFFERENT = 8  # images of the data set; the others are links to these, which cost as much to read
COUNTS = {"train": 205, "val": 40}  # as many as BCCD has
# Weights whose scores are spread as a trained network's are: each output of the heads has mean 0 and these deviations.
CLASSES = 91
LOGITS_DEVIATION, OFFSETS_DEVIATION, MIN_DEVIATION = 2.0, 1.0, 1e-3
CANDIDATES = 1000  # scores above the threshold in an image


def random_objects(
    images: int, side: int, classes: int, per_image: int = OBJECTS_PER_IMAGE, seed: int = 0
) -> list[tuple]:
    """Boxes float32 [N, 4] xyxy in pixels and labels int64 [N] of each image."""
    import numpy as np

    rng = np.random.default_rng(seed)
    objects = []
    for _ in range(images):
        sides = np.exp(rng.uniform(np.log(0.05), np.log(0.9), (per_image, 2))) * side
        corners = rng.uniform(0, 1, (per_image, 2)) * (side - sides)
        boxes = np.concatenate((corners, corners + sides), axis=1).astype(np.float32)
        objects.append((boxes, rng.integers(1, classes, per_image)))
    return objects


def write_image(path: Path, width: int, height: int, seed: int = 0) -> None:
    """A JPEG with as much detail as a photograph has: smooth shapes, some noise; of about 1.5 bits a pixel."""
    import cv2
    import numpy as np

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    pixels = np.clip(smooth + rng.normal(0, 4, smooth.shape), 0, 255).astype(np.uint8)
    cv2.imwrite(str(path), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])


def write_images(path: str) -> None:
    """A data set in VOC's layout, made unless it is there: 640x480 pixels, 7 objects in each, of 20 classes."""
    folder = Path(path)
    if folder.is_dir():
        return
    aside = folder.with_name(f"{folder.name}.{os.getpid()}")
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (aside / name).mkdir(parents=True)
    for number in range(DIFFERENT):
        write_image(aside / "JPEGImages" / f"{number:06}.jpg", *SIZE, seed=number)
    start = 0
    for split, count in COUNTS.items():
        names = [f"{number:06}" for number in range(start, start + count)]
        for name in names:
            image = aside / "JPEGImages" / f"{name}.jpg"
            if not image.exists():
                image.symlink_to(f"{int(name) % DIFFERENT:06}.jpg")
            annotation = ElementTree.tostring(_annotation(name), encoding="unicode")
            (aside / "Annotations" / f"{name}.xml").write_text(annotation)
        (aside / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        start += count
    aside.rename(folder)


def _annotation(name: str) -> ElementTree.Element:
    def add(parent: ElementTree.Element, tag: str, text: object = "") -> ElementTree.Element:
        child = ElementTree.SubElement(parent, tag)
        child.text = str(text)
        return child

    root = ElementTree.Element("annotation")
    add(root, "filename", f"{name}.jpg")
    size = add(root, "size")
    for tag, value in zip(("width", "height", "depth"), (*SIZE, 3), strict=True):
        add(size, tag, value)
    [(boxes, labels)] = random_objects(1, SIZE[1], 21, seed=int(name))
    for box, label in zip(boxes.round().astype(int).tolist(), labels.tolist(), strict=True):
        entry = add(root, "object")
        add(entry, "name", f"class {label}")
        bounds = add(entry, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            add(bounds, tag, max(value, 1))
    return root


def write_shapes(folder: str, train_images: int, val_images: int) -> None:
    """Generated shapes in COCO's layout; for a fresh process."""
    from ssd300_vgg16.data.shapes import write_shapes

    write_shapes(Path(folder), train_images, val_images, seed=0)


def write_odd_shapes(path: str, kind: str, train_images: int, val_images: int) -> None:
    """As `write_shapes`, "small": a tenth as large, and more of them; or "thin": upright bars, 5 to 9 times as high as
    wide; for a fresh process."""
    import numpy as np

    from ssd300_vgg16.data import shapes

    def bar(turn: float) -> shapes.Outline:
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (0.155 + 0.13 * turn, 1)  # turn: -0.35 to 0.35
        return [(corners, 255)]

    shapes.OBJECTS, shapes.SMALL_SHARE = ((5, 12), 0) if kind == "small" else ((2, 8), 0)
    if kind == "small":
        shapes.SIZES = tuple(side / 10 for side in shapes.SIZES)
    else:
        shapes.OUTLINES = dict.fromkeys(shapes.OUTLINES, bar)
    shapes.write_shapes(path, train_images, val_images, seed=0)


def write_weights(path: str, images: list[str]) -> None:
    """Weights of an SSD300 with COCO's classes whose scores on these images (a dozen will do) are spread realistically.

    The heads' outputs are shifted and scaled to mean 0 and the deviations above; then the background is given so much
    that CANDIDATES scores an image are above the threshold.
    """
    import numpy as np

    from ssd300_vgg16.data.categories import COCO_CATEGORIES
    from ssd300_vgg16.data.images import network_input, read_image
    from ssd300_vgg16.network.ssd import SSD300
    from ssd300_vgg16.runtime import flow
    from ssd300_vgg16.weights.model import model_tensors
    from ssd300_vgg16.weights.safetensors_file import ModelDescription, save_weights

    def standardise(head, deviation: float) -> None:
        for convolution, feature_map in zip(head.module_list, maps, strict=True):
            values = convolution(feature_map).numpy()
            scale = (deviation / np.maximum(values.std(axis=(0, 2, 3)), MIN_DEVIATION)).astype(np.float32)
            weight = convolution.weight.numpy() * scale[:, None, None, None]
            bias = (convolution.bias.numpy() - values.mean(axis=(0, 2, 3))) * scale
            convolution.weight.data.copy_(flow.from_numpy(weight))
            convolution.bias.data.copy_(flow.from_numpy(bias.astype(np.float32)))

    flow.manual_seed(0)
    model = SSD300(CLASSES).eval()
    inputs = np.stack([network_input(read_image(Path(image), upright=True), 300) for image in images])
    with flow.no_grad():
        maps = model.backbone(flow.from_numpy(inputs).to(flow.float32) - model.pixel_mean)
        standardise(model.head.regression_head, OFFSETS_DEVIATION)
        standardise(model.head.classification_head, LOGITS_DEVIATION)
        logits = model.head.classification_head(maps).numpy()
    shift = np.float32(_background_shift(logits, CANDIDATES * len(images)))
    for convolution in model.head.classification_head.module_list:
        bias = convolution.bias.numpy().reshape(-1, CLASSES).copy()
        bias[:, 0] += shift
        convolution.bias.data.copy_(flow.from_numpy(bias.reshape(-1)))
    save_weights(Path(path), model_tensors(model), ModelDescription(CLASSES, 1.0, tuple(COCO_CATEGORIES)))


def _background_shift(logits, candidates: int) -> float:
    """What has to be added to the background's logits so that this many scores are above the threshold."""
    import numpy as np

    from ssd300_vgg16.network.postprocess import SCORE_THRESHOLD

    exponents = np.exp(logits)
    others = exponents[..., 1:]
    low, high = -20.0, 30.0
    for _ in range(30):
        middle = (low + high) / 2
        total = exponents[..., :1] * np.exp(middle) + others.sum(axis=-1, keepdims=True)
        many = np.count_nonzero(others > SCORE_THRESHOLD * total) > candidates
        low, high = (middle, high) if many else (low, middle)
    return high


def shapes_scene(width: int, height: int, objects: int, seed: int):
    """Generated shapes anywhere in an image of any size: uint8 [H, W, 3] RGB, boxes xyxy [N, 4] and N names.

    As many objects as have found a place: at least as much of each is seen as in `write_shapes`.
    """
    import numpy as np

    from ssd300_vgg16.data import shapes

    rng = np.random.default_rng(seed)
    image = shapes._background(height, width, rng)
    owners = np.full((height, width), -1)  # the object that each pixel shows
    names, windows, areas, visible = [], [], np.empty(0), np.empty(0)
    for _ in range(objects):
        name = str(rng.choice(list(shapes.CATEGORY_IDS)))
        for _ in range(shapes.PLACEMENT_TRIALS):
            size = rng.uniform(*(shapes.SMALL_SIZES if rng.random() < shapes.SMALL_SHARE else shapes.SIZES))
            patch = shapes._shape_patch(name, size, rng)
            top, left = rng.integers(0, (height - len(patch) + 1, width - len(patch) + 1))
            window = slice(top, top + len(patch)), slice(left, left + len(patch))
            solid = patch >= 0.5
            below = owners[window][solid]
            left_over = visible - np.bincount(below[below >= 0], minlength=len(names))
            if (left_over >= shapes.MIN_VISIBLE * areas).all():
                image[window] = shapes._paint(image[window], patch, shapes._colour(name, rng), rng)
                owners[window][solid] = len(names)
                names.append(name)
                windows.append(window)
                areas, visible = (np.append(counts, np.count_nonzero(solid)) for counts in (areas, left_over))
                break
    boxes = []
    for number, window in enumerate(windows):
        rows, columns = np.nonzero(owners[window] == number)
        top, left = (side.start for side in window)
        boxes.append((left + columns.min(), top + rows.min(), left + columns.max() + 1, top + rows.max() + 1))
    return np.rint(np.clip(image, 0, 255)).astype(np.uint8), np.array(boxes, dtype=np.float64).reshape(-1, 4), names
