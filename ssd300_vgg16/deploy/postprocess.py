"""Post-processing as ONNX operators, with the constants and the order of arithmetic of network.postprocess."""

import numpy as np

from ssd300_vgg16.boxes import CENTRE_VARIANCE, MAX_LOG_RATIO, SIZE_VARIANCE, xyxy_to_cxcywh
from ssd300_vgg16.deploy.graph import Graph
from ssd300_vgg16.deploy.session import BATCH_INDEX, BOXES, LABELS, SCORES
from ssd300_vgg16.network.postprocess import CANDIDATES_PER_CLASS, DETECTIONS_PER_IMAGE, NMS_IOU
from ssd300_vgg16.network.variants import DefaultBoxLayout, default_boxes


def add_postprocess(
    graph: Graph, offsets: str, logits: str, num_classes: int, layout: DefaultBoxLayout, score_threshold: float
) -> None:
    """Add the detections of a batch, image after image, by falling score, from offsets [B, D, 4] and logits [B, D, C].

    BOXES float32 [N, 4] xyxy as parts of the image's width and height, inside it; SCORES float32 [N]; LABELS int64 [N]
    from 1 up; BATCH_INDEX int64 [N], the image of the batch. As `network.postprocess.postprocess` but for ties: of
    equal scores in several classes the lower label goes first, and of those that tie for a class's last place among
    its candidates the earlier default boxes are taken.
    """
    per_class = min(CANDIDATES_PER_CLASS, len(default_boxes(layout)))
    scores, rows = _candidates(graph, logits, num_classes, per_class)
    boxes = graph.add("GatherND", _decoded(graph, offsets, layout), rows, batch_dims=1)
    kept = _kept_by_nms(graph, boxes, scores, per_class, score_threshold)
    per_image = (num_classes - 1) * per_class
    by_image = graph.add("Reshape", kept, np.array([-1, per_image]))
    graph.add_several(
        "TopK", ("best", "best_places"), by_image, np.array([min(DETECTIONS_PER_IMAGE, per_image)]), axis=1
    )
    # TopK always gives its number: places without a detection have score 0, and are taken out.
    detected = graph.add("Transpose", graph.add("NonZero", graph.add("Greater", "best", np.float32(0))), perm=(1, 0))
    graph.add("GatherND", "best", detected, name=SCORES)
    place = graph.add("GatherND", "best_places", detected)
    # Candidates lie class after class, the background left out: the place tells the label.
    graph.add("Add", graph.add("Div", place, np.int64(per_class)), np.int64(1), name=LABELS)
    image = graph.add("Gather", detected, np.int64(0), axis=1, name=BATCH_INDEX)
    columns = [graph.add("Unsqueeze", value, np.array([1])) for value in (image, place)]
    in_pixels = graph.add("GatherND", boxes, graph.add("Concat", *columns, axis=1))
    graph.add("Div", in_pixels, np.float32(layout.image_size), name=BOXES)


def _candidates(graph: Graph, logits: str, num_classes: int, per_class: int) -> tuple[str, str]:
    """Best scores of each class but the background [B, C - 1, K]; which default boxes have them [B, (C - 1) * K, 1]."""
    scores = graph.add("Softmax", logits, axis=-1)
    scores = graph.add("Slice", scores, np.array([1]), np.array([num_classes]), np.array([2]))
    by_class = graph.add("Transpose", scores, perm=(0, 2, 1))
    graph.add_several("TopK", ("candidates", "candidate_rows"), by_class, np.array([per_class]), axis=2)
    return "candidates", graph.add("Reshape", "candidate_rows", np.array([0, -1, 1]))


def _decoded(graph: Graph, offsets: str, layout: DefaultBoxLayout) -> str:
    """As `boxes.decode` and `boxes.clip`: [B, D, 4] xyxy in pixels of the network's input."""
    defaults = xyxy_to_cxcywh(default_boxes(layout))
    centres = graph.constant("default_centres", defaults[:, :2])
    sizes = graph.constant("default_sizes", defaults[:, 2:])
    graph.add_several("Split", ("centre_offsets", "size_offsets"), offsets, np.array([2, 2]), axis=2)
    shift = graph.add("Mul", graph.add("Mul", "centre_offsets", np.float32(CENTRE_VARIANCE)), sizes)
    centre = graph.add("Add", shift, centres)
    ratio = graph.add("Min", graph.add("Mul", "size_offsets", np.float32(SIZE_VARIANCE)), np.float32(MAX_LOG_RATIO))
    half = graph.add("Div", graph.add("Mul", graph.add("Exp", ratio), sizes), np.float32(2))
    corners = graph.add("Concat", graph.add("Sub", centre, half), graph.add("Add", centre, half), axis=2)
    return graph.add("Clip", corners, np.float32(0), np.float32(layout.image_size))


def _kept_by_nms(graph: Graph, boxes: str, scores: str, per_class: int, score_threshold: float) -> str:
    """Scores [B * (C - 1), 1, K] of the candidates that NMS keeps in their class, and 0 for the others."""
    # ONNX's operator has one set of boxes for all classes of an image, so each class is an image of its own to it.
    boxes = graph.add("Reshape", boxes, np.array([-1, per_class, 4]))
    scores = graph.add("Reshape", scores, np.array([-1, 1, per_class]))
    limits = np.array([DETECTIONS_PER_IMAGE]), np.array([NMS_IOU], np.float32), np.array([score_threshold], np.float32)
    kept = graph.add("NonMaxSuppression", boxes, scores, *limits)
    nothing = graph.add("ConstantOfShape", graph.add("Shape", scores))
    return graph.add("ScatterND", nothing, kept, graph.add("GatherND", scores, kept))
