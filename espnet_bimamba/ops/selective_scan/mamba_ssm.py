"""The selective scan by mamba-ssm's fused CUDA kernel, the one the paper ran."""

import torch
import torch.nn.functional as F
from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor

from espnet_bimamba.ops.lengths import turn, zero_padding
from espnet_bimamba.ops.selective_scan.reference import in_whole_halves

# Without the compiled extension this import raises, where `selective_scan_fn` would only fail
# when called: later releases leave it out unless built with MAMBA_KEEP_CUDA_BUILD=TRUE.
__import__("selective_scan_cuda")


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
    """Serve :func:`espnet_bimamba.ops.selective_scan` on CUDA tensors.

    The kernel knows neither lengths nor direction: it is given zeros in the padding and, for the
    channels that run backwards, each sequence reversed within its own length. ``initial_state`` is
    not served (the table of backends says so), and the last state carries no gradient. It wants
    one dtype for all sequences: step sizes in float32 beside a half-precision input make all of
    them float32, since rounding the (biased) step sizes to bfloat16 would change them by percents.
    So does a B or C that channels of both directions share: it is given twice, and the kernel
    would round either gradient before they are added.
    """
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
        matrix(B),
        matrix(C),
        None if D is None else D.float(),
        z=None if z is None else ordered(z),
        delta_bias=None if delta_bias is None else delta_bias.float(),
        delta_softplus=delta_softplus,
        return_last_state=return_last_state,
    )
    y, last_state = result if return_last_state else (result, None)
    y = zero_padding(turn(y, lengths, reverse, bidirectional), lengths).to(u.dtype)
    return y if last_state is None else (y, last_state.detach())


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
