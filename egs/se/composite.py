"""CSIG, CBAK and COVL: ratings predicted from PESQ and three distances of spectra and samples.

No maintained package has them. The regressions are those of Y. Hu and P. C. Loizou, "Evaluation
of objective quality measures for speech enhancement", IEEE Transactions on Audio, Speech, and
Language Processing 16 (2008), as Loizou's own program ``composite.m`` has their coefficients;
frames, limits and the share of frames that counts are that program's, too. The weighted slopes
are those of D. Klatt, "Prediction of perceived phonetic distance from critical-band spectra"
(ICASSP 1982).
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

type Array = npt.NDArray[np.float64]

# The worst 5 % of the frames do not count in the means of the two distances of spectra.
_SHARE = 0.95
_TINY = float(np.finfo(np.float64).eps)

# Critical bands in Hz: the first seven are as wide, and each begins a width after the one before.
_WIDTHS = np.array(
    [70.0] * 7
    + [77.3724, 86.0056, 95.3398, 105.411, 116.256, 127.914, 140.423, 153.823, 168.154]
    + [183.457, 199.776, 217.153, 235.631, 255.255, 276.072, 298.126, 321.465, 346.136]
)
_CENTRES = 50.0 + np.concatenate([[0.0], np.cumsum(_WIDTHS[:-1])])
# Klatt's weights of a band, by its distance to the highest and to the nearest peak.
_HIGHEST, _NEAREST = 20.0, 1.0


@dataclass(frozen=True)
class Ratings:
    """Predicted mean opinions, from 1 to 5.

    Attributes:
        csig: Of the distortion of speech.
        cbak: Of the intrusiveness of what else is heard.
        covl: Of the whole.
    """

    csig: float
    cbak: float
    covl: float


def ratings(clean: Array, other: Array, rate: int, pesq: float) -> Ratings:
    """Predict the ratings of a signal.

    Args:
        clean: ``(samples,)``, the reference.
        other: Likewise, what is rated.
        rate: Samples a second.
        pesq: Of the two, wide-band for 16 kHz.
    """
    return regression(
        pesq=pesq,
        llr=log_likelihood_ratio(clean, other, rate),
        wss=weighted_slope_distance(clean, other, rate),
        snr=segmental_snr(clean, other, rate),
    )


def regression(pesq: float, llr: float, wss: float, snr: float) -> Ratings:
    """Predict the ratings from the four measures (Hu and Loizou 2008, ``composite.m``)."""
    return Ratings(
        csig=_limited(3.093 - 1.029 * llr + 0.603 * pesq - 0.009 * wss),
        cbak=_limited(1.634 + 0.478 * pesq - 0.007 * wss + 0.063 * snr),
        covl=_limited(1.594 + 0.805 * pesq - 0.512 * llr - 0.007 * wss),
    )


def _limited(rating: float) -> float:
    return min(max(rating, 1.0), 5.0)


def segmental_snr(clean: Array, other: Array, rate: int) -> float:
    """Return the mean over the frames of their ratio in dB, each cut to -10 to 35 dB."""
    signal, noise = _frames(clean, rate), _frames(clean - other, rate)
    ratio = (signal**2).sum(-1) / ((noise**2).sum(-1) + _TINY) + _TINY
    return float(np.clip(10 * np.log10(ratio), -10, 35).mean())


def log_likelihood_ratio(clean: Array, other: Array, rate: int) -> float:
    """Return how much worse ``other``'s linear prediction predicts ``clean`` than its own does.

    ``log(a R a' / c R c')`` with the autocorrelation R and the prediction c of ``clean`` and the
    prediction a of ``other``, over the frames.
    """
    order = 10 if rate < 10000 else 16
    correlation = _autocorrelation(_frames(clean + _TINY, rate), order)
    theirs = _autocorrelation(_frames(other + _TINY, rate), order)
    lags = abs(np.arange(order + 1)[:, None] - np.arange(order + 1))
    residuals = [
        np.einsum("fi,fij,fj->f", a, correlation[:, lags], a)
        for a in (_prediction(theirs), _prediction(correlation))
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = residuals[0] / residuals[1]
    # Where rounding leaves nothing of the residual, the frame is among the worst.
    ratios = np.where(np.isfinite(ratios) & (ratios > 0), ratios, np.inf)
    return _mean_of_most(np.log(ratios))


def _autocorrelation(frames: Array, order: int) -> Array:
    """Return lags 0 to ``order``, ``(frames, order + 1)``."""
    samples = frames.shape[1]
    lags = [(frames[:, : samples - lag] * frames[:, lag:]).sum(-1) for lag in range(order + 1)]
    return np.stack(lags, axis=-1)


def _prediction(correlation: Array) -> Array:
    """Return ``1, -a1, ..., -ap`` of each frame: the Levinson-Durbin recursion."""
    frames, width = correlation.shape
    a = np.zeros((frames, width))
    a[:, 0] = 1.0
    error = correlation[:, 0].copy()
    for order in range(1, width):
        rest = (a[:, :order] * correlation[:, order:0:-1]).sum(-1)
        reflection = np.divide(-rest, error, out=np.zeros(frames), where=error > 0)
        a[:, 1 : order + 1] += reflection[:, None] * a[:, order - 1 :: -1][:, :order]
        error *= 1 - reflection**2
    return a


def weighted_slope_distance(clean: Array, other: Array, rate: int) -> float:
    """Return Klatt's weighted distance of the slopes between neighbouring critical bands."""
    bands = [_bands(signal + _TINY, rate) for signal in (clean, other)]
    weights = (_weights(bands[0]) + _weights(bands[1])) / 2
    slopes = [np.diff(band, axis=-1) for band in bands]
    distances = (weights * (slopes[0] - slopes[1]) ** 2).sum(-1) / weights.sum(-1)
    return _mean_of_most(distances)


def _bands(signal: Array, rate: int) -> Array:
    """Return the level of each critical band in dB, at least -100, ``(frames, bands)``."""
    frames = _frames(signal, rate)
    half = int(2 ** np.ceil(np.log2(2 * frames.shape[1]))) // 2
    power = abs(np.fft.rfft(frames, n=2 * half)[:, :half]) ** 2
    bins = np.floor(_CENTRES / (rate / 2) * half)[:, None]
    width = (_WIDTHS / (rate / 2) * half)[:, None]
    filters = np.exp(-11 * ((np.arange(half) - bins) / width) ** 2) * (70.0 / _WIDTHS)[:, None]
    # Below -30 dB of the nepers that Klatt counts in, nothing passes.
    filters[filters <= np.exp(-30 / (2 * 2.303))] = 0
    with np.errstate(divide="ignore"):
        levels: Array = np.maximum(10 * np.log10(power @ filters.T), -100)
    return levels


def _weights(bands: Array) -> Array:
    highest = bands.max(axis=-1, keepdims=True)
    own = bands[:, :-1]
    nearest = _nearest_peaks(bands)
    return _HIGHEST / (_HIGHEST + highest - own) * _NEAREST / (_NEAREST + nearest - own)


def _nearest_peaks(bands: Array) -> Array:
    """Return for each slope the level of the peak that it leads up to, ``(frames, bands - 1)``.

    A rising slope is followed upwards, any other downwards. Upwards, ``composite.m`` stops at the
    band before the peak, and its figures are those that others compare with.
    """
    rising = np.diff(bands, axis=-1) > 0
    peaks = np.empty(rising.shape)
    above = bands[:, -2]
    for band in reversed(range(rising.shape[1])):
        above = np.where(rising[:, band], above, bands[:, max(band - 1, 0)])
        peaks[:, band] = above
    below = bands[:, 0]
    for band in range(rising.shape[1]):
        below = np.where(rising[:, band], bands[:, band + 1], below)
        peaks[:, band] = np.where(rising[:, band], peaks[:, band], below)
    return peaks


def _mean_of_most(distances: Array) -> float:
    # MATLAB's round goes away from zero at a half, Python's to the even number.
    counted = max(1, int(len(distances) * _SHARE + 0.5))
    return float(np.sort(distances)[:counted].mean())


def _frames(signal: Array, rate: int) -> Array:
    """Cut ``signal`` into windowed frames of 30 ms, three quarters of which overlap."""
    width = round(0.03 * rate)
    step = width // 4
    # The last whole frame does not count, as in composite.m.
    count = max(1, int((len(signal) - width) / step))
    signal = np.pad(signal, (0, max(0, width - len(signal))))
    window = 0.5 * (1 - np.cos(2 * np.pi * np.arange(1, width + 1) / (width + 1)))
    windows = np.lib.stride_tricks.sliding_window_view(signal, width)[::step][:count]
    framed: Array = windows * window
    return framed
