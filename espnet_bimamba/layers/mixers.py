"""The table of mixers, by the names that ``mamba_type`` takes."""

from collections.abc import Callable
from typing import Any

from torch import nn

from espnet_bimamba.errors import OptionError
from espnet_bimamba.layers.bimamba import ExtBiMamba, InnBiMamba
from espnet_bimamba.layers.mamba import Mamba
from espnet_bimamba.layers.self_attention import SelfAttention

MIXERS: dict[str, Callable[..., nn.Module]] = {
    "mamba": Mamba,
    "innbimamba": InnBiMamba,
    "extbimamba": ExtBiMamba,
    "attention": SelfAttention,
}


def build_mixer(
    mamba_type: str, d_model: int, fusion: str | None = None, **options: Any
) -> nn.Module:
    """Build the mixer that ``mamba_type`` names.

    Args:
        mamba_type: One of :data:`MIXERS`.
        d_model: Width of input and output.
        fusion: For ``extbimamba`` only: ``add`` (the default, None) or ``concat``.
        **options: ``d_state``, ``d_conv``, ``expand``, ``dt_rank``, ``A_init``; a Mamba's only.

    Raises:
        OptionError: A name is unknown, an option out of range, or ``fusion`` is given for a type
            that has none.
    """
    if mamba_type not in list(MIXERS):
        raise OptionError("mamba_type", mamba_type, f"one of {', '.join(MIXERS)}")
    if mamba_type == "extbimamba":
        return ExtBiMamba(d_model, fusion="add" if fusion is None else fusion, **options)
    if fusion is not None:
        raise OptionError(
            "fusion",
            fusion,
            f"nothing with mamba_type={mamba_type!r}",
            "Only extbimamba has two outputs to fuse: remove the line.",
        )
    return MIXERS[mamba_type](d_model, **options)
