"""The causal convolution by causal-conv1d's kernel as the Hugging Face Hub has it ready built.

Importing this module downloads the kernel: the table of backends does so only when it is asked for
by name.
"""

from kernels import get_kernel
from torch import Tensor

from espnet_bimamba.ops.fused_runtime import convolve_with

# A version's builds keep its functions, and are added to as torch goes on.
causal_conv1d_fn = get_kernel("kernels-community/causal-conv1d", version=1).causal_conv1d_fn


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
    """Serve :func:`espnet_bimamba.ops.causal_conv1d` on CUDA tensors: see ``fused_runtime``."""
    return convolve_with(
        causal_conv1d_fn,
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
