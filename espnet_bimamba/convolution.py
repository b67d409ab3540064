"""The Conformer's convolution module with a kernel of any width, causal or not."""

import torch
import torch.nn.functional as F
from espnet2.legacy.nets.pytorch_backend.conformer.convolution import (
    ConvolutionModule,
    mask_padded_frames,
)
from torch import Tensor, nn

from espnet_bimamba.layers import LayerState


class PaddedConvolutionModule(ConvolutionModule):
    """ESPnet's ``ConvolutionModule``, which takes odd kernels and looks ahead, without both limits.

    With an odd kernel and ``causal=False`` it is ESPnet's. An even kernel sees one frame more of
    the past than of the future: 16 and 15 beside the frame itself with the paper's 32. A causal
    one sees ``kernel_size - 1`` frames of the past and none of the future.

    Args:
        channels: Width of input and output.
        kernel_size: Width of the depthwise convolution in frames.
        activation: What follows the batch norm.
        causal: Whether no frame sees a later one.
    """

    def __init__(
        self, channels: int, kernel_size: int, activation: nn.Module, causal: bool
    ) -> None:
        # Stock asserts an odd kernel, which the depthwise convolution alone has.
        super().__init__(channels, 1, activation)
        self.depthwise_conv = nn.Conv1d(channels, channels, kernel_size, groups=channels)
        self.past = kernel_size - 1 if causal else kernel_size // 2
        self.future = kernel_size - 1 - self.past

    def forward(self, x: Tensor, mask_pad: Tensor | LayerState | None = None) -> Tensor:
        """Convolve ``x`` over time.

        Args:
            x: ``(batch, length, channels)``.
            mask_pad: ``(batch, 1, length)``, true on frames: the others are zeros to their
                neighbours. One of another shape is passed over, as in stock. A
                :class:`LayerState` goes on from the chunk before and is given what comes next;
                only a causal module can.

        Returns:
            ``(batch, length, channels)``.
        """
        x = F.glu(self.pointwise_conv1(x.transpose(1, 2)), dim=1)
        if isinstance(mask_pad, LayerState):
            x = self._after_the_past(x, mask_pad)
        else:
            x = F.pad(mask_padded_frames(x, mask_pad), (self.past, self.future))
        x = self.activation(self.norm(self.depthwise_conv(x)))
        return self.pointwise_conv2(x).transpose(1, 2)

    def _after_the_past(self, x: Tensor, state: LayerState) -> Tensor:
        assert self.future == 0, "a chunk has no future to see"
        past = x.new_zeros(*x.shape[:2], self.past) if state.frames is None else state.frames
        x = torch.cat([past, x], dim=-1)
        # A copy: a view would keep the whole chunk in memory.
        state.frames = x[..., x.shape[-1] - self.past :].clone()
        return x
