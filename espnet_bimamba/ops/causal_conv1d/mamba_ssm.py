"""The causal depthwise convolution by causal-conv1d's CUDA kernel, mamba-ssm's companion."""

from causal_conv1d import causal_conv1d_fn
from torch import Tensor

from espnet_bimamba.ops.lengths import turn, zero_padding


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
    """Serve :func:`espnet_bimamba.ops.causal_conv1d` on CUDA tensors.

    The kernel knows neither lengths nor direction: it is given zeros in the padding and, for the
    channels that run backwards, each sequence reversed within its own length. States are not
    served (the table of backends says so).
    """
    x = turn(zero_padding(x, lengths), lengths, reverse, bidirectional)
    y = causal_conv1d_fn(x, weight, bias, activation=activation)
    return zero_padding(turn(y, lengths, reverse, bidirectional), lengths)
