"""The runners of recipes that ESPnet lacks, with an asr.sh that prints what it was called with."""

import pytest

from tests.egs.programs import own_runner

OWN = {"asru": "ASRU", "so762": "SO762"}
PRINT = 'echo "corpus=${{{0}}}"; echo "in $PWD"; printf "%s\\n" "$@"\n'

#: Recipe -> its task, and the variable of its corpus.
ALL = {name: ("asr", variable) for name, variable in OWN.items()} | {"se": ("enh", "SE_CORPUS")}


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


@pytest.fixture(params=ALL)
def any_runner(request, tmp_path):
    """The runner of each recipe, with a script that says where it is and prepares the data."""
    task, _ = ALL[request.param]
    conf = ("se", "so762_se") if request.param == "se" else ()
    script = 'echo "in $PWD"\nlocal/data.sh\n'
    call = own_runner(request.param, tmp_path, script, task=task, conf=conf)
    data = tmp_path / "egs" / request.param / f"{task}1" / "local" / "data.py"
    data.write_text("import sys; print('data.py', *sys.argv[1:])\n")
    return request.param, call


def copy_of(recipe, root):
    return root / "egs2" / recipe / f"{ALL[recipe][0]}1"


def test_a_runner_called_in_a_working_copy_runs_there(any_runner, tmp_path):
    recipe, call = any_runner
    stop = ("--corpus", "/x", "--noises", "/n", "--stop_stage", "1")
    assert call("--work", "mine", *stop).returncode == 0
    copy = copy_of(recipe, tmp_path / "mine")
    (tmp_path / "short").symlink_to(copy)
    for program, place in (
        ("./run.sh", copy),
        (copy / "run.sh", tmp_path),
        (tmp_path / "short" / "run.sh", tmp_path),
    ):
        done = call(*stop, program=program, place=place)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[0] == f"in {copy}"
    assert not (tmp_path / "exp").exists()
    done = call("--work", "../other", *stop, program="./run.sh", place=copy)
    other = copy_of(recipe, copy.parent / "other")
    assert done.stdout.splitlines()[0] == f"in {other}", "what is asked for goes first"


def test_whitespace_in_the_path_of_a_working_copy_is_refused(any_runner, tmp_path):
    _, call = any_runner
    done = call("--work", "w 3")
    assert (done.returncode, done.stdout) == (2, "")
    says = f"a working copy in '{tmp_path}/w 3' is not possible: whitespace in its path ends "
    assert says in done.stderr
    assert "--work of a runner" in done.stderr
    assert not (tmp_path / "w 3").exists()


def test_without_a_working_copy_a_runner_makes_one_in_the_clone(any_runner, tmp_path):
    recipe, call = any_runner
    task = ALL[recipe][0]
    no_copies = (copy_of(recipe, tmp_path), tmp_path / "link")
    for folder in no_copies:
        folder.mkdir(parents=True)
        (folder / "run.sh").symlink_to(tmp_path / "egs" / recipe / f"{task}1" / "run.sh")
    (tmp_path / "link" / f"{task}.sh").touch()
    for folder in no_copies:
        given = ("--corpus", "/x", "--noises", "/n", "--stop_stage", "1")
        done = call(*given, program=folder / "run.sh")
        assert done.stdout.splitlines()[0] == f"in {copy_of(recipe, tmp_path / 'exp' / recipe)}"


def test_the_corpus_may_be_named_in_db_sh(any_runner, tmp_path):
    recipe, call = any_runner
    variable = ALL[recipe][1]
    noises = ("--noises", "/noises") if recipe == "se" else ()
    done = call(*noises, "--stop_stage", "1")
    copy = copy_of(recipe, tmp_path / "exp" / recipe)
    assert done.returncode == 2
    assert f"{variable}=FOLDER " in done.stderr
    assert f"in {copy}/db.sh" in done.stderr
    with (copy / "db.sh").open("a") as db:
        db.write(f"{variable}='/a corpus'\n")
    done = call(*noises, "--stop_stage", "1")
    assert done.returncode == 0, done.stderr
    assert " /a corpus" in done.stdout.splitlines()[1]
    done = call(*noises, "--stop_stage", "1", "--corpus", "/another")
    assert "corpus" not in done.stdout.splitlines()[1].replace("--corpus", "")
    assert " /another" in done.stdout.splitlines()[1]


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
        (["--model", "conmanba"], ": --model='conmanba' is not possible: allowed is "),
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
