"""Noise from numpy and scipy alone: what anyone can make, the same from the same seed.

Two lists of kinds that share none, nor a part of one (white noise and sines are in both): training
hears the ones, testing the others. The latter are likenesses of the paper's four: voices, music in
the street, an engine, a workshop. None of these has coloured noise in it, a band of noise or a
burst of it: they are pulses and white noise through resonances and combs, and notes.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import signal

type Array = npt.NDArray[np.float64]
type Random = np.random.Generator
type Kind = Callable[[Random, int], Array]

RATE = 16000

#: Of the paper's set of coloured noise: the power falls with the frequency to the power of alpha.
ALPHAS = tuple(np.arange(-2, 2.25, 0.25))


def coloured(random: Random, samples: int, alpha: float | None = None) -> Array:
    """Return noise whose power falls with ``f ** alpha``: 1 is pink, 0 white, -1 blue.

    Args:
        random: Where it comes from.
        samples: How many.
        alpha: None is one of :data:`ALPHAS`.
    """
    alpha = random.choice(ALPHAS) if alpha is None else alpha
    spectrum = np.fft.rfft(random.standard_normal(samples))
    # Below 20 Hz nothing is heard, and a steep slope would leave nothing else.
    frequencies = np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 20.0)
    return normalized(np.fft.irfft(spectrum * frequencies ** (-alpha / 2), n=samples))


def swelling(random: Random, samples: int) -> Array:
    """Return coloured noise that swells and fades two to eight times a second, as wind does."""
    return normalized(coloured(random, samples) * _slow(random, samples, random.uniform(2, 8)) ** 2)


def band(random: Random, samples: int) -> Array:
    """Return noise of a band of one to three octaves, as a fan's or a kettle's."""
    octaves = random.uniform(1, 3)
    low = random.uniform(60, 7800 / 2**octaves)
    filters = signal.butter(4, [low, low * 2**octaves], "bandpass", fs=RATE, output="sos")
    return normalized(signal.sosfilt(filters, random.standard_normal(samples)))


def tones(random: Random, samples: int) -> Array:
    """Return beeps, sweeps and held tones, two to five at a time, over faint noise."""
    time = np.arange(samples) / RATE
    total = 0.05 * random.standard_normal(samples)
    for _ in range(random.integers(2, 6)):
        start, end = np.exp(random.uniform(np.log(150), np.log(5000), 2))
        period = random.uniform(0.5, 4)
        # A sweep begins anew with each period; one in two does not sweep at all.
        end = start if random.random() < 0.5 else end
        frequency = start * (end / start) ** (time % period / period)
        on = (time / period * random.uniform(1, 6)) % 1 < random.uniform(0.3, 1.0)
        total += _faded(on) * np.sin(2 * np.pi * np.cumsum(frequency) / RATE)
    return normalized(total)


def clicks(random: Random, samples: int) -> Array:
    """Return clicks and crackle: bursts of a few milliseconds, at any time."""
    rate = np.exp(random.uniform(np.log(5), np.log(200)))
    strokes = random.random(samples) < rate / RATE
    heights = strokes * random.standard_normal(samples) * random.exponential(1, samples)
    decay = np.exp(-np.arange(400) / random.uniform(8, 80))
    burst = decay * random.standard_normal(400)
    floor = 10 ** (-random.uniform(25, 40) / 20) * random.standard_normal(samples)
    return normalized(normalized(np.convolve(heights, burst)[:samples]) + floor)


def hum(random: Random, samples: int) -> Array:
    """Return what mains and motors hum: ten to forty harmonics that never move."""
    time = np.arange(samples) / RATE
    base = random.uniform(45, 180)
    total = 0.1 * coloured(random, samples, 1.0)
    for harmonic in range(1, random.integers(10, 41)):
        if base * harmonic < RATE / 2:
            height = random.exponential(1) / harmonic ** random.uniform(0.3, 1.5)
            total += height * np.sin(2 * np.pi * (base * harmonic * time + random.random()))
    return normalized(total)


def shaped(random: Random, samples: int) -> Array:
    """Return noise of a spectrum that is drawn, and that drifts to another and back."""
    share = _slow(random, samples, random.uniform(0.2, 2)) / 2
    return normalized(share * _drawn(random, samples) + (1 - share) * _drawn(random, samples))


def rustling(random: Random, samples: int) -> Array:
    """Return noise of which each octave comes and goes by itself, as of leaves or of traffic."""
    noise = _drawn(random, samples)
    depth, total = random.uniform(1, 4), np.zeros(samples)
    for low in 62.5 * 2.0 ** np.arange(6):
        octave = signal.butter(2, [low, 2 * low], "bandpass", fs=RATE, output="sos")
        moving = _slow(random, samples, random.uniform(1, 8)) ** depth
        total += moving * signal.sosfilt(octave, noise)
    return normalized(total)


def knocks(random: Random, samples: int) -> Array:
    """Return thuds and slams: bursts of noise that last 20 to 300 ms, each of its own spectrum."""
    total = 10 ** (-random.uniform(20, 40) / 20) * _drawn(random, samples)
    pace = np.exp(random.uniform(np.log(1), np.log(12)))
    for start in random.integers(0, samples, random.poisson(pace * samples / RATE) + 1):
        decay = np.exp(-np.arange(RATE // 2) / (RATE * random.uniform(0.005, 0.08)))
        _add(total, start, random.exponential(6) * decay * _drawn(random, RATE // 2))
    return normalized(total)


def horns(random: Random, samples: int) -> Array:
    """Return horns, sirens and alarms: harmonic tones that are held, glide or waver."""
    total = 10 ** (-random.uniform(15, 40) / 20) * _drawn(random, samples)
    for _ in range(random.integers(1, 5)):
        start = int(random.uniform(0, 2) * RATE)
        while start < samples:
            tone = _gliding(random, seconds=random.uniform(0.3, 3), octaves=0.7, wavering=0.03)
            _add(total, start, tone)
            start += len(tone) + int(random.uniform(0, 2) * RATE)
    return normalized(total)


def calls(random: Random, samples: int) -> Array:
    """Return cries of birds and other animals: short harmonic tones that glide far."""
    total = 10 ** (-random.uniform(15, 40) / 20) * _drawn(random, samples)
    pace = np.exp(random.uniform(np.log(1), np.log(10)))
    for start in random.integers(0, samples, random.poisson(pace * samples / RATE) + 1):
        cry = _gliding(random, seconds=random.uniform(0.04, 0.5), octaves=1.5, wavering=0.01)
        _add(total, start, random.exponential(2) * cry)
    return normalized(total)


def music(random: Random, samples: int) -> Array:
    """Return a tune over chords with a beat: plucked notes of a scale, and a drum."""
    total = np.zeros(samples)
    beat = int(RATE * 60 / random.uniform(80, 140))
    root = 110 * 2 ** (random.integers(0, 12) / 12)
    scale = np.array([0, 2, 4, 5, 7, 9, 11, 12])
    for start in range(0, samples, beat // 2):
        on_beat = start // (beat // 2) % 2 == 0
        notes = [random.choice(scale) + 12]
        if on_beat and start // beat % 4 == 0:
            degree = random.integers(0, 5)
            notes += [scale[(degree + third) % 7] for third in (0, 2, 4)]
        for note in notes:
            _add(total, start, _plucked(random, root * 2 ** (note / 12)))
        if on_beat:
            _add(total, start, _drummed(random))
    return normalized(total)


def engine(random: Random, samples: int) -> Array:
    """Return an engine as in a cockpit: it fires at a wandering pace, and air rushes by.

    Both go through the pipes of one body; the air, white noise, through a comb before.
    """
    pace = random.uniform(80, 140) * (1 + 0.03 * _wandering(random, samples))
    fired = np.diff(np.floor(np.cumsum(pace) / RATE), prepend=0.0)
    fired *= random.uniform(0.5, 1.5, samples)
    air = _combed(random.standard_normal(samples), random.uniform(0.002, 0.006), 0.8)
    body = random.uniform([150, 500, 1200, 2600], [350, 1000, 2200, 5000])
    total = normalized(fired) + 0.4 * normalized(air)
    return normalized(_resonant(total, body, widths=0.15 * body))


def workshop(random: Random, samples: int) -> Array:
    """Return hammer strokes that ring, a saw that rasps now and then, and a machine that drones.

    The saw is white noise that comes tooth by tooth, through the resonances of its blade; the
    machine a carrier that is modulated in phase and height.
    """
    time = np.arange(samples) / RATE
    turning = 2 * np.pi * random.uniform(20, 35) * time
    machine = (1 + 0.8 * np.sin(turning / 3)) * np.sin(
        2 * np.pi * random.uniform(300, 700) * time + random.uniform(3, 8) * np.sin(turning)
    )
    total = 0.5 * normalized(machine)
    for start in np.cumsum(random.uniform(0.15, 0.9, int(samples / RATE / 0.4) + 1)) * RATE:
        _add(total, int(start), random.uniform(1, 6) * _struck(random))
    teeth = (random.uniform(90, 200) * time) % 1
    blade = random.uniform([900, 2500], [1800, 6000])
    rasp = _resonant((1 - teeth) ** 4 * random.standard_normal(samples), blade, 0.1 * blade)
    strokes = np.clip(_wandering(random, samples), 0, None)
    return normalized(total + strokes * normalized(rasp))


def babble(random: Random, samples: int, voices: Sequence[Array]) -> Array:
    """Return several people who speak at once, all as loud.

    Args:
        random: Where they begin.
        samples: How many.
        voices: Speech of each, repeated where it is too short.
    """
    heard = [np.roll(np.resize(voice, samples), random.integers(samples)) for voice in voices]
    return normalized(np.sum([normalized(voice) for voice in heard], axis=0))


#: What is heard in training. Name -> kind.
TRAINING: dict[str, Kind] = {
    "coloured": coloured,
    "swelling": swelling,
    "band": band,
    "tones": tones,
    "clicks": clicks,
    "hum": hum,
    "shaped": shaped,
    "rustling": rustling,
    "knocks": knocks,
    "horns": horns,
    "calls": calls,
}

#: What is heard in testing only; babble, which is made of voices, is one more.
TESTING: dict[str, Kind] = {"music": music, "engine": engine, "workshop": workshop}


def normalized(samples: Array) -> Array:
    """Return samples of mean power 1; silence stays silence."""
    power = np.sqrt(np.mean(samples**2))
    return samples / power if power > 0 else samples


def _slow(random: Random, samples: int, rate: float) -> Array:
    """Return a curve around 1, from 0 to 2, that turns about ``rate`` times a second."""
    knots = int(samples / RATE * rate) + 4
    heights = random.uniform(0, 2, knots)
    places = np.linspace(0, knots - 1, samples)
    # Between two knots half a cosine: no corner, and never outside.
    left = np.minimum(places.astype(int), knots - 2)
    share = (1 - np.cos(np.pi * (places - left))) / 2
    return heights[left] * (1 - share) + heights[left + 1] * share


def _drawn(random: Random, samples: int) -> Array:
    """Return noise whose level is drawn anew every octave, within 40 dB."""
    spectrum = np.fft.rfft(random.standard_normal(samples))
    octaves = np.log2(np.maximum(np.fft.rfftfreq(samples, 1 / RATE), 31.25) / 31.25)
    level = np.interp(octaves, np.arange(9), random.uniform(-20, 20, 9))
    return normalized(np.fft.irfft(spectrum * 10 ** (level / 20), n=samples))


def _gliding(random: Random, seconds: float, octaves: float, wavering: float) -> Array:
    """Return a tone of some harmonics, whose pitch glides and wavers, and that fades in and out.

    Args:
        random: Where it comes from.
        seconds: How long it is.
        octaves: How far it glides at the most; one in two does not.
        wavering: Of the pitch, up or down, at the most.
    """
    time = np.arange(int(seconds * RATE)) / RATE
    glide = random.uniform(-octaves, octaves) * (random.random() < 0.5) * time / seconds
    wave = 1 + wavering * random.random() * np.sin(2 * np.pi * random.uniform(3, 9) * time)
    pitch = np.exp(random.uniform(np.log(90), np.log(2500))) * 2**glide * wave
    phase = 2 * np.pi * np.cumsum(pitch) / RATE
    steepness = random.uniform(0, 2)
    tone = np.zeros(len(time))
    for harmonic in range(1, min(24, int(RATE / 2 / pitch.max())) + 1):
        tone += random.exponential(1) / harmonic**steepness * np.sin(harmonic * phase)
    fading = np.minimum(1, np.minimum(time, time[::-1]) / (0.2 * seconds))
    return normalized(tone) * fading


def _faded(on: npt.NDArray[np.bool_]) -> Array:
    """Return 0 and 1 with 10 ms of rise and fall, so that nothing clicks."""
    return signal.convolve(on.astype(np.float64), np.full(160, 1 / 160), mode="same")


def _wandering(random: Random, samples: int) -> Array:
    """Return a curve around 0 with power 1: slow sines of which none is a multiple of another."""
    time = np.arange(samples) / RATE
    paces = random.uniform([0.1, 0.3, 0.7], [0.2, 0.5, 1.1])
    starts = random.uniform(0, 2 * np.pi, 3)
    waves = np.sin(2 * np.pi * np.outer(paces, time) + starts[:, None])
    return np.asarray(waves.sum(axis=0) * np.sqrt(2 / 3))


def _combed(samples: Array, seconds: float, share: float) -> Array:
    """Return the samples with their echoes, each ``seconds`` after the one before."""
    delay = int(seconds * RATE)
    return np.asarray(signal.lfilter([1.0], [1.0, *np.zeros(delay - 1), -share], samples))


def _resonant(samples: Array, frequencies: Array, widths: Array) -> Array:
    """Return the samples through resonances beside each other, all as loud; in Hz."""
    radii = np.exp(-np.pi * widths / RATE)
    total = np.zeros(len(samples))
    for frequency, radius in zip(frequencies, radii, strict=True):
        poles = [1.0, -2 * radius * np.cos(2 * np.pi * frequency / RATE), radius**2]
        total += normalized(np.asarray(signal.lfilter([1.0], poles, samples)))
    return total


def _drummed(random: Random) -> Array:
    """Return a beat on a drum: the partials of a round skin, the higher the shorter."""
    time = np.arange(RATE // 4) / RATE
    base = random.uniform(70, 110)
    skin = (1.0, 1.593, 2.136, 2.296, 2.653, 2.918)
    beats = [np.exp(-12 * time * mode) * np.sin(2 * np.pi * base * mode * time) for mode in skin]
    return np.asarray(0.6 * sum(beats))


def _plucked(random: Random, frequency: float) -> Array:
    time = np.arange(RATE) / RATE
    note = np.zeros(RATE)
    for harmonic in range(1, 12):
        if frequency * harmonic < RATE / 2:
            fading = np.exp(-time * (2 + 1.5 * harmonic))
            phase = random.uniform(0, 2 * np.pi)
            note += fading / harmonic * np.sin(2 * np.pi * frequency * harmonic * time + phase)
    return note


def _struck(random: Random) -> Array:
    """Return a piece of metal under the hammer: partials that are no harmonics."""
    time = np.arange(RATE // 3) / RATE
    stroke = np.zeros(len(time))
    stroke[0] = 3.0
    for frequency in np.exp(random.uniform(np.log(400), np.log(6500), 6)):
        stroke += 0.4 * np.exp(-time * random.uniform(8, 60)) * np.sin(2 * np.pi * frequency * time)
    return stroke


def _add(total: Array, start: int, part: Array) -> None:
    end = min(start + len(part), len(total))
    if start < end:
        total[start:end] += part[: end - start]
