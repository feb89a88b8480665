"""VGG16 as a classifier has it, made into the trunk of an SSD (Liu et al. 2016, section 3, "Base network")."""

from collections.abc import Mapping

import numpy as np

from ssd300_vgg16.network.variants import PIXEL_MEAN
from ssd300_vgg16.weights.parameter_names import CONV1_1, FC6, FC7

FULLY_CONNECTED = tuple(f"classifier.{layer}.{part}" for layer in (0, 3) for part in ("weight", "bias"))

# fc6 and fc7 are subsampled as in DeepLab-LargeFOV: a quarter of the outputs, and of 7x7 positions the 3x3 three apart.
EVERY_CHANNEL = 4
EVERY_POSITION = 3
FC6_SIDE = 7
# What torchvision's and flowvision's classifiers take: RGB in 0..1, minus this mean, divided by this deviation.
CLASSIFIER_MEAN = np.array((0.485, 0.456, 0.406), dtype=np.float64)
CLASSIFIER_DEVIATION = np.array((0.229, 0.224, 0.225), dtype=np.float64)


def decimated_fc6(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """fc6 as a 3x3 convolution: [4096, 512 * 7 * 7] and [4096] to [1024, 512, 3, 3] and [1024]."""
    kernels = weight.reshape(len(weight), -1, FC6_SIDE, FC6_SIDE)
    kernels = kernels[::EVERY_CHANNEL, :, ::EVERY_POSITION, ::EVERY_POSITION]
    return np.ascontiguousarray(kernels), np.ascontiguousarray(bias[::EVERY_CHANNEL])


def decimated_fc7(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """fc7 as a 1x1 convolution: [4096, 4096] and [4096] to [1024, 1024, 1, 1] and [1024]."""
    kernels = weight[::EVERY_CHANNEL, ::EVERY_CHANNEL, None, None]
    return np.ascontiguousarray(kernels), np.ascontiguousarray(bias[::EVERY_CHANNEL])


def for_unscaled_pixels(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """conv1_1 of a classifier, [64, 3, 3, 3] and [64], for pixels in 0..255 minus SSD's mean, not normalised ones.

    With it the trunk answers as the classifier's would, but for the border, where padding stands for another grey.
    """
    kernels = weight.astype(np.float64) / (255 * CLASSIFIER_DEVIATION).reshape(1, 3, 1, 1)
    # The classifier sees (p - its mean); here p - SSD's mean goes in.
    shift = np.asarray(PIXEL_MEAN) - 255 * CLASSIFIER_MEAN
    shifted = bias + (kernels.sum(axis=(2, 3)) * shift).sum(axis=1)
    return kernels.astype(np.float32), shifted.astype(np.float32)


def is_whole_classifier(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether the fully connected layers are there, and finite.

    They are not finite in the trunk that torchvision published for training SSDs, which is made for SSD's pixels.
    """
    return all(name in tensors and np.isfinite(tensors[name]).all() for name in FULLY_CONNECTED)


def classifier_as_trunk(
    trunk: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The trunk of a whole classifier (published names), with fc6 and fc7, for SSD's pixels; and what was done to it.

    tensors: the classifier's own.
    """
    fc6 = decimated_fc6(tensors["classifier.0.weight"], tensors["classifier.0.bias"])
    fc7 = decimated_fc7(tensors["classifier.3.weight"], tensors["classifier.3.bias"])
    first = for_unscaled_pixels(trunk[f"{CONV1_1}.weight"], trunk[f"{CONV1_1}.bias"])
    changed = {}
    for layer, pair in ((CONV1_1, first), (FC6, fc6), (FC7, fc7)):
        changed |= {f"{layer}.weight": pair[0], f"{layer}.bias": pair[1]}
    notes = [
        "a whole classifier: fc6 and fc7 were decimated to 3x3 and 1x1 convolutions",
        "conv1_1 was changed to take pixels in 0..255 where the classifier took normalised ones",
    ]
    return {**trunk, **changed}, notes
