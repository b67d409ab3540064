"""The data preparation of egs/so762, on a corpus of three made-up utterances."""

import subprocess
import sys
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[2] / "egs" / "so762" / "asr1" / "local" / "data.py"
HEADER = "utt\tfile\tspeaker\tseconds\ttext\n"
ROWS = """\
b-1\tflac/b-1.flac\tb\t1.0\tIT'S ME
a-2\tflac/a-2.flac\ta\t2.0\tNO
a-1\tflac/a-1.flac\ta\t1.5\tYES
"""


@pytest.fixture
def corpus(tmp_path):
    (tmp_path / "flac").mkdir()
    for utt in ("a-1", "a-2", "b-1"):
        (tmp_path / "flac" / f"{utt}.flac").touch()
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.tsv").write_text(HEADER + ROWS)
    return tmp_path


def prepare(corpus):
    command = [sys.executable, str(DATA), str(corpus), str(corpus / "data")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_tables_become_kaldis_files(corpus):
    assert prepare(corpus).returncode == 0
    folder = corpus / "data" / "dev"
    assert (folder / "text").read_text() == "a-1 YES\na-2 NO\nb-1 IT'S ME\n"
    assert (folder / "utt2spk").read_text() == "a-1 a\na-2 a\nb-1 b\n"
    assert (folder / "spk2utt").read_text() == "a a-1 a-2\nb b-1\n"
    recordings = (folder / "wav.scp").read_text().splitlines()
    assert recordings[2] == f"b-1 {corpus / 'flac' / 'b-1.flac'}"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda c: (c / "dev.tsv").unlink(), "dev.tsv is missing"),
        (lambda c: (c / "test.tsv").write_text(HEADER), "test.tsv must have the columns utt, file"),
        (
            lambda c: (c / "dev.tsv").write_text("utt\ttext\na\tA\n"),
            "dev.tsv must have the columns",
        ),
        (lambda c: (c / "flac" / "a-1.flac").unlink(), "names 1 missing recordings, flac/a-1.flac"),
    ],
    ids=["no_table", "no_row", "no_column", "no_recording"],
)
def test_what_is_missing_is_named(corpus, harm, message):
    harm(corpus)
    done = prepare(corpus)
    assert done.returncode == 2
    assert message in done.stderr
    assert not list(corpus.glob("data/**/*"))
