"""The side of torchvision in benchmarks/detect.py and postprocess.py; runs in a Python that has torchvision.

python peer_torchvision.py WEIGHTS.npz: then a line of JSON per request on stdin, answered by a line of JSON.
"""

import json
import statistics
import sys
import time
from types import SimpleNamespace

import numpy as np
import torch
import torchvision
from torchvision.models.detection import ssd300_vgg16
from torchvision.models.detection.image_list import ImageList


def network(path):
    """torchvision's SSD300 with the arrays of an .npz."""
    model = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=91).eval()
    if path:
        with np.load(path) as arrays:
            model.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays})
    return model


def detect(model, paths):
    """Seconds per photograph from file to detections, of which post-processing, and how many were found."""
    spent, found = [], 0
    original = model.postprocess_detections

    def timed(*arguments):
        start = time.perf_counter()
        result = original(*arguments)
        spent.append(time.perf_counter() - start)
        return result

    model.postprocess_detections = timed
    start = time.perf_counter()
    for path in paths:
        image = torchvision.io.read_image(path, torchvision.io.ImageReadMode.RGB).float() / 255
        found += len(model([image])[0]["scores"])
    seconds = (time.perf_counter() - start) / len(paths)
    del model.postprocess_detections
    return {"seconds": seconds, "postprocess": sum(spent) / len(paths), "found": found / len(paths)}


def postprocess(model, path, rounds):
    """Median seconds of post-processing the outputs in an .npz, and what is found."""
    with np.load(path) as arrays:
        offsets, logits = (torch.from_numpy(arrays[name]) for name in ("offsets", "logits"))
    settings = SimpleNamespace(shape=(1, 3, 300, 300))
    maps = [torch.zeros(1, 1, side, side) for side in (38, 19, 10, 5, 3, 1)]
    anchors = model.anchor_generator(ImageList(torch.zeros(settings.shape), [(300, 300)]), maps)
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        found = model.postprocess_detections({"bbox_regression": offsets, "cls_logits": logits}, anchors, [(300, 300)])
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times), "found": len(found[0]["scores"])}


def main():
    model = network(sys.argv[1] if len(sys.argv) > 1 else None)
    for line in sys.stdin:
        request = json.loads(line)
        with torch.inference_mode():
            if "detect" in request:
                answer = detect(model, request["detect"])
            elif "postprocess" in request:
                answer = postprocess(model, request["postprocess"], request["rounds"])
            else:
                answer = {"torch": torch.__version__, "torchvision": torchvision.__version__}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
