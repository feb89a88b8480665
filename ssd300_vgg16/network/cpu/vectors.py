"""Vectors of eight numbers for compiled code, one for each of eight neighbouring channels: as LLVM's vectors.

LLVM by itself keeps no sums of a matrix product in registers, and vectorises no loop over a dozen arrays.
"""

import operator

from llvmlite import ir  # type: ignore[import-untyped]
from numba import float32, types
from numba.extending import intrinsic, models, overload, register_model

LANES = 8
_IR = ir.VectorType(ir.FloatType(), LANES)
_ZEROS, _ONES = ir.Constant(_IR, [0.0] * LANES), ir.Constant(_IR, [1.0] * LANES)


class _Vector(types.Type):
    def __init__(self):
        super().__init__(name=f"Vector{LANES}")


VECTOR = _Vector()


@register_model(_Vector)
class _Model(models.PrimitiveModel):
    def __init__(self, manager, of):
        super().__init__(manager, of, _IR)


def _address(context, builder, array_type, *which):
    array, index, pointed = which
    data = context.make_array(array_type)(context, builder, value=array).data
    return builder.bitcast(builder.gep(data, [index]), pointed.as_pointer())


def _spread(builder, value):
    single = builder.insert_element(ir.Constant(_IR, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES)
    return builder.shuffle_vector(single, ir.Constant(_IR, ir.Undefined), zeros)


@intrinsic
def load(typing, array, place):
    """The vector that begins at a place of a flat array."""

    def generate(context, builder, signature, arguments):
        return builder.load(_address(context, builder, array, *arguments, _IR), align=4)

    return VECTOR(array, types.intp), generate


@intrinsic
def store(typing, array, place, vector):
    def generate(context, builder, signature, arguments):
        builder.store(arguments[2], _address(context, builder, array, *arguments[:2], _IR), align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, VECTOR), generate


@intrinsic
def spread(typing, array, place):
    """A number of a flat array, in each lane."""

    def generate(context, builder, signature, arguments):
        return _spread(builder, builder.load(_address(context, builder, array, *arguments, ir.FloatType())))

    return VECTOR(array, types.intp), generate


@intrinsic
def filled(typing, number):
    return VECTOR(float32), lambda context, builder, signature, arguments: _spread(builder, arguments[0])


@intrinsic
def larger(typing, a, b):
    """The larger of two; not a number if either is not."""

    def generate(context, builder, signature, arguments):
        a, b = arguments
        first = builder.or_(builder.fcmp_ordered(">", a, b), builder.fcmp_unordered("uno", a, a))
        return builder.select(first, a, b)

    return VECTOR(a, b), generate


@intrinsic
def is_equal(typing, a, b):
    """1 where both are the same, 0 elsewhere."""

    def generate(context, builder, signature, arguments):
        return builder.select(builder.fcmp_ordered("==", *arguments), _ONES, _ZEROS)

    return VECTOR(a, b), generate


@intrinsic
def is_positive(typing, a):
    """1 where it is, 0 elsewhere: as a factor it keeps what is not a number."""

    def generate(context, builder, signature, arguments):
        return builder.select(builder.fcmp_ordered(">", arguments[0], _ZEROS), _ONES, _ZEROS)

    return VECTOR(a), generate


def _define(operation, method):
    @intrinsic
    def of_vectors(typing, a, b):
        def generate(context, builder, signature, arguments):
            return getattr(builder, method)(*arguments, flags=("contract",))

        return VECTOR(a, b), generate

    @overload(operation)
    def calculate(a, b):
        if a is VECTOR and b is VECTOR:
            return lambda a, b: of_vectors(a, b)
        if isinstance(a, types.Float) and b is VECTOR:
            return lambda a, b: of_vectors(filled(float32(a)), b)
        return None


for _operation, _method in ((operator.add, "fadd"), (operator.sub, "fsub"), (operator.mul, "fmul")):
    _define(_operation, _method)
