"""Spectrograms above each other: what was noisy, what became of it, what it should be."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from espnet_bimamba.files import draft_of

type Array = npt.NDArray[np.float64]

#: From the loudest bin down, in dB; what is fainter is black.
DEPTH = 70


def draw_spectrograms(signals: dict[str, Array], file: Path, rate: int = 16000) -> Path:
    """Draw a PNG with a spectrogram of each signal, all on one scale; return it.

    Args:
        signals: By the title of their picture, as long as each other.
        file: The picture.
        rate: Samples a second.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    levels = {title: decibels(samples) for title, samples in signals.items()}
    loudest = max(level.max() for level in levels.values())
    figure, axes = plt.subplots(
        len(signals), figsize=(8, 1.7 * len(signals)), sharex=True, layout="constrained"
    )
    for axis, (title, level) in zip(np.atleast_1d(axes), levels.items(), strict=True):
        axis.imshow(
            level.T,
            origin="lower",
            aspect="auto",
            cmap="magma",
            vmin=loudest - DEPTH,
            vmax=loudest,
            extent=(0, len(signals[title]) / rate, 0, rate / 2000),
        )
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_ylabel("kHz", fontsize=8)
    np.atleast_1d(axes)[-1].set_xlabel("seconds", fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    with draft_of(file) as draft:
        figure.savefig(draft, dpi=80)
        _in_few_colours(draft)
    plt.close(figure)
    return file


def _in_few_colours(picture: Path) -> None:
    """Write a PNG again with a palette: noise in full colour takes three times the space."""
    from PIL import Image

    with Image.open(picture) as image:
        image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(picture, format="PNG")


def decibels(samples: Array, width: int = 512, step: int = 128) -> Array:
    """Return the level of each bin of each frame in dB, ``(frames, width / 2 + 1)``."""
    padded = np.pad(samples, (0, max(0, width - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, width)[::step]
    spectrum = np.fft.rfft(frames * np.hanning(width))
    return 20 * np.log10(np.maximum(abs(spectrum), 1e-6))
