"""Every YAML of the paper is the stock one that it names, but for what is listed here.

So a change of ESPnet's own files is noticed, and nothing else slips into ours.
"""

import pytest
import yaml

from espnet_bimamba.cli.conf.shipped import settings, stock_text
from tests.conf.yamls import DECODINGS, FILES, TRAININGS, load, recipe

HOSTS = {
    "conbimamba": "conformer",
    "transbimamba": "transformer",
    "bimamba": "transformer",
    "e_branchbimamba": "e_branchformer",
}
#: What only attention reads.
ATTENTION = {
    "attention_heads",
    "attention_dropout_rate",
    "attention_layer_type",
    "pos_enc_layer_type",
    "rel_pos_type",
    "selfattention_layer_type",
}
#: The mixers of the models, by the first of these words in their names.
MIXERS = {
    "e_branchbimamba": {"mamba_type": "extbimamba", "fusion": "add"},
    "extbimamba": {"mamba_type": "extbimamba", "fusion": "add"},
    "innbimamba": {"mamba_type": "innbimamba"},
    "mamba": {"mamba_type": "mamba"},
    "transformer_no": {"mamba_type": "attention", "pos_enc_layer_type": "abs_pos"},
}
#: The paper ran these with concat, which its counts show.
CONCAT = {"seame", "asru"}

NO_FEED_FORWARD = {"linear_units": None, "normalize_before": None}
STACK = NO_FEED_FORWARD | {"residual": False, "ffn": False}
INDEPENDENT = STACK | {"num_blocks": 12}
RESIDUAL = {"residual": True}
BRANCHFORMER = {
    "output_size": 256,
    "attention_heads": 4,
    "cgmlp_linear_units": 1024,
    "num_blocks": 12,
}
FEED_FORWARD = {"residual": False, "ffn": True, "normalize_before": None}
#: Of Tables 19 and 20, the ablations of this choice and those that start from it.
NOISE = {"A_init": "s4d_real_noise"}
#: What else differs in ``encoder_conf``; None is a line that goes.
DIFFERENCES = {
    **{
        f"{name}/{mixer}": INDEPENDENT
        for name in ("librispeech_100", "librispeech", "seame", "asru")
        for mixer in ("mamba", "innbimamba", "extbimamba")
    },
    # The stock Transformer has twelve layers there.
    **{f"an4/{mixer}": STACK for mixer in ("mamba", "innbimamba", "extbimamba")},
    **{f"{name}/branchformer": BRANCHFORMER for name in ("librispeech_100", "seame")},
    "asru/branchformer": BRANCHFORMER | {"cgmlp_linear_units": 2048},
    "librispeech_100/mamba_large": STACK | {"num_blocks": 40},
    "librispeech_100/extbimamba_large": STACK | {"num_blocks": 21},
    "seame/mamba_large": STACK | {"num_blocks": 30},
    "seame/extbimamba_large": STACK | {"num_blocks": 21},
    "librispeech_100/conformer_large": {"num_blocks": 17},
    "librispeech_100/coninnbimamba_large": {"num_blocks": 20},
    "librispeech_100/extbimamba_residual": INDEPENDENT | RESIDUAL,
    "librispeech_100/extbimamba_ffn": FEED_FORWARD | {"num_blocks": 12},
    "librispeech_100/extbimamba_residual_ffn": FEED_FORWARD | RESIDUAL | {"num_blocks": 12},
    "librispeech_100/transformer_no_residual": FEED_FORWARD,
    "librispeech_100/transformer_no_ffn": STACK | RESIDUAL,
    "librispeech_100/conextbimamba": NOISE,
    "librispeech_100/conextbimamba_d_state32": NOISE | {"d_state": 32},
    "librispeech_100/conextbimamba_d_conv2": NOISE | {"d_conv": 2},
    "librispeech_100/conextbimamba_expand4": NOISE | {"expand": 4},
    "librispeech_100/conextbimamba_A_random": {"A_init": "random"},
    "librispeech_100/conextbimamba_A_s4d_real": {"A_init": "s4d_real"},
    "librispeech_100/conextbimamba_no_macaron": NOISE | {"macaron_style": False},
    "librispeech_100/conextbimamba_no_swish": NOISE | {"activation_type": "relu"},
    "librispeech_100/conextbimamba_no_dropout": NOISE
    | {
        "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
    },
    "librispeech_100/conextbimamba_abs_pos": NOISE | {"pos_enc_layer_type": "abs_pos"},
    "librispeech_100/conmamba_streaming": {
        "causal": True,
        "look_ahead": 0,
        "hop_size": 1,
        "block_size": 1,
    },
}


def stock_of(file, tree):
    return yaml.safe_load(stock_text(tree, file.stock, file.stock_encoder))


def mixer_of(name):
    mixer = next(mixer for word, mixer in MIXERS.items() if word in name)
    if "fusion" in mixer and recipe(name) in CONCAT:
        return mixer | {"fusion": "concat"}
    return mixer


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_yaml_is_the_stock_one_but_for_documented_lines(name, tree):
    config, expected = load(name), stock_of(FILES[name], tree)
    if config["encoder"] in HOSTS:
        assert expected["encoder"] == HOSTS[config["encoder"]]
        expected["encoder"] = config["encoder"]
        for key in ATTENTION:
            expected["encoder_conf"].pop(key, None)
        expected["encoder_conf"] |= mixer_of(name)
    expected["encoder_conf"] |= DIFFERENCES.get(name, {})
    expected["encoder_conf"] = {
        key: value for key, value in expected["encoder_conf"].items() if value is not None
    }
    assert config == expected


@pytest.mark.parametrize("name", TRAININGS)
def test_the_lines_have_the_order_of_the_stock_ones(name, tree):
    config, stock = load(name), stock_of(FILES[name], tree)
    assert list(config) == list(stock)
    for section in ("encoder_conf", "decoder_conf", "model_conf", "specaug_conf"):
        shared = [key for key in stock.get(section, {}) if key in config[section]]
        assert [key for key in config.get(section, {}) if key in shared] == shared


def test_every_documented_difference_has_its_yaml():
    assert set(DIFFERENCES) <= set(TRAININGS)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_a_documented_difference_is_one(name, tree):
    """What stock has by itself is not written down: a change of it would pass unseen."""
    stock = stock_of(FILES[name], tree)["encoder_conf"]
    same = {key: value for key, value in DIFFERENCES[name].items() if stock.get(key) == value}
    assert same == {}


@pytest.mark.parametrize("name", DECODINGS)
def test_a_decoding_yaml_is_the_stock_one_without_a_language_model(name, tree):
    expected = stock_of(FILES[name], tree)
    if "lm_weight" in expected:
        expected["lm_weight"] = 0.0
    assert load(name) == expected


@pytest.mark.parametrize("name", FILES)
def test_what_conf_diff_compares_are_all_settings_and_no_comments(name, tree):
    file = FILES[name]
    for text in (file.path.read_text(), stock_text(tree, file.stock, file.stock_encoder)):
        lines = settings(text)
        assert yaml.safe_load(lines) == yaml.safe_load(text)
        assert "#" not in lines
        assert lines[0] not in "\n "
