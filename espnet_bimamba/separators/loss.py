"""The loss of the paper's appendix C.1, for ESPnet's ``criterions``."""

from typing import Any

import torch
from espnet2.enh.loss.criterions.tf_domain import FrequencyDomainLoss
from torch import Tensor

from espnet_bimamba.errors import OptionError, ShapeError
from espnet_bimamba.layers.checks import check_flag

# The root's slope is infinite at zero: 16-bit sound has no bin as faint, its rounding is at 1e-4.
_FAINTEST = 1e-5


class CompressedMagnitudeMSE(FrequencyDomainLoss):
    """Mean square error between power-law compressed magnitudes.

    The paper prints no exponent; 0.3 is that of its source, "Looking to listen at the cocktail
    party" (its reference 56). ESPnet's ``mse`` compares complex spectra or masks.

    Frames in which the mixture is exactly zero do not count: those are the padding, so that an
    utterance's loss does not depend on the lengths of others in its batch.

    Args:
        exponent: Of the compression, above 0 and up to 1.
        stft_consistency: Whether the estimate is what the decoder's signal has for a spectrum,
            as in ESPnet's other losses of spectra, or, as in the paper, what the separator gave:
            the magnitude of its mask times the mixture's. With true the frames that count are
            those in which estimate and reference are not both zero.
        name: In ESPnet's log.
        only_for_test: Whether training leaves it out.
        is_noise_loss: Whether it is the loss of the noise.
        is_dereverb_loss: Whether it is the loss of the signals without reverberation.

    Raises:
        OptionError: An option is out of range or of the wrong type.
    """

    def __init__(
        self,
        exponent: float = 0.3,
        stft_consistency: bool = False,
        name: str | None = None,
        only_for_test: bool = False,
        is_noise_loss: bool = False,
        is_dereverb_loss: bool = False,
    ) -> None:
        if type(exponent) not in (int, float) or not 0 < exponent <= 1:
            raise OptionError("exponent", exponent, "a number above 0 and up to 1")
        check_flag("stft_consistency", stft_consistency)
        super().__init__(
            f"MSE_on_Mag^{exponent:g}" if name is None else name,
            only_for_test=only_for_test,
            is_noise_loss=is_noise_loss,
            is_dereverb_loss=is_dereverb_loss,
        )
        self.exponent = exponent
        self.stft_consistency = stft_consistency

    @property
    def compute_on_mask(self) -> bool:
        """Whether ESPnet gives the separator's masks and not the spectra of its signals."""
        return not self.stft_consistency

    @property
    def mask_type(self) -> str:
        """What :meth:`create_mask_label` makes: no kind of mask that ESPnet knows."""
        return "magnitudes"

    def create_mask_label(
        self, mix_spec: Tensor, ref_spec: list[Tensor], noise_spec: Any = None
    ) -> list[Tensor]:
        """Put the mixture's magnitudes, which a mask multiplies, beside those of the reference.

        Args:
            mix_spec: ``(batch, frames, bins)``, complex.
            ref_spec: Likewise, one for each speaker.
            noise_spec: Not read.

        Returns:
            ``(batch, frames, bins, 2)`` for each speaker: the reference's, the mixture's.
        """
        mixture = abs(mix_spec)
        return [torch.stack([abs(spectrum), mixture], dim=-1) for spectrum in ref_spec]

    def forward(self, ref: Tensor, inf: Tensor) -> Tensor:
        """Compare an estimate with its reference.

        Args:
            ref: Magnitudes as :meth:`create_mask_label` makes them, or with ``stft_consistency``
                a complex spectrum ``(batch, frames, bins)``.
            inf: A mask ``(batch, frames, bins)``, or like ``ref``, which is what ESPnet gives
                for a separator without masks.

        Returns:
            ``(batch,)``.

        Raises:
            ShapeError: The shapes do not belong together, or there are several channels.
        """
        target, estimate, loudest = (self._spectra if self.stft_consistency else self._masks)(
            ref, inf
        )
        error = (self._compress(target) - self._compress(estimate)) ** 2
        counted = (loudest > 0).any(dim=-1)
        frames = counted.sum(dim=-1).clamp_min(1)
        return (error.mean(dim=-1) * counted).sum(dim=-1) / frames

    def _spectra(self, ref: Tensor, inf: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if ref.dim() != 3 or ref.shape != inf.shape:
            raise ShapeError(
                "reference and estimate must be (batch, frames, bins), got "
                f"{tuple(ref.shape)} and {tuple(inf.shape)}"
            )
        target, estimate = abs(ref), abs(inf)
        return target, estimate, torch.maximum(target, estimate)

    def _masks(self, ref: Tensor, inf: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if ref.dim() != 4 or ref.shape[-1] != 2 or inf.shape not in (ref.shape, ref.shape[:3]):
            raise ShapeError(
                "magnitudes must be (batch, frames, bins, 2) and masks (batch, frames, bins), got "
                f"{tuple(ref.shape)} and {tuple(inf.shape)}"
            )
        target, mixture = ref.unbind(-1)
        estimate = inf[..., 0] if inf.dim() == 4 else inf.abs() * mixture
        return target, estimate, mixture

    def _compress(self, magnitude: Tensor) -> Tensor:
        return magnitude.clamp_min(_FAINTEST) ** self.exponent
