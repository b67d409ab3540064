"""Self-attention as a mixer: for the paper's Table 16, which takes a Transformer's layer apart."""

from typing import Any

from torch import Tensor, nn

from espnet_bimamba.errors import OptionError
from espnet_bimamba.layers.checks import check_mixer_options, refuse_other_kinds
from espnet_bimamba.layers.mamba import frames_of, masked_frames
from espnet_bimamba.ops.lengths import Lengths, padding_mask

#: Channels of a head in the paper's models and in ESPnet's stock ones: 256 / 4 and 512 / 8.
HEAD = 64

#: What :class:`Mamba` reads and attention has no use for.
_MAMBA_DEFAULTS = {
    "d_state": 16,
    "d_conv": 4,
    "expand": 2,
    "dt_rank": "auto",
    "A_init": "s4d_real_noise",
}


class SelfAttention(nn.Module):
    """Multi-head self-attention over the frames of each sequence, heads of 64 channels.

    Without positions and without dropout of its weights. Parameters are those of ESPnet's
    attention with absolute positions: ``4 * (d_model + 1) * d_model``.

    Args:
        d_model: Width of input and output: up to 64, or a multiple of 64.
        **mamba: The other mixers' options, at their defaults only.

    Raises:
        OptionError: The width is not possible, or a Mamba's option is not at its default, which
            would silently do nothing.
    """

    kind = "attention"

    def __init__(self, d_model: int, **mamba: Any) -> None:
        check_mixer_options(d_model, **(_MAMBA_DEFAULTS | mamba))
        for option, value in mamba.items():
            if value != _MAMBA_DEFAULTS[option]:
                raise OptionError(
                    option,
                    value,
                    "nothing with mamba_type='attention'",
                    "Only a Mamba reads it: remove the line.",
                )
        if d_model > HEAD and d_model % HEAD:
            raise OptionError("d_model", d_model, f"a multiple of {HEAD} above it")
        super().__init__()
        self.d_model = d_model
        self.attention = nn.MultiheadAttention(d_model, max(1, d_model // HEAD), batch_first=True)
        self.register_load_state_dict_pre_hook(refuse_other_kinds)

    def forward(self, x: Tensor, lengths: Tensor | Lengths | None = None) -> Tensor:
        """Mix ``x`` over time.

        Args:
            x: ``(batch, length, d_model)``.
            lengths: ``(batch,)``, integer. Output and gradients past each sequence's end are
                zero, whatever the padding holds.

        Returns:
            ``(batch, length, d_model)``.

        Raises:
            ShapeError: ``x`` has another shape.
            LengthsError: ``lengths`` does not describe the batch.
        """
        lengths = frames_of(x, self.d_model, lengths)
        x = masked_frames(x, lengths)
        mask = None
        if lengths is not None:
            # A sequence of no frames looks at its zeros: a softmax over nothing would be NaN.
            mask = padding_mask(*lengths) & (lengths.frames > 0)[:, None]
        mixed, _ = self.attention(x, x, x, key_padding_mask=mask, need_weights=False)
        return masked_frames(mixed, lengths)
