"""Turns the ASRU 2019 code-switching corpus into the folders that ESPnet's ``asr.sh`` reads.

The layout that is expected, and where it is known from: ``egs/asru/README.md``. All of it is
checked before anything is written.
"""

import argparse
import re
import sys
import wave
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from espnet_bimamba.errors import BiMambaError
from espnet_bimamba.files import write_whole
from espnet_bimamba.scoring import is_mandarin, tokenize

#: Part of the corpus -> what its folder is called in the public descriptions.
FOLDERS = {
    "train": ("200小时中英混读手机采集语音数据", "ZH+EN-200h"),
    "dev": ("ASRU100-fixed-dev", "ASRU-DEV"),
    "test": ("release", "ASRU-TEST"),
}

#: A part whose transcripts lie in one file has this one: ``NAME.wav TEXT`` in each line.
TABLE = "ASRU_test-text.txt"

#: Task, speaker, session and sentence: ``T0001G0001_S01010002``.
NAME = re.compile(r"T\d+(G\d+)_?S\d+")

#: ``[N]``, ``[S]`` and the like mark noises.
MARK = re.compile(r"\[[^\[\]\s]\]")

EMPTY, SENTENCE = "empty transcripts", "the sentence that is spoken"

PIECE = "▁"  # what sentencepiece writes for a space


@dataclass(frozen=True)
class Utterance:
    """One recording with its transcript."""

    name: str
    speaker: str
    wav: Path
    tokens: tuple[str, ...]

    @property
    def id(self) -> str:
        """Its name in Kaldi's files, which must begin with the speaker's."""
        return f"{self.speaker}-{self.name}"


@dataclass(frozen=True)
class Fault:
    """What is wrong with some files of one part, and what was expected."""

    part: str
    what: str
    expected: str
    files: tuple[Path, ...] = ()

    def __str__(self) -> str:
        found = f" ({len(self.files)}, the first is {self.files[0]})" if self.files else ""
        return f"{self.part}: {self.what}{found}; expected: {self.expected}"


class LayoutError(BiMambaError):
    """The corpus is not laid out as ``egs/asru/README.md`` says.

    Args:
        corpus: The folder.
        faults: Everything that was found.
    """

    def __init__(self, corpus: Path, faults: Sequence[Fault]) -> None:
        self.corpus = corpus
        self.faults = tuple(faults)
        lines = "".join(f"\n  - {fault}" for fault in faults)
        super().__init__(
            f"{corpus} is not laid out as egs/asru/README.md describes; nothing was written:{lines}"
        )


def find(corpus: Path, part: str, name: str = "") -> Path | Fault:
    """Returns the folder of one part, by the given name or one of the known ones."""
    names = (name,) if name else FOLDERS[part]
    found = [corpus / name for name in names if (corpus / name).is_dir()]
    if found:
        return found[0]
    expected = " or ".join(str(corpus / name) for name in names)
    return Fault(
        part, "its folder is missing", f'{expected} (other: --local_data_opts "--{part}_dir NAME")'
    )


def read(part: str, folder: Path) -> tuple[list[Utterance], list[Fault]]:
    """Returns the utterances of one part that are whole, and what is wrong with the others."""
    files = _files(folder)
    recordings = _ending(files, ".wav")
    if not recordings:
        return [], [Fault(part, "no recordings", f"*.wav at any depth below {folder}")]
    tables = [file for file in files if file.name == TABLE]
    if len(tables) > 1:
        found = ", ".join(map(str, tables))
        return [], [Fault(part, f"{len(tables)} tables of transcripts: {found}", "one")]
    faults = _Faults(part)
    if tables:
        texts = _rows(tables[0], faults)
        where = f"a line NAME.wav SENTENCE for each in {tables[0]}"
    else:
        names = {wav.stem for wav in recordings}
        texts = _texts(_ending(files, ".txt"), names, faults)
        where = "NAME.txt beside each NAME.wav"
    with ThreadPoolExecutor() as pool:
        sound = list(pool.map(_is_mono_sound, recordings))

    utterances: dict[str, Utterance] = {}
    for wav, is_sound in zip(recordings, sound, strict=True):
        transcript = texts.pop(wav.stem, None)
        if any(character.isspace() for character in wav.stem):
            faults.add("names with whitespace", "none in NAME.wav, which names the utterance", wav)
        elif wav.stem in utterances:
            faults.add("recordings with another's name", "a name once in each part", wav)
        elif not is_sound:
            faults.add("files that are not sound", "PCM WAV, one channel, not empty", wav)
        elif transcript is None:
            faults.add("recordings without transcript", where, wav)
        else:
            utterances[wav.stem] = _utterance(wav, transcript.text)
    for transcript in texts.values():
        faults.add("transcripts without recording", "NAME.wav for each", transcript.source)
    return sorted(utterances.values(), key=lambda utterance: utterance.id), faults.all()


class _Faults:
    """Gathers the files of one part that share a fault."""

    def __init__(self, part: str) -> None:
        self.part = part
        self.files: dict[tuple[str, str], list[Path]] = {}

    def add(self, what: str, expected: str, file: Path) -> None:
        self.files.setdefault((what, expected), []).append(file)

    def all(self) -> list[Fault]:
        return [Fault(self.part, *kind, tuple(files)) for kind, files in self.files.items()]


@dataclass(frozen=True)
class _Transcript:
    text: str
    source: Path


def _files(folder: Path) -> list[Path]:
    """What lies below a folder, behind links too; what two paths lead to is taken once."""
    seen: set[Path] = set()
    files: list[Path] = []
    for place, folders, names in folder.walk(follow_symlinks=True):
        if place.resolve() in seen:
            folders.clear()
            continue
        seen.add(place.resolve())
        folders.sort()
        files += [place / name for name in (*folders, *names)]
    return sorted(files)


def _ending(files: Iterable[Path], suffix: str) -> list[Path]:
    return [file for file in files if file.suffix.lower() == suffix]


def _rows(table: Path, faults: _Faults) -> dict[str, _Transcript]:
    """Transcripts by the recording's name, from a table."""
    texts = {}
    for line in _lines(table, faults) or ():
        recording, *text = line.split(maxsplit=1)
        name = re.sub(r"(?i)\.wav$", "", recording)
        source = table / recording
        if not text:
            faults.add(EMPTY, SENTENCE, source)
        if name in texts:
            faults.add("transcripts of another's recording", "a name once in the table", source)
        texts[name] = _Transcript(" ".join(text), source)
    return texts


def _texts(files: Iterable[Path], names: set[str], faults: _Faults) -> dict[str, _Transcript]:
    """Transcripts by the recording's name, from files beside the recordings."""
    texts = {}
    for file in files:
        # Other text files (terms of use, lists of speakers) may lie about.
        if file.stem in names or NAME.fullmatch(file.stem):
            lines = _lines(file, faults)
            if lines == []:
                faults.add(EMPTY, SENTENCE, file)
            texts[file.stem] = _Transcript(" ".join(lines or ()), file)
    return texts


def _lines(file: Path, faults: _Faults) -> list[str] | None:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        faults.add("transcripts that are not UTF-8", "UTF-8", file)
        return None
    except OSError:
        faults.add("transcripts that cannot be read", "a text file", file)
        return None
    return [line.strip() for line in text.splitlines() if line.strip()]


def _is_mono_sound(wav: Path) -> bool:
    # The rate is not looked at: asr.sh brings everything to its own.
    try:
        with wave.open(str(wav)) as sound:
            return sound.getnchannels() == 1 and sound.getnframes() > 0
    except (wave.Error, EOFError, OSError):
        return False


def _utterance(wav: Path, text: str) -> Utterance:
    match = NAME.fullmatch(wav.stem)
    speaker = match[1] if match else wav.stem
    return Utterance(wav.stem, speaker, wav, tuple(tokenize(MARK.sub(" ", text))))


def check(
    corpus: Path, names: dict[str, str], skip_faulty: bool = False
) -> dict[str, list[Utterance]]:
    """Reads all parts.

    Args:
        corpus: The folder that holds them.
        names: Part to its folder's name, for parts that are not named as in :data:`FOLDERS`.
        skip_faulty: Leave out the recordings with a fault; a missing folder stays an error, and
            so does a part of which nothing is left.

    Raises:
        LayoutError: Something is missing or not as expected.
    """
    parts: dict[str, list[Utterance]] = {}
    faults: list[Fault] = []
    for part in FOLDERS:
        folder = find(corpus, part, names.get(part, ""))
        if isinstance(folder, Fault):
            faults.append(folder)
            continue
        utterances, found = read(part, folder)
        skipped = [fault for fault in found if skip_faulty and fault.files]
        for fault in skipped:
            print(f"left out: {fault}", file=sys.stderr)
        faults += [fault for fault in found if fault not in skipped]
        if len(skipped) == len(found):
            faults += _lacks(part, utterances)
        parts[part] = utterances
    if faults:
        raise LayoutError(corpus, faults)
    return parts


def _lacks(part: str, utterances: Sequence[Utterance]) -> list[Fault]:
    """What the later stages need of a part, and its utterances do not have."""
    if not utterances:
        return [Fault(part, "every recording is faulty", "one at least without a fault")]
    tokens = {token for utterance in utterances for token in utterance.tokens}
    if not tokens:
        return [Fault(part, "no transcript has words", "one at least with more than marks")]
    if part == "train" and not any(map(is_mandarin, tokens)):
        return [Fault(part, "no transcript has Mandarin", "some: its characters are the tokens")]
    if part == "train" and all(map(is_mandarin, tokens)):
        return [Fault(part, "no transcript has English words", "some: BPE learns on them")]
    return []


def write(utterances: Iterable[Utterance], folder: Path) -> None:
    """Writes ``wav.scp``, ``text``, ``utt2spk`` and ``spk2utt``."""
    kept = [utterance for utterance in utterances if utterance.tokens]
    speakers: dict[str, list[str]] = {}
    for utterance in kept:
        speakers.setdefault(utterance.speaker, []).append(utterance.id)
    _write(folder / "wav.scp", (f"{utterance.id} {utterance.wav}" for utterance in kept))
    _write(folder / "text", (f"{u.id} {' '.join(u.tokens)}" for u in kept))
    _write(folder / "utt2spk", (f"{utterance.id} {utterance.speaker}" for utterance in kept))
    _write(folder / "spk2utt", (f"{name} {' '.join(ids)}" for name, ids in speakers.items()))


def write_vocabulary(utterances: Sequence[Utterance], folder: Path) -> None:
    """Writes what stage 5 makes tokens of.

    ``mandarin`` lists the characters as sentencepiece sees them, with the space that stands
    before each; ``text.english`` is the text without them, which BPE learns on.
    """
    characters = {token for u in utterances for token in u.tokens if is_mandarin(token)}
    _write(folder / "mandarin", (f"{PIECE}{character}" for character in sorted(characters)))
    english = ((u.id, [t for t in u.tokens if not is_mandarin(t)]) for u in utterances)
    _write(folder / "text.english", (f"{name} {' '.join(ts)}" for name, ts in english if ts))


def _write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(f"{line}\n" for line in lines))


def main(argv: Sequence[str] | None = None) -> int:
    """Checks the corpus and prepares all parts; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    for part, known in FOLDERS.items():
        parser.add_argument(
            f"--{part}", default="", help=f"its folder, if not {' or '.join(known)}"
        )
    parser.add_argument("--skip_faulty", action="store_true", help="leave faulty recordings out")
    args = parser.parse_args(argv)
    names = {part: getattr(args, part) for part in FOLDERS}
    try:
        parts = check(args.corpus.resolve(), names, args.skip_faulty)
    except LayoutError as error:
        print(error, file=sys.stderr)
        return 2
    try:
        for part, utterances in parts.items():
            write(utterances, args.out / part)
            spoken = sum(bool(utterance.tokens) for utterance in utterances)
            silent = len(utterances) - spoken
            print(f"{args.out / part}: {spoken} utterances; {silent} have no words")
        write_vocabulary(parts["train"], args.out / "train")
    except OSError as error:
        print(f"{error.filename or args.out} cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
