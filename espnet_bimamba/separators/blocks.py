"""The kinds of blocks, by the names that ``block_type`` takes."""

from collections.abc import Callable
from dataclasses import dataclass

from espnet2.legacy.nets.pytorch_backend.conformer.encoder_layer import (
    EncoderLayer as ConformerLayer,
)
from espnet2.legacy.nets.pytorch_backend.nets_utils import get_activation
from espnet2.legacy.nets.pytorch_backend.transformer.encoder_layer import (
    EncoderLayer as TransformerLayer,
)
from espnet2.legacy.nets.pytorch_backend.transformer.layer_norm import LayerNorm
from espnet2.legacy.nets.pytorch_backend.transformer.positionwise_feed_forward import (
    PositionwiseFeedForward,
)
from torch import Tensor, nn

from espnet_bimamba.convolution import PaddedConvolutionModule


@dataclass(frozen=True)
class BlockSizes:
    """What a block is built from, beside what mixes its frames.

    Attributes:
        adim: Width.
        linear_units: Inner width of the feed-forward networks.
        kernel: Width of the convolution in frames.
        causal: Whether the convolution sees no later frame.
        dropout_rate: Dropout after each part, and inside the feed-forward networks.
    """

    adim: int
    linear_units: int
    kernel: int
    causal: bool
    dropout_rate: float


class IndependentLayer(nn.Module):
    """Norm, mixer, residual: the layer of Algorithms 1 and 2.

    Args:
        size: Width.
        self_attn: The mixer, called as ESPnet calls self-attention.
        dropout_rate: Dropout after the mixer.
    """

    def __init__(self, size: int, self_attn: nn.Module, dropout_rate: float) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.norm = LayerNorm(size)
        self.dropout = nn.Dropout(dropout_rate)

    def forward[Mask](self, x: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        """Mix ``x`` (batch, length, size); ``mask`` is what the mixer takes, and is returned."""
        normed = self.norm(x)
        return x + self.dropout(self.self_attn(normed, normed, normed, mask)), mask


def _independent(sizes: BlockSizes, mixer: nn.Module) -> nn.Module:
    return IndependentLayer(sizes.adim, mixer, sizes.dropout_rate)


def _transformer(sizes: BlockSizes, mixer: nn.Module) -> nn.Module:
    feed_forward = PositionwiseFeedForward(sizes.adim, sizes.linear_units, sizes.dropout_rate)
    return TransformerLayer(sizes.adim, mixer, feed_forward, sizes.dropout_rate)


def _conformer(sizes: BlockSizes, mixer: nn.Module) -> nn.Module:
    swish = get_activation("swish")
    feed_forward, macaron = (
        PositionwiseFeedForward(sizes.adim, sizes.linear_units, sizes.dropout_rate, swish)
        for _ in range(2)
    )
    convolution = PaddedConvolutionModule(sizes.adim, sizes.kernel, swish, sizes.causal)
    return ConformerLayer(sizes.adim, mixer, feed_forward, macaron, convolution, sizes.dropout_rate)


#: Each builds a pre-norm block around what mixes the frames.
BLOCKS: dict[str, Callable[[BlockSizes, nn.Module], nn.Module]] = {
    "independent": _independent,
    "transformer": _transformer,
    "conformer": _conformer,
}
