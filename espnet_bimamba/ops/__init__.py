"""Operators on tensors: the selective scan and the causal depthwise convolution."""

from espnet_bimamba.ops.causal_conv1d import causal_conv1d
from espnet_bimamba.ops.selective_scan import selective_scan

__all__ = ["causal_conv1d", "selective_scan"]
