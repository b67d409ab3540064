"""The definition of the causal depthwise convolution, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from espnet_bimamba.ops.lengths import halves, reverse_by_length, zero_padding


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
    """Convolve each channel with its own kernel, seeing no later frame.

    For each sequence and channel::

        pre[t] = bias + sum over k of weight[k] * x[t - (width - 1) + k]
        out[t] = activation(pre[t])

    Frames before the first are ``initial_states`` or zero. With ``reverse`` time runs from the
    last frame of each sequence to its first: ``x[t - j]`` reads ``x[t + j]``. With
    ``bidirectional`` the two halves of the channels are two convolutions, the second against the
    first. Forwards it is equal to
    ``F.conv1d(x, weight[:, None], bias, padding=width - 1, groups=dim)[..., :length]``, the line
    by which causal-conv1d defines its function.

    Arguments, shapes and errors: see :func:`espnet_bimamba.ops.causal_conv1d`.
    """
    if bidirectional:
        parts = halves(
            x=(x, 1), weight=(weight, 0), bias=(bias, 0), initial_states=(initial_states, 1)
        )
        results = [
            causal_conv1d(
                **part,
                return_final_states=True,
                activation=activation,
                reverse=backwards,
                lengths=lengths,
            )
            for part, backwards in zip(parts, (reverse, not reverse), strict=True)
        ]
        out, states = (torch.cat(pair, dim=1) for pair in zip(*results, strict=True))
        return (out, states) if return_final_states else out
    dtype = torch.promote_types(x.dtype, torch.float32)
    width = weight.shape[1]
    frames = zero_padding(x.to(dtype), lengths)
    if reverse:
        frames = reverse_by_length(frames, lengths)
    before = frames.new_zeros(*x.shape[:2], width - 1)
    if initial_states is not None:
        before = before + initial_states.to(dtype)
    window = torch.cat([before, frames], dim=-1)
    weight = weight.to(dtype)
    y = torch.zeros_like(frames)
    for k in range(width):
        y = y + weight[:, k, None] * window[..., k : k + x.shape[2]]
    if bias is not None:
        y = y + bias.to(dtype)[:, None]
    if activation is not None:
        y = F.silu(y)
    if reverse:
        y = reverse_by_length(y, lengths)
    out = zero_padding(y, lengths).to(x.dtype)
    return (out, _final_states(window, lengths, width).to(x.dtype)) if return_final_states else out


def _final_states(window: Tensor, lengths: Tensor | None, width: int) -> Tensor:
    """Cut the last ``width - 1`` inputs of each sequence out of (batch, dim, width - 1 + L)."""
    batch, dim, total = window.shape
    if lengths is None:
        # A copy: a view would keep the whole window in memory.
        return window[..., total - (width - 1) :].clone()
    index = lengths[:, None] + torch.arange(width - 1, device=window.device)
    return window.gather(-1, index[:, None].expand(batch, dim, width - 1))
