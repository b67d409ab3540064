"""The mixers once more, from the lines of the paper's Algorithms 1 and 2 and nothing else.

One sequence at a time, one frame at a time, in float64, with no operator of ours. ``stored`` says
what a half-precision model keeps: it rounds each result that is written in that precision.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]
Rounding = Callable[[Tensor], Tensor]


def exactly(x: Tensor) -> Tensor:
    return x


def part(weights: Weights, name: str) -> Weights:
    return {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    y = x @ weights[f"{name}.weight"].T
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def selective_ssm(
    x: Tensor, weights: Weights, stored: Rounding = exactly, stored_dt: Rounding = exactly
) -> Tensor:
    """Lines 5 to 11 for one direction: x (L, E) to y (L, E), not yet gated."""
    length, channels = x.shape
    kernel = weights["conv1d.weight"]
    rank = weights["dt_proj.weight"].shape[1]
    state = weights["A_log"].shape[1]
    past = x.new_zeros(kernel.shape[-1] - 1, channels)
    seen = torch.cat([past, x]).T[None]
    x = stored(F.silu(F.conv1d(seen, kernel, weights["conv1d.bias"], groups=channels))[0].T)
    projected = stored(linear(x, weights, "x_proj"))
    B, C = projected[:, rank : rank + state], projected[:, rank + state :]
    step = stored_dt(linear(projected[:, :rank], weights, "dt_proj"))
    delta = torch.log1p(torch.exp(step))
    A = -torch.exp(weights["A_log"])
    h = x.new_zeros(channels, state)
    y = []
    for t in range(length):
        h = torch.exp(delta[t][:, None] * A) * h + delta[t][:, None] * B[t] * x[t][:, None]
        y.append(h @ C[t] + weights["D"] * x[t])
    return torch.stack(y) if y else torch.zeros_like(x)


def gated(
    x: Tensor,
    z: Tensor,
    weights: Weights,
    backward: bool,
    stored: Rounding = exactly,
    stored_dt: Rounding = exactly,
) -> Tensor:
    x = x.flip(0) if backward else x
    y = selective_ssm(x, weights, stored, stored_dt)
    return stored((y.flip(0) if backward else y) * F.silu(z))


def mamba(
    x: Tensor,
    weights: Weights,
    backward: bool = False,
    stored: Rounding = exactly,
    stored_dt: Rounding = exactly,
) -> Tensor:
    """One direction of Algorithm 2: (L, D) to (L, D)."""
    return stored(unrounded_mamba(x, weights, backward, stored, stored_dt))


def unrounded_mamba(
    x: Tensor,
    weights: Weights,
    backward: bool = False,
    stored: Rounding = exactly,
    stored_dt: Rounding = exactly,
) -> Tensor:
    u, z = stored(linear(x, weights, "in_proj")).chunk(2, dim=-1)
    y = gated(u, z, weights, backward, stored, stored_dt)
    return linear(y, weights, "out_proj")


def mamba_reversed(x: Tensor, weights: Weights, **rounding: Rounding) -> Tensor:
    return mamba(x, weights, backward=True, **rounding)


def algorithm_1(
    x: Tensor, weights: Weights, stored: Rounding = exactly, stored_dt: Rounding = exactly
) -> Tensor:
    """InnBiMamba without its norm and residual."""
    u, z = stored(linear(x, weights, "in_proj")).chunk(2, dim=-1)
    ahead = gated(u, z, part(weights, "forward_ssm"), False, stored, stored_dt)
    back = gated(u, z, part(weights, "backward_ssm"), True, stored, stored_dt)
    return stored(linear(stored(ahead + back), weights, "out_proj"))


def algorithm_2(
    x: Tensor, weights: Weights, stored: Rounding = exactly, stored_dt: Rounding = exactly
) -> Tensor:
    """ExtBiMamba without its norm and residual, the directions added in one product."""
    ahead = unrounded_mamba(x, part(weights, "forward_mamba"), False, stored, stored_dt)
    back = unrounded_mamba(x, part(weights, "backward_mamba"), True, stored, stored_dt)
    return stored(ahead + back)


def algorithm_2_apart(
    x: Tensor, weights: Weights, stored: Rounding = exactly, stored_dt: Rounding = exactly
) -> Tensor:
    """ExtBiMamba without its norm and residual, the directions written and then added."""
    ahead = mamba(x, part(weights, "forward_mamba"), False, stored, stored_dt)
    back = mamba(x, part(weights, "backward_mamba"), True, stored, stored_dt)
    return stored(ahead + back)


def algorithm_2_concat(
    x: Tensor, weights: Weights, stored: Rounding = exactly, stored_dt: Rounding = exactly
) -> Tensor:
    """ExtBiMamba as its authors' code has it: a linear map of both directions, side by side."""
    ahead = mamba(x, part(weights, "forward_mamba"), False, stored, stored_dt)
    back = mamba(x, part(weights, "backward_mamba"), True, stored, stored_dt)
    return stored(linear(torch.cat([ahead, back], dim=-1), weights, "fusion_proj"))
