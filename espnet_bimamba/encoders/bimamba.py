"""The independent stack of (bidirectional) Mamba layers: Algorithms 1 and 2 of the paper."""

import inspect
from typing import Any

from espnet2.asr.encoder.transformer_encoder import TransformerEncoder
from espnet2.legacy.nets.pytorch_backend.transformer.layer_norm import LayerNorm
from torch import Tensor, nn

from espnet_bimamba.encoders.options import FEED_FORWARD
from espnet_bimamba.encoders.streaming import StreamingHost, WithoutBlocks
from espnet_bimamba.errors import UnusedOptionError
from espnet_bimamba.layers.checks import check_flag


class BiMambaLayer(nn.Module):
    """Norm, mixer, residual and, if given, norm, feed-forward, residual.

    Args:
        size: Width of the layer.
        self_attn: The mixer, called as ESPnet calls self-attention.
        feed_forward: ESPnet's position-wise layer, or None.
        dropout_rate: Dropout after the mixer and the feed-forward.
        residual: Whether the mixer's input is added to its output.
    """

    def __init__(
        self,
        size: int,
        self_attn: nn.Module,
        feed_forward: nn.Module | None,
        dropout_rate: float,
        residual: bool,
    ) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.feed_forward = feed_forward
        self.norm1 = LayerNorm(size)
        if feed_forward is not None:
            self.norm2 = LayerNorm(size)
        self.dropout = nn.Dropout(dropout_rate)
        self.residual = residual

    def forward[Mask](self, x: Tensor, mask: Mask) -> tuple[Tensor, Mask]:
        """Encode ``x`` (batch, length, size); ``mask`` is what the mixer takes, and is returned."""
        normed = self.norm1(x)
        mixed = self.dropout(self.self_attn(normed, normed, normed, mask))
        x = x + mixed if self.residual else mixed
        if self.feed_forward is not None:
            x = x + self.dropout(self.feed_forward(self.norm2(x)))
        return x, mask


class BiMambaEncoder(StreamingHost, TransformerEncoder, WithoutBlocks):
    """ESPnet's ``TransformerEncoder`` with its layers replaced by Mamba layers (Figure 2a).

    The front, the final norm, interCTC and ``return_all_hs`` are the Transformer's. The paper
    contradicts itself on the residual: Algorithms 1 and 2 have one, Table 16 says that the
    recognition models had none, so it is an option. The feed-forward is Table 16's "+ FFN".

    Args:
        input_size: Width of the input features.
        residual: Whether each layer adds its input to the mixer's output.
        ffn: Whether each layer has a feed-forward network, with its own residual.
        **options: See :class:`~espnet_bimamba.encoders.host.MixerHost`,
            :class:`~espnet_bimamba.encoders.streaming.StreamingHost` and ESPnet's encoder;
            ``linear_units`` and the ``positionwise_*`` keys only with ``ffn: true``.

    Raises:
        UnusedOptionError: A stock option that only attention reads.
        OptionError: An option of ours has a value that cannot be honoured.
    """

    name = "bimamba"

    def __init__(
        self, input_size: int, residual: bool = True, ffn: bool = False, **options: Any
    ) -> None:
        check_flag("residual", residual)
        check_flag("ffn", ffn)
        if not ffn:
            _refuse_feed_forward(options)
        super().__init__(input_size, **options)
        for index in range(len(self.encoders)):
            stock = self.encoders[index]
            self.encoders[index] = BiMambaLayer(
                self.output_size(),
                stock.self_attn,
                stock.feed_forward if ffn else None,
                stock.dropout.p,
                residual,
            )


def _refuse_feed_forward(options: dict[str, Any]) -> None:
    # ESPnet writes every default into the config that a model is loaded from: those pass.
    defaults = inspect.signature(TransformerEncoder).parameters
    for option in FEED_FORWARD:
        default = defaults[option].default
        if options.get(option, default) != default:
            raise UnusedOptionError(
                option,
                options[option],
                BiMambaEncoder.name,
                "its layers have no feed-forward network unless ffn: true is given",
            )
