"""The runners of recipes that ESPnet lacks, with an asr.sh that prints what it was called with."""

import pytest

from tests.egs.programs import own_runner

OWN = {"asru": "ASRU", "so762": "SO762"}
PRINT = 'echo "corpus=${{{0}}}"; printf "%s\\n" "$@"\n'


@pytest.fixture(params=OWN)
def recipe(request):
    return request.param


@pytest.fixture
def runner(recipe, tmp_path):
    return own_runner(recipe, tmp_path, PRINT.format(OWN[recipe]))


def test_the_corpus_may_lie_at_a_relative_path_with_spaces(runner, tmp_path):
    done = runner("--corpus", "my corpora/x", "--stop_stage", "1")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"corpus={tmp_path}/my corpora/x"
    assert "corpora/x" not in done.stdout.partition("\n")[2], "split where it is an option"


def test_there_is_no_other_name_for_the_corpus(runner, monkeypatch):
    monkeypatch.setenv("DATA", "/elsewhere")
    done = runner("--data", "/elsewhere", "--stop_stage", "1")
    assert done.stdout.splitlines()[0] == "corpus="
    assert done.stdout.splitlines()[-2:] == ["--data", "/elsewhere"], "for asr.sh to refuse"


def test_programs_that_are_missing_are_said(recipe, runner, tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    for program in ("bash", "dirname", "readlink", "sed", "find", "sort", "cat"):
        (tmp_path / "bin" / program).symlink_to(f"/bin/{program}")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    done = runner("--stop_stage", "1")
    assert done.returncode == 0, done.stderr
    missing = {line.split()[1] for line in done.stderr.splitlines() if "warning" in line}
    assert missing == {"asru": {"perl", "sox"}, "so762": {"perl"}}[recipe]


@pytest.mark.parametrize("options", [["--help"], ["--stage", "2", "-h"]])
def test_help_does_nothing_else(recipe, runner, tmp_path, options):
    done = runner(*options)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"\n  egs/{recipe}/asr1/run.sh --corpus DIR [--model conextbimamba]" in done.stdout
    assert "set -" not in done.stdout
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--model"], "option '--model' needs a value\n"),
        (["--model", "conmanba"], "no model 'conmanba' here; there are:\n  "),
        (["--stage", "foo"], "option --stage: 'foo' is no number\n"),
        (["--stop_stage", "-1"], "option --stop_stage: '-1' is no number\n"),
        (
            ["--work", "/dev/null"],
            "cannot be written: Not a directory. What to do: name a folder other than /dev/null",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_options_are_named(runner, tmp_path, options, says):
    done = runner(*options)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize(
    ("recipe", "option"), [("so762", "--seed"), ("asru", "--english_bpe")], indirect=["recipe"]
)
def test_numbers_are_numbers(runner, option):
    done = runner(option, "abc")
    assert (done.returncode, done.stderr) == (2, f"option {option}: 'abc' is no number\n")
