"""The selective scan on the CPU: Numba kernels, forward and backward.

Channels are the vector lanes: a tile of :data:`LANES` neighbouring channels is scanned from the
first step to the last, so nothing of size (batch, dim, length, state) ever exists. Time is cut
into chunks of :data:`CHUNK` steps, whose step sizes, inputs and sums stay in cache while one
:data:`BLOCK` of states after the other passes over them with its state in registers.

The forward pass keeps the state before every chunk; the backward pass recomputes the states of
one chunk at a time from there. Relative to the input, the kept states take ``state / CHUNK`` and
the partial sums of the gradients of B and C ``2 * state / SPAN``.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numba import njit
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet_bimamba.ops.cpu_lanes import (
    LANES,
    add_sums,
    aligned_rows,
    exp2,
    filled,
    load,
    load_first,
    sigmoid,
    softplus,
    softplus_slope,
    spread,
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

CHUNK = 64
BLOCK = 4
# Channels whose share of the gradients of B and C one work item sums. Fixed, so that the result
# does not depend on the number of threads.
SPAN = 128
# Tiles that the forward pass takes through a chunk before the next one.
STRIP = 8

_LN_2 = math.log(2.0)
_LOG2_E = 1 / _LN_2


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    bidirectional: bool = False,
    lengths: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Serve :func:`espnet_bimamba.ops.selective_scan` on CPU tensors."""
    dtype = torch.promote_types(u.dtype, torch.float32)
    # Half precision is read as it is where u and z agree, which keeps the compiled kinds few.
    own = u.dtype if z is None or z.dtype == u.dtype else dtype
    args = (
        in_dtype(u, own),
        *(in_dtype(x, dtype) for x in (delta, A, B, C, D)),
        in_dtype(z, own),
        *(in_dtype(x, dtype) for x in (delta_bias, initial_state)),
        # Numba would compile everything anew for a number in the place of a bool.
        *map(bool, (delta_softplus, reverse, bidirectional)),
        lengths,
        return_last_state,
    )
    # To call a function of autograd takes as long as what is called around the kernel.
    scan = _SelectiveScan.apply if records_gradients() else _scan
    out, last_state = scan(*args)
    out = in_dtype(out, u.dtype)
    return (out, last_state) if return_last_state else out


def _scan(*args: Any) -> tuple[Tensor, Tensor]:
    """Do what :class:`_SelectiveScan` does where no gradient is wanted."""
    *tensors, softplus, reverse, bidirectional, lengths, wants_state = args
    inputs = _Inputs.prepare(lengths, *tensors)
    plan = _Plan.of(inputs, reverse, bidirectional)
    return _run_forward(inputs, plan, softplus, tensors[2].shape[1] if wants_state else 0)


def _run_forward(
    inputs: "_Inputs", plan: "_Plan", softplus: bool, states: int, kept: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the output and, without those that only fill it up, the last state's ``states``."""
    out = empty_channels_last(inputs.u.shape, inputs.delta)
    last_state = inputs.delta.new_empty(plan.batch, plan.dim, plan.state if states else 0)
    run_parallel(
        _forward,
        plan.batch * -(-plan.tiles // plan.tiles_in_strip),
        *kinds(inputs.u.dtype, inputs.delta.dtype),
        inputs.places(),
        place(out),
        address(last_state),
        address(kept),
        plan,
        softplus,
    )
    return out, last_state[..., :states].contiguous()


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        initial_state: Tensor | None,
        softplus: bool,
        reverse: bool,
        bidirectional: bool,
        lengths: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor, Tensor]:
        inputs = _Inputs.prepare(lengths, u, delta, A, B, C, D, z, delta_bias, initial_state)
        plan = _Plan.of(inputs, reverse, bidirectional)
        kept = delta.new_empty(plan.kept_size) if any(ctx.needs_input_grad) else None
        out, last_state = _run_forward(
            inputs, plan, softplus, A.shape[1] if wants_state else 0, kept
        )
        if kept is not None:
            ctx.save_for_backward(*inputs, kept)
            ctx.plan, ctx.softplus = plan, softplus
            ctx.shapes = A.shape, B.shape, C.shape
        return out, last_state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_last_state: Tensor) -> tuple[Tensor | None, ...]:
        *saved, kept = ctx.saved_tensors
        inputs, plan = _Inputs(*saved), ctx.plan
        d_out, d_last_state = (in_dtype(d, inputs.delta.dtype) for d in (d_out, d_last_state))
        d_out = channels_last(d_out)
        d_last_state = _padded(d_last_state, plan.state if d_last_state.numel() else 0)
        d_last_state = d_last_state.contiguous()
        shape_a, shape_b, shape_c = ctx.shapes
        gradients = _Gradients(
            du=empty_channels_last(d_out.shape, d_out),
            d_delta=empty_channels_last(d_out.shape, d_out),
            dz=empty_channels_last(d_out.shape, d_out) if inputs.z is not None else None,
            dA=d_out.new_empty(plan.batch, plan.dim, plan.state),
            dB=plan.partial_sums(d_out, shape_b),
            dC=plan.partial_sums(d_out, shape_c),
            dD=d_out.new_empty(plan.batch, plan.dim),
            d_bias=d_out.new_empty(plan.batch, plan.dim),
            d_initial=d_out.new_empty(plan.batch, plan.dim, plan.state),
        )
        run_parallel(
            _backward,
            plan.batch * plan.spans,
            *kinds(inputs.u.dtype, d_out.dtype),
            inputs.places(),
            address(kept),
            place(d_out),
            address(d_last_state),
            gradients.places(),
            plan,
            ctx.softplus,
        )
        states = shape_a[1]
        return (
            gradients.du.to(inputs.u.dtype),
            gradients.d_delta,
            gradients.dA.sum(0)[:, :states].contiguous(),
            plan.total(gradients.dB, inputs.B, shape_b),
            plan.total(gradients.dC, inputs.C, shape_c),
            gradients.dD.sum(0) if inputs.D is not None else None,
            gradients.dz.to(inputs.u.dtype) if gradients.dz is not None else None,
            gradients.d_bias.sum(0) if inputs.delta_bias is not None else None,
            gradients.d_initial[..., :states].contiguous()
            if inputs.initial_state is not None
            else None,
            None,
            None,
            None,
            None,
            None,
        )


class _Places(NamedTuple):
    """Where the inputs of a scan lie; matrices, vectors and the state are contiguous."""

    u: Place
    delta: Place
    A: int
    B: Place
    C: Place
    D: int
    z: Place
    delta_bias: int
    initial_state: int
    lengths: int


class _Views(NamedTuple):
    """The inputs of a scan as kernels read them; an absent one is an empty line."""

    u: View
    delta: View
    A: np.ndarray
    B: View
    C: View
    D: np.ndarray
    z: View
    delta_bias: np.ndarray
    initial_state: np.ndarray
    lengths: np.ndarray


@njit
def _views(x: _Places, own: np.ndarray, like: np.ndarray) -> _Views:
    """View every input; u and z are of ``own``'s type, all else of ``like``'s."""
    return _Views(
        view(x.u, own),
        view(x.delta, like),
        line(x.A, like),
        view(x.B, like),
        view(x.C, like),
        line(x.D, like),
        view(x.z, own),
        line(x.delta_bias, like),
        line(x.initial_state, like),
        line(x.lengths, INTEGERS),
    )


class _Inputs(NamedTuple):
    """The tensors of one scan, laid out for the kernels.

    Neighbouring channels are side by side in u, delta and z, neighbouring states in A, B, C and
    the initial state, whose states are filled up with zeros to a multiple of :data:`BLOCK`.
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor | None
    lengths: Tensor

    @classmethod
    def prepare(
        cls,
        lengths: Tensor | None,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        z: Tensor | None,
        delta_bias: Tensor | None,
        initial_state: Tensor | None,
    ) -> "_Inputs":
        """Lay out the arguments of a scan."""
        if lengths is None:
            lengths = torch.full((u.shape[0],), u.shape[2], dtype=torch.int64, device=u.device)
        state = -(-A.shape[1] // BLOCK) * BLOCK
        return cls(
            channels_last(u),
            channels_last(delta),
            _padded(A, state).contiguous(),
            _grouped(B, u, state),
            _grouped(C, u, state),
            None if D is None else D.contiguous(),
            None if z is None else channels_last(z),
            None if delta_bias is None else delta_bias.contiguous(),
            None if initial_state is None else _padded(initial_state, state).contiguous(),
            lengths.contiguous(),
        )

    def places(self) -> _Places:
        """Locate every tensor."""
        return _Places(
            place(self.u),
            place(self.delta),
            address(self.A),
            place(self.B),
            place(self.C),
            address(self.D),
            place(self.z),
            address(self.delta_bias),
            address(self.initial_state),
            address(self.lengths),
        )


def _padded(x: Tensor, state: int) -> Tensor:
    """Fill the last axis up with zeros to ``state`` entries."""
    return x if x.shape[-1] == state else F.pad(x, (0, state - x.shape[-1]))


def _grouped(x: Tensor, u: Tensor, state: int) -> Tensor:
    """View B or C as (batch, group, state, length), neighbouring states side by side.

    A time-constant matrix becomes one group a channel, of length 1 in steps of zero.
    """
    if x.dim() == 2:
        x = _padded(x, state).contiguous()
        return x[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[2])
    x = x[:, None] if x.dim() == 3 else x
    if x.stride(2) == 1 and x.shape[2] == state:
        return x
    return _padded(x.transpose(2, 3), state).contiguous().transpose(2, 3)


class _GradientPlaces(NamedTuple):
    """Where the gradients lie, as :class:`_Places`."""

    du: Place
    d_delta: Place
    dz: Place
    dA: int
    dB: Place
    dC: Place
    dD: int
    d_bias: int
    d_initial: int


class _GradientViews(NamedTuple):
    """The gradients as the kernel writes them; that of an absent z is an empty line."""

    du: View
    d_delta: View
    dz: View
    dA: np.ndarray
    dB: View
    dC: View
    dD: np.ndarray
    d_bias: np.ndarray
    d_initial: np.ndarray


@njit
def _gradient_views(x: _GradientPlaces, like: np.ndarray) -> _GradientViews:
    return _GradientViews(
        view(x.du, like),
        view(x.d_delta, like),
        view(x.dz, like),
        line(x.dA, like),
        view(x.dB, like),
        view(x.dC, like),
        line(x.dD, like),
        line(x.d_bias, like),
        line(x.d_initial, like),
    )


class _Gradients(NamedTuple):
    """The gradients of one scan, those of A, B, C, D and the bias in parts still to be summed."""

    du: Tensor
    d_delta: Tensor
    dz: Tensor | None
    dA: Tensor
    dB: Tensor
    dC: Tensor
    dD: Tensor
    d_bias: Tensor
    d_initial: Tensor

    def places(self) -> _GradientPlaces:
        """Locate every tensor."""
        return _GradientPlaces(
            place(self.du),
            place(self.d_delta),
            place(self.dz),
            address(self.dA),
            place(self.dB),
            place(self.dC),
            address(self.dD),
            address(self.d_bias),
            address(self.d_initial),
        )


class _Plan(NamedTuple):
    """How one scan is cut into tiles, strips of neighbouring tiles, spans and chunks."""

    batch: int
    dim: int
    length: int
    state: int  # with those that fill it up
    group: int  # channels that share one row of B, one of C and the direction
    group_b: int  # channels that share one row of B
    group_c: int
    tiles: int
    tiles_in_strip: int
    spans: int
    chunks: int
    reverse: bool
    bidirectional: bool

    @classmethod
    def of(cls, inputs: _Inputs, reverse: bool, bidirectional: bool) -> "_Plan":
        batch, dim, length = inputs.u.shape
        groups_b, groups_c = (max(1, x.shape[1]) for x in (inputs.B, inputs.C))
        groups = math.lcm(groups_b, groups_c, 2 if bidirectional else 1)
        group = dim // groups
        tiles = groups * -(-group // LANES)
        return cls(
            batch,
            dim,
            length,
            inputs.A.shape[1],
            group,
            dim // groups_b,
            dim // groups_c,
            tiles=tiles,
            # Narrower where a strip each would not be enough for all threads.
            tiles_in_strip=max(1, min(STRIP, batch * tiles // (2 * torch.get_num_threads()))),
            spans=groups * -(-group // SPAN),
            chunks=-(-length // CHUNK),
            reverse=reverse,
            bidirectional=bidirectional,
        )

    @property
    def kept_size(self) -> int:
        return self.batch * self.tiles * self.chunks * self.state * LANES

    def partial_sums(self, like: Tensor, shape: torch.Size) -> Tensor:
        """Return zeros (batch, span, state, length) for the gradient of B or C of ``shape``."""
        length = 1 if len(shape) == 2 else self.length
        sums = like.new_zeros(self.batch, self.spans, length, self.state).transpose(2, 3)
        return sums.expand(-1, -1, -1, self.length)

    def total(self, sums: Tensor, x: Tensor, shape: torch.Size) -> Tensor:
        """Add up the spans that share a row of B or C, in the shape the caller gave it."""
        if len(shape) == 2:
            return sums[..., 0].sum(0)[:, : shape[1]].contiguous()
        groups = x.shape[1]
        sums = sums.unflatten(1, (groups, self.spans // groups)).sum(2)
        return sums[:, :, : shape[-2]].reshape(shape)


class _Tile(NamedTuple):
    """Where a tile of channels lies: its sequence, first channel and number of channels."""

    b: int
    channel: int
    width: int
    end: int  # the sequence's length
    b_start: int  # where its row of B starts
    c_start: int
    reverse: bool


class _Scratch(NamedTuple):
    """What stays in cache of one chunk: a row a step of each."""

    steps: np.ndarray
    inputs: np.ndarray  # the step size times u
    sums: np.ndarray


@njit
def _scratch(like: np.ndarray) -> _Scratch:
    return _Scratch(
        aligned_rows(CHUNK * LANES, like),
        aligned_rows(CHUNK * LANES, like),
        aligned_rows(CHUNK * LANES, like),
    )


@njit
def _tile(x: _Views, plan: _Plan, b: int, channel: int, width: int) -> _Tile:
    return _Tile(
        b,
        channel,
        width,
        x.lengths[b],
        b * x.B.batch + channel // plan.group_b * x.B.group,
        b * x.C.batch + channel // plan.group_c * x.C.group,
        plan.reverse != (plan.bidirectional and channel >= plan.dim // 2),
    )


@njit
def _frame(tile: _Tile, step: int) -> int:
    """Return the frame that a step of the scan reads."""
    return tile.end - 1 - step if tile.reverse else step


@njit
def _address(x: View, tile: _Tile, frame: int) -> int:
    return tile.b * x.batch + frame * x.length + tile.channel


@njit
def _turn_in(states: np.ndarray, line: np.ndarray, tile: _Tile, plan: _Plan) -> None:
    """Read a tile of (batch or 1, dim, state) so that channels are side by side."""
    for n in range(plan.state):
        for w in range(tile.width):
            states[n * LANES + w] = line[(tile.channel + w) * plan.state + n]


@njit
def _turn_out(line: np.ndarray, states: np.ndarray, tile: _Tile, plan: _Plan) -> None:
    """Write a tile of (batch, dim, state): the inverse of :func:`_turn_in`."""
    start = tile.b * plan.dim + tile.channel
    for n in range(plan.state):
        for w in range(tile.width):
            line[(start + w) * plan.state + n] = states[n * LANES + w]


@njit
def _read_chunk(
    x: _Views,
    tile: _Tile,
    first: int,
    count: int,
    has_softplus: bool,
    scratch: _Scratch,
) -> None:
    """Compute the step sizes of a chunk, the inputs times them, and D times the inputs."""
    bias = filled(x.delta.line, 0)
    skip = filled(x.delta.line, 0)
    if x.delta_bias.size:
        bias = load_first(x.delta_bias, tile.channel, tile.width)
    if x.D.size:
        skip = load_first(x.D, tile.channel, tile.width)
    for i in range(count):
        t = _frame(tile, first + i)
        u = load_first(x.u.line, _address(x.u, tile, t), tile.width)
        step = load_first(x.delta.line, _address(x.delta, tile, t), tile.width) + bias
        if has_softplus:
            step = softplus(step)
        store(scratch.steps, i * LANES, step)
        store(scratch.inputs, i * LANES, step * u)
        store(scratch.sums, i * LANES, skip * u)


@njit
def _scan_block(
    x: _Views,
    tile: _Tile,
    n: int,
    first: int,
    count: int,
    scratch: _Scratch,
    a: np.ndarray,
    h: np.ndarray,
) -> None:
    """Take the states ``n .. n + BLOCK`` through a chunk, adding to the sums."""
    n0, n1, n2, n3 = n * LANES, (n + 1) * LANES, (n + 2) * LANES, (n + 3) * LANES
    a0, a1, a2, a3 = load(a, n0), load(a, n1), load(a, n2), load(a, n3)
    h0, h1, h2, h3 = load(h, n0), load(h, n1), load(h, n2), load(h, n3)
    for i in range(count):
        t = _frame(tile, first + i)
        step, v = load(scratch.steps, i * LANES), load(scratch.inputs, i * LANES)
        y = load(scratch.sums, i * LANES)
        b = tile.b_start + t * x.B.length + n
        c = tile.c_start + t * x.C.length + n
        h0 = exp2(step * a0) * h0 + v * spread(x.B.line, b)
        h1 = exp2(step * a1) * h1 + v * spread(x.B.line, b + 1)
        h2 = exp2(step * a2) * h2 + v * spread(x.B.line, b + 2)
        h3 = exp2(step * a3) * h3 + v * spread(x.B.line, b + 3)
        y = y + h0 * spread(x.C.line, c) + h1 * spread(x.C.line, c + 1)
        y = y + h2 * spread(x.C.line, c + 2) + h3 * spread(x.C.line, c + 3)
        store(scratch.sums, i * LANES, y)
    store(h, n0, h0)
    store(h, n1, h1)
    store(h, n2, h2)
    store(h, n3, h3)


@njit
def _nth_tile(x: _Views, plan: _Plan, b: int, index: int) -> _Tile:
    tiles_in_group = -(-plan.group // LANES)
    begin = index // tiles_in_group * plan.group + index % tiles_in_group * LANES
    width = min(LANES, (index // tiles_in_group + 1) * plan.group - begin)
    return _tile(x, plan, b, begin, width)


@njit
def _start_tile(x: _Views, plan: _Plan, tile: _Tile, a: np.ndarray, h: np.ndarray) -> None:
    """Read a tile's A, for powers of two, and the state that it starts from."""
    a[:], h[:] = 0, 0
    _turn_in(a, x.A, tile, plan)
    for i in range(a.size):
        a[i] *= _LOG2_E
    if x.initial_state.size:
        _turn_in(h, x.initial_state[tile.b * plan.dim * plan.state :], tile, plan)


@njit
def _write_outputs(
    x: _Views, out: View, tile: _Tile, first: int, count: int, sums: np.ndarray
) -> None:
    for i in range(count):
        t = _frame(tile, first + i)
        y = load(sums, i * LANES)
        if x.z.line.size:
            z = load_first(x.z.line, _address(x.z, tile, t), tile.width)
            y = y * z * sigmoid(z)
        store_first(out.line, _address(out, tile, t), y, tile.width)


@njit
def _forward_strips(
    first: int,
    last: int,
    x: _Views,
    out: View,
    last_state: np.ndarray,
    kept: np.ndarray,
    plan: _Plan,
    has_softplus: bool,
) -> None:
    """Scan the strips ``first .. last`` of all (batch, strip)."""
    scratch = _scratch(x.delta.line)
    size = plan.state * LANES
    a = aligned_rows(plan.tiles_in_strip * size, x.delta.line).reshape(-1, size)
    h = aligned_rows(plan.tiles_in_strip * size, x.delta.line).reshape(-1, size)
    strips = -(-plan.tiles // plan.tiles_in_strip)
    for item in range(first, last):
        b, begin = item // strips, item % strips * plan.tiles_in_strip
        indices = range(begin, min(begin + plan.tiles_in_strip, plan.tiles))
        for index in indices:
            k = index - begin
            _start_tile(x, plan, _nth_tile(x, plan, b, index), a[k], h[k])
        # One chunk of all tiles before the next: what they read lies side by side.
        for start in range(0, x.lengths[b], CHUNK):
            count = min(CHUNK, x.lengths[b] - start)
            for index in indices:
                k = index - begin
                tile = _nth_tile(x, plan, b, index)
                if kept.size:
                    place = ((b * plan.tiles + index) * plan.chunks + start // CHUNK) * size
                    kept[place : place + size] = h[k]
                _read_chunk(x, tile, start, count, has_softplus, scratch)
                for n in range(0, plan.state, BLOCK):
                    _scan_block(x, tile, n, start, count, scratch, a[k], h[k])
                _write_outputs(x, out, tile, start, count, scratch.sums)
        for index in indices:
            tile = _nth_tile(x, plan, b, index)
            for t in range(tile.end, plan.length):
                store_first(out.line, _address(out, tile, t), filled(out.line, 0), tile.width)
            if last_state.size:
                _turn_out(last_state, h[index - begin], tile, plan)


class _Slopes(NamedTuple):
    """What stays in cache of one chunk of the backward pass beside :class:`_Scratch`.

    ``befores`` and ``decays`` hold a row for each step and each state of a block: the state before
    the step and what it is multiplied by in it.
    """

    befores: np.ndarray
    decays: np.ndarray
    outputs: np.ndarray  # the gradient of the sums
    inputs: np.ndarray  # the gradient of the step size times u
    steps: np.ndarray  # the gradient of the step size through the decays, over log(2)


@njit
def _slopes(like: np.ndarray) -> _Slopes:
    return _Slopes(
        aligned_rows(CHUNK * BLOCK * LANES, like),
        aligned_rows(CHUNK * BLOCK * LANES, like),
        aligned_rows(CHUNK * LANES, like),
        aligned_rows(CHUNK * LANES, like),
        aligned_rows(CHUNK * LANES, like),
    )


@njit
def _read_slopes(
    x: _Views,
    d_out: View,
    tile: _Tile,
    first: int,
    count: int,
    slopes: _Slopes,
) -> None:
    """Take the gradient of a chunk's outputs through the gate, and forget the other gradients."""
    zero = filled(x.delta.line, 0)
    for i in range(count):
        t = _frame(tile, first + i)
        dy = load_first(d_out.line, _address(d_out, tile, t), tile.width)
        if x.z.line.size:
            z = load_first(x.z.line, _address(x.z, tile, t), tile.width)
            dy = dy * z * sigmoid(z)
        store(slopes.outputs, i * LANES, dy)
        store(slopes.inputs, i * LANES, zero)
        store(slopes.steps, i * LANES, zero)


@njit
def _recompute_block(
    x: _Views,
    tile: _Tile,
    n: int,
    first: int,
    count: int,
    scratch: _Scratch,
    slopes: _Slopes,
    a: np.ndarray,
    h: np.ndarray,
) -> None:
    """Do what :func:`_scan_block` does, keeping states and decays; ``h`` ends as the last one."""
    n0, n1, n2, n3 = n * LANES, (n + 1) * LANES, (n + 2) * LANES, (n + 3) * LANES
    a0, a1, a2, a3 = load(a, n0), load(a, n1), load(a, n2), load(a, n3)
    h0, h1, h2, h3 = load(h, n0), load(h, n1), load(h, n2), load(h, n3)
    for i in range(count):
        t = _frame(tile, first + i)
        step, v = load(scratch.steps, i * LANES), load(scratch.inputs, i * LANES)
        y = load(scratch.sums, i * LANES)
        b = tile.b_start + t * x.B.length + n
        c = tile.c_start + t * x.C.length + n
        row = i * BLOCK * LANES
        e0, e1, e2, e3 = exp2(step * a0), exp2(step * a1), exp2(step * a2), exp2(step * a3)
        store(slopes.befores, row, h0)
        store(slopes.befores, row + LANES, h1)
        store(slopes.befores, row + 2 * LANES, h2)
        store(slopes.befores, row + 3 * LANES, h3)
        store(slopes.decays, row, e0)
        store(slopes.decays, row + LANES, e1)
        store(slopes.decays, row + 2 * LANES, e2)
        store(slopes.decays, row + 3 * LANES, e3)
        h0 = e0 * h0 + v * spread(x.B.line, b)
        h1 = e1 * h1 + v * spread(x.B.line, b + 1)
        h2 = e2 * h2 + v * spread(x.B.line, b + 2)
        h3 = e3 * h3 + v * spread(x.B.line, b + 3)
        y = y + h0 * spread(x.C.line, c) + h1 * spread(x.C.line, c + 1)
        y = y + h2 * spread(x.C.line, c + 2) + h3 * spread(x.C.line, c + 3)
        store(scratch.sums, i * LANES, y)
    store(h, n0, h0)
    store(h, n1, h1)
    store(h, n2, h2)
    store(h, n3, h3)


@njit
def _differentiate_block(
    x: _Views,
    gradients: _GradientViews,
    tile: _Tile,
    span: int,
    n: int,
    first: int,
    count: int,
    scratch: _Scratch,
    slopes: _Slopes,
    a: np.ndarray,
    h: np.ndarray,
    da: np.ndarray,
    dh: np.ndarray,
) -> None:
    """Take the gradient of the states ``n .. n + BLOCK`` back through a chunk."""
    n0, n1, n2, n3 = n * LANES, (n + 1) * LANES, (n + 2) * LANES, (n + 3) * LANES
    a0, a1, a2, a3 = load(a, n0), load(a, n1), load(a, n2), load(a, n3)
    h0, h1, h2, h3 = load(h, n0), load(h, n1), load(h, n2), load(h, n3)
    da0, da1, da2, da3 = load(da, n0), load(da, n1), load(da, n2), load(da, n3)
    dh0, dh1, dh2, dh3 = load(dh, n0), load(dh, n1), load(dh, n2), load(dh, n3)
    db_start = tile.b * gradients.dB.batch + span * gradients.dB.group + n
    dc_start = tile.b * gradients.dC.batch + span * gradients.dC.group + n
    for i in range(count - 1, -1, -1):
        t = _frame(tile, first + i)
        step, v = load(scratch.steps, i * LANES), load(scratch.inputs, i * LANES)
        dy = load(slopes.outputs, i * LANES)
        dv, dstep = load(slopes.inputs, i * LANES), load(slopes.steps, i * LANES)
        b = tile.b_start + t * x.B.length + n
        c = tile.c_start + t * x.C.length + n
        row = i * BLOCK * LANES
        add_sums(
            gradients.dC.line,
            dc_start + t * gradients.dC.length,
            dy * h0,
            dy * h1,
            dy * h2,
            dy * h3,
        )
        dh0 = dh0 + dy * spread(x.C.line, c)
        dh1 = dh1 + dy * spread(x.C.line, c + 1)
        dh2 = dh2 + dy * spread(x.C.line, c + 2)
        dh3 = dh3 + dy * spread(x.C.line, c + 3)
        add_sums(
            gradients.dB.line,
            db_start + t * gradients.dB.length,
            dh0 * v,
            dh1 * v,
            dh2 * v,
            dh3 * v,
        )
        dv = dv + dh0 * spread(x.B.line, b) + dh1 * spread(x.B.line, b + 1)
        dv = dv + dh2 * spread(x.B.line, b + 2) + dh3 * spread(x.B.line, b + 3)
        h0, h1 = load(slopes.befores, row), load(slopes.befores, row + LANES)
        h2, h3 = load(slopes.befores, row + 2 * LANES), load(slopes.befores, row + 3 * LANES)
        dh0 = dh0 * load(slopes.decays, row)
        dh1 = dh1 * load(slopes.decays, row + LANES)
        dh2 = dh2 * load(slopes.decays, row + 2 * LANES)
        dh3 = dh3 * load(slopes.decays, row + 3 * LANES)
        p0, p1, p2, p3 = dh0 * h0, dh1 * h1, dh2 * h2, dh3 * h3
        dstep = dstep + p0 * a0 + p1 * a1 + p2 * a2 + p3 * a3
        da0, da1, da2, da3 = da0 + p0 * step, da1 + p1 * step, da2 + p2 * step, da3 + p3 * step
        store(slopes.inputs, i * LANES, dv)
        store(slopes.steps, i * LANES, dstep)
    store(da, n0, da0)
    store(da, n1, da1)
    store(da, n2, da2)
    store(da, n3, da3)
    store(dh, n0, dh0)
    store(dh, n1, dh1)
    store(dh, n2, dh2)
    store(dh, n3, dh3)


@njit
def _write_chunk(
    x: _Views,
    d_out: View,
    gradients: _GradientViews,
    tile: _Tile,
    first: int,
    count: int,
    has_softplus: bool,
    scratch: _Scratch,
    slopes: _Slopes,
    sums: np.ndarray,
) -> None:
    """Write a chunk's gradients of u, delta and z; add those of D and the bias to ``sums``."""
    bias = filled(x.delta.line, 0)
    skip = filled(x.delta.line, 0)
    one = filled(x.delta.line, 1)
    log_2 = filled(x.delta.line, _LN_2)
    if x.delta_bias.size:
        bias = load_first(x.delta_bias, tile.channel, tile.width)
    if x.D.size:
        skip = load_first(x.D, tile.channel, tile.width)
    d_skip, d_bias = load(sums, 0), load(sums, LANES)
    for i in range(count):
        t = _frame(tile, first + i)
        u = load_first(x.u.line, _address(x.u, tile, t), tile.width)
        dy, dv = load(slopes.outputs, i * LANES), load(slopes.inputs, i * LANES)
        du = dv * load(scratch.steps, i * LANES) + dy * skip
        store_first(gradients.du.line, _address(gradients.du, tile, t), du, tile.width)
        dstep = dv * u + load(slopes.steps, i * LANES) * log_2
        if has_softplus:
            pre = load_first(x.delta.line, _address(x.delta, tile, t), tile.width) + bias
            dstep = dstep * softplus_slope(pre)
        store_first(gradients.d_delta.line, _address(gradients.d_delta, tile, t), dstep, tile.width)
        d_skip, d_bias = d_skip + dy * u, d_bias + dstep
        if x.z.line.size:
            z = load_first(x.z.line, _address(x.z, tile, t), tile.width)
            gate = sigmoid(z)
            dz = load_first(d_out.line, _address(d_out, tile, t), tile.width)
            dz = dz * load(scratch.sums, i * LANES) * gate * (one + z * (one - gate))
            store_first(gradients.dz.line, _address(gradients.dz, tile, t), dz, tile.width)
    store(sums, 0, d_skip)
    store(sums, LANES, d_bias)


@njit
def _write_padding(gradients: _GradientViews, tile: _Tile, length: int) -> None:
    zero = filled(gradients.du.line, 0)
    for t in range(tile.end, length):
        store_first(gradients.du.line, _address(gradients.du, tile, t), zero, tile.width)
        store_first(gradients.d_delta.line, _address(gradients.d_delta, tile, t), zero, tile.width)
        if gradients.dz.line.size:
            store_first(gradients.dz.line, _address(gradients.dz, tile, t), zero, tile.width)


@njit
def _backward_spans(
    first: int,
    last: int,
    x: _Views,
    kept: np.ndarray,
    d_out: View,
    d_last_state: np.ndarray,
    gradients: _GradientViews,
    plan: _Plan,
    has_softplus: bool,
) -> None:
    """Differentiate the spans ``first .. last`` of all (batch, span)."""
    like = x.delta.line
    scratch, slopes = _scratch(like), _slopes(like)
    size = plan.state * LANES
    a, h = aligned_rows(size, like), aligned_rows(size, like)
    da, dh = aligned_rows(size, like), aligned_rows(size, like)
    sums = aligned_rows(2 * LANES, like)
    tiles_in_group, spans_in_group = -(-plan.group // LANES), -(-plan.group // SPAN)
    for item in range(first, last):
        b, span = item // plan.spans, item % plan.spans
        group_end = (span // spans_in_group + 1) * plan.group
        span_begin = span // spans_in_group * plan.group + span % spans_in_group * SPAN
        span_end = min(span_begin + SPAN, group_end)
        for begin in range(span_begin, span_end, LANES):
            tile = _tile(x, plan, b, begin, min(LANES, span_end - begin))
            index = begin // plan.group * tiles_in_group + begin % plan.group // LANES
            da[:], dh[:], sums[:] = 0, 0, 0
            _start_tile(x, plan, tile, a, h)
            if d_last_state.size:
                _turn_in(dh, d_last_state[b * plan.dim * plan.state :], tile, plan)
            for chunk in range(-(-tile.end // CHUNK) - 1, -1, -1):
                start = chunk * CHUNK
                count = min(CHUNK, tile.end - start)
                k = ((b * plan.tiles + index) * plan.chunks + chunk) * size
                h[:] = kept[k : k + size]
                _read_chunk(x, tile, start, count, has_softplus, scratch)
                _read_slopes(x, d_out, tile, start, count, slopes)
                for n in range(0, plan.state, BLOCK):
                    _recompute_block(x, tile, n, start, count, scratch, slopes, a, h)
                    _differentiate_block(
                        x,
                        gradients,
                        tile,
                        span,
                        n,
                        start,
                        count,
                        scratch,
                        slopes,
                        a,
                        h,
                        da,
                        dh,
                    )
                _write_chunk(
                    x,
                    d_out,
                    gradients,
                    tile,
                    start,
                    count,
                    has_softplus,
                    scratch,
                    slopes,
                    sums,
                )
            _write_padding(gradients, tile, plan.length)
            _turn_out(gradients.dA, da, tile, plan)
            _turn_out(gradients.d_initial, dh, tile, plan)
            for w in range(tile.width):
                gradients.dD[b * plan.dim + begin + w] = sums[w]
                gradients.d_bias[b * plan.dim + begin + w] = sums[LANES + w]


@Kernel
def _forward(
    team: Team,
    own: np.ndarray,
    like: np.ndarray,
    inputs: _Places,
    out: Place,
    last_state: int,
    kept: int,
    plan: _Plan,
    has_softplus: bool,
) -> None:
    x, y = _views(inputs, own, like), view(out, like)
    args = (x, y, line(last_state, like), line(kept, like), plan, has_softplus)
    share_out(_forward_strips, team, args)


@Kernel
def _backward(
    team: Team,
    own: np.ndarray,
    like: np.ndarray,
    inputs: _Places,
    kept: int,
    d_out: Place,
    d_last_state: int,
    gradients: _GradientPlaces,
    plan: _Plan,
    has_softplus: bool,
) -> None:
    x, dx = _views(inputs, own, like), _gradient_views(gradients, like)
    dy, dh = view(d_out, like), line(d_last_state, like)
    share_out(_backward_spans, team, (x, line(kept, like), dy, dh, dx, plan, has_softplus))
