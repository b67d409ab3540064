"""The baselines of the runners are ESPnet's own YAMLs: what their names say, and ours follow."""

import pytest
import yaml

from tests.conf.yamls import FILES
from tests.egs.programs import load

run_stock = load("egs/run_stock.py")
BASELINES = [
    (recipe, model) for recipe, stock in run_stock.RECIPES.items() for model in stock.baselines
]
#: Model of ours that differs from the baseline in its encoder only, by the baseline's encoder.
COUNTERPARTS = {
    "conformer": "conextbimamba",
    "transformer": "transextbimamba",
    "e_branchformer": "e_branchbimamba",
}
#: What the last word of a name says of the rest: decoder, weight of CTC, interCTC and conditioning.
KINDS = {
    "": ("transformer", 0.3, 0.0, False),
    "ctc": (None, 1.0, 0.0, False),
    "interctc": (None, 1.0, 0.66, False),
    "scctc": (None, 1.0, 0.66, True),
    "transducer": ("transducer", 0.3, 0.0, False),
}


def parts_of(model):
    """Encoder and kind that a baseline's name says, for example conformer and ctc."""
    encoder, _, kind = model.rpartition("_")
    return (encoder, kind) if kind in KINDS else (model, "")


def file_of(recipe, model):
    return f"{recipe}/asr1/conf/{run_stock.RECIPES[recipe].baselines[model]}"


@pytest.mark.parametrize(("recipe", "model"), BASELINES)
def test_a_baseline_is_what_its_name_says(tree, recipe, model):
    config = yaml.safe_load((tree / "egs2" / file_of(recipe, model)).read_text())
    encoder, kind = parts_of(model)
    assert config["encoder"] == encoder
    assert KINDS[kind] == (
        config.get("decoder"),
        config["model_conf"]["ctc_weight"],
        config["model_conf"].get("interctc_weight", 0.0),
        config["encoder_conf"].get("interctc_use_conditioning", False),
    )


@pytest.mark.parametrize(("recipe", "model"), BASELINES)
def test_a_baseline_is_the_file_that_our_counterpart_follows(recipe, model):
    encoder, kind = parts_of(model)
    if encoder == "branchformer":
        # We have no mixer in it: what follows it are the Branchformers that stock lacks.
        assert FILES["librispeech_100/branchformer"].stock_encoder == file_of(recipe, model)
        return
    name = "_".join(filter(None, (COUNTERPARTS[encoder], kind)))
    assert FILES[f"{recipe}/{name}"].stock == file_of(recipe, model)
