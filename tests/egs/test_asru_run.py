"""The runner of egs/asru, with an asr.sh that prints what it was called with."""

import shutil
import sys

import pytest

from tests.egs.programs import own_runner

CHARACTERS = 4
FIRST = f"mkdir -p data/train; seq {CHARACTERS} >data/train/mandarin\n"
PRINT = 'printf "%s\\n" "$0" "$@"\n'


@pytest.fixture
def runner(tmp_path):
    return own_runner("asru", tmp_path, FIRST + PRINT)


def calls(done):
    """The options of each call of asr.sh, which takes the last of one name."""
    assert done.returncode == 0, done.stderr
    parts = [words.split("\n") for words in done.stdout.split("./asr.sh\n")[1:]]
    return [dict(zip(words[::2], words[1::2], strict=False)) for words in parts]


def test_all_stages_are_espnets_with_tokens_of_both_languages(runner, tmp_path):
    first, rest = calls(runner("--corpus", "/x", "--stop_stage", "12"))
    always = {
        "--train_set": "train",
        "--valid_set": "dev",
        "--test_sets": "dev test",
        "--ngpu": "1",
        "--use_lm": "false",
        "--max_wav_duration": "30",
        "--speed_perturb_factors": "0.9 1.0 1.1",
        "--asr_config": str(tmp_path / "conf/asru/train_asr_conextbimamba.yaml"),
        "--inference_config": str(tmp_path / "conf/asru/decode_asr.yaml"),
        "--score_opts": "-e utf-8 -c NOASCII",
    }
    assert first == always | {"--stage": "1", "--stop_stage": "1"}
    assert rest == always | {
        "--token_type": "bpe",
        # Sentencepiece counts three signs of its own in.
        "--nbpe": str(3000 + CHARACTERS + 3),
        "--bpe_nlsyms": "data/train/mandarin",
        "--bpe_train_text": "data/train/text.english",
        "--stage": "2",
        "--stop_stage": "12",
    }


def test_options_reach_asr_sh(runner, tmp_path):
    mine = tmp_path / "my.yaml"
    mine.touch()
    options = ("--asr_config", "my.yaml", "--english_bpe", "0100", "--use_lm", "true")
    _, call = calls(runner(*options, "--stop_stage", "12"))
    assert call["--asr_config"] == str(mine)
    assert call["--nbpe"] == str(100 + CHARACTERS + 3)
    assert call["--use_lm"] == "true"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--asr_config", "no.yaml"], "option --asr_config: 'no.yaml' is no file\n"),
        (["--asr_config", "conf"], "option --asr_config: 'conf' is no file\n"),
        (["--english_bpe", "0"], "option --english_bpe: '0' is no number from 1 on\n"),
    ],
)
def test_what_later_stages_would_stumble_over_is_refused_at_once(runner, tmp_path, options, says):
    done = runner("--corpus", "/x", *options)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", says)
    assert not (tmp_path / "exp").exists()


def test_tokens_need_stage_1(tmp_path):
    done = own_runner("asru", tmp_path, PRINT)("--stage", "2")
    copy = tmp_path / "exp/asru/egs2/asru/asr1"
    says = f"{copy}/data/train/mandarin is missing: start from stage 1\n"
    assert done.returncode == 2
    assert done.stderr.endswith(says)
    assert "--nbpe" not in done.stdout


#: Like ESPnet's, it says where its experiment and its decoding are to whoever reads it.
NAMES = """\
stage=1 asr_tag=train asr_exp= eval_valid_set=true valid_set=dev skip_eval=false
local_score_opts=
while [ $# -gt 0 ]; do declare "${1#--}=$2"; shift 2; done
asr_exp=${asr_exp:-exp/asr_${asr_tag}} inference_tag=decode test_sets=test skip_stages=" 15 "
! "${skip_eval}" || skip_stages=" 12 13 15 "
echo finished
"""
PROGRAMS = ("bash", "dirname", "readlink", "sed", "seq", "mkdir", "wc", "head", "cp", "cat", "rm")


@pytest.fixture
def scorer(tmp_path, monkeypatch):
    """A runner where no sclite is, with an asr.sh that has names; and its working copy."""
    (tmp_path / "bin").mkdir()
    for program in PROGRAMS:
        (tmp_path / "bin" / program).symlink_to(shutil.which(program))
    (tmp_path / "bin" / "python3").write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    (tmp_path / "bin" / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    call = own_runner("asru", tmp_path, FIRST + PRINT + NAMES)
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "nowhere"))
    copy = tmp_path / "exp/asru/egs2/asru/asr1"
    for name in ("org/dev", "test"):
        folder = copy / "dump/raw" / name
        folder.mkdir(parents=True)
        (folder / "text").write_text("u1 我 们 go home\n")
    (copy / "data/train").mkdir(parents=True)
    (copy / "data/train/mandarin").write_text("我\n们\n")
    return call, copy


def decode(experiment, heard="我 们 go home", sets=("org/dev", "test")):
    for name in sets:
        (experiment / "decode" / name / "logdir").mkdir(parents=True, exist_ok=True)
        (experiment / "decode" / name / "text").write_text(f"u1 {heard}\n")


def stages(done):
    """What asr.sh was called for; where it is but read, its name is the runner's."""
    assert done.returncode == 0, done.stderr
    parts = [words.split("\n") for words in done.stdout.split("./asr.sh\n")[1:]]
    calls = [dict(zip(words[::2], words[1::2], strict=False)) for words in parts]
    return [(call["--stage"], call["--stop_stage"]) for call in calls]


MIXED = "|decode/test|MER, mixed|1|4|{}|{}|0|0|{}|{}|{}|\n"
ALL_RIGHT = MIXED.format(4, 0, 0, "0.0", 0)
ONE_WRONG = MIXED.format(3, 1, 1, "25.0", 1)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ([], "exp/asr_train"),
        (["--asr_tag", "mine"], "exp/asr_mine"),
        (["--asr_exp", "elsewhere/x"], "elsewhere/x"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_without_sclite_the_experiment_of_the_options_is_scored(scorer, options, name):
    call, copy = scorer
    decode(copy / name)
    decode(copy / "exp" / "asr_other", heard="我 们 go")
    (copy / "exp" / "asr_half" / "decode" / "test" / "logdir").mkdir(parents=True)
    done = call("--stage", "12", "--stop_stage", "13", *options)
    assert stages(done) == [("12", "12")]
    assert "no sclite here: stage 13 will give the MER only" in done.stderr
    assert ALL_RIGHT in done.stdout
    for file in ("MER.md", "RESULTS.md"):
        assert ALL_RIGHT in (copy / name / file).read_text()
    written = {file.parent for file in copy.rglob("*.md")}
    assert written == {copy / name}, "no other experiment is touched"


@pytest.mark.parametrize(
    ("decoded", "missing"),
    [([], "org/dev"), (["test"], "org/dev"), (["org/dev"], "test")],
    ids=["nothing", "the test set", "the development set"],
)
def test_what_is_not_decoded_is_not_scored(scorer, decoded, missing):
    call, copy = scorer
    decode(copy / "exp" / "asr_other")
    decode(copy / "exp" / "asr_train", sets=decoded)
    done = call("--stage", "13", "--stop_stage", "14")
    text = copy / "exp/asr_train/decode" / missing / "text"
    assert done.returncode == 2
    assert done.stderr.endswith(f"{text} is missing: start from stage 12\n")
    assert "./asr.sh" not in done.stdout, "nothing is packed"
    assert not list(copy.rglob("*.md"))


def test_a_changed_hypothesis_changes_what_is_packed(scorer):
    call, copy = scorer
    results = copy / "exp" / "asr_train" / "RESULTS.md"
    for heard, row in (("我 们 go home", ALL_RIGHT), ("我 们 go hole", ONE_WRONG)):
        decode(copy / "exp" / "asr_train", heard)
        assert stages(call("--stage", "13")) == [("14", "10000")]
        assert row in results.read_text()


def test_results_of_sclite_stay(scorer):
    call, copy = scorer
    experiment = copy / "exp" / "asr_train"
    decode(experiment)
    (experiment / "RESULTS.md").write_text("<!-- Generated by show_asr_result.sh -->\n# RESULTS\n")
    done = call("--stage", "13", "--stop_stage", "13")
    assert stages(done) == []
    assert (experiment / "RESULTS.md").read_text().endswith("\n# RESULTS\n")
    assert ALL_RIGHT in (experiment / "MER.md").read_text()
    assert done.stderr.endswith(
        "exp/asr_train/RESULTS.md is from another program and stays as it is: "
        "the new rates are in exp/asr_train/MER.md\n"
    )


def test_scoring_that_is_skipped_is_skipped_without_sclite_too(scorer):
    call, copy = scorer
    assert stages(call("--stage", "13", "--skip_eval", "true")) == [("14", "10000")]
    assert not list(copy.rglob("*.md"))


def test_with_sclite_stage_13_is_asr_shs(scorer, tmp_path):
    call, _ = scorer
    (tmp_path / "bin" / "sclite").symlink_to(tmp_path / "bin" / "cat")
    assert stages(call("--stage", "13", "--stop_stage", "13")) == [("13", "13")]
