"""The runner of egs/asru, with an asr.sh that prints what it was called with."""

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
