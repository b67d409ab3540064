"""The thin runners, with a stock run.sh that prints what it was called with."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from espnet_bimamba import recipes
from tests.egs.programs import HOME, load
from tests.test_recipes import FILES, write_sdist

run_stock = load("egs/run_stock.py")
RUNNERS = sorted(HOME.glob("egs/*/*1/run.sh"))
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
    files |= {"egs2/vctk_noisy/enh1/run.sh": f"#!/bin/bash\n{PRINT}"}
    files |= {"egs2/vctk_noisy/enh1/db.sh": "NOISY_SPEECH=\n"}
    files |= {"egs2/seame/asr1/asr.sh": f"#!/bin/bash\n{SEAME_ASR}"}
    version = recipes.installed_version()
    write_sdist(tmp_path / "cache" / f"espnet-{version}.tar.gz", files, f"espnet-{version}")
    return tmp_path / "cache"


@dataclass(frozen=True)
class Ran:
    """What a runner did: its exit code, what it printed, and what it became in the end."""

    code: int
    out: str
    err: str
    words: list[str] | None

    @property
    def options(self):
        """The options that the stock run.sh got: ESPnet takes the last of one name."""
        assert self.code == 0, self.err
        assert self.words[0] == "./run.sh"
        return dict(zip(self.words[1::2], self.words[2::2], strict=True))


@pytest.fixture
def run(cache, tmp_path, monkeypatch, capfd):
    """Calls a runner's program from ``tmp_path``, up to where it becomes the stock run.sh."""

    def call(recipe, *options):
        became = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(os, "execv", lambda program, words: became.append(words))
        capfd.readouterr()
        code = run_stock.main([recipe, "--cache", str(cache), "--work", "work", *options])
        return Ran(code, *capfd.readouterr(), became[0] if became else None)

    return call


@pytest.fixture
def script(cache, tmp_path):
    """Calls a runner itself; returns the finished process."""

    def call(recipe, *options, task="asr1"):
        command = [HOME / "egs" / recipe / task / "run.sh", "--cache", cache]
        environment = os.environ | {"PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
        return subprocess.run(
            [*command, "--work", tmp_path / "work", *options],
            env=environment | {"PYTHONPATH": str(HOME)},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )

    return call


def test_every_runner_is_sound_shell():
    assert {path.parts[-3] for path in RUNNERS} >= {*STOCK, "vctk_noisy", "se"}
    for path in [*RUNNERS, *HOME.glob("egs/*/*1/*.sh"), *HOME.glob("egs/*/*1/local/*.sh")]:
        assert os.access(path, os.X_OK), path
        subprocess.run(["bash", "-n", path], check=True)


def test_the_stock_script_gets_our_model_and_the_users_options(script, tmp_path):
    done = script(
        "mini_an4", "--stage", "10", "--asr_args", "--seed 3 --max_epoch 2", "--ngpu", "2"
    )
    assert done.returncode == 0, done.stderr
    name, *words = done.stdout.splitlines()
    assert name == "./run.sh"
    assert dict(zip(words[::2], words[1::2], strict=True)) == {
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
    arguments = ("--ngpu", "1", "--model", "transbimamba", "--inference_args", "")
    options = run("mini_an4", *arguments).options
    assert options["--asr_config"].endswith("conf/mini_an4/train_asr_transbimamba.yaml")
    assert options["--ngpu"] == "1"
    assert options["--inference_args"] == ""


def test_the_users_options_come_last(run):
    mine = {"--inference_config": "mine.yaml", "--test_sets": "test", "--use_lm": "false"}
    words = [word for option in mine.items() for word in option]
    options = run("mini_an4", *words).options
    assert {key: options[key] for key in mine} == mine


@pytest.mark.parametrize("recipe", [*STOCK, "vctk_noisy"])
def test_a_yaml_of_the_users_own_is_looked_for_where_the_user_is(run, tmp_path, recipe):
    option = "--enh_config" if recipe == "vctk_noisy" else "--asr_config"
    (tmp_path / "mine.yaml").write_text(TRAINING.format("my_measure"))
    done = run(recipe, "--stage", "1", option, "mine.yaml", "--nj", "3")
    assert done.words.count(option) == 1
    assert done.options[option] == str(tmp_path / "mine.yaml")
    assert done.options["--nj"] == "3"
    best = done.options.get("--inference_asr_model")
    assert best == (None if recipe == "vctk_noisy" else "valid.my_measure.ave.pth")


@pytest.mark.parametrize("recipe", [*STOCK, "vctk_noisy"])
def test_a_yaml_of_the_users_own_that_is_not_there_is_refused_at_once(run, tmp_path, recipe):
    option = "--enh_config" if recipe == "vctk_noisy" else "--asr_config"
    done = run(recipe, option, "conf/mine.yaml")
    assert (done.code, done.out, done.words) == (2, "", None)
    assert done.err == (
        f"{recipe}: {option}='conf/mine.yaml' is not possible: allowed is a file, looked for in "
        f"{tmp_path}.\n"
    )
    assert not (tmp_path / "work").exists()


def test_a_yaml_of_the_users_own_that_is_none_is_refused_at_once(run, tmp_path):
    (tmp_path / "mine.yaml").write_text("encoder: [\n")
    done = run("an4", "--asr_config", "mine.yaml")
    assert (done.code, done.words) == (2, None)
    assert done.err.startswith(f"an4: {tmp_path}/mine.yaml: is not valid YAML: ")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("words", [["--stage"], ["--ngpu", "1", "--asr_tag"]])
def test_an_option_without_its_value_is_named(script, tmp_path, words):
    done = script("an4", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.endswith(f"run.sh: error: option '{words[-1]}' needs a value\n")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("recipe", [*STOCK, "vctk_noisy"])
def test_one_gpu_is_asked_for_unless_the_user_says_how_many(run, recipe):
    """LibriSpeech's own run.sh asks for four, SEAME's for two."""
    assert run(recipe).options["--ngpu"] == ("0" if recipe == "mini_an4" else "1")
    assert run(recipe, "--ngpu", "3").options["--ngpu"] == "3"


@pytest.mark.parametrize("recipe", [*STOCK, "vctk_noisy"])
def test_the_last_number_of_gpus_that_espnets_script_hears_is_ours(run, tree, tmp_path, recipe):
    """ESPnet's own run.sh, with an asr.sh that prints what it is called with."""
    task = run_stock.RECIPES[recipe].task
    script = tree / "egs2" / recipe / task / "run.sh"
    (tmp_path / "data" / "train").mkdir(parents=True)
    (tmp_path / "data" / "train" / "token.man.2").write_text("man_chars=1\n")
    (tmp_path / f"{task[:-1]}.sh").write_text(f"#!/bin/bash\n{PRINT}")
    (tmp_path / f"{task[:-1]}.sh").chmod(0o755)

    def last(*options):
        words = run(recipe, *options).words[1:]
        heard = subprocess.check_output(["bash", script, *words], cwd=tmp_path, text=True)
        _, *heard = heard.splitlines()
        return dict(zip(heard[::2], heard[1::2], strict=True))["--ngpu"]

    assert last() == ("0" if recipe == "mini_an4" else "1")
    assert last("--ngpu", "3") == "3"


def test_a_baseline_is_espnets_own_file(run):
    options = run("librispeech_100", "--model", "conformer").options
    assert options == {
        "--asr_config": CONFORMER_100,
        "--ngpu": "1",
        "--inference_asr_model": "valid.acc.ave.pth",
        "--use_lm": "false",
        "--local_data_opts": "--stop_stage 3",
        "--inference_config": str(HOME / "conf/librispeech_100/decode_asr.yaml"),
    }


def test_the_model_that_is_decoded_is_the_best_by_the_trainings_criterion(run):
    options = run("librispeech_100", "--model", "conformer_ctc").options
    assert options["--inference_asr_model"] == "valid.cer_ctc.ave.pth"


def test_a_decoding_yaml_is_for_models_with_its_ending(run, tmp_path, monkeypatch):
    conf = tmp_path / "conf" / "librispeech_100"
    conf.mkdir(parents=True)
    for name in ("train_asr_x_interctc", "train_asr_x", "decode_asr", "decode_asr_ctc"):
        (conf / f"{name}.yaml").write_text("max_epoch: 1\n")
    monkeypatch.setattr(run_stock, "HOME", tmp_path)
    options = run("librispeech_100", "--model", "x_interctc").options
    assert options["--inference_config"] == str(conf / "decode_asr_ctc.yaml")
    options = run("librispeech_100", "--model", "x").options
    assert options["--inference_config"] == str(conf / "decode_asr.yaml")


def hide(monkeypatch, module):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        run_stock.importlib.util, "find_spec", lambda name: None if name == module else found(name)
    )


def test_a_transducer_without_its_loss_is_warned_of_before_anything_runs(
    run, monkeypatch, tmp_path
):
    hide(monkeypatch, "warprnnt_pytorch")
    done = run("librispeech_100", "--model", "conextbimamba_transducer")
    assert done.options, "it may be data that is prepared here"
    assert (
        "warning: warprnnt_pytorch is not here, and stages 10 to 12 will fail without it: the "
        "transducer's loss is no package of pip's: bash installers/install_warp-transducer.sh "
        "builds it, in tools/ of a working copy, which all copies share and `espnet-bimamba "
        "recipes get` makes.\n"
    ) in done.err
    mine = tmp_path / "mine.yaml"
    for text in (
        "decoder: transformer\n",
        # ESPnet has this loss itself.
        "decoder: transducer\nmodel_conf:\n    transducer_multi_blank_durations: [2]\n",
    ):
        mine.write_text(text)
        given = ("--model", "conextbimamba_transducer", "--asr_config", str(mine))
        assert "warprnnt_pytorch" not in run("librispeech_100", *given).err


def test_with_the_transducers_loss_there_is_nothing_to_warn_of(run, monkeypatch, tmp_path):
    (tmp_path / "warprnnt_pytorch.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert "warprnnt" not in run("librispeech_100", "--model", "conextbimamba_transducer").err


def test_a_streaming_model_is_decoded_by_the_streaming_program(run):
    options = run("librispeech_100", "--model", "conmamba_streaming").options
    assert options["--inference_config"].endswith("/conf/librispeech_100/decode_asr_streaming.yaml")
    assert options["--use_streaming"] == "true"
    assert "--use_streaming" not in run("librispeech_100", "--model", "conmamba").options


def test_a_language_model_brings_back_espnets_decoding(run):
    options = run("librispeech", "--model", "conformer").options
    assert options["--lm_train_text"] == "data/train_960/text"
    options = run("librispeech", "--model", "conformer", "--use_lm", "true").options
    assert options == {
        "--asr_config": "conf/tuning/train_asr_conformer10_hop_length160.yaml",
        "--ngpu": "1",
        "--inference_asr_model": "valid.acc.ave.pth",
        "--use_lm": "true",
    }


@pytest.mark.parametrize("recipe", STOCK)
def test_an_unknown_model_lists_the_known(run, recipe):
    done = run(recipe, "--model", "conmanba")
    assert done.code == 2
    assert done.out == ""
    assert f"{recipe}: --model='conmanba' is not possible: allowed is " in done.err
    known = {"mini_an4": "transbimamba", "an4": "transformer"}.get(recipe, "conformer")
    assert known in done.err


def make_corpus(recipe, folder):
    """All that ESPnet reads of a corpus, empty; returns the folder."""
    for name in run_stock.RECIPES[recipe].corpus.holds:
        (folder / name).mkdir(parents=True)
    return folder


def test_the_corpus_is_told_to_the_working_copy(run, tmp_path):
    corpus = make_corpus("librispeech_100", tmp_path / "my corpora")
    make_corpus("librispeech_100", tmp_path)
    db = tmp_path / "work" / "egs2" / "librispeech_100" / "asr1" / "db.sh"

    def variable():
        show = f". '{db}' && echo \"$LIBRISPEECH\""
        done = subprocess.run(["bash", "-c", show], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    for _ in range(2):
        run("librispeech_100", "--model", "conformer", "--corpus", "my corpora")
        assert variable() == str(corpus)
        assert db.read_text().count("my corpora") == 1
    run("librispeech_100", "--model", "conformer")
    assert variable() == str(corpus), "it should stay"
    run("librispeech_100", "--model", "conformer", "--corpus", str(tmp_path))
    assert variable() == str(tmp_path)


CORPORA = ("librispeech_100", "librispeech", "seame", "an4", "vctk_noisy")


@pytest.mark.parametrize("recipe", CORPORA)
def test_a_corpus_that_lacks_something_is_refused_at_once(run, tmp_path, recipe):
    """ESPnet would download LibriSpeech where LICENSE.TXT is missing."""
    holds = run_stock.RECIPES[recipe].corpus.holds
    for name in holds:
        corpus = make_corpus(recipe, tmp_path / "corpus")
        (corpus / name).rmdir()
        done = run(recipe, "--corpus", "corpus")
        shutil.rmtree(corpus)
        assert (done.code, done.out, done.words) == (2, "", None)
        assert done.err == (
            f"{recipe}: --corpus='corpus' is not possible: allowed is a folder that holds "
            f"{', '.join(holds)}. Not there: {name}.\n"
        )
        assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("recipe", CORPORA)
def test_a_corpus_folder_that_is_not_there_is_refused_at_once(run, tmp_path, recipe):
    done = run(recipe, "--corpus", "nowhere")
    holds = ", ".join(run_stock.RECIPES[recipe].corpus.holds)
    assert (done.code, done.words) == (2, None)
    assert (
        f"--corpus='nowhere' is not possible: allowed is a folder that holds {holds}. " in done.err
    )
    assert f"Not there: {holds}.\n" in done.err
    assert not (tmp_path / "work").exists()


def test_a_corpus_folder_too_deep_is_refused_at_once(run, tmp_path):
    make_corpus("librispeech_100", tmp_path)
    done = run("librispeech_100", "--corpus", "LibriSpeech")
    assert (done.code, done.words) == (2, None)
    assert (
        f"--corpus='LibriSpeech' is not possible: allowed is the folder above it, {tmp_path}."
        in (done.err)
    )
    assert not (tmp_path / "work").exists()


def test_a_recipe_that_brings_its_corpus_takes_none(run, tmp_path):
    done = run("mini_an4", "--corpus", str(tmp_path))
    assert (done.code, done.words) == (2, None)
    assert "allowed is none: mini_an4 brings its corpus" in done.err


@pytest.mark.parametrize("recipe", CORPORA)
def test_what_a_corpus_has_to_hold_is_what_espnets_scripts_look_for(tree, recipe):
    stock = run_stock.RECIPES[recipe]
    folder = tree / "egs2" / recipe / stock.task / "local"
    scripts = "".join(file.read_text() for file in sorted(folder.iterdir()) if file.is_file())
    parts = [part for name in stock.corpus.holds for part in name.split("/")]
    for part in parts:
        # Written there as "an4_" + x + ".transcription".
        assert re.sub("^an4_(train|test)", "", part) in scripts, part
    named = r"\b(?:README|[A-Z]+\.TXT|an4\w*_clstk|conversation|interview|phaseII)\b"
    assert set(re.findall(named, scripts)) == set(re.findall(named, " ".join(parts)))
    loops = re.findall(r"for (?:part|ddir) in (.+?);", scripts)
    if loops:
        assert {word for loop in loops for word in loop.split()} == {
            part for part in parts if part != "LibriSpeech" and not part.endswith(".TXT")
        }


@pytest.mark.parametrize("recipe", [*STOCK, "vctk_noisy"])
def test_whitespace_in_the_path_of_a_working_copy_is_refused(run, tmp_path, recipe):
    done = run(recipe, "--work", "w 3")
    assert (done.code, done.out) == (2, "")
    says = f"{recipe}: a working copy in '{tmp_path}/w 3' is not possible: whitespace in its path"
    assert says in done.err
    assert not (tmp_path / "w 3").exists()


def test_a_place_that_cannot_be_written_to_is_named(run):
    done = run("mini_an4", "--work", "/dev/null")
    assert done.code == 2
    assert "mini_an4: /dev/null/egs2/mini_an4/asr1 cannot be written: " in done.err


def test_an4_is_looked_for_below_downloads(run, tmp_path):
    make_corpus("an4", tmp_path / "an4_of_mine")
    for _ in range(2):
        assert run("an4", "--model", "transformer", "--corpus", "an4_of_mine").options
    link = tmp_path / "work" / "egs2" / "an4" / "asr1" / "downloads" / "an4"
    assert link.readlink() == tmp_path / "an4_of_mine"
    link.unlink()
    link.mkdir()
    done = run("an4", "--model", "transformer", "--corpus", "an4_of_mine")
    assert done.code == 2
    assert f"{link} is there already" in done.err


def test_seames_first_stage_is_run_before_its_script(run, tmp_path):
    done = run("seame", "--model", "conformer", "--nj", "4")
    first = done.out.splitlines()
    assert first[:7] == [
        "./asr.sh",
        *("--train_set", "train", "--valid_set", "valid", "--test_sets", "devman devsge"),
    ]
    assert first[-4:] == ["--stage", "1", "--stop_stage", "1"]
    assert done.words[-4:] == ["--nj", "4", "--stage", "2"]

    again = run("seame", "--model", "conformer").options
    assert "--stage" not in again, "with the tokens there, ESPnet's script starts by itself"


def test_seame_stops_after_its_first_stage_if_told_to(run):
    done = run("seame", "--model", "conformer", "--stop_stage", "1")
    assert done.code == 0
    assert done.out.startswith("./asr.sh")
    assert done.words is None


def test_seame_without_its_first_stage_says_so(run, tmp_path):
    done = run("seame", "--model", "conformer", "--stage", "10")
    assert done.code == 2
    assert "data/train/token.man.2 is not there. What to do: run --stage 1 first" in done.err


#: Instead of ESPnet's ``tokenize_text``, which takes seconds for each of its eight calls.
WORDS = "#!/bin/bash\ncut -d ' ' -f 2-\n"
SCLITE = "#!/bin/bash\necho SPKR\necho Avg\n"


@pytest.fixture
def score(run, tree, tmp_path, monkeypatch):
    """Runs stage 13 of ESPnet's own recipe, with what the runner gives it, on one utterance."""
    work = tmp_path / "work" / "egs2" / "seame" / "asr1"
    texts = {
        "data/train/token.man.2": "bpe_nlsyms='<noise>'\nman_chars=2\n",
        "dump/raw/devman/text": "a-1 \u6211 like \u72d7 too\n",
        "dump/raw/devman/utt2spk": "a-1 a\n",
        "../../../words": WORDS,
        "../../../bin/sclite": SCLITE,
    }
    for name, text in texts.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        (work / name).write_text(text)
    for program in ("words", "bin/sclite"):
        (tmp_path / "work" / program).chmod(0o755)
    monkeypatch.setattr(run_stock.recipes, "prepare", lambda cache: tree)
    environment = os.environ | {
        "PATH": f"{tmp_path}/work/bin:{sys.prefix}/bin:{os.environ['PATH']}",
        "PYTHONPATH": str(HOME),
    }

    def call(*options):
        sets = ("--test_sets", "devman", "--python", str(tmp_path / "work" / "words"))
        done = run("seame", "--stage", "13", *sets, *options)
        return subprocess.run(
            done.words, env=environment, cwd=work, capture_output=True, text=True, check=False
        )

    return call


def test_seames_references_are_where_asr_sh_keeps_them(score, tmp_path):
    work = tmp_path / "work" / "egs2" / "seame" / "asr1"
    decode(work / "exp" / "asr_mine")
    (work / "dump").rename(work / "elsewhere")
    (work / "elsewhere" / "raw").rename(work / "elsewhere" / "raw_copy")
    done = score("--asr_tag", "mine", "--dumpdir", "elsewhere", "--feats_type", "raw_copy")
    assert done.returncode == 0, done.stderr
    assert "|MER, mixed|" in (work / "exp" / "asr_mine" / "MER.md").read_text()


def test_seames_scoring_is_put_in_once_and_calls_stocks(score, tmp_path):
    local = tmp_path / "work" / "egs2" / "seame" / "asr1" / "local"
    decode(local.parent / "exp" / "asr_mine")
    for _ in range(2):
        assert score("--asr_tag", "mine").returncode == 0
        assert (local / "score.sh").readlink() == HOME / "egs/seame/asr1/local/score.sh"
        assert "computes CER of Mandarin" in (local / "score_stock.sh").read_text()
    # A Python file of the user's own beside it changes nothing in that.
    own = (local / "split_lang_trn.py").read_text()
    (local / "split_lang_trn.py").unlink()
    (local / "split_lang_trn.py").write_text(own)
    (local / "split_lang_trn.py").chmod(0o755)
    assert score("--asr_tag", "mine").stdout.count("Mixed error rate") == 1


def decode(experiment, dataset="devman", text="a-1 \u6211 like \u732b\n"):
    """Leaves what stage 12 leaves behind."""
    folder = experiment / "decode_asr_asr_model_valid.acc.ave" / dataset
    (folder / "logdir").mkdir(parents=True)
    (folder / "text").write_text(text)


@pytest.mark.parametrize(
    ("options", "experiment"),
    [
        ((), "exp/asr_train_asr_conextbimamba_raw_bpe3006_sp"),
        (("--asr_args", "--seed 3"), "exp/asr_train_asr_conextbimamba_raw_bpe3006_seed3_sp"),
        (("--asr_tag", "mine", "--expdir", "out"), "out/asr_mine"),
        (("--asr_exp", "exp/of_mine"), "exp/of_mine"),
    ],
    ids=["by ESPnet's name", "--asr_args", "--asr_tag", "--asr_exp"],
)
def test_seames_mixed_error_rate_is_of_the_experiment_of_the_run(
    score, tmp_path, options, experiment
):
    work = tmp_path / "work" / "egs2" / "seame" / "asr1"
    decode(work / experiment)
    # Of another run, decoded on a set that is gone.
    decode(work / "exp" / "asr_old", dataset="gone")
    done = score(*options)
    assert done.returncode == 0, done.stderr
    _, found, table = done.stdout.partition(f"Mixed error rate, {experiment}/MER.md:\n")
    assert found, done.stdout
    # Two errors in four tokens, one in two characters, one in two words.
    rows = [line.split("|") for line in table.splitlines()[2:5]]
    assert [(row[2], row[-3]) for row in rows] == [
        ("MER, mixed", "50.0"),
        ("CER, Mandarin", "50.0"),
        ("WER, English", "50.0"),
    ]
    assert "|MER, mixed|" in (work / experiment / "MER.md").read_text()
    assert len(list(work.rglob("MER.md"))) == 1
    assert "English WER\n" in done.stdout, "SEAME's own scoring"


def test_seames_mixed_error_rate_of_what_was_not_decoded_is_an_error(score, tmp_path):
    work = tmp_path / "work" / "egs2" / "seame" / "asr1"
    decode(work / "exp" / "asr_other")
    done = score("--asr_tag", "mine")
    assert done.returncode == 2
    assert done.stderr.endswith("exp/asr_mine: holds nothing decoded: run stage 12 first\n")
    assert not list(work.rglob("MER.md"))


def test_seames_scoring_of_the_users_own_stays(score, tmp_path):
    script = tmp_path / "work" / "egs2" / "seame" / "asr1" / "local" / "score.sh"
    script.parent.mkdir()
    script.write_text("#!/bin/bash\necho mine\n")
    script.chmod(0o755)
    done = score()
    assert done.returncode == 0, done.stderr
    assert "mine\n" in done.stdout
    assert "Mixed" not in done.stdout


@pytest.mark.parametrize("option", ["--stage", "--stop_stage"])
@pytest.mark.parametrize("recipe", [*STOCK, "vctk_noisy"])
def test_a_stage_is_a_number(run, tmp_path, recipe, option):
    done = run(recipe, option, "ten")
    assert (done.code, done.out, done.words) == (2, "", None)
    says = f"{recipe}: {option}='ten' is not possible: allowed is the number of a stage.\n"
    assert done.err == says
    assert not (tmp_path / "work").exists()


def test_the_scripts_failure_is_the_runners(run, script, tmp_path):
    assert run("an4", "--model", "transformer").options
    stock = tmp_path / "work" / "egs2" / "an4" / "asr1" / "run.sh"
    stock.unlink()
    stock.write_text("#!/bin/bash\nexit 7\n")
    stock.chmod(0o755)
    assert script("an4", "--model", "transformer").returncode == 7


def test_seames_failing_first_stage_is_the_runners(run, tmp_path):
    assert run("seame", "--model", "conformer", "--stop_stage", "1").code == 0
    work = tmp_path / "work" / "egs2" / "seame" / "asr1"
    (work / "data" / "train" / "token.man.2").unlink()
    (work / "asr.sh").unlink()
    (work / "asr.sh").write_text("#!/bin/bash\nexit 7\n")
    (work / "asr.sh").chmod(0o755)
    done = run("seame", "--model", "conformer")
    assert done.code == 7
    assert done.words is None


@pytest.mark.parametrize("recipe", [*STOCK, "vctk_noisy"])
def test_help_is_about_its_own_recipe(capsys, monkeypatch, recipe):
    monkeypatch.setenv("COLUMNS", "10000")
    with pytest.raises(SystemExit) as end:
        run_stock.main([recipe, "--help"])
    assert end.value.code == 0
    stock = run_stock.RECIPES[recipe]
    usage, _, text = capsys.readouterr().out.partition("\n\n")
    assert usage == (
        f"usage: egs/{recipe}/{stock.task}/run.sh [--model MODEL] [--corpus DIR] [options of "
        "ESPnet's run.sh]"
    )
    description, _, options = text.partition("\n\noptions:\n")
    files = (HOME / "conf" / recipe).glob(f"train_{stock.kind}_*.yaml")
    ours = ", ".join(sorted(file.stem.removeprefix(f"train_{stock.kind}_") for file in files))
    own = f"; or with ESPnet's own YAML {', '.join(sorted(stock.baselines))}"
    lines = dict(line.strip().split(None, 2)[::2] for line in options.splitlines() if "DIR" in line)
    assert f" one of {ours}{own if stock.baselines else ''} (default: {stock.model})\n" in options
    assert lines["--work"].endswith(f"(default: {HOME}/exp/{recipe})")
    assert lines["--cache"].endswith(f"(default: {HOME}/.cache)")
    assert ("--ngpu 1" in description, "--ngpu 0" in description) == (
        (False, True) if recipe == "mini_an4" else (True, False)
    )
    assert ("--use_lm false" in description) == (recipe != "vctk_noisy")
    assert (" 7 enhances" in description) == (recipe == "vctk_noisy")
    assert (" 12 decodes" in description) == (recipe != "vctk_noisy")
    assert ("--stop_stage 14" in description) == (recipe == "seame")
    assert f"recipe {recipe}/{stock.task} " in description.replace("\n", " ")
    for other in {*STOCK, "vctk_noisy"} - {recipe, "librispeech", "an4"}:
        assert other not in text.replace(str(HOME), "")


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        (
            "librispeech_100",
            "downloads the corpus to there if LibriSpeech/LICENSE.TXT is not there",
        ),
        ("librispeech", "downloads the corpus to there if LibriSpeech/LICENSE.TXT is not there"),
        ("seame", "SEAME in the copy's db.sh says, and downloads no more than the lists"),
        ("an4", "ESPnet downloads the corpus (64 MB) to there"),
        ("mini_an4", "not possible: the recipe brings its corpus"),
        ("vctk_noisy", "NOISY_SPEECH in the copy's db.sh says, and downloads nothing"),
    ],
)
def test_help_says_what_espnet_does_without_a_corpus(script, recipe, says):
    done = script(recipe, "--help", task=run_stock.RECIPES[recipe].task)
    assert (done.returncode, done.stderr) == (0, "")
    assert says in " ".join(done.stdout.split())


def with_configs():
    return [recipe for recipe in STOCK if any((HOME / "conf" / recipe).glob("train_asr_*.yaml"))]


@pytest.mark.parametrize("recipe", with_configs())
def test_what_a_runner_takes_by_default_is_there(run, recipe):
    options = run(recipe).options
    for option in ("--asr_config", "--inference_config"):
        assert yaml.safe_load(Path(options[option]).read_text()), options[option]


def test_enhancement_gets_our_separator_and_no_option_of_decoding(run, tmp_path):
    corpus = make_corpus("vctk_noisy", tmp_path / "noisy speech")
    done = run("vctk_noisy", "--corpus", str(corpus), "--stage", "6", "--model", "mamba4")
    assert done.options == {
        "--enh_config": str(HOME / "conf/vctk_noisy/train_enh_mamba4.yaml"),
        "--ngpu": "1",
        "--stage": "6",
    }
    work = tmp_path / "work" / "egs2" / "vctk_noisy" / "enh1"
    assert (work / "db.sh").read_text().splitlines()[-1] == f"NOISY_SPEECH='{corpus}'"
    done = run("vctk_noisy", "--model", "conformer")
    assert done.code == 2
    assert "allowed is conextbimamba4, conformer4, extbimamba10, extbimamba3, mamba13" in done.err
