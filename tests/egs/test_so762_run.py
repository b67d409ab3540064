"""The runner of egs/so762, with an asr.sh that prints what it was called with."""

import pytest

from tests.egs.programs import own_runner

PRINT = 'printf "%s\\n" "$0" "$@"\n'
PLAIN = "--max_epoch 8 --specaug none --preprocessor_conf data_aug_prob=0.0"


@pytest.fixture
def runner(tmp_path):
    return own_runner("so762", tmp_path, PRINT)


@pytest.fixture
def run(runner):
    """Calls a copy of the runner; returns the options of each call of asr.sh."""

    def call(*options):
        done = runner(*options)
        assert done.returncode == 0, done.stderr
        calls = [words.split("\n") for words in done.stdout.split("./asr.sh\n")[1:]]
        return [dict(zip(words[::2], words[1::2], strict=False)) for words in calls]

    return call


def courses(calls):
    """The stages and the training's own options of each call, without doubled spaces."""
    names = ("--stage", "--stop_stage", "--asr_args")
    return [tuple(" ".join(call[name].split()) for name in names) for call in calls]


def test_the_first_epochs_are_without_augmentation(run, tmp_path):
    calls = run("--seed", "3", "--model", "conmamba")
    assert courses(calls) == [("1", "11", f"--seed 3 {PLAIN}"), ("11", "12", "--seed 3")]
    for call in calls:
        assert call["--asr_config"] == str(tmp_path / "conf/so762/train_asr_conmamba.yaml")
        assert call["--asr_tag"] == "conmamba_seed3", "both parts are one training"


def test_what_does_not_train_is_one_call(run):
    assert courses(run("--stop_stage", "10")) == [("1", "10", "--seed 1")]
    assert courses(run("--stage", "12")) == [("12", "12", "--seed 1")]


def test_a_yaml_of_the_users_own_is_looked_for_where_the_user_is(run, runner, tmp_path):
    (tmp_path / "mine.yaml").touch()
    (call,) = run("--asr_config", "mine.yaml", "--stage", "12")
    assert call["--asr_config"] == str(tmp_path / "mine.yaml")
    done = runner("--asr_config", "no.yaml")
    assert done.returncode == 2
    assert done.stderr.endswith("option --asr_config: 'no.yaml' is no file\n")


def test_the_users_options_are_passed_on(run):
    calls = run("--stage", "11", "--stop_stage", "11", "--nj", "1", "--asr_args", "--lr 1")
    assert courses(calls) == [
        ("11", "11", f"--seed 1 {PLAIN} --lr 1"),
        ("11", "11", "--seed 1 --lr 1"),
    ]
    assert all(call["--nj"] == "1" for call in calls)
