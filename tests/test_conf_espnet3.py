"""The large ESPnet3 configurations: as large as they say, and stock's but for what they say."""

from importlib import resources
from pathlib import Path

import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask

from espnet_bimamba.cli.conf.shipped import shipped
from espnet_bimamba.registry import ENCODERS

CONF = Path(__file__).resolve().parents[1] / "conf"
LARGE = {  # millions of parameters, from the closed forms of docs/paper.md
    "librispeech_100/espnet3/training_conextbimamba.yaml": 40.79,
    "librispeech_100/espnet3/training_coninnbimamba.yaml": 36.07,
}
STOCK = {
    "librispeech_100": "librispeech_100/esp2_asr/conf/tuning/training_e_branchformer.yaml",
}


def load(name):
    return yaml.safe_load((CONF / name).read_text())


def stock(corpus):
    """ESPnet's own YAML, which its wheel carries."""
    return yaml.safe_load((resources.files("egs3") / STOCK[corpus]).read_text())


@pytest.mark.parametrize("name", LARGE)
def test_it_has_as_many_parameters_as_it_says(name):
    model = load(name)["model"]
    args = ASRTask.get_parser().parse_args(["--encoder", model["encoder"]])
    for option, value in model.items():
        assert hasattr(args, option) or option == "vocab_size", option
        setattr(args, option, value)
    vocabulary = load(name)["tokenizer"]["vocab_size"]
    args.token_list = [str(number) for number in range(vocabulary)]
    args.normalize = None  # its statistics are a file
    with torch.device("meta"):
        built = ASRTask.build_model(args)
    assert type(built.encoder).__module__ == ENCODERS[model["encoder"]].partition(":")[0]
    millions = sum(parameter.numel() for parameter in built.parameters()) / 1e6
    assert millions == pytest.approx(LARGE[name], abs=0.005)
    assert f"# Parameters: {LARGE[name]} M" in (CONF / name).read_text()


@pytest.mark.parametrize("name", LARGE)
def test_only_the_encoder_differs_from_stock(name):
    ours, theirs = load(name), stock(name.partition("/")[0])
    file = next(file for file in shipped() if file.path == CONF / name)
    assert file.stock == f"egs3/{STOCK['librispeech_100']}"
    for key in ("encoder", "encoder_conf"):
        assert ours["model"].pop(key) != theirs["model"].pop(key)
    # Stock's E-Branchformer names a default of the decoder that its Conformer does not.
    assert theirs["model"]["decoder_conf"].pop("layer_drop_rate") == 0.0
    assert ours == theirs


def with_an_espnet2_form():
    return [name for name in LARGE if (CONF / espnet2_form(name)).is_file()]


def espnet2_form(name):
    corpus, _, file = name.split("/")
    return f"{corpus}/{file.replace('training_', 'train_asr_')}"


@pytest.mark.parametrize("name", with_an_espnet2_form())
def test_the_model_is_that_of_the_espnet2_yaml(name):
    ours, espnet2 = load(name)["model"], load(espnet2_form(name))
    for key in ("encoder", "encoder_conf", "decoder", "decoder_conf", "model_conf"):
        assert ours[key] == espnet2[key], key
    for key in ("frontend_conf", "specaug", "specaug_conf"):
        assert ours[key] == espnet2[key], key
