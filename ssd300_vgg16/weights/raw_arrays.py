"""Arrays out of raw bytes, with every count, stride and offset checked first: what a file says of itself may be false.

Nothing is copied but what numpy cannot show as it is (bfloat16, truth values, the other order of bytes).
"""

from math import prod

import numpy as np

from ssd300_vgg16.errors import UserError

MOST_DIMENSIONS = 8
MOST_NUMBERS = 2**40
BFLOAT16 = "bfloat16"
# Bytes of one number, by the name that numpy and PyTorch share.
ITEM_SIZES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    BFLOAT16: 2,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}


def numbers(raw: bytes, dtype: str, big_endian: bool = False) -> np.ndarray:
    """The bytes as [N] numbers of a type in ITEM_SIZES, in this machine's order; bfloat16 becomes float32.

    The bytes must make whole numbers.
    """
    if dtype == "bool":
        return np.frombuffer(raw, np.uint8).astype(bool)
    if dtype == BFLOAT16:
        return (numbers(raw, "uint16", big_endian).astype(np.uint32) << 16).view(np.float32)
    stored = np.dtype(dtype).newbyteorder(">" if big_endian else "<")
    return np.frombuffer(raw, stored).astype(dtype, copy=False)


def check_shape(shape: object) -> tuple[int, ...]:
    """The shape itself; raises UserError if it is no tuple of a few counts."""
    if not (_is_counts(shape) and len(shape) <= MOST_DIMENSIONS and prod(size or 1 for size in shape) <= MOST_NUMBERS):
        raise UserError(f"its shape is no tuple of up to {MOST_DIMENSIONS} counts; the file is damaged or made up")
    return shape


def strided(values: np.ndarray, offset: object, shape: object, strides: object) -> np.ndarray:
    """The view of [N] values that starts at `offset` and steps by `strides`, all three counted in values.

    Raises UserError for a view that leaves the values, or repeats them to seem more than they are.
    """
    shape = check_shape(shape)
    if not (_is_counts(strides) and len(strides) == len(shape) and _is_counts((offset,))):
        raise UserError("its strides or offset are no counts; the file is damaged or made up")
    count = prod(shape)
    if not count:
        return np.empty(shape, values.dtype)
    end = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
    if end > len(values) or count > len(values):
        raise UserError(
            f"its shape {shape} with strides {strides} from {offset} on reaches beyond the {len(values)} numbers stored"
        )
    item = values.itemsize
    return np.ndarray(shape, values.dtype, values, offset * item, tuple(stride * item for stride in strides))


def _is_counts(values: object) -> bool:
    return isinstance(values, tuple) and all(type(value) is int and 0 <= value <= MOST_NUMBERS for value in values)
