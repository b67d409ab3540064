"""The causal depthwise convolution on the CPU: Numba kernels, forward and backward.

Channels are the vector lanes, as in the scan: one pass reads each frame's neighbours, adds the
bias and applies the activation. The backward pass recomputes what the activation saw.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet_bimamba.ops.cpu_lanes import (
    LANES,
    aligned_rows,
    filled,
    load,
    load_first,
    sigmoid,
    store,
    store_first,
)
from espnet_bimamba.ops.cpu_runtime import (
    INTEGERS,
    Kernel,
    Place,
    View,
    address,
    channels_last,
    empty_channels_last,
    in_dtype,
    kinds,
    line,
    place,
    run_parallel,
    view,
)
from espnet_bimamba.ops.cpu_team import Team, share_out
from espnet_bimamba.ops.library import records_gradients

# Channels of one work item: long enough rows of memory, few enough for the window to stay in cache.
TILE = 4 * LANES
CHUNK = 64


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    activation: str | None = None,
    reverse: bool = False,
    bidirectional: bool = False,
    lengths: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Serve :func:`espnet_bimamba.ops.causal_conv1d` on CPU tensors."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    others = (in_dtype(t, dtype) for t in (weight, bias, initial_states))
    tensors = (in_dtype(x, x.dtype), *others)
    # Numba would compile everything anew for a number in the place of a bool.
    directions = (bool(reverse), bool(bidirectional), lengths)
    # To call a function of autograd takes as long as what is called around the kernel.
    convolve = _CausalConv1d.apply if records_gradients() else _convolution
    out, final_states = convolve(*tensors, activation is not None, *directions)
    out = in_dtype(out, x.dtype)
    return (out, in_dtype(final_states, x.dtype)) if return_final_states else out


class _Places(NamedTuple):
    """Where the inputs lie; all but the sequence are contiguous."""

    x: Place
    weight: int
    bias: int
    initial_states: int
    lengths: int


class _Views(NamedTuple):
    """The inputs as kernels read them; an absent one is an empty line."""

    x: View
    weight: np.ndarray  # (width, dim)
    bias: np.ndarray
    initial_states: np.ndarray
    lengths: np.ndarray


@njit
def _views(x: _Places, own: np.ndarray, like: np.ndarray) -> _Views:
    """View every input; x is of ``own``'s type, all else of ``like``'s."""
    return _Views(
        view(x.x, own),
        line(x.weight, like),
        line(x.bias, like),
        line(x.initial_states, like),
        line(x.lengths, INTEGERS),
    )


class _Inputs(NamedTuple):
    """The tensors of one convolution, laid out for the kernels."""

    x: Tensor
    weight: Tensor  # (width, dim): a tap's weights of neighbouring channels are side by side
    bias: Tensor | None
    initial_states: Tensor | None
    lengths: Tensor

    @classmethod
    def prepare(
        cls,
        lengths: Tensor | None,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        initial_states: Tensor | None,
    ) -> "_Inputs":
        """Lay out the arguments of a convolution."""
        if lengths is None:
            lengths = torch.full((x.shape[0],), x.shape[2], dtype=torch.int64, device=x.device)
        return cls(
            channels_last(x),
            weight.t().contiguous(),
            None if bias is None else bias.contiguous(),
            None if initial_states is None else initial_states.contiguous(),
            lengths.contiguous(),
        )

    def places(self) -> _Places:
        """Locate every tensor."""
        others = (self.weight, self.bias, self.initial_states, self.lengths)
        return _Places(place(self.x), *map(address, others))

    def plan(self, reverse: bool, bidirectional: bool) -> "_Plan":
        """Cut the convolution into tiles."""
        batch, dim, length = self.x.shape
        directions = 2 if bidirectional else 1
        group = dim // directions
        tiles = directions * -(-group // TILE)
        width = self.weight.shape[0]
        return _Plan(batch, dim, length, width, group, tiles, reverse, bidirectional)


class _Plan(NamedTuple):
    batch: int
    dim: int
    length: int
    width: int
    group: int  # channels of one direction
    tiles: int
    reverse: bool
    bidirectional: bool


class _GradientPlaces(NamedTuple):
    """Where the gradients lie, as :class:`_Places`."""

    dx: Place
    d_weight: int
    d_bias: int
    d_initial: int


class _GradientViews(NamedTuple):
    """The gradients as the kernel writes them, those of weight and bias for each sequence."""

    dx: View
    d_weight: np.ndarray  # (batch, width, dim)
    d_bias: np.ndarray
    d_initial: np.ndarray


@njit
def _gradient_views(x: _GradientPlaces, like: np.ndarray) -> _GradientViews:
    return _GradientViews(
        view(x.dx, like), line(x.d_weight, like), line(x.d_bias, like), line(x.d_initial, like)
    )


def _convolution(*args: Any) -> tuple[Tensor, Tensor]:
    """Do what :class:`_CausalConv1d` does where no gradient is wanted."""
    *tensors, silu, reverse, bidirectional, lengths = args
    inputs = _Inputs.prepare(lengths, *tensors)
    return _run_forward(inputs, inputs.plan(reverse, bidirectional), silu)


def _run_forward(inputs: _Inputs, plan: _Plan, silu: bool) -> tuple[Tensor, Tensor]:
    """Return the output and the last inputs."""
    out = empty_channels_last(inputs.x.shape, inputs.weight)
    final_states = inputs.weight.new_empty(plan.batch, plan.dim, plan.width - 1)
    run_parallel(
        _forward,
        plan.batch * plan.tiles,
        *kinds(inputs.x.dtype, inputs.weight.dtype),
        inputs.places(),
        place(out),
        address(final_states),
        plan,
        silu,
    )
    return out, final_states


class _CausalConv1d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        initial_states: Tensor | None,
        silu: bool,
        reverse: bool,
        bidirectional: bool,
        lengths: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        inputs = _Inputs.prepare(lengths, x, weight, bias, initial_states)
        plan = inputs.plan(reverse, bidirectional)
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*inputs)
            ctx.plan, ctx.silu = plan, silu
        return _run_forward(inputs, plan, silu)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_final_states: Tensor) -> tuple[Tensor | None, ...]:
        inputs, plan = _Inputs(*ctx.saved_tensors), ctx.plan
        like = inputs.weight.dtype
        d_out = channels_last(in_dtype(d_out, like))
        dx = empty_channels_last(d_out.shape, d_out)
        d_weight = d_out.new_empty(plan.batch, plan.width, plan.dim)
        d_bias = d_out.new_empty(plan.batch, plan.dim)
        d_final_states = in_dtype(d_final_states, like).contiguous()
        d_initial = torch.empty_like(d_final_states)
        run_parallel(
            _backward,
            plan.batch * plan.tiles,
            *kinds(inputs.x.dtype, d_out.dtype),
            inputs.places(),
            place(d_out),
            address(d_final_states),
            _GradientPlaces(place(dx), *map(address, (d_weight, d_bias, d_initial))),
            plan,
            ctx.silu,
        )
        return (
            dx.to(inputs.x.dtype),
            d_weight.sum(0).t().contiguous(),
            d_bias.sum(0) if inputs.bias is not None else None,
            d_initial if inputs.initial_states is not None else None,
            None,
            None,
            None,
            None,
        )


class _Column(NamedTuple):
    """Where a row of channels lies: its sequence, first channel and number of channels."""

    b: int
    channel: int
    lanes: int
    end: int  # the sequence's length
    reverse: bool


@njit
def _channels(plan: _Plan, tile: int) -> tuple[int, int]:
    """Return the first channel of a tile and the one after its last."""
    tiles_in_group = -(-plan.group // TILE)
    begin = tile // tiles_in_group * plan.group + tile % tiles_in_group * TILE
    return begin, min(begin + TILE, (tile // tiles_in_group + 1) * plan.group)


@njit
def _column(x: _Views, plan: _Plan, b: int, channel: int, last: int) -> _Column:
    reverse = plan.reverse != (plan.bidirectional and channel >= plan.group)
    return _Column(b, channel, min(LANES, last - channel), x.lengths[b], reverse)


@njit
def _address(x: View, column: _Column, step: int) -> int:
    """Return where the frame of a step of the convolution starts."""
    frame = column.end - 1 - step if column.reverse else step
    return column.b * x.batch + frame * x.length + column.channel


@njit
def _convolve(
    x: _Views,
    plan: _Plan,
    column: _Column,
    first: int,
    count: int,
    sums: np.ndarray,
) -> None:
    """Fill ``sums`` with the outputs of ``count`` steps before their activation, a row a step."""
    y = filled(x.weight, 0)
    if x.bias.size:
        y = load_first(x.bias, column.channel, column.lanes)
    for i in range(count):
        store(sums, i * LANES, y)
    history = plan.width - 1
    sign = -x.x.length if column.reverse else x.x.length
    for k in range(plan.width):
        shift = first - history + k
        tap = load_first(x.weight, k * plan.dim + column.channel, column.lanes)
        start = _address(x.x, column, shift)
        for i in range(max(0, -shift), count):
            seen = load_first(x.x.line, start + i * sign, column.lanes)
            store(sums, i * LANES, load(sums, i * LANES) + tap * seen)
        if x.initial_states.size:
            for i in range(min(count, -shift)):
                for w in range(column.lanes):
                    channel = column.channel + w
                    before = (column.b * plan.dim + channel) * history + history + shift + i
                    sums[i * LANES + w] += (
                        x.weight[k * plan.dim + channel] * x.initial_states[before]
                    )


@njit
def _activate(
    out: View, column: _Column, first: int, count: int, silu: bool, sums: np.ndarray
) -> None:
    """Write the outputs of a chunk."""
    for i in range(count):
        y = load(sums, i * LANES)
        if silu:
            y = y * sigmoid(y)
        store_first(out.line, _address(out, column, first + i), y, column.lanes)


@njit
def _write_zeros(out: View, column: _Column, first: int, last: int) -> None:
    for frame in range(first, last):
        start = column.b * out.batch + frame * out.length + column.channel
        store_first(out.line, start, filled(out.line, 0), column.lanes)


@njit
def _last_inputs(x: _Views, plan: _Plan, column: _Column, final_states: np.ndarray) -> None:
    history = plan.width - 1
    line = np.zeros(history * LANES, x.weight.dtype)
    for j in range(history):
        step = column.end - history + j
        if step >= 0:
            row = load_first(x.x.line, _address(x.x, column, step), column.lanes)
            store(line, j * LANES, row)
        elif x.initial_states.size:
            for w in range(column.lanes):
                start = (column.b * plan.dim + column.channel + w) * history
                line[j * LANES + w] = x.initial_states[start + history + step]
    for j in range(history):
        for w in range(column.lanes):
            start = (column.b * plan.dim + column.channel + w) * history
            final_states[start + j] = line[j * LANES + w]


@njit
def _forward_tiles(
    first: int,
    last: int,
    x: _Views,
    out: View,
    final_states: np.ndarray,
    plan: _Plan,
    silu: bool,
) -> None:
    """Convolve the tiles ``first .. last`` of all (batch, tile)."""
    sums = aligned_rows(CHUNK * LANES, x.weight)
    for item in range(first, last):
        b = item // plan.tiles
        begin, end = _channels(plan, item % plan.tiles)
        channels = range(begin, end, LANES)
        for start in range(0, x.lengths[b], CHUNK):
            count = min(CHUNK, x.lengths[b] - start)
            for channel in channels:
                column = _column(x, plan, b, channel, end)
                _convolve(x, plan, column, start, count, sums)
                _activate(out, column, start, count, silu, sums)
        for channel in channels:
            column = _column(x, plan, b, channel, end)
            _write_zeros(out, column, column.end, plan.length)
            _last_inputs(x, plan, column, final_states)


@njit
def _start_gradients(
    x: _Views,
    plan: _Plan,
    column: _Column,
    d_final_states: np.ndarray,
    gradients: _GradientViews,
) -> None:
    """Give the last inputs the gradients of the final states, and all others zero.

    In a sequence shorter than the window, initial states are among the final ones.
    """
    dx = gradients.dx
    _write_zeros(dx, column, 0, plan.length)
    history = plan.width - 1
    for w in range(column.lanes):
        start = (column.b * plan.dim + column.channel + w) * history
        for j in range(history):
            gradients.d_initial[start + j] = 0
        for j in range(history):
            step = column.end - history + j
            if step >= 0:
                dx.line[_address(dx, column, step) + w] = d_final_states[start + j]
            else:
                gradients.d_initial[start + history + step] = d_final_states[start + j]


@njit
def _read_slopes(
    d_out: View,
    column: _Column,
    first: int,
    count: int,
    silu: bool,
    sums: np.ndarray,
) -> None:
    """Turn a chunk's outputs before their activation into the gradients of the same."""
    one = filled(sums, 1)
    for i in range(count):
        start = _address(d_out, column, first + i)
        dy = load_first(d_out.line, start, column.lanes)
        if silu:
            y = load(sums, i * LANES)
            gate = sigmoid(y)
            dy = dy * gate * (one + y * (one - gate))
        store(sums, i * LANES, dy)


@njit
def _differentiate(
    x: _Views,
    plan: _Plan,
    column: _Column,
    first: int,
    count: int,
    slopes: np.ndarray,
    gradients: _GradientViews,
    d_taps: np.ndarray,
) -> None:
    """Add a chunk's share to the gradients of the inputs, the taps and, behind them, the bias."""
    history = plan.width - 1
    dx = gradients.dx
    sign = -x.x.length if column.reverse else x.x.length
    dx_sign = -dx.length if column.reverse else dx.length
    for k in range(plan.width):
        shift = first - history + k
        tap = load_first(x.weight, k * plan.dim + column.channel, column.lanes)
        d_tap = load(d_taps, k * LANES)
        start, dx_start = (
            _address(x.x, column, shift),
            _address(dx, column, shift),
        )
        for i in range(max(0, -shift), count):
            dy = load(slopes, i * LANES)
            d_tap = d_tap + dy * load_first(x.x.line, start + i * sign, column.lanes)
            target = dx_start + i * dx_sign
            d = load_first(dx.line, target, column.lanes) + dy * tap
            store_first(dx.line, target, d, column.lanes)
        store(d_taps, k * LANES, d_tap)
        for i in range(min(count, -shift)):
            for w in range(column.lanes):
                channel = column.channel + w
                before = (column.b * plan.dim + channel) * history + history + shift + i
                dy_w = slopes[i * LANES + w]
                gradients.d_initial[before] += x.weight[k * plan.dim + channel] * dy_w
                if x.initial_states.size:
                    d_taps[k * LANES + w] += x.initial_states[before] * dy_w
    d_bias = load(d_taps, plan.width * LANES)
    for i in range(count):
        d_bias = d_bias + load(slopes, i * LANES)
    store(d_taps, plan.width * LANES, d_bias)


@njit
def _backward_tiles(
    first: int,
    last: int,
    x: _Views,
    d_out: View,
    d_final_states: np.ndarray,
    gradients: _GradientViews,
    plan: _Plan,
    silu: bool,
) -> None:
    """Differentiate the tiles ``first .. last`` of all (batch, tile)."""
    slopes = aligned_rows(CHUNK * LANES, x.weight)
    d_taps = aligned_rows((plan.width + 1) * LANES, x.weight)
    for item in range(first, last):
        b = item // plan.tiles
        begin, end = _channels(plan, item % plan.tiles)
        for channel in range(begin, end, LANES):
            column = _column(x, plan, b, channel, end)
            d_taps[:] = 0
            _start_gradients(x, plan, column, d_final_states, gradients)
            for start in range(0, column.end, CHUNK):
                count = min(CHUNK, column.end - start)
                _convolve(x, plan, column, start, count, slopes)
                _read_slopes(d_out, column, start, count, silu, slopes)
                _differentiate(x, plan, column, start, count, slopes, gradients, d_taps)
            for w in range(column.lanes):
                gradients.d_bias[b * plan.dim + channel + w] = d_taps[plan.width * LANES + w]
                for k in range(plan.width):
                    target = (b * plan.width + k) * plan.dim + channel + w
                    gradients.d_weight[target] = d_taps[k * LANES + w]


@Kernel
def _forward(
    team: Team,
    own: np.ndarray,
    like: np.ndarray,
    inputs: _Places,
    out: Place,
    final_states: int,
    plan: _Plan,
    silu: bool,
) -> None:
    x, states = _views(inputs, own, like), line(final_states, like)
    share_out(_forward_tiles, team, (x, view(out, like), states, plan, silu))


@Kernel
def _backward(
    team: Team,
    own: np.ndarray,
    like: np.ndarray,
    inputs: _Places,
    d_out: Place,
    d_final_states: int,
    gradients: _GradientPlaces,
    plan: _Plan,
    silu: bool,
) -> None:
    x, dx = _views(inputs, own, like), _gradient_views(gradients, like)
    dy, states = view(d_out, like), line(d_final_states, like)
    share_out(_backward_tiles, team, (x, dy, states, dx, plan, silu))
