"""Scores of one pair of signals, at what is known of them."""

import numpy as np
import pytest

from tests.egs.programs import modules_of
from tests.egs.signals import voice

fast_bss_eval, *_ = (
    pytest.importorskip(package, reason="the extra `enh` is not installed")
    for package in ("fast_bss_eval", "pesq", "pystoi")
)

RATE = 16000
HEADINGS = ["NB-PESQ", "WB-PESQ", "ESTOI", "CSIG", "CBAK", "COVL", "SI-SDR"]


@pytest.fixture(scope="module")
def measures():
    with modules_of("se", "measures") as (module,):
        yield module


def test_what_is_the_same_has_the_best_scores(measures):
    clean = voice()
    found = measures.measures(clean, clean)
    assert list(found) == HEADINGS == list(measures.MEASURES)
    # The ends of P.862.1's and P.862.2's scales.
    assert found["NB-PESQ"] == pytest.approx(4.549, abs=1e-3)
    assert found["WB-PESQ"] == pytest.approx(4.644, abs=1e-3)
    assert found["ESTOI"] == pytest.approx(100, abs=1e-3)
    assert (found["CSIG"], found["CBAK"], found["COVL"]) == (5.0, 5.0, 5.0)
    assert found["SI-SDR"] > 100


def test_noise_makes_every_score_worse(measures):
    clean = voice()
    noise = np.random.default_rng(1).standard_normal(len(clean))
    scores = [measures.measures(clean, clean + level * noise) for level in (0.003, 0.03)]
    assert all(scores[0][name] > scores[1][name] for name in HEADINGS)


def test_si_sdr_is_what_was_made(measures):
    clean = voice() - voice().mean()
    noise = np.random.default_rng(1).standard_normal(len(clean))
    noise -= noise.mean()
    noise -= noise @ clean / (clean @ clean) * clean
    noise *= np.sqrt(clean @ clean / (noise @ noise))
    for scale in (1.0, 0.1):
        # A tenth of the amplitude is 20 dB; how loud both are, and a constant, do not matter.
        other = scale * (clean + 0.1 * noise) + 0.3
        assert measures.si_sdr(clean, other) == pytest.approx(20, abs=1e-6)
        theirs = fast_bss_eval.si_sdr(clean[None], other[None], zero_mean=True)
        assert measures.si_sdr(clean, other) == pytest.approx(float(theirs[0]), abs=1e-6)


def test_what_cannot_be_compared_is_refused(measures):
    clean = voice()
    with pytest.raises(measures.MeasureError, match=r"shapes \(48000,\) and \(47999,\)"):
        measures.measures(clean, clean[1:])
    with pytest.raises(measures.MeasureError, match=r"PESQ cannot compare them: .*No utterances"):
        measures.measures(np.zeros_like(clean), clean)


def test_a_package_that_is_missing_is_named(measures, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pesq", None)
    with pytest.raises(measures.MeasureError, match=r"pesq.*; pip install '\.\[enh\]' brings"):
        measures.measures(voice(), voice())
