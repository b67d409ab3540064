"""Rows of :data:`LANES` neighbouring channels in registers, for the CPU kernels.

LLVM does not vectorise loops over a state that is kept across time steps, so kernels say
themselves what a vector is: a :class:`Lanes` is an LLVM vector, which every processor's code
generator splits into registers of the width that it has. Everything here is for use inside
``njit`` functions.

Arrays are lines: one dimension, contiguous, indexed without a check or a wrap-around. Half
precision is read from its bits (:func:`espnet_bimamba.ops.cpu_runtime.kind`): unsigned
16-bit integers for bfloat16, signed ones for float16; rows of either are float32.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

# One AVX-512 register, two of AVX2, four of SSE and Neon, in float32.
LANES = 16

# Products and sums may be fused; NaN and infinity keep their meaning, and no sum is reordered.
_FLAGS = ("contract", "nsz")

_INT32 = ir.IntType(32)
_LLVM = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
# What a line of each type holds is computed with as:
_ROW_TYPE = {
    types.float32: types.float32,
    types.float64: types.float64,
    types.uint16: types.float32,
    types.int16: types.float32,
}


class Lanes(types.Type):
    """Numba's type of a row.

    Args:
        dtype: ``types.float32`` or ``types.float64``.
    """

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        super().__init__(name=f"Lanes({dtype})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        super().__init__(manager, lanes, _vector(_LLVM[lanes.dtype]))


def _vector(element: ir.Type, count: int = LANES) -> ir.VectorType:
    return ir.VectorType(element, count)


def _constant(kind: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(kind, [value] * kind.count)


def _all_lanes(builder: Any, value: Any) -> Any:
    nothing = ir.Constant(_vector(value.type), ir.Undefined)
    first = builder.insert_element(nothing, value, _INT32(0))
    return builder.shuffle_vector(first, nothing, ir.Constant(_vector(_INT32), [0] * LANES))


def _address(context: Any, builder: Any, line: Any, array: Any, index: Any, kind: ir.Type) -> Any:
    start = context.make_array(line)(context, builder, array).data
    return builder.bitcast(builder.gep(start, [index]), kind.as_pointer())


def _bytes(line: Any) -> int:
    return int(line.dtype.bitwidth) // 8


def _from_memory(builder: Any, row: Any, dtype: Any) -> Any:
    """Turn a vector of what a line holds into what is computed with."""
    if dtype == types.uint16:
        bits = builder.shl(builder.zext(row, _vector(_INT32)), _constant(_vector(_INT32), 16))
        return builder.bitcast(bits, _vector(ir.FloatType()))
    return _from_float16(builder, row) if dtype == types.int16 else row


def _from_float16(builder: Any, row: Any) -> Any:
    """Widen float16 by its bits: LLVM's own way calls a function where there is no instruction."""
    wide, floats = _vector(_INT32), _vector(ir.FloatType())
    bits = builder.zext(row, wide)
    magnitude = builder.and_(bits, _constant(wide, 0x7FFF))
    shifted = builder.bitcast(builder.shl(magnitude, _constant(wide, 13)), floats)
    # The exponents' biases differ by 112; this makes subnormal numbers right as well.
    finite = builder.bitcast(builder.fmul(shifted, _constant(floats, 2.0**112)), wide)
    special = builder.or_(builder.bitcast(shifted, wide), _constant(wide, 0x7F800000))
    is_special = builder.icmp_unsigned(">=", magnitude, _constant(wide, 0x7C00))
    sign = builder.shl(builder.and_(bits, _constant(wide, 0x8000)), _constant(wide, 16))
    return builder.bitcast(builder.or_(builder.select(is_special, special, finite), sign), floats)


@njit
def aligned_rows(size: int, like: np.ndarray) -> np.ndarray:
    """Return a line of ``size`` numbers of ``like``'s type, not initialised.

    It starts where a line of cache does: a row that crosses one takes twice as long to read.
    """
    room = np.empty(size + LANES, like.dtype)
    skip = -(room.ctypes.data // room.itemsize) % LANES
    return room[skip : skip + size]


@intrinsic
def load(_: Any, array: Any, index: Any) -> Any:
    """Read the row that starts at ``array[index]``."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = signature.args[0]
        array, index = args
        kind = _vector(context.get_data_type(line.dtype))
        address = _address(context, builder, line, array, index, kind)
        return _from_memory(builder, builder.load(address, align=_bytes(line)), line.dtype)

    return Lanes(_ROW_TYPE[array.dtype])(array, types.int64), codegen


@intrinsic
def load_first(_: Any, array: Any, index: Any, count: Any) -> Any:
    """Read ``count`` numbers from ``array[index]`` on; the row's other lanes are zero."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = signature.args[0]
        array, index, count = args
        element = context.get_data_type(line.dtype)
        kind = _vector(element)
        with builder.goto_entry_block():
            place = builder.alloca(kind)
        whole = builder.icmp_signed(">=", count, ir.Constant(count.type, LANES))
        with builder.if_else(whole) as (then, otherwise):
            with then:
                address = _address(context, builder, line, array, index, kind)
                whole_row = builder.load(address, align=_bytes(line))
                whole_end = builder.block
            with otherwise:
                builder.store(ir.Constant(kind, [0] * LANES), place)
                first = builder.bitcast(place, element.as_pointer())
                with cgutils.for_range(builder, count) as loop:
                    source = builder.add(index, loop.index)
                    value = builder.load(_address(context, builder, line, array, source, element))
                    builder.store(value, builder.gep(first, [loop.index]))
                part_of_row = builder.load(place)
                part_end = builder.block
        row = builder.phi(kind)
        row.add_incoming(whole_row, whole_end)
        row.add_incoming(part_of_row, part_end)
        return _from_memory(builder, row, line.dtype)

    return Lanes(_ROW_TYPE[array.dtype])(array, types.int64, types.int64), codegen


@intrinsic
def store(_: Any, array: Any, index: Any, row: Any) -> Any:
    """Write ``row`` from ``array[index]`` on; the array is of the row's type."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, index, row = args
        address = _address(context, builder, signature.args[0], array, index, row.type)
        builder.store(row, address, align=_bytes(signature.args[0]))
        return context.get_dummy_value()

    return types.void(array, types.int64, row), codegen


@intrinsic
def store_first(_: Any, array: Any, index: Any, row: Any, count: Any) -> Any:
    """Write the first ``count`` lanes of ``row`` from ``array[index]`` on."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = signature.args[0]
        array, index, row, count = args
        with builder.goto_entry_block():
            place = builder.alloca(row.type)
        whole = builder.icmp_signed(">=", count, ir.Constant(count.type, LANES))
        with builder.if_else(whole) as (then, otherwise):
            with then:
                address = _address(context, builder, line, array, index, row.type)
                builder.store(row, address, align=_bytes(line))
            with otherwise:
                builder.store(row, place)
                first = builder.bitcast(place, row.type.element.as_pointer())
                with cgutils.for_range(builder, count) as loop:
                    value = builder.load(builder.gep(first, [loop.index]))
                    target = builder.add(index, loop.index)
                    kind = row.type.element
                    builder.store(value, _address(context, builder, line, array, target, kind))
        return context.get_dummy_value()

    return types.void(array, types.int64, row, types.int64), codegen


@intrinsic
def spread(_: Any, array: Any, index: Any) -> Any:
    """Read ``array[index]`` into every lane; the array is float32 or float64."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        line = signature.args[0]
        array, index = args
        element = context.get_data_type(line.dtype)
        address = _address(context, builder, line, array, index, element)
        return _all_lanes(builder, builder.load(address))

    return Lanes(_ROW_TYPE[array.dtype])(array, types.int64), codegen


@intrinsic
def filled(_: Any, array: Any, value: Any) -> Any:
    """Return a row of the number ``value`` in the type that ``array`` is computed in."""
    lanes = Lanes(_ROW_TYPE[array.dtype])

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = context.cast(builder, args[1], signature.args[1], lanes.dtype)
        return _all_lanes(builder, number)

    return lanes(array, value), codegen


@intrinsic
def add_sums(_: Any, array: Any, index: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Add the sums over the lanes of four rows to ``array[index]`` and its three neighbours.

    Four at once, since folding two rows into one costs the same as folding one.
    """

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array, index, *rows = args
        first, second = _fold_pair(builder, *rows[:2]), _fold_pair(builder, *rows[2:])
        quarters = _fold_pair(builder, first, second, half=LANES // 4)
        # Every row has LANES / 4 partial sums now, side by side.
        while quarters.type.count > 4:
            count = quarters.type.count
            evens = _shuffle(builder, quarters, quarters, range(0, count, 2))
            odds = _shuffle(builder, quarters, quarters, range(1, count, 2))
            quarters = builder.fadd(evens, odds)
        line = signature.args[0]
        address = _address(context, builder, line, array, index, quarters.type)
        total = builder.fadd(builder.load(address, align=_bytes(line)), quarters)
        builder.store(total, address, align=_bytes(line))
        return context.get_dummy_value()

    return types.void(array, types.int64, a, b, c, d), codegen


def _fold_pair(builder: Any, a: Any, b: Any, half: int = LANES // 2) -> Any:
    """Add the halves of each group of ``2 * half`` lanes; a's results come before b's."""
    lower = [i for i in range(2 * LANES) if i % (2 * half) < half]
    upper = [i + half for i in lower]
    return builder.fadd(_shuffle(builder, a, b, lower), _shuffle(builder, a, b, upper))


def _shuffle(builder: Any, a: Any, b: Any, lanes: Sequence[int]) -> Any:
    indices = ir.Constant(_vector(_INT32, len(lanes)), list(lanes))
    return builder.shuffle_vector(a, b, indices)


def _arithmetic(symbol: Callable, instruction: str) -> None:
    @intrinsic
    def operate(_: Any, a: Any, b: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args, flags=_FLAGS)

        return a(a, b), codegen

    @overload(symbol)
    def choose(a: Any, b: Any) -> Any:
        def of_lanes(a: Any, b: Any) -> Any:
            return operate(a, b)

        return of_lanes if isinstance(a, Lanes) and a == b else None


_arithmetic(operator.add, "fadd")
_arithmetic(operator.sub, "fsub")
_arithmetic(operator.mul, "fmul")
_arithmetic(operator.truediv, "fdiv")

# 2 ** f = 1 + f * q(f) for f from -1/2 to 1/2; the form is exact at 0, where a small error of the
# decay would grow with the memory of the scan. The polynomial of degree 5 whose largest error in
# units in the last place is smallest (iteratively reweighted least squares).
_EXP2_SERIES = (
    *(0.6931468292471349, 0.24022237035687347, 0.05550891439023964),
    *(0.009671762973028042, 0.0013225707505883152),
)
# log(1 + e) = e * q(e) for e from 0 to 1, error of q 3e-8. A division would take as long as all.
_LOG1P_SERIES: Sequence[float] = np.polynomial.Polynomial.cast(
    np.polynomial.Chebyshev.interpolate(lambda e: np.log1p(e) / e, 9, domain=[0, 1])
).coef.tolist()
_ROUND = 12582912.0  # 1.5 * 2^23: adding it leaves the rounded integer in the low bits
_SMALLEST, _LARGEST = -126.0, 127.5
_LOG2_E = 1 / math.log(2.0)
_LN2_HIGH = 0.693359375  # 9 bits: its product with an exponent is exact
_LN2_LOW = math.log(2.0) - _LN2_HIGH
# Where torch's softplus goes over to the identity.
_LINEAR = 20.0


@intrinsic
def exp2(_: Any, x: Any) -> Any:
    """Return 2 to the power of each lane.

    float32: within 2 ulp (``tests/ops/test_cpu_lanes.py``) from -126 to 127.5; below it gives the
    smallest normal number, 1.2e-38, instead of less, and above it 2 ** 127.5, 2.4e38, instead of
    more; NaN stays NaN. float64: the C library's ``exp2``.
    """
    return x(x), _of_one_row(_exp2)


@intrinsic
def sigmoid(_: Any, x: Any) -> Any:
    """Return 1 / (1 + exp(-x)) of each lane."""
    return x(x), _of_one_row(_sigmoid)


@intrinsic
def softplus(_: Any, x: Any) -> Any:
    """Return log(1 + exp(x)) of each lane and, as torch does, x itself above 20."""
    return x(x), _of_one_row(_softplus)


@intrinsic
def softplus_slope(_: Any, x: Any) -> Any:
    """Return the derivative of :func:`softplus` at each lane."""

    def slope(builder: Any, row: Any) -> Any:
        return _above(builder, row, _LINEAR, _number(row, 1.0), _sigmoid(builder, row))

    return x(x), _of_one_row(slope)


def _of_one_row(build: Callable[[Any, Any], Any]) -> Callable:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return build(builder, *args)

    return codegen


def _above(builder: Any, row: Any, limit: float, above: Any, otherwise: Any) -> Any:
    """Choose by lane; NaN is not above."""
    is_above = builder.fcmp_ordered(">", row, _number(row, limit))
    return builder.select(is_above, above, otherwise)


def _exp2(builder: Any, row: Any) -> Any:
    if row.type.element == ir.DoubleType():
        return _lane_by_lane(builder, "llvm.exp2", row)
    row = _bounded(builder, row, _SMALLEST, _LARGEST)
    shifted = builder.fadd(row, _number(row, _ROUND))
    rest = builder.fsub(row, builder.fsub(shifted, _number(row, _ROUND)))
    return _exp2_of_parts(builder, shifted, rest)


def _exp(builder: Any, row: Any) -> Any:
    if row.type.element == ir.DoubleType():
        return _lane_by_lane(builder, "llvm.exp", row)
    row = _bounded(builder, row, _SMALLEST / _LOG2_E, _LARGEST / _LOG2_E)
    log2_e = _number(row, _LOG2_E)
    shifted = builder.fadd(builder.fmul(row, log2_e), _number(row, _ROUND))
    whole = builder.fsub(shifted, _number(row, _ROUND))
    # Subtracted in two parts, the first one exactly: what is left has all its digits.
    for part in (_LN2_HIGH, _LN2_LOW):
        row = builder.fsub(row, builder.fmul(whole, _number(row, part), flags=_FLAGS), flags=_FLAGS)
    return _exp2_of_parts(builder, shifted, builder.fmul(row, log2_e))


def _bounded(builder: Any, row: Any, smallest: float, largest: float) -> Any:
    # A comparison with NaN is false: NaN passes both.
    for symbol, limit in (("<", smallest), (">", largest)):
        outside = builder.fcmp_ordered(symbol, row, _number(row, limit))
        row = builder.select(outside, _number(row, limit), row)
    return row


def _exp2_of_parts(builder: Any, shifted: Any, rest: Any) -> Any:
    """Put the whole number in the low bits of ``shifted`` into the exponent of 2 ** rest."""
    integers = _vector(_INT32)
    series = _polynomial(builder, rest, [1.0, *_EXP2_SERIES])
    exponent = builder.shl(builder.bitcast(shifted, integers), _constant(integers, 23))
    return builder.bitcast(builder.add(builder.bitcast(series, integers), exponent), rest.type)


def _lane_by_lane(builder: Any, name: str, row: Any) -> Any:
    function = builder.module.declare_intrinsic(name, [row.type.element])
    for lane in map(_INT32, range(LANES)):
        value = builder.call(function, [builder.extract_element(row, lane)])
        row = builder.insert_element(row, value, lane)
    return row


def _sigmoid(builder: Any, row: Any) -> Any:
    decay = _exp(builder, builder.fsub(_number(row, 0.0), row))
    return builder.fdiv(_number(row, 1.0), builder.fadd(_number(row, 1.0), decay))


def _softplus(builder: Any, row: Any) -> Any:
    # max(x, 0) + log(1 + exp(-|x|)): no exponential overflows, and small results keep their digits.
    positive = _above(builder, row, 0.0, row, _number(row, 0.0))
    minus_magnitude = builder.fsub(builder.fsub(row, positive), positive)
    tail = _log1p_of_unit(builder, _exp(builder, minus_magnitude))
    return _above(builder, row, _LINEAR, row, builder.fadd(positive, tail))


def _log1p_of_unit(builder: Any, row: Any) -> Any:
    """Return log(1 + e) for e from 0 to 1, with a small relative error for small e."""
    if row.type.element == ir.FloatType():
        return builder.fmul(row, _polynomial(builder, row, _LOG1P_SERIES))
    # log(1 + e) = 2 artanh(s) with s = e / (2 + e) <= 1/3
    s = builder.fdiv(row, builder.fadd(row, _number(row, 2.0)))
    series = _polynomial(builder, builder.fmul(s, s), [2 / (2 * k + 1) for k in range(18)])
    return builder.fmul(s, series)


def _polynomial(builder: Any, x: Any, coefficients: Sequence[float]) -> Any:
    """Evaluate by Horner's rule, the constant coefficient first."""
    constants = [_number(x, coefficient) for coefficient in coefficients]
    value = constants.pop()
    while constants:
        value = builder.fadd(builder.fmul(value, x, flags=_FLAGS), constants.pop(), flags=_FLAGS)
    return value


def _number(row: Any, value: float) -> ir.Constant:
    """Return ``value`` in every lane, in the type of ``row``."""
    # LLVM refuses a float32 constant that is no float32.
    single = row.type.element == ir.FloatType()
    return _constant(row.type, float(np.float32(value)) if single else float(value))
