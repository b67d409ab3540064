"""ESPnet's short-time Fourier transform and its inverse with a square-root Hann window.

ESPnet takes its windows from torch by name, and torch has none of that name.
"""

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from espnet2.enh.decoder.stft_decoder import STFTDecoder
from espnet2.enh.encoder.stft_encoder import STFTEncoder
from espnet2.enh.layers.complex_utils import to_complex
from espnet2.layers.stft import Stft
from torch import Tensor

from espnet_bimamba.errors import OptionError
from espnet_bimamba.ops.lengths import padding_mask, zero_padding

WINDOW = "sqrt_hann"
# Where all that overlaps has weighed less, there is nothing to divide by (torch's istft refuses).
_SMALLEST_SHARE = 1e-11


def sqrt_hann_window(
    length: int, *, dtype: torch.dtype | None = None, device: torch.device | None = None
) -> Tensor:
    """Return the root of torch's periodic Hann window: half a period of a sine.

    Its squares at a hop of half its length add up to one, so that what analysis and synthesis
    both apply it to comes back as it was.

    Args:
        length: Samples.
        dtype: Of the window; None is torch's default.
        device: Of the window.

    Returns:
        ``(length,)``.
    """
    # Not the root of hann_window, of whose small ends float32 keeps three digits.
    return torch.sin(torch.arange(length, dtype=dtype, device=device) * (math.pi / length))


class SqrtHannStft(Stft):
    """ESPnet's ``Stft`` with its window, and each signal of a batch as if it were alone.

    ESPnet's reflects the end of the longest signal only, and its inverse fades the end of the
    others, where the overlapping frame is missing.

    Args:
        **options: Those of ``Stft``, but for ``window``.

    Raises:
        OptionError: The windows do not overlap: each begins at zero, and samples would be lost.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.hop_length >= self.win_length:
            raise OptionError(
                "hop_length", self.hop_length, f"less than win_length, which is {self.win_length}"
            )
        self.window = WINDOW

    def forward(self, input: Tensor, ilens: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Transform ``input``.

        Args:
            input: ``(batch, samples)`` or ``(batch, samples, channels)``, float32 or float64.
            ilens: ``(batch,)``, samples of each signal.

        Returns:
            ``(batch, frames, [channels,] bins, 2)``, zero past each signal's last frame, and the
            frames of each signal, None without ``ilens``.
        """
        signals = input.transpose(1, 2) if input.dim() == 3 else input[:, None]
        lengths = _lengths(signals, ilens)
        spectra = torch.stft(
            _padded(signals, lengths, self._pad()).flatten(0, 1),
            n_fft=self.n_fft,
            hop_length=self.hop_length,
            window=self._window(input),
            center=False,
            normalized=self.normalized,
            onesided=self.onesided,
            return_complex=True,
        )
        # (batch * channels, bins, frames) -> (batch, frames, channels, bins, 2)
        spectra = torch.view_as_real(spectra.unflatten(0, signals.shape[:2])).permute(0, 3, 1, 2, 4)
        past = padding_mask(self._frames(lengths), spectra.shape[1])
        spectra = spectra.masked_fill(past[:, :, None, None, None], 0)
        olens = None if ilens is None else self._frames(ilens)
        return spectra if input.dim() == 3 else spectra.squeeze(2), olens

    def inverse(self, input: Any, ilens: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Transform back.

        Args:
            input: ``(batch, frames, bins)``, complex in torch's or torch_complex's way, or
                ``(batch * channels, frames, bins)``.
            ilens: ``(batch,)``, samples of each signal; without it all have as many.

        Returns:
            ``(batch, samples)``, zero past each signal's end, and ``ilens``.
        """
        spectra = to_complex(input)
        window = self._window(spectra.real)
        frames = self._waves(spectra) * window
        shares = (window**2).expand_as(frames)
        if ilens is not None:
            # ESPnet's decoder counts the channels of a signal as signals.
            samples = ilens.to(frames.device).repeat_interleave(len(frames) // len(ilens))
            past = padding_mask(self._frames(samples), frames.shape[1])
            shares = shares.masked_fill(past[..., None], 0)
        signals = self._overlapped(frames) / self._overlapped(shares).clamp_min(_SMALLEST_SHARE)
        signals = signals[:, self._pad() :]
        if ilens is None:
            return signals[:, : signals.shape[1] - self._pad()], None
        longest = int(ilens.max())
        signals = F.pad(signals, (0, max(0, longest - signals.shape[1])))[:, :longest]
        return zero_padding(signals, samples), ilens

    def _pad(self) -> int:
        return self.n_fft // 2 if self.center else 0

    def _frames(self, samples: Tensor) -> Tensor:
        frames = (samples + 2 * self._pad() - self.n_fft) // self.hop_length + 1
        return frames.clamp_min(0)

    def _window(self, like: Tensor) -> Tensor:
        window = sqrt_hann_window(self.win_length, dtype=like.dtype, device=like.device)
        return _centred(window, self.n_fft)

    def _waves(self, spectra: Tensor) -> Tensor:
        norm = "ortho" if self.normalized else "backward"
        if self.onesided:
            return torch.fft.irfft(spectra, n=self.n_fft, norm=norm)
        return torch.fft.ifft(spectra, norm=norm).real

    def _overlapped(self, frames: Tensor) -> Tensor:
        """Add up ``(batch, frames, n_fft)`` to ``(batch, samples)``."""
        samples = (frames.shape[1] - 1) * self.hop_length + self.n_fft
        added = F.fold(
            frames.transpose(1, 2), (1, samples), (1, self.n_fft), stride=(1, self.hop_length)
        )
        return added[:, 0, 0]


def _centred(frame: Tensor, n_fft: int) -> Tensor:
    """Fill ``(..., win_length)`` up with zeros at both ends."""
    missing = n_fft - frame.shape[-1]
    return F.pad(frame, (missing // 2, missing - missing // 2))


def _lengths(signals: Tensor, ilens: Tensor | None) -> Tensor:
    batch, _, samples = signals.shape
    full = torch.full((batch,), samples, device=signals.device)
    return full if ilens is None else ilens.to(signals.device)


def _padded(signals: Tensor, lengths: Tensor, pad: int) -> Tensor:
    """Reflect ``signals`` (batch, channels, samples) at both ends of each; zeros beyond."""
    samples = signals.shape[-1]
    last = lengths[:, None] - 1
    source = torch.arange(-pad, samples + pad, device=signals.device).abs().expand(len(last), -1)
    source = torch.where(source > last, 2 * last - source, source)
    beyond = (source < 0) | (source > last)
    index = source.clamp(0, samples - 1)[:, None].expand(-1, signals.shape[1], -1)
    return signals.gather(-1, index).masked_fill(beyond[:, None], 0)


class _SqrtHannWindow(torch.nn.Module):
    """Mix-in for a stock encoder or decoder, which it gives the window.

    Args:
        window: Always ``sqrt_hann``: ESPnet's own ``stft`` has the windows of torch.
        **stock: The stock class's other options.

    Raises:
        OptionError: Another window was asked for.
    """

    # What the stock class makes.
    stft: Any
    n_fft: int
    win_length: int
    hop_length: int
    center: bool

    def __init_subclass__(cls) -> None:
        """Show the options as they are: ESPnet reads the defaults off the signature."""
        super().__init_subclass__()
        options = list(inspect.signature(cls.__mro__[2]).parameters.values())
        options = [p.replace(default=WINDOW) if p.name == "window" else p for p in options]
        cls.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]

    def __init__(self, window: str = WINDOW, **stock: Any) -> None:
        if window != WINDOW:
            raise OptionError(
                "window", window, f"{WINDOW} here", "ESPnet's own stft takes the windows of torch."
            )
        super().__init__(**stock)
        self.stft = SqrtHannStft(
            n_fft=self.n_fft,
            win_length=self.win_length,
            hop_length=self.hop_length,
            center=self.center,
            normalized=self.stft.normalized,
            onesided=self.stft.onesided,
        )
        self.window = WINDOW


class SqrtHannEncoder(_SqrtHannWindow, STFTEncoder):
    """ESPnet's ``STFTEncoder`` with a square-root Hann window (appendix C.1).

    Args:
        **options: ESPnet's, among which ``window`` is always ``sqrt_hann``. The paper's
            ``win_length`` is 512 and its ``hop_length`` 256.

    Raises:
        OptionError: Another window was asked for, or the windows do not overlap.
    """

    def _apply_window_func(self, input: Tensor) -> Tensor:
        """Window a frame ``(batch, win_length)``, for streaming; return ``(batch, n_fft)``."""
        window = sqrt_hann_window(self.win_length, dtype=input.dtype, device=input.device)
        return _centred(input * window, self.n_fft)


class SqrtHannDecoder(_SqrtHannWindow, STFTDecoder):
    """ESPnet's ``STFTDecoder`` with a square-root Hann window: see :class:`SqrtHannEncoder`."""

    def _get_window_func(
        self, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        return sqrt_hann_window(self.win_length, device=device, dtype=dtype)
