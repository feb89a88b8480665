"""What stays in single precision when a compiled step computes its products in half precision."""

from ssd300_vgg16.runtime import flow


def in_float32(x):
    """x itself, marked in a graph as to be computed and kept in float32.

    Squares and sums over channels or default boxes soon leave the range of half precision. OneFlow chooses each
    operation's precision by itself, from lists and from its neighbours'; this operation is on its list of float32.
    """
    return flow._C.amp_black_identity(x) if x.is_lazy else x
