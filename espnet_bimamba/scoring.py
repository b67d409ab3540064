"""Mixed error rate of code-switching speech: characters for Mandarin, words for English.

The paper's measure for SEAME and ASRU (section 5.1). What a token is:

1. The text is brought to Unicode's NFKC form (full-width letters, digits and signs become the
   usual ones, compatibility ideographs the unified ones) and to lower case. What nobody sees goes:
   zero-width spaces and joiners, soft hyphens, marks of direction.
2. A Chinese character is a token: the unified ideographs with all extensions (planes 2 and 3
   hold nothing else), the compatibility ideographs, 〇 and 々.
3. A run of letters (with the marks that combine with them) and digits of any other script is a
   token:
   ``i'm`` and ``o'clock`` are one, since an apostrophe between two of them belongs to the word,
   and ``2019`` is one, which is not compared with 二零一九.
4. ``<noise>``, ``<unk>`` and whatever else stands in angle brackets is a token, as in ESPnet's
   recipe for SEAME.
5. Everything else (spaces, punctuation, symbols, an apostrophe at a word's edge) separates.

So ``K歌`` is ``k 歌``, ``Wi-Fi`` is ``wi fi``, and ``100块`` is ``100 块``.

Errors are counted on the alignment with the fewest of them, jiwer's. The breakdown is of that one
alignment: a hit, a substitution and a deletion belong to the language of the reference's token, an
insertion to that of the hypothesis's. The parts therefore add up to the whole. Tokens that are
not Mandarin count as English. Of several alignments with as few errors jiwer takes one: how the
errors spread over kinds and languages depends on that choice, their number does not.

It imports neither torch nor ESPnet::

    python -m espnet_bimamba.scoring dump/raw/test/text exp/asr_x/decode_asr/test/text
    python -m espnet_bimamba.scoring --experiment exp/asr_x --dump dump/raw
"""

import argparse
import functools
import json
import re
import sys
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_bimamba.errors import BiMambaError, TranscriptError
from espnet_bimamba.files import write_whole

_HAN = "[々〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
_MANDARIN = re.compile(_HAN)
_APOSTROPHES = str.maketrans("\u2018\u2019\u02bc", "'''")
_TRN = re.compile(r"(.*)\(([^()]+)\)")

#: What :meth:`Score.parts` calls the three counts, with the measure that each one is.
PARTS = {"mixed": "MER", "Mandarin": "CER", "English": "WER"}


@dataclass(frozen=True)
class Counts:
    """Tokens of an alignment, by what became of them."""

    hits: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def tokens(self) -> int:
        """Number of the reference's tokens."""
        return self.hits + self.substitutions + self.deletions

    @property
    def errors(self) -> int:
        """Number of errors of all kinds."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float | None:
        """Errors for each token of the reference; None without such tokens."""
        return self.errors / self.tokens if self.tokens else None

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(
            self.hits + other.hits,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


@dataclass(frozen=True)
class Score:
    """What :func:`score` counted.

    Attributes:
        mandarin: Counts of the Mandarin characters.
        english: Counts of all other tokens.
        sentences: Number of utterances in the reference.
        wrong_sentences: Utterances with at least one error.
        missing: Utterances that the hypotheses lack; all their tokens count as deleted.
    """

    mandarin: Counts
    english: Counts
    sentences: int
    wrong_sentences: int
    missing: tuple[str, ...]

    @property
    def mixed(self) -> Counts:
        """Counts of all tokens; its rate is the mixed error rate."""
        return self.mandarin + self.english

    def parts(self) -> dict[str, Counts]:
        """The whole and the two languages, by the names of :data:`PARTS`."""
        return dict(zip(PARTS, (self.mixed, self.mandarin, self.english), strict=True))


def tokenize(text: str) -> list[str]:
    """Splits text into mixed tokens by the rules at the top of this module."""
    plain = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).lower()
    seen = "".join(char for char in plain if unicodedata.category(char) != "Cf")
    return _token().findall(seen)


@functools.cache
def _token() -> re.Pattern[str]:
    # Made when it is needed: to ask for the category of every character takes 0.1 s.
    marks = "".join(
        char
        for char in map(chr, range(sys.maxunicode + 1))
        if unicodedata.category(char).startswith("M")
    )
    other = f"(?:(?!{_HAN})[^\\W_][{marks}]*)"
    return re.compile(f"<[^<>\\s]+>|{_HAN}|{other}+(?:'{other}+)*")


def is_mandarin(token: str) -> bool:
    """Whether a token of :func:`tokenize` is a Chinese character."""
    return _MANDARIN.fullmatch(token) is not None


def score(
    references: Mapping[str, str], hypotheses: Mapping[str, str], ignore: Collection[str] = ()
) -> Score:
    """Counts the errors of all utterances.

    Args:
        references: Utterance to text.
        hypotheses: Utterance to text. An utterance that is not there was recognised as nothing.
        ignore: Tokens to leave out on both sides, for example ``<noise>``; in capitals or not.

    Raises:
        TranscriptError: There is no reference, the hypotheses hold an utterance that the
            references lack, ``ignore`` holds what is not one token, or jiwer, which aligns, is
            not installed.
    """
    ignored = {_ignored(token) for token in ignore}
    if not references:
        raise TranscriptError("references", "hold no utterance")
    unknown = sorted(set(hypotheses) - set(references))
    if unknown:
        raise TranscriptError(
            "hypotheses", f"{len(unknown)} utterances without reference, {unknown[0]} the first"
        )
    names = sorted(references)
    left = [_tokens(references[name], ignored) for name in names]
    right = [_tokens(hypotheses.get(name, ""), ignored) for name in names]
    counts = {True: Counts(), False: Counts()}
    for alignment in _align(left, right):
        for language, found in alignment:
            counts[language] += found
    return Score(
        mandarin=counts[True],
        english=counts[False],
        sentences=len(names),
        wrong_sentences=sum(one != other for one, other in zip(left, right, strict=True)),
        missing=tuple(name for name in names if name not in hypotheses),
    )


def _ignored(word: str) -> str:
    tokens = tokenize(word)
    if len(tokens) != 1:
        found = f"{len(tokens)}: {' '.join(tokens)}" if tokens else "none"
        raise TranscriptError("--ignore", f"{word!r} is not one token but {found}")
    return tokens[0]


def _tokens(text: str, ignore: Collection[str]) -> list[str]:
    return [token for token in tokenize(text) if token not in ignore]


def _align(
    references: list[list[str]], hypotheses: list[list[str]]
) -> list[list[tuple[bool, Counts]]]:
    """For each utterance its aligned pairs: whether Mandarin, and what became of them."""
    try:
        import jiwer
    except ImportError as error:
        raise TranscriptError(
            "jiwer", "is not installed, and aligns what is scored: pip install jiwer"
        ) from error
    aligned = jiwer.process_words(
        [" ".join(tokens) for tokens in references], [" ".join(tokens) for tokens in hypotheses]
    )
    kinds = {
        "equal": Counts(hits=1),
        "substitute": Counts(substitutions=1),
        "delete": Counts(deletions=1),
        "insert": Counts(insertions=1),
    }
    pairs = []
    for reference, hypothesis, chunks in zip(
        references, hypotheses, aligned.alignments, strict=True
    ):
        utterance = []
        for chunk in chunks:
            tokens = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            if chunk.type == "insert":
                tokens = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            utterance += [(is_mandarin(token), kinds[chunk.type]) for token in tokens]
        pairs.append(utterance)
    return pairs


def read(path: Path) -> dict[str, str]:
    """Returns the utterances of a Kaldi table, or of a sclite transcript (``.trn``).

    Args:
        path: A file of lines ``utterance text``, or ``text (utterance)`` if it ends in ``.trn``.

    Raises:
        TranscriptError: The file cannot be read, is not UTF-8, or names an utterance twice.
    """
    try:
        # Windows' editors put a byte order mark first.
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise TranscriptError(path, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TranscriptError(
            path, f"is not UTF-8: {error.reason} at byte {error.start}"
        ) from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, text = _split(line, path, number)
        if name in found:
            raise TranscriptError(path, f"names {name} twice, again in line {number}")
        found[name] = text
    return found


def _split(line: str, path: Path, number: int) -> tuple[str, str]:
    if path.suffix == ".trn":
        match = _TRN.fullmatch(line.strip())
        if match is None:
            raise TranscriptError(path, f"has no (utterance) at the end of line {number}")
        return match[2], match[1]
    name, _, text = line.strip().replace("\t", " ").partition(" ")
    return name, text


def score_experiment(
    experiment: Path, dump: Path, ignore: Collection[str] = ()
) -> dict[str, Score]:
    """Scores every test set that an experiment of ESPnet's ``asr.sh`` has decoded.

    Args:
        experiment: Its folder, with the hypotheses of stage 12 somewhere below it.
        dump: The recipe's ``dump/raw``, with the references.
        ignore: As for :func:`score`.

    Returns:
        The scores by decoding and test set, for example ``decode_asr/test``.

    Raises:
        TranscriptError: Nothing is decoded there, or a reference is missing or does not fit.
    """
    # Hypotheses lie beside the logs of their decoding, which nothing else does.
    decoded = sorted(
        logs.parent for logs in experiment.rglob("logdir") if (logs.parent / "text").is_file()
    )
    if not decoded:
        raise TranscriptError(experiment, "holds nothing decoded: run stage 12 first")
    scores = {}
    for folder in decoded:
        dataset = folder.relative_to(experiment)
        # What comes before the data set's name is the decoding's.
        reference = dump.joinpath(*dataset.parts[1:], "text")
        scores[dataset.as_posix()] = score(read(reference), read(folder / "text"), ignore)
    return scores


def table(scores: Mapping[str, Score]) -> str:
    """The scores as a table in Markdown, three lines for each data set."""
    header = "|dataset|measure|Snt|Tok|Corr|Sub|Del|Ins|Err|rate %|S.Err|"
    lines = [header, re.sub(r"[^|]+", "---", header)]
    for dataset, result in scores.items():
        for part, counts in result.parts().items():
            rate = "-" if counts.rate is None else f"{100 * counts.rate:.1f}"
            numbers = [counts.tokens, counts.hits, counts.substitutions]
            numbers += [counts.deletions, counts.insertions, counts.errors]
            cells = [dataset, f"{PARTS[part]}, {part}", str(result.sentences), *map(str, numbers)]
            cells += [rate, str(result.wrong_sentences) if part == "mixed" else "-"]
            lines.append(f"|{'|'.join(cells)}|")
    return "\n".join(lines) + "\n"


def report(result: Score) -> dict[str, object]:
    """The score as plain data for JSON."""
    parts: dict[str, object] = {
        PARTS[part].lower(): {
            "rate": counts.rate,
            "tokens": counts.tokens,
            "hits": counts.hits,
            "substitutions": counts.substitutions,
            "deletions": counts.deletions,
            "insertions": counts.insertions,
        }
        for part, counts in result.parts().items()
    }
    sentences = {"sentences": result.sentences, "wrong_sentences": result.wrong_sentences}
    return parts | sentences | {"missing": list(result.missing)}


def main(argv: Sequence[str] | None = None) -> int:
    """Scores two files, or an experiment; returns the exit code."""
    args = _parse(argv)
    try:
        if args.experiment:
            scores = score_experiment(args.experiment, args.dump, args.ignore)
            _write(args.experiment / "MER.md", f"# Mixed error rate\n\n{table(scores)}")
        else:
            reference, hypothesis = args.files
            scores = {str(hypothesis): score(read(reference), read(hypothesis), args.ignore)}
    except BiMambaError as error:
        print(error, file=sys.stderr)
        return 2
    for dataset, result in scores.items():
        if result.missing:
            names = f"{len(result.missing)} utterances, {result.missing[0]} the first"
            print(f"{dataset}: no hypothesis for {names}", file=sys.stderr)
    if args.json:
        print(json.dumps({name: report(result) for name, result in scores.items()}, indent=2))
    else:
        print(table(scores), end="")
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m espnet_bimamba.scoring",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", type=Path, metavar="REFERENCE HYPOTHESIS")
    parser.add_argument("--experiment", type=Path, help="score all that asr.sh decoded here")
    parser.add_argument(
        "--dump", type=Path, default=Path("dump/raw"), help="references; default: dump/raw"
    )
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="TOKEN", help="leave out, e.g. '<noise>'"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    args = parser.parse_args(argv)
    if len(args.files) != (0 if args.experiment else 2):
        parser.error("give a reference and a hypothesis file, or --experiment")
    return args


def _write(path: Path, text: str) -> None:
    try:
        write_whole(path, text)
    except OSError as error:
        raise TranscriptError(path, f"cannot be written: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(main())
