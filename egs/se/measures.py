"""What the paper measures enhanced speech by, and SI-SDR: one pair of signals at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from composite import ratings

from espnet_bimamba.errors import BiMambaError

type Array = npt.NDArray[np.float64]

#: Heading in tables -> name of the file of scores, as ESPnet calls them.
MEASURES = {
    "NB-PESQ": "PESQ_NB",
    "WB-PESQ": "PESQ_WB",
    "ESTOI": "ESTOI",
    "CSIG": "CSIG",
    "CBAK": "CBAK",
    "COVL": "COVL",
    "SI-SDR": "SI_SNR",
}

#: The one rate at which all of them are defined: PESQ knows 8 and 16 kHz, its wide band 16 alone.
RATE = 16000


class MeasureError(BiMambaError):
    """Two signals cannot be compared; the message says why."""


def measures(clean: Array, other: Array) -> dict[str, float]:
    """Compare a signal with its clean reference.

    Args:
        clean: ``(samples,)`` at 16 kHz, the reference.
        other: Likewise, noisy or enhanced.

    Returns:
        By the headings of :data:`MEASURES`. ESTOI in per cent, SI-SDR in dB.

    Raises:
        MeasureError: The lengths differ, or PESQ finds no speech.
    """
    if clean.shape != other.shape or clean.ndim != 1:
        raise MeasureError(f"signals of shapes {clean.shape} and {other.shape} cannot be compared")
    with _packages():
        from pesq import PesqError, pesq
        from pystoi import stoi
    try:
        narrow, wide = (pesq(RATE, clean, other, band) for band in ("nb", "wb"))
    except PesqError as error:
        raise MeasureError(f"PESQ cannot compare them: {error}") from error
    # The paper's own CSIG, CBAK and COVL follow from its wide-band PESQ: egs/se/README.md.
    rated = ratings(clean, other, RATE, wide)
    found = (narrow, wide, 100 * stoi(clean, other, RATE, extended=True))
    values = (*found, rated.csig, rated.cbak, rated.covl, si_sdr(clean, other))
    return dict(zip(MEASURES, map(float, values), strict=True))


def si_sdr(clean: Array, other: Array) -> float:
    """Return the scale-invariant ratio of signal to distortion in dB.

    As in J. Le Roux et al., "SDR - half-baked or well done?" (ICASSP 2019), of signals without
    their means, as ESPnet scores SI-SNR.
    """
    clean, other = clean - clean.mean(), other - other.mean()
    target = (other @ clean) / max(float(clean @ clean), 1e-20) * clean
    distortion = other - target
    powers = [max(float(signal @ signal), 1e-20) for signal in (target, distortion)]
    return float(10 * np.log10(powers[0] / powers[1]))


@contextmanager
def _packages() -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise MeasureError(f"{error}; pip install '.[enh]' brings what scoring needs") from error
