"""COCO's annotation files with made-up objects of all kinds, detections of them, and pycocotools' numbers of both."""

import contextlib
import io
import json

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ssd300_vgg16.data.coco import load_coco

# Ids with gaps, out of order; labels are 1, 2, 3 and 4 in order of id. There is never a "unicorn".
CATEGORIES = ((17, "cat"), (3, "dog"), (40, "horse"), (99, "unicorn"))
LABELS = {3: 1, 17: 2, 40: 3, 99: 4}
IMAGE_IDS = (7, 3, 1000, 12, 500, 61)
EMPTY_IMAGES = (12,)


def random_annotations(rng, first_id=1):
    """Objects of all sizes, some of them crowds, some without area, none in EMPTY_IMAGES."""
    annotations = []
    for image_id in set(IMAGE_IDS) - set(EMPTY_IMAGES):
        for _ in range(rng.integers(4, 12)):
            width, height = np.exp(rng.uniform(1.5, 5.5, 2)).round(2).tolist()
            x, y = rng.uniform(0, [640 - width, 480 - height]).round(2).tolist()
            annotations.append(
                {
                    "id": first_id + len(annotations),
                    "image_id": image_id,
                    "category_id": int(rng.choice([3, 17, 40])),
                    "bbox": [x, y, width, 0.0 if rng.random() < 0.1 else height],
                    "area": width * height * 0.8,
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
    return annotations


def write(folder, annotations):
    """The annotation file; the images it names are empty files, since none is opened."""
    (folder / "images").mkdir(exist_ok=True)
    images = [{"id": id_, "file_name": f"{id_}.jpg", "width": 640, "height": 480} for id_ in IMAGE_IDS]
    for image in images:
        (folder / "images" / image["file_name"]).touch()
    categories = [{"id": id_, "name": name} for id_, name in CATEGORIES]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "annotations.json"
    path.write_text(json.dumps(document))
    return path


def load(folder, annotations):
    return load_coco(write(folder, annotations), folder / "images")


def detections_of(*rows):
    """Detections of one image, as `postprocess` makes them, from rows (score, label, box xyxy)."""
    scores, labels, boxes = zip(*rows, strict=True) if rows else ((), (), ())
    return {
        "boxes": np.array(boxes, dtype=np.float32).reshape(-1, 4),
        "scores": np.array(scores, dtype=np.float32),
        "labels": np.array(labels, dtype=np.int64),
    }


def random_detections(rng, annotations):
    """Per image of the file: objects found more or less well, some twice, some not at all, and some that are none."""
    detections = []
    for image_id in IMAGE_IDS:
        rows = []
        for annotation in annotations:
            for _ in range(rng.integers(0, 3) if annotation["image_id"] == image_id else 0):
                x, y, width, height = annotation["bbox"]
                jitter = rng.normal(0, 0.06, 4) * [width, height, width, height]
                label = LABELS[annotation["category_id"]] if rng.random() < 0.9 else 4
                rows.append((np.array([x, y, x + width, y + height]) + jitter, label))
        for _ in range(rng.integers(1, 5)):
            corner = rng.uniform(0, 300, 2)
            rows.append((np.concatenate((corner, corner + rng.uniform(5, 200, 2))), int(rng.integers(1, 4))))
        boxes, labels = (np.array(column) for column in zip(*rows, strict=True))
        scores = -np.sort(-rng.random(len(rows)).astype(np.float32))
        detections.append({"boxes": boxes.astype(np.float32), "scores": scores, "labels": labels})
    return detections


def pycocotools_of_files(annotations, detections, image_ids=None, category_ids=None):
    """The twelve numbers from two files, with nothing of this package."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(detections)), "bbox")
        evaluation.params.imgIds = sorted(image_ids or evaluation.params.imgIds)
        evaluation.params.catIds = category_ids or evaluation.params.catIds
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()
