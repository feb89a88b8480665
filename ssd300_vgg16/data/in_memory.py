"""Images as a program has them, paths, arrays or Pillow images, in the form that files are read in."""

import os
from contextlib import suppress

import numpy as np
from PIL import Image, ImageOps

from ssd300_vgg16.data.images import read_image
from ssd300_vgg16.errors import UserError

ImageLike = str | os.PathLike | np.ndarray | Image.Image


def rgb(image: object, name: str = "the image") -> np.ndarray:
    """The pixels of an image, uint8 [H, W, 3] RGB; an array that is this already is returned itself.

    image: a file, which is taken upright as a viewer shows it; a Pillow image, whose EXIF orientation is applied too;
    or an array [H, W, 3] RGB, [H, W, 4] RGBA, [H, W] or [H, W, 1] grey, in uint8 (0..255) or floats (0..1).
    Transparency is dropped and the colour underneath kept.
    Raises ImageError for a file that cannot be read, UserError, which begins with the name, for anything else.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image, upright=True)
    if isinstance(image, Image.Image):
        return _of_pillow(image, name)
    if isinstance(image, np.ndarray):
        return _of_array(image, name)
    raise UserError(f"{name}: a path, a numpy array or a Pillow image is needed, not {type(image).__name__}")


def _of_pillow(image: Image.Image, name: str) -> np.ndarray:
    try:
        image.load()
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{name}: the Pillow image cannot be read: {error}") from error
    with suppress(Exception):  # of damaged EXIF data, which is ignored in files too
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):  # convert() would cut their values off at 255
        return _of_array(np.asarray(image), name)
    return _of_array(np.asarray(image.convert("RGB")), name)


def _of_array(image: np.ndarray, name: str) -> np.ndarray:
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 3, 4)):
        channels_first = image.ndim == 3 and image.shape[0] in (1, 3, 4)
        hint = ": its channels come first, and image.transpose(1, 2, 0) puts them last" if channels_first else ""
        raise UserError(f"{name}: an array of shape {image.shape}, not [H, W, 3], [H, W, 4] or [H, W]{hint}")
    if not image.size:
        raise UserError(f"{name}: an array of shape {image.shape} has no pixels")
    if np.issubdtype(image.dtype, np.floating):
        if not (image.min() >= 0 and image.max() <= 1):
            raise UserError(
                f"{name}: floats from {image.min():g} to {image.max():g}, where 0 to 1 is expected: "
                "convert what goes to 255 by image.astype(np.uint8), and undo normalisation"
            )
        image = np.rint(image * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(f"{name}: {image.dtype} values, where uint8 from 0 to 255 or floats from 0 to 1 are expected")
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    return image[..., :3]
