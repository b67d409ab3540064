"""The selective scan by Triton kernels, forward and backward.

A program scans a block of neighbouring channels step by step, with its state
``(state, channels)`` in registers: channels are the lanes of a warp, so that the sum over states
stays within a thread and channels-last sequences are read coalesced. The forward pass keeps the
state every :data:`CHUNK` steps; the backward pass recomputes the states of one chunk at a time,
each program into a scratch of its own.

Where batch and channels alone would leave the card idle, time is cut into segments that run side
by side, in two passes: the first finds how each segment changes a state that enters it, a tiny
scan chains the segments, and the second starts each one from the right state. The scratches of as
many segments as there are chunks hold the states of all steps: memory is what that speed costs.

Shapes: ``N`` states and ``D`` channels of a block.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet_bimamba.ops.library import records_gradients
from espnet_bimamba.ops.triton_runtime import (
    Frames,
    empty_laid_out_like,
    frame_pointer,
    frames,
    multiprocessors,
    sigmoid,
    softplus,
)

WARP = 32
CHUNK = 32
# Of its tile of (state, channels); with more, a thread's registers do not hold the backward pass.
ELEMENTS_PER_THREAD = 16
MOST_WARPS = 8
# Each multiprocessor has four schedulers, and a program of one warp waits for memory often.
PROGRAMS_PER_MULTIPROCESSOR = 32
# Two passes over a sixth of the time each take a third of one pass over all of it, on a card that
# is not full, and no longer on one that is.
FEWEST_SEGMENTS = 6
STAGES = tl.constexpr(4)
# Each new length must not be a new kernel to compile.
OF_THE_LENGTH = ["length", "segment_length", "segments"]
LOG2_E = tl.constexpr(1 / math.log(2))


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
    """Serve :func:`espnet_bimamba.ops.selective_scan` on CUDA tensors."""
    # To call a function of autograd takes as long as to launch a kernel.
    scan = _SelectiveScan.apply if records_gradients() else _scan
    out, last_state = scan(
        u,
        delta,
        A,
        B,
        C,
        D,
        z,
        delta_bias,
        initial_state,
        lengths,
        delta_softplus,
        reverse,
        bidirectional,
    )
    return (out, last_state) if return_last_state else out


def _scan(*args: Any) -> tuple[Tensor, Tensor]:
    """Do what :class:`_SelectiveScan` does where no gradient is wanted."""
    scan = _Scan(*args)
    return _run_forward(scan, scan.plan())


def _run_forward(scan: "_Scan", plan: "Plan", kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the output and the last state; write the state before each chunk to ``kept``."""
    out = empty_laid_out_like(scan.u)
    last_state = scan.u.new_empty(plan.batch, plan.dim, plan.state, dtype=torch.float32)
    start = None if scan.initial_state is None else scan.initial_state.float().contiguous()
    arguments, options = scan.arguments(), scan.options()
    if plan.segments > 1:
        start = _states_at_segment_starts(plan, scan, start)
    plan.launch(_forward_kernel, *arguments, start, frames(out), kept, last_state, **options)
    return out, last_state


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        scan = _Scan(*args)
        plan = scan.plan()
        if not any(ctx.needs_input_grad):
            return _run_forward(scan, plan)
        shape = (plan.batch, plan.chunks, plan.state, plan.dim)
        kept = scan.u.new_empty(shape, dtype=torch.float32)
        out, last_state = _run_forward(scan, plan, kept)
        ctx.save_for_backward(*scan[:10], kept)
        ctx.plan, ctx.options = plan, scan[10:]
        return out, last_state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_last_state: Tensor) -> tuple[Tensor | None, ...]:
        *saved, kept = ctx.saved_tensors
        scan, plan = _Scan(*saved, *ctx.options), ctx.plan
        du, d_delta = empty_laid_out_like(scan.u), empty_laid_out_like(scan.delta)
        dz = None if scan.z is None else empty_laid_out_like(scan.z)
        dA = plan.partial_sums(scan.A)
        dB, dC = plan.partial_sums(scan.B), plan.partial_sums(scan.C)
        dD, d_bias = (kept.new_empty(plan.batch, plan.segments, plan.dim) for _ in range(2))
        d_start = kept.new_empty(plan.batch, plan.dim, plan.state)
        scratch = kept.new_empty(plan.programs, plan.chunk, plan.block_state, plan.channels)
        d_end = d_last_state.contiguous()
        if plan.segments > 1:
            d_end = _gradients_at_segment_ends(plan, scan, frames(d_out), d_end)
        plan.launch(
            _backward_kernel,
            *scan.arguments(),
            *(kept, scratch, frames(d_out), d_end),
            *(frames(du), frames(d_delta), frames(dz), dA, dB, dC, dD, d_bias, d_start),
            **scan.options(),
        )
        return (
            du,
            d_delta,
            plan.total(dA, scan.A),
            plan.total(dB, scan.B),
            plan.total(dC, scan.C),
            None if scan.D is None else dD.sum((0, 1)).to(scan.D.dtype),
            dz,
            None if scan.delta_bias is None else d_bias.sum((0, 1)).to(scan.delta_bias.dtype),
            None if scan.initial_state is None else d_start.to(scan.initial_state.dtype),
            *(None for _ in ("lengths", "softplus", "reverse", "bidirectional")),
        )


class _Matrix(NamedTuple):
    """B or C as a kernel reads it, (batch, group, state, length).

    A time-constant matrix (dim, state) is one group a channel, in steps of zero.
    """

    data: Tensor
    row: int
    group: int
    state: int
    time: int
    channels: int  # that share a group


class _Scan(NamedTuple):
    """The arguments of one scan."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    initial_state: Tensor | None
    lengths: Tensor | None
    softplus: bool
    reverse: bool
    bidirectional: bool

    def plan(self) -> "Plan":
        """Cut the scan for the card that its tensors are on."""
        batch, dim, length = self.u.shape
        directions = 2 if self.bidirectional else 1
        groups = math.lcm(directions, *(x.shape[1] for x in (self.B, self.C) if x.dim() == 4))
        sizes = (batch, dim, length, self.A.shape[1], dim // groups)
        return Plan.of(*sizes, multiprocessors(self.u.device), CHUNK)

    def arguments(self) -> tuple[Any, ...]:
        """Return what every kernel takes first."""
        return (
            *(frames(self.u), frames(self.delta), frames(self.z)),
            self.A.contiguous(),
            *(self._matrix(self.B), self._matrix(self.C)),
            *(None if x is None else x.contiguous() for x in (self.D, self.delta_bias)),
            None if self.lengths is None else self.lengths.contiguous(),
        )

    def options(self) -> dict[str, bool]:
        return {
            "B_CONSTANT": self.B.dim() == 2,
            "C_CONSTANT": self.C.dim() == 2,
            "SOFTPLUS": self.softplus,
            "REVERSE": self.reverse,
            "BIDIRECTIONAL": self.bidirectional,
        }

    def _matrix(self, x: Tensor) -> _Matrix:
        if x.dim() == 2:
            return _Matrix(x, 0, x.stride(0), x.stride(1), 0, 1)
        grouped = x if x.dim() == 4 else x[:, None]
        row, group, state, time = grouped.stride()
        return _Matrix(x, row, group, state, time, self.u.shape[1] // grouped.shape[1])


def segments_for(programs: int, chunks: int, processors: int) -> int:
    """Return into how many segments of whole chunks time is cut; 1 is a scan in one pass.

    Two passes compute nearly everything twice and are two launches more: they are worth it only
    where one pass would leave much of the card idle, and where there is time enough to cut.

    Args:
        programs: Batch times blocks of channels, what runs side by side without a cut.
        chunks: Chunks of :data:`CHUNK` steps.
        processors: Multiprocessors of the card.
    """
    if programs == 0:
        return 1
    segments = min(-(-PROGRAMS_PER_MULTIPROCESSOR * processors // programs), chunks)
    if segments < FEWEST_SEGMENTS:
        return 1
    return -(-chunks // -(-chunks // segments))


@dataclass(frozen=True)
class Plan:
    """How one scan is cut into programs.

    Attributes:
        batch: Sequences.
        dim: Channels.
        length: Frames.
        state: States a channel.
        group: Channels that share their B, their C and their direction; no block goes beyond them.
        chunk: Steps of a chunk.
        segments: Parts of the time that run side by side.
    """

    batch: int
    dim: int
    length: int
    state: int
    group: int
    chunk: int
    segments: int = 1

    @staticmethod
    @functools.lru_cache(maxsize=1024)
    def of(
        batch: int, dim: int, length: int, state: int, group: int, processors: int, chunk: int
    ) -> "Plan":
        """Cut a scan for a card of so many multiprocessors; a size that came before is known."""
        uncut = Plan(batch, dim, length, state, group, chunk)
        return replace(uncut, segments=segments_for(uncut.programs, uncut.chunks, processors))

    @functools.cached_property
    def blocks(self) -> int:
        """Blocks of channels."""
        return self.dim // self.group * -(-self.group // self.channels) if self.dim else 0

    @functools.cached_property
    def programs(self) -> int:
        """Programs of a launch."""
        return self.batch * self.blocks * self.segments

    @functools.cached_property
    def chunks(self) -> int:
        """Chunks, the last one perhaps shorter."""
        return -(-self.length // self.chunk)

    @functools.cached_property
    def segment_length(self) -> int:
        """Steps of a segment, whole chunks."""
        return -(-self.chunks // self.segments) * self.chunk

    @functools.cached_property
    def block_state(self) -> int:
        """States of a tile: Triton wants a power of two."""
        return triton.next_power_of_2(self.state)

    @functools.cached_property
    def warps(self) -> int:
        """Warps of a program: each has the channels as its lanes and some of the states."""
        return min(max(1, self.block_state // ELEMENTS_PER_THREAD), MOST_WARPS)

    @functools.cached_property
    def channels(self) -> int:
        """Channels of a block."""
        return min(WARP, MOST_WARPS * WARP * ELEMENTS_PER_THREAD // self.block_state)

    def launch(self, kernel: Any, *args: Any, **options: Any) -> None:
        """Run ``kernel`` with one program for each (sequence, segment, block of channels)."""
        if not self.programs:
            return
        # Triton launches on the current device.
        with torch.cuda.device_of(args[0].data):
            kernel[(self.programs,)](
                *args,
                *(self.length, self.segment_length, self.segments),
                *(self.dim, self.state, self.group, self.blocks),
                **options,
                N=self.block_state,
                D=self.channels,
                CHUNK=self.chunk,
                num_warps=self.warps,
            )

    def partial_sums(self, x: Tensor) -> Tensor:
        """Allocate what each program gives to the gradient of A, B or C.

        (batch, segments, dim, state) for what is constant in time, else (batch, blocks, length,
        state).
        """
        if x.dim() == 2:
            return x.new_empty(self.batch, self.segments, *x.shape, dtype=torch.float32)
        shape = (self.batch, self.blocks, self.length, self.state)
        return x.new_empty(shape, dtype=torch.float32)

    def total(self, sums: Tensor, x: Tensor) -> Tensor:
        """Add up :meth:`partial_sums`, in a fixed order, in ``x``'s shape and dtype."""
        if x.dim() == 2:
            return sums.sum((0, 1)).to(x.dtype)
        groups = x.shape[1] if x.dim() == 4 else 1
        sums = sums.unflatten(1, (groups, self.blocks // groups)).sum(2)
        return sums.transpose(2, 3).reshape(x.shape).to(x.dtype)


def _states_at_segment_starts(plan: Plan, scan: _Scan, start: Tensor | None) -> Tensor:
    """Return the state (batch, segments, dim, state) before the first step of each segment."""
    return _chained(plan, scan, _segment_state_kernel, (), start, backwards=False)


def _gradients_at_segment_ends(
    plan: Plan, scan: _Scan, d_out: Frames | None, d_last_state: Tensor
) -> Tensor:
    """Return the gradient (batch, segments, dim, state) of the state after each segment."""
    return _chained(plan, scan, _segment_gradient_kernel, (d_out,), d_last_state, backwards=True)


def _chained(
    plan: Plan,
    scan: _Scan,
    kernel: Any,
    extra: tuple[Any, ...],
    entering: Tensor | None,
    backwards: bool,
) -> Tensor:
    shape = (plan.batch, plan.segments, plan.dim)
    carried = scan.u.new_empty(*shape, plan.state, dtype=torch.float32)
    time = scan.u.new_empty(shape, dtype=torch.float32)
    plan.launch(kernel, *scan.arguments(), *extra, carried, time, **scan.options())
    lines = plan.dim * plan.state
    with torch.cuda.device_of(carried):
        _chain_kernel[(plan.batch, triton.cdiv(lines, 128))](
            carried,
            time,
            scan.A.contiguous(),
            entering,
            plan.segments,
            plan.dim,
            plan.state,
            BACKWARDS=backwards,
            LINES=128,
            num_warps=4,
        )
    return carried


@triton.jit
def _place(segments, dim, group, blocks, D: tl.constexpr):
    """Return row, segment, block, first channel of this program, its channels and their mask."""
    program = tl.program_id(0)
    block = program % blocks
    segment = program // blocks % segments
    # 64 bits: a batch may hold more elements than 32 count.
    row = (program // blocks // segments).to(tl.int64)
    blocks_of_group = tl.cdiv(group, D)
    group_start = block // blocks_of_group * group
    first = group_start + block % blocks_of_group * D
    channels = first + tl.arange(0, D)
    return row, segment, block, first, channels, channels < group_start + group


@triton.jit
def _decay_rates(A, channels, states, mask, state):
    """Load ``A * log2(e)`` (N, D): exp2 is the exponential that the hardware has."""
    a = tl.load(A + channels[None, :] * state + states[:, None], mask=mask, other=0)
    return a.to(tl.float32) * LOG2_E


@triton.jit
def _vector(x, channels, mask):
    """Load one float32 a channel (D,); zero where the tensor is absent."""
    if x is None:
        value = tl.zeros(channels.shape, tl.float32)
    else:
        value = tl.load(x + channels, mask=mask, other=0).to(tl.float32)
    return value


@triton.jit
def _frame(x, row, channels, time, mask):
    """Load one frame (D,) in float32."""
    return tl.load(frame_pointer(x, row, channels, time), mask=mask, other=0).to(tl.float32)


@triton.jit
def _constant(x, channels, states, mask, CONSTANT: tl.constexpr):
    """Load a time-constant matrix (N, D) once; of one that varies nothing is needed here."""
    if CONSTANT:
        pointers = x.data + channels[None, :] * x.group + states[:, None] * x.state
        value = tl.load(pointers, mask=mask, other=0).to(tl.float32)
    else:
        value = tl.zeros(mask.shape, tl.float32)
    return value


@triton.jit
def _matrix(x, constant, row, first, states, time, state, CONSTANT: tl.constexpr):
    """Return B or C of one frame: (N, D) where constant, else (N, 1) for all channels."""
    if CONSTANT:
        value = constant
    else:
        group = first // x.channels
        pointers = x.data + (row * x.row + group * x.group + states * x.state + time * x.time)
        value = tl.load(pointers, mask=states < state, other=0).to(tl.float32)[:, None]
    return value


@triton.jit
def _step_size(raw, SOFTPLUS: tl.constexpr):
    return softplus(raw) if SOFTPLUS else raw


@triton.jit
def _runs_back(first, dim, REVERSE: tl.constexpr, BIDIRECTIONAL: tl.constexpr):
    """Return whether the block that begins with channel ``first`` runs from the last frame on."""
    return (first >= dim // 2) != REVERSE if BIDIRECTIONAL else tl.full((), REVERSE, tl.int1)


@triton.jit
def _frame_of_step(step, end, backwards):
    """Return the frame that a step of the scan reads; the first step of all reads an end."""
    return tl.cast(tl.where(backwards, end - 1 - step, step), tl.int64)


@triton.jit
def _end(lengths, row, length):
    return length if lengths is None else tl.load(lengths + row).to(tl.int32)


@triton.jit(do_not_specialize=OF_THE_LENGTH)
def _segment_state_kernel(
    u, delta, z, A, B, C, skip, bias, lengths,
    state_after, time_spent,
    length, segment_length, segments, dim, state, group, blocks,
    B_CONSTANT: tl.constexpr, C_CONSTANT: tl.constexpr,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, BIDIRECTIONAL: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """First pass, forward: the state that each segment reaches from zero, and its total time.

    Writes ``state_after`` (batch, segments, dim, state) and ``time_spent`` (batch, segments,
    dim), the sum of the step sizes: a state that enters is multiplied by ``exp(A * time)``.
    """
    row, segment, _, first, channels, mask = _place(segments, dim, group, blocks, D)
    states = tl.arange(0, N)
    tile = (states < state)[:, None] & mask[None, :]
    rates = _decay_rates(A, channels, states, tile, state)
    b_constant = _constant(B, channels, states, tile, B_CONSTANT)
    biases = _vector(bias, channels, mask)
    h = tl.zeros((N, D), tl.float32)
    total = tl.zeros((D,), tl.float32)
    end = _end(lengths, row, length)
    backwards = _runs_back(first, dim, REVERSE, BIDIRECTIONAL)
    begin = segment * segment_length
    for step in tl.range(begin, tl.minimum(begin + segment_length, end), num_stages=STAGES):
        time = _frame_of_step(step, end, backwards)
        x = _frame(u, row, channels, time, mask)
        dt = _step_size(_frame(delta, row, channels, time, mask) + biases, SOFTPLUS)
        b = _matrix(B, b_constant, row, first, states, time, state, B_CONSTANT)
        h = tl.exp2(dt[None, :] * rates) * h + (dt * x)[None, :] * b
        total += dt
    place = (row * segments + segment) * dim + channels
    tl.store(state_after + place[None, :] * state + states[:, None], h, mask=tile)
    tl.store(time_spent + place, total, mask=mask)


@triton.jit(do_not_specialize=OF_THE_LENGTH)
def _segment_gradient_kernel(
    u, delta, z, A, B, C, skip, bias, lengths,
    d_out,
    gradient_before, time_spent,
    length, segment_length, segments, dim, state, group, blocks,
    B_CONSTANT: tl.constexpr, C_CONSTANT: tl.constexpr,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, BIDIRECTIONAL: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """First pass, backward: what each segment's outputs alone give to the state before it.

    Writes ``gradient_before`` (batch, segments, dim, state) and ``time_spent`` as above.
    """
    row, segment, _, first, channels, mask = _place(segments, dim, group, blocks, D)
    states = tl.arange(0, N)
    tile = (states < state)[:, None] & mask[None, :]
    rates = _decay_rates(A, channels, states, tile, state)
    c_constant = _constant(C, channels, states, tile, C_CONSTANT)
    biases = _vector(bias, channels, mask)
    dh = tl.zeros((N, D), tl.float32)
    total = tl.zeros((D,), tl.float32)
    end = _end(lengths, row, length)
    backwards = _runs_back(first, dim, REVERSE, BIDIRECTIONAL)
    begin = segment * segment_length
    steps = tl.minimum(begin + segment_length, end) - begin
    for i in tl.range(0, steps, num_stages=STAGES):
        time = _frame_of_step(begin + steps - 1 - i, end, backwards)
        dt = _step_size(_frame(delta, row, channels, time, mask) + biases, SOFTPLUS)
        dy = _frame(d_out, row, channels, time, mask)
        if z is not None:
            gate = _frame(z, row, channels, time, mask)
            dy *= gate * sigmoid(gate)
        c = _matrix(C, c_constant, row, first, states, time, state, C_CONSTANT)
        dh = tl.exp2(dt[None, :] * rates) * (dh + dy[None, :] * c)
        total += dt
    place = (row * segments + segment) * dim + channels
    tl.store(gradient_before + place[None, :] * state + states[:, None], dh, mask=tile)
    tl.store(time_spent + place, total, mask=mask)


@triton.jit(do_not_specialize=["segments"])
def _chain_kernel(
    carried, time_spent, A, entering,
    segments, dim, state,
    BACKWARDS: tl.constexpr, LINES: tl.constexpr,
):  # fmt: skip
    """Replace what each segment gives by what enters it, in the order of the scan or against it.

    ``carried`` (batch, segments, dim, state) is read and written; ``entering`` (batch, dim,
    state) enters the first segment, or zero.
    """
    row = tl.program_id(0).to(tl.int64)
    lines = tl.program_id(1) * LINES + tl.arange(0, LINES)
    mask = lines < dim * state
    rates = tl.load(A + lines, mask=mask, other=0).to(tl.float32) * LOG2_E
    value = tl.zeros((LINES,), tl.float32)
    if entering is not None:
        value = tl.load(entering + row * dim * state + lines, mask=mask, other=0)
    for i in range(0, segments):
        place = row * segments + (segments - 1 - i if BACKWARDS else i)
        pointers = carried + place * dim * state + lines
        given = tl.load(pointers, mask=mask, other=0)
        time = tl.load(time_spent + place * dim + lines // state, mask=mask, other=0)
        tl.store(pointers, value, mask=mask)
        value = tl.exp2(time * rates) * value + given


@triton.jit(do_not_specialize=OF_THE_LENGTH)
def _forward_kernel(
    u, delta, z, A, B, C, skip, bias, lengths,
    start, out, kept, last_state,
    length, segment_length, segments, dim, state, group, blocks,
    B_CONSTANT: tl.constexpr, C_CONSTANT: tl.constexpr,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, BIDIRECTIONAL: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Scan one segment from ``start`` (batch, segments, dim, state), or from zero without one.

    Writes ``out``, zeros past a sequence's end; the state before each chunk to ``kept`` (batch,
    chunks, state, dim) if there is one; and ``last_state`` (batch, dim, state).
    """
    row, segment, _, first, channels, mask = _place(segments, dim, group, blocks, D)
    states = tl.arange(0, N)
    tile = (states < state)[:, None] & mask[None, :]
    rates = _decay_rates(A, channels, states, tile, state)
    b_constant = _constant(B, channels, states, tile, B_CONSTANT)
    c_constant = _constant(C, channels, states, tile, C_CONSTANT)
    biases, skips = _vector(bias, channels, mask), _vector(skip, channels, mask)
    by_channel = channels[None, :] * state + states[:, None]
    by_state = states[:, None] * dim + channels[None, :]
    h = tl.zeros((N, D), tl.float32)
    if start is not None:
        place = (row * segments + segment) * dim * state
        h = tl.load(start + place + by_channel, mask=tile, other=0)
    end = _end(lengths, row, length)
    backwards = _runs_back(first, dim, REVERSE, BIDIRECTIONAL)
    begin = segment * segment_length
    stop = tl.minimum(begin + segment_length, length)
    for chunk_begin in range(begin, tl.minimum(stop, end), CHUNK):
        if kept is not None:
            place = (row * tl.cdiv(length, CHUNK) + chunk_begin // CHUNK) * dim * state
            tl.store(kept + place + by_state, h, mask=tile)
        chunk_end = tl.minimum(chunk_begin + CHUNK, end)
        for step in tl.range(chunk_begin, chunk_end, num_stages=STAGES):
            time = _frame_of_step(step, end, backwards)
            x = _frame(u, row, channels, time, mask)
            dt = _step_size(_frame(delta, row, channels, time, mask) + biases, SOFTPLUS)
            b = _matrix(B, b_constant, row, first, states, time, state, B_CONSTANT)
            c = _matrix(C, c_constant, row, first, states, time, state, C_CONSTANT)
            h = tl.exp2(dt[None, :] * rates) * h + (dt * x)[None, :] * b
            y = tl.sum(h * c, axis=0) + skips * x
            if z is not None:
                gate = _frame(z, row, channels, time, mask)
                y *= gate * sigmoid(gate)
            tl.store(frame_pointer(out, row, channels, time), y, mask=mask)
    for time in range(tl.maximum(begin, end), stop):
        pointers = frame_pointer(out, row, channels, tl.cast(time, tl.int64))
        tl.store(pointers, tl.zeros((D,), tl.float32), mask=mask)
    if segment == segments - 1:
        tl.store(last_state + row * dim * state + by_channel, h, mask=tile)


@triton.jit(do_not_specialize=OF_THE_LENGTH)
def _backward_kernel(
    u, delta, z, A, B, C, skip, bias, lengths,
    kept, scratch, d_out, d_end,
    du, d_delta, dz, dA, dB, dC, d_skip, d_bias, d_start,
    length, segment_length, segments, dim, state, group, blocks,
    B_CONSTANT: tl.constexpr, C_CONSTANT: tl.constexpr,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, BIDIRECTIONAL: tl.constexpr,
    N: tl.constexpr, D: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Differentiate one segment, last chunk first, from ``d_end`` (batch, segments, dim, state).

    Each chunk is scanned again from ``kept``, its states going to ``scratch`` (programs, CHUNK,
    N, D), and then gone through backwards. Gradients of sequences are written frame by frame,
    zeros past the end; those of constants are this segment's sums (batch, segments, ...); those
    of B and C in time are this block's sums (batch, blocks, length, state).
    """
    row, segment, block, first, channels, mask = _place(segments, dim, group, blocks, D)
    states = tl.arange(0, N)
    tile = (states < state)[:, None] & mask[None, :]
    rates = _decay_rates(A, channels, states, tile, state)
    b_constant = _constant(B, channels, states, tile, B_CONSTANT)
    c_constant = _constant(C, channels, states, tile, C_CONSTANT)
    biases, skips = _vector(bias, channels, mask), _vector(skip, channels, mask)
    by_channel = channels[None, :] * state + states[:, None]
    by_state = states[:, None] * dim + channels[None, :]
    own = scratch + tl.program_id(0).to(tl.int64) * (CHUNK * N * D)
    own += states[:, None] * D + tl.arange(0, D)[None, :]
    sums = (row * blocks + block) * length * state + states
    segment_place = (row * segments + segment) * dim
    dh = tl.load(d_end + segment_place * state + by_channel, mask=tile, other=0)
    da = tl.zeros((N, D), tl.float32)
    db_constant, dc_constant = tl.zeros((N, D), tl.float32), tl.zeros((N, D), tl.float32)
    d_skips, d_biases = tl.zeros((D,), tl.float32), tl.zeros((D,), tl.float32)

    end = _end(lengths, row, length)
    backwards = _runs_back(first, dim, REVERSE, BIDIRECTIONAL)
    begin = segment * segment_length
    stop = tl.minimum(begin + segment_length, length)
    chunks = tl.cdiv(tl.maximum(tl.minimum(stop, end) - begin, 0), CHUNK)
    for i in range(0, chunks):
        chunk_begin = begin + (chunks - 1 - i) * CHUNK
        steps = tl.minimum(CHUNK, end - chunk_begin)
        place = (row * tl.cdiv(length, CHUNK) + chunk_begin // CHUNK) * dim * state
        h = tl.load(kept + place + by_state, mask=tile, other=0)
        # Threads may read back what others wrote: before that and before it is overwritten.
        tl.debug_barrier()
        for j in tl.range(0, steps, num_stages=STAGES):
            time = _frame_of_step(chunk_begin + j, end, backwards)
            tl.store(own + j * (N * D), h)
            x = _frame(u, row, channels, time, mask)
            dt = _step_size(_frame(delta, row, channels, time, mask) + biases, SOFTPLUS)
            b = _matrix(B, b_constant, row, first, states, time, state, B_CONSTANT)
            h = tl.exp2(dt[None, :] * rates) * h + (dt * x)[None, :] * b
        tl.debug_barrier()
        for k in tl.range(0, steps, num_stages=STAGES):
            j = steps - 1 - k
            time = _frame_of_step(chunk_begin + j, end, backwards)
            before = tl.load(own + j * (N * D))
            x = _frame(u, row, channels, time, mask)
            raw = _frame(delta, row, channels, time, mask) + biases
            dt = _step_size(raw, SOFTPLUS)
            b = _matrix(B, b_constant, row, first, states, time, state, B_CONSTANT)
            c = _matrix(C, c_constant, row, first, states, time, state, C_CONSTANT)
            decay = tl.exp2(dt[None, :] * rates)
            h = decay * before + (dt * x)[None, :] * b
            dy = _frame(d_out, row, channels, time, mask)
            if z is not None:
                gate = _frame(z, row, channels, time, mask)
                opening = sigmoid(gate)
                y = tl.sum(h * c, axis=0) + skips * x
                gate_gradient = dy * y * opening * (1 + gate * (1 - opening))
                tl.store(frame_pointer(dz, row, channels, time), gate_gradient, mask=mask)
                dy *= gate * opening
            dv = dh + dy[None, :] * c
            if C_CONSTANT:
                dc_constant += dy[None, :] * h
            else:
                dc = tl.sum(dy[None, :] * h, axis=1)
                tl.store(dC + sums + time * state, dc, mask=states < state)
            if B_CONSTANT:
                db_constant += dv * (dt * x)[None, :]
            else:
                db = tl.sum(dv * (dt * x)[None, :], axis=1)
                tl.store(dB + sums + time * state, db, mask=states < state)
            through_input = tl.sum(dv * b, axis=0)
            dh = dv * decay
            through_decay = dh * before
            da += through_decay * dt[None, :]
            d_raw = tl.sum(through_decay * rates, axis=0) * (1 / LOG2_E) + through_input * x
            if SOFTPLUS:
                d_raw *= sigmoid(raw)
            d_skips += dy * x
            d_biases += d_raw
            dx = through_input * dt + skips * dy
            tl.store(frame_pointer(du, row, channels, time), dx, mask=mask)
            tl.store(frame_pointer(d_delta, row, channels, time), d_raw, mask=mask)

    nothing = tl.zeros((D,), tl.float32)
    for frame in range(tl.maximum(begin, end), stop):
        time = tl.cast(frame, tl.int64)
        tl.store(frame_pointer(du, row, channels, time), nothing, mask=mask)
        tl.store(frame_pointer(d_delta, row, channels, time), nothing, mask=mask)
        if z is not None:
            tl.store(frame_pointer(dz, row, channels, time), nothing, mask=mask)
        no_states = tl.zeros((N,), tl.float32)
        if not B_CONSTANT:
            tl.store(dB + sums + time * state, no_states, mask=states < state)
        if not C_CONSTANT:
            tl.store(dC + sums + time * state, no_states, mask=states < state)
    tl.store(dA + segment_place * state + by_channel, da, mask=tile)
    if B_CONSTANT:
        tl.store(dB + segment_place * state + by_channel, db_constant, mask=tile)
    if C_CONSTANT:
        tl.store(dC + segment_place * state + by_channel, dc_constant, mask=tile)
    tl.store(d_skip + segment_place + channels, d_skips, mask=mask)
    tl.store(d_bias + segment_place + channels, d_biases, mask=mask)
    if segment == 0:
        tl.store(d_start + row * dim * state + by_channel, dh, mask=tile)
