"""CSIG, CBAK, COVL and what they are made of, against figures and laws that are not ours."""

import numpy as np
import pytest

from tests.egs.programs import modules_of
from tests.egs.signals import voice

RATE = 16000


@pytest.fixture(scope="module")
def composite():
    with modules_of("se", "composite") as (module,):
        yield module


def test_ratings_are_those_that_their_author_prints(composite):
    """The readme of Loizou's composite.m, of its files sp09.wav and enhanced_logmmse.wav.

    From the two files themselves, which are not in this repository, the three distances here
    came out as 0.681368, 3.991727 and 49.671978, too.
    """
    found = composite.regression(pesq=2.255732, llr=0.681368, snr=3.991727, wss=49.671978)
    assert found.csig == pytest.approx(3.3050, abs=5e-5)
    assert found.cbak == pytest.approx(2.6160, abs=5e-5)
    assert found.covl == pytest.approx(2.7133, abs=5e-5)


def test_ratings_stay_on_the_scale(composite):
    best = composite.regression(pesq=4.64, llr=0.0, snr=35.0, wss=0.0)
    worst = composite.regression(pesq=1.0, llr=4.0, snr=-10.0, wss=150.0)
    assert (best.csig, best.cbak, best.covl) == (5.0, 5.0, 5.0)
    assert (worst.csig, worst.cbak, worst.covl) == (1.0, 1.0, 1.0)


def resonant(pole, samples=8 * RATE, seed=0):
    """Return an autoregressive signal of the first order."""
    noise = np.random.default_rng(seed).standard_normal(samples)
    signal = np.zeros(samples)
    for n in range(1, samples):
        signal[n] = pole * signal[n - 1] + noise[n]
    return signal


@pytest.mark.parametrize(("clean", "other"), [(0.9, 0.5), (0.5, 0.9), (0.3, -0.6)])
def test_the_likelihood_ratio_of_two_resonances_is_that_of_theory(composite, clean, other):
    found, floor = (
        composite.log_likelihood_ratio(resonant(clean), resonant(pole, seed=1), RATE)
        for pole in (other, clean)
    )
    theory = np.log((1 - 2 * clean * other + other**2) / (1 - clean**2))
    # Two signals of one law differ, too: 30 ms are little for sixteen coefficients.
    assert 0.1 < floor < 0.13
    assert found - floor == pytest.approx(theory, abs=0.03)


def test_nothing_is_as_near_as_the_signal_itself(composite):
    signal = resonant(0.9)
    assert composite.log_likelihood_ratio(signal, signal, RATE) == pytest.approx(0, abs=1e-9)
    assert composite.weighted_slope_distance(signal, signal, RATE) == 0
    assert composite.segmental_snr(signal, signal, RATE) == 35


def test_neither_distance_of_spectra_hears_how_loud_it_is(composite):
    signal, other = resonant(0.9), resonant(0.7, seed=3)
    for distance in (composite.log_likelihood_ratio, composite.weighted_slope_distance):
        loud = distance(signal, 4 * other, RATE)
        assert loud == pytest.approx(distance(signal, other, RATE), rel=1e-9)


@pytest.mark.parametrize(("share", "decibels"), [(0.1, 20), (0.01, 35), (10.0, -10), (1.0, 0)])
def test_segments_have_the_ratio_that_was_made(composite, share, decibels):
    signal = resonant(0.5)
    assert composite.segmental_snr(signal, (1 + share) * signal, RATE) == pytest.approx(decibels)


def test_what_counts_is_rounded_as_matlab_rounds(composite):
    # 95 % of 30 frames are 28.5: 29 of them count, 0 to 28.
    assert composite._mean_of_most(np.arange(30.0)[::-1]) == 14.0
    # Of 10, 9.5: all of them.
    assert composite._mean_of_most(np.arange(10.0)) == 4.5


def test_the_distances_of_a_voice_in_noise_stay_what_they_are(composite):
    """A pin, no law: a change of frames, limits or filters shows here."""
    clean = voice(2.0)
    other = clean + 0.01 * np.random.default_rng(7).standard_normal(len(clean))
    found = [
        getattr(composite, name)(clean, other, RATE)
        for name in ("log_likelihood_ratio", "weighted_slope_distance", "segmental_snr")
    ]
    assert found == pytest.approx([0.8113254838, 19.266274024, 1.9868926920], rel=1e-6)


def test_slopes_are_weighted_as_klatt_has_it(composite):
    """A few bands, by hand: levels 0, 6, 2 dB against 0, 4, 3 dB."""
    one, other = np.array([[0.0, 6.0, 2.0]]), np.array([[0.0, 4.0, 3.0]])
    np.testing.assert_allclose(composite._nearest_peaks(one), [[0.0, 6.0]])
    np.testing.assert_allclose(composite._nearest_peaks(other), [[0.0, 4.0]])
    # 20 / (20 + 6 - 0) * 1 / (1 + 0 - 0); at the peak itself 1.
    np.testing.assert_allclose(composite._weights(one), [[20 / 26, 1.0]])
    np.testing.assert_allclose(composite._weights(other), [[20 / 24, 1.0]])


def test_peaks_are_found_as_by_walking(composite):
    bands = np.random.default_rng(0).normal(0, 10, (300, 25))
    np.testing.assert_array_equal(
        composite._nearest_peaks(bands), [[walk(row, n) for n in range(24)] for row in bands]
    )


def walk(levels, n):
    """From a slope up to its peak, band by band; climbing, composite.m stops one band short."""
    rising = np.diff(levels) > 0
    if rising[n]:
        while n < 24 and rising[n]:
            n += 1
        return levels[n - 1]
    while n >= 0 and not rising[n]:
        n -= 1
    return levels[n + 1]
