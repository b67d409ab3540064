"""The causal depthwise convolution by causal-conv1d's CUDA kernel, mamba-ssm's companion."""

from causal_conv1d import causal_conv1d_fn
from torch import Tensor

from espnet_bimamba.ops.fused_runtime import convolve_with


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
