"""What the Triton kernels of all operators share: views of tensors, functions, the card's size."""

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor


class Frames(NamedTuple):
    """A tensor (batch, dim, length) as a kernel reads it: in place, whatever its strides."""

    data: Tensor
    row: int
    channel: int
    time: int


def frames(x: Tensor | None) -> Frames | None:
    """Describe ``x`` (batch, dim, length) to a kernel."""
    return None if x is None else Frames(x, *x.stride())


@triton.jit
def frame_pointer(x, row, channel, time):
    """Return where ``x[row, channel, time]`` is; every index may be a block."""
    return x.data + (row * x.row + channel * x.channel + time * x.time)


@triton.jit
def sigmoid(x):
    """Return ``1 / (1 + exp(-x))``."""
    return 1 / (1 + tl.exp(-x))


@triton.jit
def softplus(x):
    """Return ``log(1 + exp(x))``, also where that is small against one.

    Step sizes start near 0.001: what rounding took from ``1 + w`` is put back to first order.
    """
    w = tl.exp(-tl.abs(x))
    above_one = 1 + w
    return tl.maximum(x, 0) + tl.log(above_one) - ((above_one - 1) - w) / above_one


def empty_laid_out_like(x: Tensor) -> Tensor:
    """Allocate ``x``'s (batch, dim, length), channels side by side where ``x`` has them so."""
    _, dim, length = x.shape
    channels_last = x.stride(1) == 1 or dim == 1
    strides = (dim * length, 1, dim) if channels_last else (dim * length, length, 1)
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)


@functools.cache
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors share the work; Triton's interpreter is one."""
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count
