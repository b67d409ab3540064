"""What a layer remembers between two chunks of a signal."""

from dataclasses import dataclass

from torch import Tensor

from espnet_bimamba.layers.mamba import MambaState


@dataclass
class LayerState:
    """The past of one layer; ESPnet's layers hand it, in place of their mask, to what needs it.

    Each module writes what it remembers, so a state is copied before a layer gets it.

    Attributes:
        mixer: Of the Mamba; None before the first chunk.
        frames: ``(batch, channels, kernel - 1)``, the last inputs of the convolution; None before
            the first chunk, and where there is no convolution.
    """

    mixer: MambaState | None = None
    frames: Tensor | None = None
