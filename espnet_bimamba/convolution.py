"""Convolutions of encoder layers: channels side by side on a CPU, kernels of any width, causal."""

import torch
import torch.nn.functional as F
from espnet2.legacy.nets.pytorch_backend.conformer.convolution import (
    ConvolutionModule,
    mask_padded_frames,
)
from torch import Tensor, nn

from espnet_bimamba.layers import LayerState


class ChannelsLastConv1d(nn.Conv1d):
    """``nn.Conv1d`` over one channel or one frame at a time, faster in inference on a CPU.

    Where no gradient is recorded, float32 is convolved with neighbouring channels side by side, as
    ESPnet's layers hold them: a kernel of one frame is a matrix product, and for a wider one oneDNN
    takes vectors of channels and a fifth of the time. The numbers are those of ``nn.Conv1d`` but
    for last digits.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` (batch, channels, length)."""
        if not _gains_from_channels_last(x):
            return super().forward(x)
        if (self.groups, *self.kernel_size) == (1, 1):
            return F.linear(x.transpose(1, 2), self.weight[..., 0], self.bias).transpose(1, 2)
        image = x[:, :, None].contiguous(memory_format=torch.channels_last)
        weight, padding = self.weight[:, :, None], (0, *self.padding)
        out = F.conv2d(image, weight, self.bias, padding=padding, groups=self.groups)
        return out.squeeze(2)


class ChannelsLastBatchNorm1d(nn.BatchNorm1d):
    """``nn.BatchNorm1d`` that in inference on a CPU leaves channels side by side."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (batch, channels, length)."""
        mean, variance = self.running_mean, self.running_var
        if self.training or mean is None or not _gains_from_channels_last(x):
            return super().forward(x)
        image = x[:, :, None]
        out = F.batch_norm(image, mean, variance, self.weight, self.bias, eps=self.eps)
        return out.squeeze(2)


def _gains_from_channels_last(x: Tensor) -> bool:
    """Whether ``x`` is better taken as an image of one row: torch lays out images only."""
    # A traced graph is compiled for what it runs on.
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    image = x.dtype == torch.float32 and x.dim() == 3
    return image and x.device.type == "cpu" and torch.backends.mkldnn.is_available()


def keep_channels_last(module: nn.Module) -> None:
    """Let convolutions and batch norms in ``module`` keep channels side by side, where they can.

    All that changes is their class: what they hold and what is hooked to them stays.
    """
    for child in module.modules():
        if type(child) is nn.Conv1d and _has_one_channel_or_frame(child):
            child.__class__ = ChannelsLastConv1d
        elif type(child) is nn.BatchNorm1d:
            child.__class__ = ChannelsLastBatchNorm1d


def _has_one_channel_or_frame(convolution: nn.Conv1d) -> bool:
    if isinstance(convolution.padding, str) or convolution.padding_mode != "zeros":
        return False
    depthwise = convolution.groups == convolution.in_channels == convolution.out_channels
    pointwise = (convolution.groups, *convolution.kernel_size, *convolution.padding) == (1, 1, 0)
    return (depthwise or pointwise) and (*convolution.stride, *convolution.dilation) == (1, 1)


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
        keep_channels_last(self)
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
