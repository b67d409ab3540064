"""The causal depthwise convolution by Triton kernels, forward and backward.

A program takes a tile (steps, channels) of one sequence. Steps count in the order of the
convolution, which is the order of the frames or, in reverse, against it within the sequence's
length; the tiles begin ``width - 1`` steps before the first frame, where the initial states are,
so that states need no kernels of their own. The backward pass recomputes what the activation saw.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from espnet_bimamba.ops.library import records_gradients
from espnet_bimamba.ops.triton_runtime import empty_laid_out_like, frame_pointer, frames, sigmoid

STEPS = 32
CHANNELS = 64
WARPS = 4
# Each new length must not be a new kernel to compile.
OF_THE_LENGTH = ["length", "tiles"]


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
    """Serve :func:`espnet_bimamba.ops.causal_conv1d` on CUDA tensors."""
    # To call a function of autograd takes as long as to launch a kernel.
    convolve = _CausalConv1d.apply if records_gradients() else _convolution
    out, final_states = convolve(
        x, weight, bias, initial_states, lengths, activation is not None, reverse, bidirectional
    )
    return (out, final_states) if return_final_states else out


class _Conv(NamedTuple):
    """The arguments of one convolution."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    initial_states: Tensor | None
    lengths: Tensor | None
    silu: bool
    reverse: bool
    bidirectional: bool

    @property
    def tiles(self) -> int:
        """Tiles of time, over the frames and the states before them."""
        return triton.cdiv(self.x.shape[2] + self.weight.shape[1] - 1, STEPS)

    def launch(self, kernel: Any, *args: Any) -> None:
        """Run ``kernel`` with one program for each tile of each sequence."""
        batch, dim, length = self.x.shape
        # No block has channels of both directions.
        directions = 2 if self.bidirectional else 1
        blocks = directions * triton.cdiv(dim // directions, CHANNELS)
        if not batch * self.tiles * blocks:
            return
        # Triton launches on the current device.
        with torch.cuda.device_of(self.x):
            kernel[(batch * self.tiles * blocks,)](
                frames(self.x),
                self.weight.contiguous(),
                None if self.bias is None else self.bias.contiguous(),
                frames(self.initial_states),
                None if self.lengths is None else self.lengths.contiguous(),
                *args,
                *(dim, length, self.tiles, blocks),
                WIDTH=self.weight.shape[1],
                SILU=self.silu,
                REVERSE=self.reverse,
                BIDIRECTIONAL=self.bidirectional,
                T=STEPS,
                D=CHANNELS,
                num_warps=WARPS,
            )


def _convolution(*args: Any) -> tuple[Tensor, Tensor]:
    """Do what :class:`_CausalConv1d` does, without autograd."""
    conv = _Conv(*args)
    out = empty_laid_out_like(conv.x)
    final_states = conv.x.new_empty(*conv.x.shape[:2], conv.weight.shape[1] - 1)
    conv.launch(_forward_kernel, frames(out), frames(final_states))
    return out, final_states


class _CausalConv1d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor]:
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(*args[:5])
            ctx.options = args[5:]
        return _convolution(*args)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor, d_final_states: Tensor) -> tuple[Tensor | None, ...]:
        conv = _Conv(*ctx.saved_tensors, *ctx.options)
        dx = empty_laid_out_like(conv.x)
        d_initial = conv.x.new_empty(d_final_states.shape, dtype=torch.float32)
        batch, dim, _ = conv.x.shape
        width = conv.weight.shape[1]
        # The last of the rows is the bias's.
        sums = conv.x.new_empty(batch, conv.tiles, width + 1, dim, dtype=torch.float32)
        conv.launch(
            _backward_kernel,
            *(frames(d_out), frames(d_final_states)),
            *(frames(dx), frames(d_initial), sums),
        )
        total = sums.sum((0, 1))
        initial, bias = conv.initial_states, conv.bias
        return (
            dx,
            total[:width].t().to(conv.weight.dtype),
            None if bias is None else total[width].to(bias.dtype),
            None if initial is None else d_initial.to(initial.dtype),
            *(None for _ in ("lengths", "silu", "reverse", "bidirectional")),
        )


@triton.jit
def _place(
    lengths, dim, length, tiles, blocks,
    WIDTH: tl.constexpr, REVERSE: tl.constexpr, BIDIRECTIONAL: tl.constexpr,
    T: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Return row, tile, steps (T, 1), channels (1, D) and their mask, the row's end, the direction.

    The direction is whether this program's channels run backwards.
    """
    program = tl.program_id(0)
    tile = program // blocks % tiles
    # 64 bits: a batch may hold more elements than 32 count.
    row = (program // blocks // tiles).to(tl.int64)
    steps = tile * T + tl.arange(0, T)[:, None] - (WIDTH - 1)
    block = program % blocks
    backwards = tl.full((), REVERSE, tl.int1)
    first, last = block * D, dim
    if BIDIRECTIONAL:
        second_half = block >= blocks // 2
        backwards = second_half != REVERSE
        first = tl.where(second_half, dim // 2 + (block - blocks // 2) * D, first)
        last = tl.where(second_half, dim, dim // 2)
    channels = first + tl.arange(0, D)[None, :]
    end = length
    if lengths is not None:
        end = tl.load(lengths + row).to(tl.int32)
    return row, tile, steps, channels, channels < last, end, backwards


@triton.jit
def _frame_of_step(steps, end, backwards):
    """Return the frames of steps; those past the end are in their places in both directions."""
    return tl.where(backwards & (steps < end), end - 1 - steps, steps).to(tl.int64)


@triton.jit
def _input(x, initial, row, steps, channels, mask, end, backwards, WIDTH: tl.constexpr):
    """Load the inputs of steps (T, D) in float32: frames, before them states, elsewhere zero."""
    pointers = frame_pointer(x, row, channels, _frame_of_step(steps, end, backwards))
    value = tl.load(pointers, mask=mask & (steps >= 0) & (steps < end), other=0).to(tl.float32)
    if initial is not None:
        pointers = frame_pointer(initial, row, channels, steps + (WIDTH - 1))
        before = mask & (steps < 0) & (steps >= 1 - WIDTH)
        value += tl.load(pointers, mask=before, other=0).to(tl.float32)
    return value


@triton.jit
def _window_sum(
    x, weight, bias, initial, row, steps, channels, mask, end, backwards,
    WIDTH: tl.constexpr,
):  # fmt: skip
    """Return what the activation sees at steps (T, D)."""
    y = tl.zeros((steps.shape[0], channels.shape[1]), tl.float32)
    if bias is not None:
        y += tl.load(bias + channels, mask=mask, other=0).to(tl.float32)
    for k in tl.static_range(WIDTH):
        tap = tl.load(weight + channels * WIDTH + k, mask=mask, other=0).to(tl.float32)
        source = steps - (WIDTH - 1) + k
        y += tap * _input(x, initial, row, source, channels, mask, end, backwards, WIDTH)
    return y


@triton.jit(do_not_specialize=OF_THE_LENGTH)
def _forward_kernel(
    x, weight, bias, initial, lengths,
    out, final,
    dim, length, tiles, blocks,
    WIDTH: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, BIDIRECTIONAL: tl.constexpr,
    T: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Write ``out``, zeros past the end, and ``final`` (batch, dim, width - 1)."""
    row, _, steps, channels, mask, end, backwards = _place(
        lengths, dim, length, tiles, blocks, WIDTH, REVERSE, BIDIRECTIONAL, T, D
    )
    y = tl.zeros((T, D), tl.float32)
    # A tile past the end writes its zeros and reads nothing.
    if tl.min(steps) < end:
        y += _window_sum(
            x, weight, bias, initial, row, steps, channels, mask, end, backwards, WIDTH
        )
        if SILU:
            y *= sigmoid(y)
        y = tl.where(steps < end, y, 0)
    pointers = frame_pointer(out, row, channels, _frame_of_step(steps, end, backwards))
    tl.store(pointers, y, mask=mask & (steps >= 0) & (steps < length))
    kept = steps - (end - (WIDTH - 1))
    if WIDTH > 1:
        value = _input(x, initial, row, steps, channels, mask, end, backwards, WIDTH)
        pointers = frame_pointer(final, row, channels, kept)
        tl.store(pointers, value, mask=mask & (kept >= 0) & (steps < end))


@triton.jit(do_not_specialize=OF_THE_LENGTH)
def _backward_kernel(
    x, weight, bias, initial, lengths,
    d_out, d_final, dx, d_initial, sums,
    dim, length, tiles, blocks,
    WIDTH: tl.constexpr, SILU: tl.constexpr, REVERSE: tl.constexpr, BIDIRECTIONAL: tl.constexpr,
    T: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    """Write ``dx``, zeros past the end, ``d_initial`` (batch, dim, width - 1) and this tile's sums.

    ``sums`` (batch, tiles, width + 1, dim) are those of the weights' gradient and, last, of the
    bias's. An input meets the ``width`` outputs from its own step on.
    """
    row, tile, steps, channels, mask, end, backwards = _place(
        lengths, dim, length, tiles, blocks, WIDTH, REVERSE, BIDIRECTIONAL, T, D
    )
    value = tl.zeros((T, D), tl.float32)
    place = sums + (row * tiles + tile) * ((WIDTH + 1) * dim) + channels
    # A tile past the end gives zeros and reads nothing.
    begun = tl.min(steps) < end
    if not begun:
        for k in range(0, WIDTH + 1):
            tl.store(place + k * dim, tl.zeros((1, D), tl.float32), mask=mask)
    for j in range(0, WIDTH if begun else 0):
        later = steps + j
        inside = mask & (later >= 0) & (later < end)
        pointers = frame_pointer(d_out, row, channels, _frame_of_step(later, end, backwards))
        dy = tl.load(pointers, mask=inside, other=0).to(tl.float32)
        if SILU:
            seen = _window_sum(
                x, weight, bias, initial, row, later, channels, mask, end, backwards, WIDTH
            )
            gate = sigmoid(seen)
            dy *= gate * (1 + seen * (1 - gate))
        if j == 0:
            tl.store(place + WIDTH * dim, tl.sum(dy, axis=0)[None, :], mask=mask)
            for k in range(0, WIDTH):
                source = steps - (WIDTH - 1) + k
                met = _input(x, initial, row, source, channels, mask, end, backwards, WIDTH)
                tl.store(place + k * dim, tl.sum(dy * met, axis=0)[None, :], mask=mask)
        tap = tl.load(weight + channels * WIDTH + (WIDTH - 1 - j), mask=mask, other=0)
        value += tap.to(tl.float32) * dy
    if WIDTH > 1:
        kept = steps - (end - (WIDTH - 1))
        pointers = frame_pointer(d_final, row, channels, kept)
        last = mask & (kept >= 0) & (steps < end)
        value += tl.load(pointers, mask=last, other=0).to(tl.float32)
        pointers = frame_pointer(d_initial, row, channels, steps + (WIDTH - 1))
        tl.store(pointers, value, mask=mask & (steps < 0))
    pointers = frame_pointer(dx, row, channels, _frame_of_step(steps, end, backwards))
    value = tl.where(steps < end, value, 0)
    tl.store(pointers, value, mask=mask & (steps >= 0) & (steps < length))
