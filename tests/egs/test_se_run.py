"""The runner of egs/se, with an enh.sh and a scoring program that print how they were called."""

import pytest
import yaml
from espnet2.tasks.enh import EnhancementTask

from tests.egs.programs import HOME, own_runner

PRINT = 'echo "data=${SE_PROTOCOL}|${SE_CORPUS}|${SE_NOISES}"; echo ./enh.sh; printf "%s\\n" "$@"\n'
SCORE = "import sys; print('score.py', *sys.argv[1:])\n"
CONFS = ("se", "so762_se")


@pytest.fixture
def runner(tmp_path):
    call = own_runner("se", tmp_path, PRINT, task="enh", conf=CONFS)
    (tmp_path / "egs/se/enh1/local/score.py").write_text(SCORE)
    return call


def calls(done):
    """The options of each call of enh.sh."""
    assert done.returncode == 0, done.stderr
    parts = [part.split("\n") for part in done.stdout.split("./enh.sh\n")[1:]]
    return [dict(zip(words[::2], words[1::2], strict=False)) for words in parts]


def test_all_stages_are_espnets_but_the_scores(runner, tmp_path):
    done = runner("--corpus", "my speech", "--noises", "n", "--model", "conmamba6", "--seed", "3")
    (call,) = calls(done)
    assert f"data=paper|{tmp_path}/my speech|{tmp_path}/n\n" in done.stdout
    assert call["--enh_config"] == str(tmp_path / "conf/se/train_enh_conmamba6.yaml")
    assert (call["--stage"], call["--stop_stage"]) == ("1", "7")
    assert call["--enh_tag"] == "conmamba6_seed3"
    assert done.stdout.splitlines()[-1] == "score.py --experiment exp/enh_conmamba6_seed3 --nj 2"
    assert (tmp_path / "exp/se/egs2/se/enh1/enh.sh").is_symlink()


def test_a_yaml_of_the_users_own_is_looked_for_where_the_user_is(runner, tmp_path):
    (tmp_path / "mine.yaml").touch()
    (call,) = calls(runner("--enh_config", "mine.yaml", "--stage", "7", "--stop_stage", "7"))
    assert call["--enh_config"] == str(tmp_path / "mine.yaml")
    done = runner("--enh_config", "no.yaml")
    assert done.returncode == 2
    assert done.stderr.endswith("option --enh_config: 'no.yaml' is no file\n")


def test_espnet_reads_what_it_is_to_mix(runner):
    (call,) = calls(runner("--stop_stage", "6", "--enh_args", "--max_epoch 1"))
    assert call["--enh_args"].split()[:2] == ["--seed", "1"]
    args = EnhancementTask.get_parser().parse_args(call["--enh_args"].split())
    assert (args.preprocessor, args.noise_db_range, args.sample_rate) == ("enh", "-10_20", 16000)
    assert (args.noise_scp, args.noise_apply_prob) == ("dump/raw/train/noises.scp", 1.0)
    assert args.max_epoch == 1
    assert call["--extra_wav_list"] == "noises.scp", "enh.sh brings them to 16 kHz"


def test_the_other_protocol_is_of_so762(runner, tmp_path):
    done = runner("--protocol", "so762", "--corpus", "/x", "--stage", "6", "--stop_stage", "6")
    (call,) = calls(done)
    assert "data=so762|/x|\n" in done.stdout
    assert call["--enh_config"] == str(tmp_path / "conf/so762_se/train_enh_mamba4.yaml")
    assert call["--ngpu"] == "0"
    assert "score.py" not in done.stdout
    assert (tmp_path / "exp/so762_se/egs2/se/enh1").is_dir()


def test_a_working_copy_keeps_its_protocol(runner, tmp_path):
    stage = ("--stage", "6", "--stop_stage", "6")
    copy = tmp_path / "mine/egs2/se/enh1"
    assert calls(runner("--protocol", "so762", "--work", "mine", *stage))
    for done in (runner(*stage, program="./run.sh", place=copy), runner("--work", "mine", *stage)):
        assert "data=so762|" in done.stdout
        assert "/conf/so762_se/train_enh_mamba4.yaml" in done.stdout
    assert "data=paper|" in runner(*stage).stdout, "what is not said otherwise"


def test_noises_may_be_named_in_db_sh(tmp_path):
    script = 'local/data.sh "$@"\n'
    call = own_runner("se", tmp_path, script, task="enh", conf=CONFS)
    data = tmp_path / "egs/se/enh1/local/data.py"
    data.write_text("import sys; print(*sys.argv[1:5], '|', *sys.argv[5:7])\n")
    stop = ("--corpus", "/x", "--stop_stage", "1")
    assert call(*stop).stdout.startswith("--protocol paper --corpus /x | --lang en\n")
    with (tmp_path / "exp/se/egs2/se/enh1/db.sh").open("a") as db:
        db.write("SE_NOISES=/noises\n")
    assert call(*stop).stdout.endswith("--corpus /x | --noises /noises\n")
    assert call(*stop, "--noises", "/n").stdout.endswith("--corpus /x | --noises /n\n")


def test_stages_are_divided_as_asked(runner):
    def stages(*options):
        done = runner(*options)
        found = [(call["--stage"], call["--stop_stage"]) for call in calls(done)]
        return found, "score.py" in done.stdout

    assert stages("--stage", "8") == ([], True)
    assert stages("--stage", "3", "--stop_stage", "11") == ([("3", "7"), ("9", "11")], True)
    assert stages("--stage", "11", "--stop_stage", "11") == ([("11", "11")], False)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--protocol", "papers"], "no protocol 'papers' here; there are: paper, so762\n"),
        (
            ["--model", "mamba5"],
            "se: --model='mamba5' is not possible: allowed is conextbimamba4, ",
        ),
        (
            ["--protocol", "so762", "--model", "mamba20"],
            "so762_se: --model='mamba20' is not possible: allowed is conformer4, extbimamba3, "
            "mamba4, transformer4.\n",
        ),
        (["--seed", "x"], "option --seed: 'x' is no number\n"),
        (["--stage"], "option '--stage' needs a value\n"),
    ],
)
def test_bad_options_are_named(runner, tmp_path, options, says):
    done = runner(*options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(says)
    assert not (tmp_path / "exp").exists()


def test_help_does_nothing_else(runner, tmp_path):
    done = runner("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\n  egs/se/enh1/run.sh --protocol so762 --corpus DIR" in done.stdout
    assert not (tmp_path / "exp").exists()


@pytest.mark.parametrize("model", ["mamba4", "extbimamba3", "transformer4", "conformer4"])
def test_the_short_schedule_is_what_its_yaml_says(model):
    text = (HOME / f"conf/so762_se/train_enh_{model}.yaml").read_text()
    assert "The shape of the paper's learning rate, scaled: a warm-up of 200 updates" in text
    config = yaml.safe_load(text)
    # 1049 clips in batches of 4; the paper's shape after the warm-up, scaled to begin at 1e-3.
    updates = config["max_epoch"] * (1049 // config["batch_size"])
    assert updates == 4192
    warmup = config["scheduler_conf"]["warmup_steps"]
    assert config["optim_conf"]["lr"] * (warmup / updates) ** 0.5 == pytest.approx(2.2e-4, rel=0.02)
