"""The thin runners, with a stock run.sh that prints what it was called with."""

import os
import subprocess
import sys

import pytest
import yaml

from espnet_bimamba import recipes
from tests.test_recipes import FILES, write_sdist

HOME = recipes.Path(__file__).resolve().parents[2]
RUNNERS = sorted(HOME.glob("egs/*/asr1/run.sh"))
STOCK = ("an4", "librispeech", "librispeech_100", "mini_an4", "seame")

PRINT = 'printf "%s\\n" "$0" "$@"\n'
CONFORMER_100 = "conf/tuning/train_asr_conformer_lr2e-3_warmup15k_amp_nondeterministic.yaml"
CTC_100 = "conf/tuning/train_conformer_ctc.yaml"
TRAINING = "best_model_criterion:\n-   - valid\n    - {}\n    - max\n"
CONFIGS = {
    f"librispeech_100/asr1/{CONFORMER_100}": TRAINING.format("acc"),
    f"librispeech_100/asr1/{CTC_100}": TRAINING.format("cer_ctc"),
    "librispeech/asr1/conf/tuning/train_asr_conformer10_hop_length160.yaml": "max_epoch: 1\n",
    "seame/asr1/conf/tuning/train_asr_conformer.yaml": "max_epoch: 1\n",
    "an4/asr1/conf/train_asr_transformer.yaml": "max_epoch: 1\n",
}
SEAME_ASR = 'printf "%s\\n" "$0" "$@"\nmkdir -p data/train && touch data/train/token.man.2\n'


@pytest.fixture
def cache(tmp_path):
    """A cache with a tiny source distribution of the installed ESPnet."""
    files = FILES | {f"egs2/{name}": text for name, text in CONFIGS.items()}
    for recipe in STOCK:
        files |= {f"egs2/{recipe}/asr1/run.sh": f"#!/bin/bash\n{PRINT}"}
        files |= {f"egs2/{recipe}/asr1/db.sh": "LIBRISPEECH=downloads\nSEAME=\n"}
    files |= {"egs2/seame/asr1/asr.sh": f"#!/bin/bash\n{SEAME_ASR}"}
    version = recipes.installed_version()
    write_sdist(tmp_path / "cache" / f"espnet-{version}.tar.gz", files, f"espnet-{version}")
    return tmp_path / "cache"


@pytest.fixture
def run(cache, tmp_path):
    """Calls a runner; returns the finished process."""

    def call(recipe, *options):
        environment = os.environ | {
            "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(HOME),
        }
        command = [str(HOME / "egs" / recipe / "asr1" / "run.sh"), "--cache", str(cache)]
        command += ["--work", str(tmp_path / "work"), *options]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return call


def called(done):
    """The options that the stock run.sh got, where the later of two of one name counts."""
    assert done.returncode == 0, done.stderr
    _, found, printed = done.stdout.rpartition("./run.sh\n")
    assert found, done.stdout
    words = printed.splitlines()
    return dict(zip(words[::2], words[1::2], strict=True))


def test_every_runner_is_sound_shell():
    assert {path.parts[-3] for path in RUNNERS} >= set(STOCK)
    for path in [*RUNNERS, *HOME.glob("egs/*/asr1/*.sh")]:
        assert os.access(path, os.X_OK), path
        subprocess.run(["bash", "-n", path], check=True)


def test_the_stock_script_gets_our_model_and_the_users_options(run, tmp_path):
    done = run("mini_an4", "--stage", "10", "--asr_args", "--seed 3 --max_epoch 2", "--ngpu", "2")
    options = called(done)
    assert options == {
        "--asr_config": str(HOME / "conf/mini_an4/train_asr_conbimamba.yaml"),
        "--inference_asr_model": "train.loss.ave.pth",
        "--inference_config": str(HOME / "conf/mini_an4/decode_asr.yaml"),
        "--use_lm": "false",
        "--skip_packing": "false",
        "--test_sets": "train_dev test",
        "--stage": "10",
        "--asr_args": "--seed 3 --max_epoch 2",
        "--ngpu": "2",
    }
    work = tmp_path / "work" / "egs2" / "mini_an4" / "asr1"
    assert (work / "run.sh").is_symlink(), "ESPnet's file, not a copy"


def test_our_options_may_stand_anywhere(run):
    options = called(
        run("mini_an4", "--ngpu", "1", "--model", "transbimamba", "--inference_args", "")
    )
    assert options["--asr_config"].endswith("conf/mini_an4/train_asr_transbimamba.yaml")
    assert options["--ngpu"] == "1"
    assert options["--inference_args"] == ""


def test_the_users_options_come_last(run):
    mine = {"--inference_config": "mine.yaml", "--test_sets": "test", "--use_lm": "false"}
    words = [word for option in mine.items() for word in option]
    options = called(run("mini_an4", *words, "--asr_config", "/tmp/x.yaml"))
    assert {key: options[key] for key in mine} == mine
    assert options["--asr_config"] == "/tmp/x.yaml"


def test_a_baseline_is_espnets_own_file(run):
    options = called(run("librispeech_100", "--model", "conformer"))
    assert options == {
        "--asr_config": CONFORMER_100,
        "--inference_asr_model": "valid.acc.ave.pth",
        "--use_lm": "false",
        "--local_data_opts": "--stop_stage 3",
        "--inference_config": str(HOME / "conf/librispeech_100/decode_asr.yaml"),
    }


def test_the_model_that_is_decoded_is_the_best_by_the_trainings_criterion(run):
    options = called(run("librispeech_100", "--model", "conformer_ctc"))
    assert options["--inference_asr_model"] == "valid.cer_ctc.ave.pth"


def test_a_language_model_brings_back_espnets_decoding(run):
    options = called(run("librispeech", "--model", "conformer"))
    assert options["--lm_train_text"] == "data/train_960/text"
    options = called(run("librispeech", "--model", "conformer", "--use_lm", "true"))
    assert options == {
        "--asr_config": "conf/tuning/train_asr_conformer10_hop_length160.yaml",
        "--inference_asr_model": "valid.acc.ave.pth",
        "--use_lm": "true",
    }


@pytest.mark.parametrize("recipe", STOCK)
def test_an_unknown_model_lists_the_known(run, recipe):
    done = run(recipe, "--model", "conmanba")
    assert done.returncode == 2
    assert done.stdout == ""
    assert f"{recipe}: --model='conmanba' is not possible: allowed is " in done.stderr
    known = {"mini_an4": "transbimamba", "an4": "transformer"}.get(recipe, "conformer")
    assert known in done.stderr


def test_the_corpus_is_told_to_the_working_copy(run, tmp_path):
    corpus = tmp_path / "my corpora"
    corpus.mkdir()
    db = tmp_path / "work" / "egs2" / "librispeech_100" / "asr1" / "db.sh"

    def variable():
        show = f". '{db}' && echo \"$LIBRISPEECH\""
        done = subprocess.run(["bash", "-c", show], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    for _ in range(2):
        called(run("librispeech_100", "--model", "conformer", "--corpus", "my corpora"))
        assert variable() == str(corpus)
        assert db.read_text().count("my corpora") == 1
    called(run("librispeech_100", "--model", "conformer"))
    assert variable() == str(corpus), "it should stay"
    called(run("librispeech_100", "--model", "conformer", "--corpus", str(tmp_path)))
    assert variable() == str(tmp_path)


def test_a_corpus_folder_that_cannot_be_right(run, tmp_path):
    (tmp_path / "LibriSpeech" / "train-clean-100").mkdir(parents=True)
    done = run("librispeech_100", "--model", "conformer", "--corpus", "LibriSpeech")
    assert done.returncode == 2
    assert f"allowed is the folder above it, {tmp_path}." in done.stderr
    done = run("seame", "--model", "conformer", "--corpus", "nowhere")
    assert done.returncode == 2
    assert "--corpus='nowhere' is not possible: allowed is a folder that exists." in done.stderr
    done = run("mini_an4", "--corpus", str(tmp_path))
    assert done.returncode == 2
    assert "mini_an4 brings its corpus" in done.stderr


def test_an4_is_looked_for_below_downloads(run, tmp_path):
    (tmp_path / "an4_of_mine").mkdir()
    for _ in range(2):
        called(run("an4", "--model", "transformer", "--corpus", "an4_of_mine"))
    link = tmp_path / "work" / "egs2" / "an4" / "asr1" / "downloads" / "an4"
    assert link.readlink() == tmp_path / "an4_of_mine"
    link.unlink()
    link.mkdir()
    done = run("an4", "--model", "transformer", "--corpus", "an4_of_mine")
    assert done.returncode == 2
    assert f"{link} is there already" in done.stderr


def test_seames_first_stage_is_run_before_its_script(run, tmp_path):
    done = run("seame", "--model", "conformer", "--nj", "4")
    before, _, after = done.stdout.partition("./run.sh\n")
    first = before.splitlines()
    assert first[:7] == [
        "./asr.sh",
        *("--train_set", "train", "--valid_set", "valid", "--test_sets", "devman devsge"),
    ]
    assert first[-4:] == ["--stage", "1", "--stop_stage", "1"]
    assert after.splitlines()[-4:] == ["--nj", "4", "--stage", "2"]

    again = called(run("seame", "--model", "conformer"))
    assert "--stage" not in again, "with the tokens there, ESPnet's script starts by itself"


def test_seame_stops_after_its_first_stage_if_told_to(run):
    done = run("seame", "--model", "conformer", "--stop_stage", "1")
    assert done.returncode == 0
    assert "./run.sh" not in done.stdout


def test_seame_without_its_first_stage_says_so(run, tmp_path):
    done = run("seame", "--model", "conformer", "--stage", "10")
    assert done.returncode == 2
    assert "data/train/token.man.2 is not there. What to do: run --stage 1 first" in done.stderr


def test_the_script_s_failure_is_the_runner_s(run, cache, tmp_path):
    called(run("an4", "--model", "transformer"))
    script = tmp_path / "work" / "egs2" / "an4" / "asr1" / "run.sh"
    script.unlink()
    script.write_text("#!/bin/bash\nexit 7\n")
    script.chmod(0o755)
    assert run("an4", "--model", "transformer").returncode == 7


def test_help(run):
    done = run("seame", "--help")
    assert done.returncode == 0
    assert "--model MODEL" in done.stdout
    assert "--stage 10 --ngpu 2" in done.stdout


def with_configs():
    return [recipe for recipe in STOCK if any((HOME / "conf" / recipe).glob("train_asr_*.yaml"))]


@pytest.mark.parametrize("recipe", with_configs())
def test_what_a_runner_takes_by_default_is_there(run, recipe):
    options = called(run(recipe))
    for option in ("--asr_config", "--inference_config"):
        assert yaml.safe_load(recipes.Path(options[option]).read_text()), options[option]
