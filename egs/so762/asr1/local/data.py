"""Turns the tables of so762 into the folders that ESPnet's ``asr.sh`` reads."""

import argparse
import csv
import sys
from pathlib import Path

from espnet_bimamba.errors import BiMambaError
from espnet_bimamba.files import write_whole

SPLITS = ("train", "dev", "test")
COLUMNS = ("utt", "file", "speaker", "seconds", "text")


class CorpusError(BiMambaError):
    """The corpus is not as it should be; the message says what is missing."""


def read(corpus: Path, split: str) -> list[dict[str, str]]:
    """Return the rows of ``split.tsv``, sorted as Kaldi wants them.

    Raises:
        CorpusError: The table or a column is missing, or a recording that the table names.
    """
    table = corpus / f"{split}.tsv"
    if not table.is_file():
        raise CorpusError(f"{table} is missing; see egs/so762/README.md for the layout")
    with table.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    if not rows or missing_columns(rows[0]):
        raise CorpusError(f"{table} must have the columns {', '.join(COLUMNS)} and a row at least")
    absent = [row["file"] for row in rows if not (corpus / row["file"]).is_file()]
    if absent:
        raise CorpusError(f"{table} names {len(absent)} missing recordings, {absent[0]} the first")
    # By speaker first: an utterance's name begins with its speaker's.
    return sorted(rows, key=lambda row: row["utt"])


def missing_columns(row: dict[str, str]) -> list[str]:
    """Return those of :data:`COLUMNS` that a row lacks."""
    return [column for column in COLUMNS if not row.get(column)]


def write(rows: list[dict[str, str]], corpus: Path, folder: Path) -> None:
    """Write ``wav.scp``, ``text``, ``utt2spk`` and ``spk2utt``."""
    folder.mkdir(parents=True, exist_ok=True)
    speakers: dict[str, list[str]] = {}
    for row in rows:
        speakers.setdefault(row["speaker"], []).append(row["utt"])
    files = {
        "wav.scp": [f"{row['utt']} {corpus / row['file']}" for row in rows],
        "text": [f"{row['utt']} {row['text']}" for row in rows],
        "utt2spk": [f"{row['utt']} {row['speaker']}" for row in rows],
        "spk2utt": [f"{name} {' '.join(utts)}" for name, utts in sorted(speakers.items())],
    }
    for name, lines in files.items():
        write_whole(folder / name, "".join(f"{line}\n" for line in lines))


def main(argv: list[str] | None = None) -> int:
    """Prepare all splits; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    corpus = args.corpus.resolve()
    try:
        tables = {split: read(corpus, split) for split in SPLITS}
    except CorpusError as error:
        print(error, file=sys.stderr)
        return 2
    for split, rows in tables.items():
        write(rows, corpus, args.out / split)
        print(f"{args.out / split}: {len(rows)} utterances")
    return 0


if __name__ == "__main__":
    sys.exit(main())
