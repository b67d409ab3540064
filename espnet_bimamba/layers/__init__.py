"""Mixers of a sequence over time: Mamba and its bidirectional forms."""

from espnet_bimamba.layers.attention import MixerAttention
from espnet_bimamba.layers.bimamba import ExtBiMamba, InnBiMamba
from espnet_bimamba.layers.mamba import Mamba, MambaState
from espnet_bimamba.layers.mixers import MIXERS, build_mixer
from espnet_bimamba.layers.state import LayerState

__all__ = [
    "MIXERS",
    "ExtBiMamba",
    "InnBiMamba",
    "LayerState",
    "Mamba",
    "MambaState",
    "MixerAttention",
    "build_mixer",
]
