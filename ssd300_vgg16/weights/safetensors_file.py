"""Weights in one safetensors file, whose header says what the network is: written whole, and checked when read."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ssd300_vgg16 import reading
from ssd300_vgg16.data.dataset import BACKGROUND, MAX_NAME_LETTERS, Category
from ssd300_vgg16.errors import UserError
from ssd300_vgg16.files import write_atomically
from ssd300_vgg16.network.variants import (
    FITTED,
    MAX_CLASSES,
    MAX_WIDTH,
    SSD300_VGG16,
    VARIANTS,
    Variant,
    fitted_variant,
)
from ssd300_vgg16.schema import check

HEADER = "ssd300_vgg16"
CHECKSUM = "crc32"
MAX_HEADER = 8 << 20  # bytes; safetensors itself takes 100 MB, of which it makes 2 GB


class _Description(TypedDict, total=False):
    """What `ModelDescription.as_json` gives."""

    num_classes: int
    width: float
    categories: list[Category]
    variant: str
    tile_side: int | None
    default_boxes: list[list[list[float]]]


@dataclass(frozen=True)
class ModelDescription:
    """What a file of weights does not say by itself: how wide the network is, and what its outputs mean.

    tile_side: the longer side, in pixels, of the images (or tiles) in which it was shown its objects, the median of
    the objects; None: not known. notes: what was assumed of a file that does not say, as sentences; they are not kept.
    """

    num_classes: int
    width: float
    categories: tuple[Category, ...]
    variant: Variant = SSD300_VGG16
    tile_side: int | None = None
    notes: tuple[str, ...] = field(default=(), compare=False)

    def names(self) -> dict[int, str]:
        """The name of each label."""
        return {category.label: category.name for category in self.categories}

    def as_json(self) -> dict:
        """What `from_json` takes, for the header of a file."""
        categories = [asdict(category) for category in self.categories]
        return {
            "num_classes": self.num_classes,
            "width": self.width,
            "categories": categories,
            "variant": self.variant.name,
            **({} if self.tile_side is None else {"tile_side": self.tile_side}),
            **({"default_boxes": self.variant.layout.shapes} if self.variant.layout.shapes else {}),
        }

    @classmethod
    def from_json(cls, value: dict) -> "ModelDescription":
        """The description that `as_json` wrote; raises KeyError, TypeError or ValueError if it is none."""
        check(value, _Description)
        categories = tuple(Category(**category) for category in value["categories"])
        name = value.get("variant", SSD300_VGG16.name)  # the first files did not name it
        model, _, boxes = name.rpartition("_")
        if boxes == FITTED:
            shapes = tuple(tuple((width, height) for width, height in of_map) for of_map in value["default_boxes"])
            variant = fitted_variant(model, shapes)
        else:
            variant = VARIANTS[name]
        description = cls(value["num_classes"], value["width"], categories, variant, value.get("tile_side"))
        description.refuse_impossible()
        return description

    def refuse_impossible(self) -> None:
        """Raises ValueError for what no network is."""
        if not 2 <= self.num_classes <= MAX_CLASSES:
            raise ValueError(f"{self.num_classes} outputs")
        if not 0 < self.width <= MAX_WIDTH:
            raise ValueError(f"width {self.width:g}")
        if self.tile_side is not None and self.tile_side < 1:
            raise ValueError(f"tiles of {self.tile_side} pixels")
        for category in self.categories:
            if not BACKGROUND < category.label < self.num_classes or len(category.name) > MAX_NAME_LETTERS:
                raise ValueError(f"category {category.label}, {category.name!r:.80}, among {self.num_classes} outputs")


def save_weights(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    description: ModelDescription | None,
    extra: Mapping[str, object] | None = None,
) -> None:
    """Write tensors (the network's and any others), its description and JSON-able extras, atomically and synced.

    description: None for tensors that are not a whole network's. Raises UserError if it cannot be written.
    """
    # safetensors writes arrays as they lie in memory: those of other orders would come back scrambled.
    tensors = {name: np.asarray(array, order="C") for name, array in tensors.items()}
    header: dict[str, object] = {**({"model": description.as_json()} if description else {}), **(extra or {})}
    text = json.dumps({**header, CHECKSUM: checksum(tensors, header)})
    write_atomically(path, save(tensors, metadata={HEADER: text}))


def read_weights(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """All tensors of a safetensors file, and its header (empty if it was not written by this package).

    Raises UserError if the file is missing, is no whole safetensors file, or has changed since it was written.
    """
    try:
        return read_safetensors(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict]:
    """As `read_weights`, whose messages name the file."""
    try:
        with reading.opened(path, reading.WEIGHTS_BYTES) as opened:
            if int.from_bytes(opened.read(8), "little") > MAX_HEADER:
                raise ValueError(f"a header of more than {MAX_HEADER >> 20} MiB")
            with safe_open(f"/proc/self/fd/{opened.fileno()}", framework="numpy") as file:
                header = json.loads((file.metadata() or {}).get(HEADER, "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if not isinstance(header, dict):
            raise UserError("its header is not one that this package wrote; copy it again")
        if header.pop(CHECKSUM, None) not in (None, checksum(tensors, header)):
            raise UserError("damaged (its checksum is another than when it was written); copy it again")
    except FileNotFoundError as error:
        raise UserError("no such file of weights") from error
    except OSError as error:
        raise UserError(f"could not be read ({error.strerror or error})") from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"not a whole safetensors file ({error}); was its copying interrupted?") from error
    return tensors, header


def checksum(tensors: Mapping[str, np.ndarray], header: Mapping[str, object] | None = None) -> int:
    """A CRC-32 of names, numbers and a JSON-able header, whatever their order."""
    crc = zlib.crc32(json.dumps(header or {}).encode())
    for name in sorted(tensors):
        # safetensors has no checksum of its own, and a flipped bit in a weight goes unnoticed.
        crc = zlib.crc32(np.ascontiguousarray(tensors[name]).data, zlib.crc32(name.encode(), crc))
    return crc
