"""What the backends that call mamba-ssm's fused CUDA kernels share, wherever these come from.

The kernels know neither lengths nor direction: they are given zeros in the padding and, for the
channels that run backwards, each sequence reversed within its own length.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from espnet_bimamba.ops.causal_conv1d.reference import causal_conv1d
from espnet_bimamba.ops.lengths import turn, zero_padding
from espnet_bimamba.ops.selective_scan.reference import in_whole_halves, selective_scan


def scan_with(
    selective_scan_fn: Callable,
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
    """Serve :func:`espnet_bimamba.ops.selective_scan` with mamba-ssm's ``selective_scan_fn``.

    ``initial_state`` is not served (the table of backends says so), and the last state carries no
    gradient. The kernel wants one dtype for all sequences: step sizes in float32 beside a
    half-precision input make all of them float32, since rounding the (biased) step sizes to
    bfloat16 would change them by percents. So does a B or C that channels of both directions
    share: it is given twice, and the kernel would round either gradient before they are added.
    """
    if not u.numel():
        # Nothing to launch a kernel for.
        return selective_scan(
            u,
            delta,
            A,
            B,
            C,
            D,
            z,
            delta_bias,
            delta_softplus,
            return_last_state,
            initial_state=initial_state,
            reverse=reverse,
            bidirectional=bidirectional,
            lengths=lengths,
        )
    if (groups := _groups_apart(B, C, bidirectional)) > 1:
        along: dict[str, tuple[Tensor | None, int]] = {
            "u": (u, 1),
            "delta": (delta, 1),
            "z": (z, 1),
        }
        along |= {"A": (A, 0), "B": (B, 0), "D": (D, 0), "delta_bias": (delta_bias, 0)}
        parts = [
            scan_with(
                selective_scan_fn,
                **channels,
                delta_softplus=delta_softplus,
                return_last_state=return_last_state,
                reverse=reverse != (bidirectional and 2 * group >= groups),
                lengths=lengths,
            )
            for group, channels in enumerate(_by_groups(groups, C, **along))
        ]
        if not return_last_state:
            return torch.cat(cast(list[Tensor], parts), dim=1)
        outputs, states = zip(*parts, strict=True)
        return torch.cat(outputs, dim=1), torch.cat(states, dim=1)
    if return_last_state and lengths is not None:
        delta, delta_bias, delta_softplus = _stop_after(delta, delta_bias, delta_softplus, lengths)

    dtype = torch.promote_types(u.dtype, delta.dtype)
    if bidirectional and any(x.dim() == 3 or (x.dim() == 4 and x.shape[1] % 2) for x in (B, C)):
        dtype = torch.float32

    def ordered(x: Tensor) -> Tensor:
        x = zero_padding(x.to(dtype), lengths)
        return turn(x, lengths, reverse, bidirectional).contiguous()

    def matrix(x: Tensor) -> Tensor:
        if x.dim() == 2:
            return x.float()
        return ordered(in_whole_halves(x.to(dtype)) if bidirectional else x)

    result = selective_scan_fn(
        ordered(u),
        ordered(delta),
        A.float(),
        *_in_as_many_groups(matrix(B), matrix(C)),
        None if D is None else D.float(),
        z=None if z is None else ordered(z),
        delta_bias=None if delta_bias is None else delta_bias.float(),
        delta_softplus=delta_softplus,
        return_last_state=return_last_state,
    )
    y, last_state = result if return_last_state else (result, None)
    y = zero_padding(turn(y, lengths, reverse, bidirectional), lengths).to(u.dtype)
    if last_state is None:
        return y
    # The kernel leaves a constant B out of its state and multiplies C by it instead.
    return y, (last_state * B.float() if B.dim() == 2 else last_state).detach()


def convolve_with(
    causal_conv1d_fn: Callable,
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
    """Serve :func:`espnet_bimamba.ops.causal_conv1d` with causal-conv1d's ``causal_conv1d_fn``.

    States are not served (the table of backends says so).
    """
    if not x.numel():
        return causal_conv1d(
            x,
            weight,
            bias,
            initial_states=initial_states,
            return_final_states=return_final_states,
            activation=activation,
            reverse=reverse,
            bidirectional=bidirectional,
            lengths=lengths,
        )
    ordered = turn(zero_padding(x, lengths), lengths, reverse, bidirectional)
    y = causal_conv1d_fn(_readable(ordered), weight, bias, activation=activation)
    if y.requires_grad:
        y.register_hook(_readable)
    return zero_padding(turn(y, lengths, reverse, bidirectional), lengths)


def _readable(x: Tensor) -> Tensor:
    """Return ``x`` (batch, dim, length) in a layout that the convolution's kernel takes.

    Neighbouring frames side by side, or neighbouring channels where the number of them and the
    strides are multiples of 8. Of a single frame the gradient's strides would not be.
    """
    row, channel, frame = x.stride()
    aligned = all(n % 8 == 0 for n in (x.shape[1], row, frame))
    if frame == 1 or (channel == 1 and frame > 1 and aligned and x.shape[2] > 1):
        return x
    # Not `contiguous`, which leaves the stride of a single frame as it is.
    return x.clone(memory_format=torch.contiguous_format)


def _groups_apart(B: Tensor, C: Tensor, bidirectional: bool) -> int:
    """Return how many groups of channels the kernel must be given one after the other.

    It takes their number from B, and B that does not change with time has none.
    """
    if B.dim() != 2 or C.dim() == 2:
        return 1
    return math.lcm(2 if bidirectional else 1, C.shape[1] if C.dim() == 4 else 1)


def _by_groups(
    groups: int, C: Tensor, **tensors: tuple[Tensor | None, int]
) -> Iterator[dict[str, Any]]:
    """Cut C into groups, and each of the other tensors along its axis of channels."""
    C = C[:, None] if C.dim() == 3 else C
    C = C.repeat_interleave(groups // C.shape[1], dim=1)
    cut: dict[str, Sequence[Tensor | None]] = {
        name: [None] * groups if x is None else x.tensor_split(groups, axis)
        for name, (x, axis) in tensors.items()
    }
    cut["C"] = C.split(1, dim=1)
    for group in range(groups):
        yield {name: parts[group] for name, parts in cut.items()}


def _in_as_many_groups(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """Repeat the groups of both until there are equally many: the kernel knows one number."""
    if B.dim() == 2 or C.dim() == 2:
        return B, C
    B, C = (x[:, None] if x.dim() == 3 else x for x in (B, C))
    groups = math.lcm(B.shape[1], C.shape[1])
    B, C = (x.repeat_interleave(groups // x.shape[1], dim=1) for x in (B, C))
    return B, C


def _stop_after(
    delta: Tensor, bias: Tensor | None, softplus: bool, lengths: Tensor
) -> tuple[Tensor, None, bool]:
    """Make the step size zero past each end, so that the last state is that of the last frame."""
    delta = zero_padding(delta.float(), lengths)
    if bias is not None:
        delta = delta + bias.float()[:, None]
    if softplus:
        delta = F.softplus(delta)
    return zero_padding(delta, lengths), None, False
