"""Speech and noise become mixtures, and mixtures the folders that ESPnet's ``enh.sh`` reads."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from espnet_bimamba.errors import BiMambaError
from espnet_bimamba.files import write_whole

type Array = npt.NDArray[np.float64]

RATE = 16000
#: No sample of a mixture is larger, so that nothing is clipped in 16 bits.
LOUDEST = 0.99

COLUMNS = ("utterance", "clip", "noise", "snr")

#: How often a section is drawn before a noise counts as silent.
DRAWS = 100


class SoundError(BiMambaError):
    """A recording cannot be read, or is silent where it should be heard."""


@dataclass(frozen=True)
class Clip:
    """Clean speech.

    Attributes:
        name: Of the clip, unique.
        speaker: Who speaks.
        path: Its recording.
    """

    name: str
    speaker: str
    path: Path

    def read(self) -> Array:
        """Return its samples, ``(samples,)``."""
        return read(self.path)


@dataclass(frozen=True)
class Mixture:
    """Speech in noise.

    Attributes:
        clip: Which speech.
        noise: What the noise is called.
        snr: In dB.
        speech: ``(samples,)``, as loud as it is in the mixture.
        noisy: Likewise, with the noise.
    """

    clip: Clip
    noise: str
    snr: int
    speech: Array
    noisy: Array

    @property
    def name(self) -> str:
        """Of the utterance: begins with its speaker, as Kaldi's tables want it."""
        return f"{self.clip.speaker}-{self.clip.name}-{self.noise}-{self.snr}dB"


def read(path: Path) -> Array:
    """Return the samples of a recording at 16 kHz, of several channels the first.

    Raises:
        SoundError: It cannot be read, or is of another rate.
    """
    try:
        samples, rate = soundfile.read(path, dtype="float64", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise SoundError(f"{path} cannot be read: {error}") from error
    if rate != RATE:
        raise SoundError(f"{path} has {rate} samples a second; expected: {RATE}")
    return samples[:, 0]


def section(noise: Array, samples: int, random: np.random.Generator) -> Array:
    """Return a random section of a noise, which is repeated where it is too short."""
    if len(noise) < samples:
        return np.roll(np.resize(noise, samples), random.integers(samples))
    start = random.integers(len(noise) - samples + 1)
    return noise[start : start + samples]


def mix(clip: Clip, noise: Array, name: str, snr: int, random: np.random.Generator) -> Mixture:
    """Add a random section of a noise to a clip.

    The ratio is that of the mean powers of the whole clip and of the section, pauses included; a
    section that is silent throughout, to which there is none, is drawn again.
    What would be louder than 16 bits allow is made less loud, speech and noise alike.

    Raises:
        SoundError: The clip is silent, or no section of the noise was heard.
    """
    speech = clip.read()
    if not np.any(speech):
        raise SoundError(f"{clip.path} is silent: there is no ratio to noise")
    added = _heard(noise, len(speech), random)
    if added is None:
        raise SoundError(f"noise {name}: of {DRAWS} sections drawn for {clip.name} all are silent")
    power = np.mean(added**2)
    noisy = speech + added * np.sqrt(np.mean(speech**2) / power * 10 ** (-snr / 10))
    scale = min(1.0, LOUDEST / max(abs(noisy).max(), abs(speech).max(), 1e-9))
    return Mixture(clip, name, snr, scale * speech, scale * noisy)


def _heard(noise: Array, samples: int, random: np.random.Generator) -> Array | None:
    drawn = (section(noise, samples, random) for _ in range(DRAWS))
    return next((part for part in drawn if np.any(part)), None)


def write_mixtures(mixtures: Iterable[Mixture], folder: Path) -> int:
    """Write the mixtures of a set, with the speech in them as reference; return their number.

    ``mixtures.tsv`` says of each which clip, noise and ratio it has.
    """
    rows, speakers = [], {}
    lists: dict[str, list[str]] = {"wav.scp": [], "spk1.scp": []}
    for mixture in mixtures:
        for file, samples in (("wav.scp", mixture.noisy), ("spk1.scp", mixture.speech)):
            path = folder / "wavs" / file.removesuffix(".scp") / f"{mixture.name}.wav"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, samples, RATE, subtype="PCM_16")
            lists[file].append(f"{mixture.name} {path.absolute()}")
        speakers[mixture.name] = mixture.clip.speaker
        rows.append(f"{mixture.name}\t{mixture.clip.name}\t{mixture.noise}\t{mixture.snr}")
    for file, lines in lists.items():
        put(folder / file, sorted(lines))
    put(folder / "mixtures.tsv", ["\t".join(COLUMNS), *sorted(rows)])
    _put_speakers(folder, speakers)
    return len(rows)


def write_clean(clips: Sequence[Clip], noises: Sequence[Path], folder: Path) -> None:
    """Write the set of training: clean speech, and the noise that ESPnet mixes it with.

    ``wav.scp``, where ESPnet expects the mixtures, lists the speech: the training configuration
    has ``preprocessor: enh``, which puts a mixture of its own in its place, another each time.
    """
    names = {f"{clip.speaker}-{clip.name}": clip for clip in clips}
    recordings = [f"{name} {clip.path.absolute()}" for name, clip in sorted(names.items())]
    for file in ("wav.scp", "spk1.scp"):
        put(folder / file, recordings)
    put(folder / "noises.scp", sorted(f"{path.stem} {path.absolute()}" for path in noises))
    _put_speakers(folder, {name: clip.speaker for name, clip in names.items()})


def _put_speakers(folder: Path, speakers: dict[str, str]) -> None:
    spoken: dict[str, list[str]] = {}
    for name in sorted(speakers):
        spoken.setdefault(speakers[name], []).append(name)
    put(folder / "utt2spk", [f"{name} {speakers[name]}" for name in sorted(speakers)])
    put(folder / "spk2utt", [f"{name} {' '.join(spoken[name])}" for name in sorted(spoken)])


def put(path: Path, lines: Iterable[str]) -> None:
    """Write a file of lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(f"{line}\n" for line in lines))
