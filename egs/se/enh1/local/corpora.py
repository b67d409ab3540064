"""What is read: so762, or LibriSpeech and the noise sets that the paper names; all of it checked.

The layouts that are expected, and where they are known from: ``egs/se/README.md``.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
from mixing import RATE, Array, Clip, SoundError
from scipy import signal

from espnet_bimamba.errors import BiMambaError

# The tables of so762 are read as its own recipe reads them.
sys.path.append(str(Path(__file__).resolve().parents[3]))
from so762.asr1.local import data as so762

SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff")
#: The paper's longest noise clip, and the shortest piece that is worth a clip, in seconds.
LONGEST, SHORTEST = 30, 1


@dataclass(frozen=True)
class NoiseSet:
    """A set of noise recordings that the paper trains on.

    Attributes:
        title: As the paper calls it.
        folders: What it may be called below the folder of all noise, as first found.
    """

    title: str
    folders: tuple[str, ...]


NOISE_SETS = {
    "musan": NoiseSet("noise of MUSAN", ("musan/noise", "MUSAN/noise")),
    "rsg10": NoiseSet("RSG-10", ("RSG-10", "RSG10", "NOISEX-92", "NoiseX-92", "noisex92")),
    "environmental": NoiseSet(
        "Environmental Noise", ("environmental", "Environmental", "Environmental_Noise")
    ),
    "urbansound": NoiseSet("UrbanSound", ("UrbanSound/data", "UrbanSound", "urbansound")),
    "qut": NoiseSet("QUT-NOISE", ("QUT-NOISE/QUT-NOISE", "QUT-NOISE")),
    "nonspeech": NoiseSet("Nonspeech", ("Nonspeech", "nonspeech", "nonspeech100")),
}


@dataclass(frozen=True)
class TestNoise:
    """A recording that the paper tests with and does not train on.

    Attributes:
        origin: In which of :data:`NOISE_SETS` it lies.
        stems: How its file's name, in lower case and without suffix, may begin.
        folder: What the folder that holds it is called; empty if that does not matter.
    """

    __test__ = False

    origin: str
    stems: tuple[str, ...]
    folder: str = ""

    def matches(self, path: Path) -> bool:
        """Whether a recording is this one."""
        return path.stem.lower().startswith(self.stems) and self.folder in ("", path.parent.name)


TEST_NOISES = {
    "babble": TestNoise("rsg10", ("babble", "voice_babble", "voice-babble", "voice babble")),
    "f16": TestNoise("rsg10", ("f16", "f-16")),
    # In front of electric welding equipment: the first of the set's two factories.
    "factory": TestNoise("rsg10", ("factory1", "factory_welding", "factory welding")),
    "music": TestNoise("urbansound", ("26270",), "street_music"),
}


@dataclass(frozen=True)
class Fault:
    """What is wrong, what was expected, and where."""

    what: str
    expected: str
    files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        found = f" ({len(self.files)}, the first is {self.files[0]})" if self.files else ""
        return f"{self.what}{found}; expected: {self.expected}"


class CorpusError(BiMambaError):
    """Something that the recipe needs is not there; everything that was found is in the message."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        lines = "".join(f"\n  - {fault}" for fault in faults)
        super().__init__(f"nothing was written; see egs/se/README.md for the layouts:{lines}")


def so762_clips(corpus: Path) -> dict[str, list[Clip]]:
    """Return the clips of each split of so762: train, dev, test.

    Raises:
        CorpusError: A table is missing or damaged, or a recording is missing.
    """
    try:
        tables = {split: so762.read(corpus, split) for split in so762.SPLITS}
    except so762.CorpusError as error:
        raise CorpusError([Fault(str(error), "the tables of so762 (option --corpus)")]) from error
    return {
        split: [Clip(row["utt"], row["speaker"], corpus / row["file"]) for row in rows]
        for split, rows in tables.items()
    }


def librispeech_clips(corpus: Path, part: str) -> list[Clip] | Fault:
    """Return the clips of a part of LibriSpeech, sorted by name."""
    files = sorted((corpus / part).glob("*/*/*.flac"))
    if not files:
        return Fault(
            f"{corpus / part} holds no speech",
            f"LibriSpeech's SPEAKER/CHAPTER/*.flac in {part} of the folder named by --corpus",
        )
    return [Clip(path.stem, path.parents[1].name, path) for path in files]


def noise_recordings(noises: Path, without: Sequence[str]) -> dict[str, list[Path]] | list[Fault]:
    """Return the recordings of each noise set, or what is wrong with them.

    Args:
        noises: Folder of all noise sets.
        without: Those of :data:`NOISE_SETS` to do without, by name.
    """
    found, faults = {}, []
    for name, noise_set in NOISE_SETS.items():
        if name in without:
            continue
        folders = [noises / folder for folder in noise_set.folders]
        files = next(filter(None, map(_sounds, folders)), None)
        if files is None:
            remedy = f' (or --local_data_opts "--without {name}")'
            expected = " or ".join(map(str, folders))
            faults.append(Fault(f"{noise_set.title}: no recordings", expected + remedy))
        else:
            found[name] = files
    return faults or found


def _sounds(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SOUNDS)


def test_recordings(recordings: dict[str, list[Path]]) -> dict[str, Path] | list[Fault]:
    """Return the recordings of :data:`TEST_NOISES`, or which are missing or not the only ones."""
    found, faults = {}, []
    for name, noise in TEST_NOISES.items():
        files = [path for path in recordings.get(noise.origin, []) if noise.matches(path)]
        if len(files) == 1:
            found[name] = files[0]
            continue
        title = NOISE_SETS[noise.origin].title
        place = f"{noise.folder}/" if noise.folder else ""
        names = " or ".join(f"{place}{stem}.*" for stem in noise.stems)
        what = f"{title}: {len(files)} recordings of {name}, which testing needs"
        faults.append(Fault(what, f"one, {names}", tuple(files)))
    return faults or found


test_recordings.__test__ = False  # type: ignore[attr-defined]


def unreadable(files: Sequence[Path]) -> list[Fault]:
    """Return a fault if some recordings cannot be read."""
    bad = tuple(path for path in files if not _readable(path))
    if not bad:
        return []
    return [Fault("recordings that cannot be read", "formats that libsndfile knows", bad)]


def unfit(clips: Iterable[Clip]) -> list[Fault]:
    """Return what is wrong with recordings of speech: unreadable, or not of 16 kHz."""
    files = [clip.path for clip in clips]
    faults = unreadable(files)
    bad = {file for fault in faults for file in fault.files}
    odd = tuple(f for f in files if f not in bad and soundfile.info(f).samplerate != RATE)
    if odd:
        faults.append(Fault("speech of another rate", f"{RATE} samples a second", odd))
    return faults


def _readable(path: Path) -> bool:
    try:
        return soundfile.info(path).frames > 0
    except soundfile.LibsndfileError:
        return False


def pieces(path: Path) -> Iterator[Array]:
    """Cut a recording into pieces of 30 s or less at 16 kHz, of several channels the first.

    Of a recording that is cut, a last piece of less than a second is left out.

    Raises:
        SoundError: It is damaged behind its head, which alone was read before.
    """
    try:
        with soundfile.SoundFile(path) as file:
            length = LONGEST * file.samplerate
            for number, block in enumerate(file.blocks(length, dtype="float64", always_2d=True)):
                if number == 0 or len(block) >= SHORTEST * file.samplerate:
                    yield _resampled(block[:, 0], file.samplerate)
    except soundfile.LibsndfileError as error:
        raise SoundError(f"{path} cannot be read to its end: {error}") from error


def count_pieces(path: Path) -> int:
    """Return into how many pieces :func:`pieces` cuts a recording."""
    whole, rest = divmod(soundfile.info(path).duration, LONGEST)
    return int(whole) + (rest >= SHORTEST or not whole)


def _resampled(samples: Array, rate: int) -> Array:
    if rate == RATE:
        return samples
    ratio = Fraction(RATE, rate)
    return signal.resample_poly(samples, ratio.numerator, ratio.denominator)


def write_pieces(recordings: Sequence[Path], name: str, folder: Path) -> list[Path]:
    """Cut the recordings of a noise set into clips; return their files.

    Silence is left out: there is no ratio to it.
    """
    written = []
    for number, path in enumerate(recordings):
        for part, samples in enumerate(pieces(path)):
            if np.any(samples):
                file = folder / f"{name}-{number:04d}-{part:03d}.wav"
                written.append(write_noise(samples, file))
    return written


def write_noise(samples: Array, file: Path) -> Path:
    """Write a noise clip, at most as loud as 16 bits allow; return its file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    loudest = float(np.abs(samples).max())
    scale = 0.99 / loudest if loudest > 0.99 else 1.0
    soundfile.write(file, scale * samples, RATE, subtype="PCM_16")
    return file
