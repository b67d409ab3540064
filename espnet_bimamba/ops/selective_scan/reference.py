"""The definition of the selective scan, in plain PyTorch."""

import torch
import torch.nn.functional as F
from torch import Tensor

from espnet_bimamba.ops.lengths import halves, zero_padding


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
    """Compute the scan step by step, differentiable by autograd.

    For each sequence and channel, with the state ``h`` a vector over ``state``::

        dt[t] = delta[t] + delta_bias              (softplus of it with delta_softplus)
        h[t]  = exp(dt[t] * A) * h[t-1] + dt[t] * B[t] * u[t]
        y[t]  = sum(C[t] * h[t]) + D * u[t]
        out[t] = y[t] * silu(z[t])

    ``h[-1]`` is ``initial_state`` or zero. With ``reverse`` time runs from the last frame of
    each sequence to its first, and ``h[t-1]`` reads ``h[t+1]``. With ``bidirectional`` the two
    halves of the channels are two scans, the second against the first. This is equation 2 of
    "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" with the Euler form of the
    input matrix, as mamba-ssm's ``selective_scan_ref`` has it. State, ``A``, ``D`` and ``dt`` are
    float32, or float64 where ``u`` is.

    Arguments, shapes and errors: see :func:`espnet_bimamba.ops.selective_scan`.
    """
    dtype = torch.promote_types(u.dtype, torch.float32)
    if bidirectional:
        parts = halves(
            u=(u, 1),
            delta=(delta, 1),
            A=(A, 0),
            B=_with_axis_of_halves(B, dtype),
            C=_with_axis_of_halves(C, dtype),
            D=(D, 0),
            z=(z, 1),
            delta_bias=(delta_bias, 0),
            initial_state=(initial_state, 1),
        )
        results = [
            selective_scan(
                **part,
                delta_softplus=delta_softplus,
                return_last_state=True,
                reverse=backwards,
                lengths=lengths,
            )
            for part, backwards in zip(parts, (reverse, not reverse), strict=True)
        ]
        out, h = (torch.cat(pair, dim=1) for pair in zip(*results, strict=True))
        return (out, h) if return_last_state else out
    length = u.shape[-1]
    u_, B_, C_ = (zero_padding(x.to(dtype), lengths) for x in (u, _in_time(B, u), _in_time(C, u)))
    dt = _step_size(delta.to(dtype), delta_bias, delta_softplus, lengths)
    A = A.to(dtype)
    B_, C_ = (_over_channels(x, u.shape[1]) for x in (B_, C_))
    h = u_.new_zeros(*u.shape[:2], A.shape[1])
    if initial_state is not None:
        h = h + initial_state.to(dtype)
    # Unbound once: the gradient of picking frames one by one would be quadratic in length.
    frames = [x.unbind(-1) for x in (u_, dt, B_, C_)]
    steps = []
    for t in reversed(range(length)) if reverse else range(length):
        u_t, dt_t, B_t, C_t = (x[t] for x in frames)
        h = torch.exp(dt_t[..., None] * A) * h + (dt_t * u_t)[..., None] * B_t
        steps.append((h * C_t).sum(-1))
    if reverse:
        steps.reverse()
    y = torch.stack(steps, dim=-1) if steps else torch.zeros_like(u_)
    if D is not None:
        y = y + u_ * D.to(dtype)[:, None]
    if z is not None:
        y = y * F.silu(zero_padding(z.to(dtype), lengths))
    out = zero_padding(y, lengths).to(u.dtype)
    return (out, h) if return_last_state else out


def _with_axis_of_halves(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, int]:
    """Return B or C with the axis along which it can be split into those of either half."""
    # In `dtype`, since the gradient of a group that both halves share is the sum of theirs.
    return (x, 0) if x.dim() == 2 else (in_whole_halves(x.to(dtype)), 1)


def in_whole_halves(x: Tensor) -> Tensor:
    """Regroup B or C (batch, [group,] state, length) so that no group has channels of both halves.

    Returns:
        (batch, group, state, length) with an even number of groups.
    """
    x = x[:, None] if x.dim() == 3 else x
    return x.repeat_interleave(2, dim=1) if x.shape[1] % 2 else x


def _step_size(
    delta: Tensor, bias: Tensor | None, softplus: bool, lengths: Tensor | None
) -> Tensor:
    delta = zero_padding(delta, lengths)
    if bias is not None:
        delta = delta + bias.to(delta.dtype)[:, None]
    if softplus:
        delta = F.softplus(delta)
    # A step of size zero leaves the state as it is: padded frames pass it on unchanged.
    return zero_padding(delta, lengths)


def _in_time(x: Tensor, u: Tensor) -> Tensor:
    """Spread a time-constant (dim, state) matrix over (batch, dim, state, length)."""
    if x.dim() > 2:
        return x
    return x[None, :, :, None].expand(u.shape[0], -1, -1, u.shape[-1])


def _over_channels(x: Tensor, dim: int) -> Tensor:
    """Spread (batch, [group,] state, length) to (batch, dim or 1, state, length)."""
    if x.dim() == 3:
        return x[:, None]
    return x.repeat_interleave(dim // x.shape[1], dim=1)
