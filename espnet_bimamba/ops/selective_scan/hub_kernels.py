"""The selective scan by mamba-ssm's kernel as the Hugging Face Hub has it ready built.

Importing this module downloads the kernel: the table of backends does so only when it is asked for
by name.
"""

from kernels import get_kernel
from torch import Tensor

from espnet_bimamba.ops.fused_runtime import scan_with

# A version's builds keep its functions, and are added to as torch goes on.
selective_scan_fn = get_kernel("kernels-community/mamba-ssm", version=2).selective_scan_fn


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
