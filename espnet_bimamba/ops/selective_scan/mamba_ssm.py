"""The selective scan by mamba-ssm's fused CUDA kernel, the one the paper ran."""

from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
from torch import Tensor

from espnet_bimamba.ops.fused_runtime import scan_with

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
    """Serve :func:`espnet_bimamba.ops.selective_scan` on CUDA tensors: see ``fused_runtime``."""
    return scan_with(
        selective_scan_fn,
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
