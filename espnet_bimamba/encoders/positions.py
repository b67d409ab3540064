"""What stands where ESPnet adds positions to the frames."""

from collections.abc import Callable

from espnet2.legacy.nets.pytorch_backend.transformer.embedding import (
    PositionalEncoding,
    ScaledPositionalEncoding,
)
from torch import Tensor, nn

from espnet_bimamba.encoders.options import POSITIONS, REFUSED_POSITIONS
from espnet_bimamba.errors import OptionError


class NoPositionalEncoding(nn.Module):
    """ESPnet's position layer without positions: its scaling and its dropout stay.

    Without the scaling the residual would start 16 times smaller at 256 channels.

    Args:
        scale: What frames are multiplied by, ``sqrt(d_model)`` in ESPnet.
        dropout_rate: Dropout after it.
    """

    def __init__(self, scale: float, dropout_rate: float) -> None:
        super().__init__()
        self.scale = scale
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Scale ``x`` (batch, length, d_model)."""
        return self.dropout(x * self.scale)


_REPLACEMENTS: dict[str, Callable[[PositionalEncoding], nn.Module]] = {
    "none": lambda stock: NoPositionalEncoding(stock.xscale, stock.dropout.p),
    "abs_pos": lambda stock: stock,
    "scaled_abs_pos": lambda stock: ScaledPositionalEncoding(stock.d_model, stock.dropout.p),
}


def check_positions(pos_enc_layer_type: str) -> None:
    """Refuse what no mixer can use.

    Raises:
        OptionError: ``pos_enc_layer_type`` is not one of ``options.POSITIONS``.
    """
    if pos_enc_layer_type not in POSITIONS:
        hint = REFUSED_POSITIONS.get(pos_enc_layer_type, "")
        raise OptionError(
            "pos_enc_layer_type", pos_enc_layer_type, f"one of {', '.join(POSITIONS)}", hint
        )


def replace_positions(embed: nn.Module | None, pos_enc_layer_type: str) -> None:
    """Put what ``pos_enc_layer_type`` names where ``embed`` has a ``PositionalEncoding``.

    Raises:
        OptionError: Positions are asked for and the input layer has no place for them.
    """
    found = False
    for parent in list(embed.modules()) if embed is not None else []:
        for name, child in parent.named_children():
            if type(child) is PositionalEncoding:
                setattr(parent, name, _REPLACEMENTS[pos_enc_layer_type](child))
                found = True
    if not found and pos_enc_layer_type != "none":
        raise OptionError(
            "pos_enc_layer_type",
            pos_enc_layer_type,
            "none with this input_layer",
            "ESPnet adds no positions behind it.",
        )
