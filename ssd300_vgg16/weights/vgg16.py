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
DECIMATED_TO = 2  # times conv5_3's channels: SSD's fc6 has 1024, conv5_3 512
CONV5_3 = "backbone.extra.0.5.weight"
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
    # The difference of the two means, seen through the kernels, goes into the bias.
    shift = np.asarray(PIXEL_MEAN) - 255 * CLASSIFIER_MEAN
    shifted = bias + (kernels.sum(axis=(2, 3)) * shift).sum(axis=1)
    return kernels.astype(np.float32), shifted.astype(np.float32)


def is_classifier(tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether there are fully connected layers, and their numbers finite: a network for normalised pixels.

    They are not finite in the trunk that torchvision published for training SSDs, which is made for SSD's pixels.
    """
    weights = [array for name, array in tensors.items() if name.startswith("classifier.") and array.size]
    return bool(weights) and all(np.isfinite(array).all() for array in weights)


def classifier_as_trunk(
    trunk: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The trunk of a classifier (published names) for SSD's pixels, with fc6 and fc7; and what was done to it.

    tensors: the classifier's own. Without fc6 and fc7 if it has others than VGG16's, as networks for small images do.
    """
    changed = _pair(CONV1_1, for_unscaled_pixels(trunk[f"{CONV1_1}.weight"], trunk[f"{CONV1_1}.bias"]))
    notes = ["a classifier: conv1_1 was changed to take pixels in 0..255 where the classifier took normalised ones"]
    if _has_vgg16s_fully_connected(trunk, tensors):
        changed |= _pair(FC6, decimated_fc6(tensors["classifier.0.weight"], tensors["classifier.0.bias"]))
        changed |= _pair(FC7, decimated_fc7(tensors["classifier.3.weight"], tensors["classifier.3.bias"]))
        notes.append("its fc6 and fc7 were decimated to 3x3 and 1x1 convolutions")
    return {**trunk, **changed}, notes


def _has_vgg16s_fully_connected(trunk: Mapping[str, np.ndarray], tensors: Mapping[str, np.ndarray]) -> bool:
    """Whether they have 8 times conv5_3's channels, of which decimating leaves what SSD's fc6 and fc7 have."""
    channels = len(trunk.get(CONV5_3, ()))
    wide = DECIMATED_TO * EVERY_CHANNEL * channels
    shapes = {"classifier.0": (wide, channels * FC6_SIDE**2), "classifier.3": (wide, wide)}
    wanted: dict[str, tuple[int, ...]] = {f"{layer}.weight": shape for layer, shape in shapes.items()}
    wanted |= {f"{layer}.bias": shape[:1] for layer, shape in shapes.items()}
    return all(name in tensors and tensors[name].shape == shape for name, shape in wanted.items())


def _pair(layer: str, weight_and_bias: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip((f"{layer}.weight", f"{layer}.bias"), weight_and_bias, strict=True))
