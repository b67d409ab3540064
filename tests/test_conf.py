"""Every YAML under conf/ is loaded the way ESPnet loads it, and every model in it is built."""

import inspect
from pathlib import Path

import pytest
import torch
import yaml
from espnet2.bin import asr_inference_streaming
from espnet2.bin.asr_inference import Speech2Text
from espnet2.tasks.asr import ASRTask

from espnet_bimamba.registry import ENCODERS
from tests.conf.yamls import FILES

CONF = Path(__file__).resolve().parents[1] / "conf"
YAMLS = sorted(path.relative_to(CONF).as_posix() for path in CONF.rglob("*.yaml"))
TRAININGS = [name for name in YAMLS if Path(name).name.startswith("train_asr_")]
# Built and counted in tests/conf/test_enhancement.py.
ENHANCEMENTS = [name for name in YAMLS if Path(name).name.startswith("train_enh_")]
TRAININGS3 = [name for name in YAMLS if Path(name).name.startswith("training_")]
DECODINGS = [name for name in YAMLS if Path(name).name.startswith("decode_")]
STREAMING = [name for name in DECODINGS if name.endswith("_streaming.yaml")]
INFERENCES3 = [name for name in YAMLS if Path(name).name.startswith("inference")]
# Those that reproduce the paper are large: tests/conf counts their parameters without memory.
LARGE = ("librispeech_100/", "librispeech/", "seame/", "asru/", "an4/")
SMALL = [name for name in TRAININGS if not name.startswith(LARGE)]
# Of the streaming program.
OBLIGATORY = [
    *("--output_dir", "", "--data_path_and_name_and_type", "wav.scp,speech,sound"),
    *("--asr_train_config", "", "--asr_model_file", ""),
]
TOKENS = ["<blank>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "'", "<sos/eos>"]


def load(name):
    return yaml.safe_load((CONF / name).read_text())


def build(args):
    args.token_list = TOKENS
    args.normalize = None
    return ASRTask.build_model(args)


def assert_learns_something(model, encoder):
    baseline = f"espnet2.asr.encoder.{encoder}_encoder:"
    assert type(model.encoder).__module__ == ENCODERS.get(encoder, baseline).partition(":")[0]
    batch = {
        "speech": torch.randn(2, 16000),
        "speech_lengths": torch.tensor([16000, 12000]),
        "text": torch.randint(2, 20, (2, 5)),
        "text_lengths": torch.tensor([5, 3]),
    }
    loss, *_ = model(**batch)
    loss.backward()
    missing = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert loss.isfinite()
    assert not missing, "these parameters take no part in training"


def test_every_yaml_is_of_a_kind_that_is_tested():
    assert YAMLS
    assert sorted(TRAININGS + ENHANCEMENTS + TRAININGS3 + DECODINGS + INFERENCES3) == YAMLS
    assert {*SMALL, *(file.path.relative_to(CONF).as_posix() for file in FILES.values())} >= {
        *TRAININGS
    }


@pytest.mark.parametrize("name", SMALL)
def test_a_training_yaml_builds_and_trains(name):
    args = ASRTask.get_parser().parse_args(["--config", str(CONF / name)])
    assert_learns_something(build(args), load(name)["encoder"])


# The large ones are counted in test_conf_espnet3.py, without memory for their parameters.
@pytest.mark.parametrize("name", [name for name in TRAININGS3 if name.startswith("mini_an4/")])
def test_an_espnet3_training_yaml_builds_and_trains(name):
    model = load(name)["model"]
    args = ASRTask.get_parser().parse_args(["--encoder", model["encoder"]])
    for option, value in model.items():
        assert hasattr(args, option) or option == "vocab_size", option
        setattr(args, option, value)
    assert_learns_something(build(args), model["encoder"])


@pytest.mark.parametrize("name", [name for name in DECODINGS if name not in STREAMING])
def test_a_decoding_yaml_names_options_of_speech2text(name):
    assert set(load(name)) <= set(inspect.signature(Speech2Text).parameters)


@pytest.mark.parametrize("name", STREAMING)
def test_a_streaming_yaml_names_options_of_espnets_streaming_program(name):
    options = vars(asr_inference_streaming.get_parser().parse_args(OBLIGATORY))
    assert set(load(name)) <= set(options)


@pytest.mark.parametrize("name", INFERENCES3)
def test_an_espnet3_inference_yaml_names_options_of_speech2text(name):
    model = load(name)["model"]
    assert model.pop("_target_") == "espnet2.bin.asr_inference.Speech2Text"
    assert set(model) <= set(inspect.signature(Speech2Text).parameters)
