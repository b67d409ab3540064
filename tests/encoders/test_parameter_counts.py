"""Sizes of the paper's models, built by ESPnet's task on the meta device, to 0.01 million.

The baselines are ESPnet's own encoders with the options of the stock configurations: they say that
the options below are the stock ones.
"""

from typing import Any

import pytest
import torch

from tests.encoders.asr import asr_model

TRANSFORMER = {"linear_units": 1024, "num_blocks": 18}
CONFORMER = {
    "linear_units": 1024,
    "num_blocks": 12,
    "macaron_style": True,
    "cnn_module_kernel": 31,
}
SEAME_CONFORMER = CONFORMER | {"linear_units": 2048, "cnn_module_kernel": 15}
LARGE = {"output_size": 512, "linear_units": 2048}
LARGE_TRANSFORMER = TRANSFORMER | LARGE | {"input_layer": "conv2d6"}
LARGE_CONFORMER = CONFORMER | LARGE
RELATIVE = {"rel_pos_type": "latest", "pos_enc_layer_type": "rel_pos"}

INN = {"mamba_type": "innbimamba"}
ADD = {"mamba_type": "extbimamba", "fusion": "add"}
CONCAT = {"mamba_type": "extbimamba", "fusion": "concat"}

# Name: encoder, its options, heads of the decoder, tokens, millions of parameters.
MODELS: dict[str, tuple[str, dict[str, Any], int, int, float]] = {
    "librispeech_100-transformer": ("transformer", TRANSFORMER, 4, 5000, 29.38),
    "librispeech_100-transinnbimamba": ("transbimamba", TRANSFORMER | INN, 4, 5000, 33.32),
    "librispeech_100-transextbimamba": ("transbimamba", TRANSFORMER | ADD, 4, 5000, 40.40),
    "librispeech_100-conformer": ("conformer", CONFORMER | RELATIVE, 4, 5000, 34.23),
    "librispeech_100-coninnbimamba": ("conbimamba", CONFORMER | INN, 4, 5000, 36.07),
    "librispeech_100-conextbimamba": ("conbimamba", CONFORMER | ADD, 4, 5000, 40.79),
    "librispeech_100-conextbimamba-concat": ("conbimamba", CONFORMER | CONCAT, 4, 5000, 42.36),
    "librispeech_100-mamba": ("bimamba", {"num_blocks": 12, "mamba_type": "mamba"}, 4, 5000, 20.42),
    "librispeech_100-extbimamba": ("bimamba", {"num_blocks": 12} | ADD, 4, 5000, 25.67),
    "seame-transformer": ("transformer", TRANSFORMER, 4, 5626, 29.86),
    "seame-transinnbimamba": ("transbimamba", TRANSFORMER | INN, 4, 5626, 33.80),
    "seame-transextbimamba": ("transbimamba", TRANSFORMER | CONCAT, 4, 5626, 43.25),
    "seame-conformer": ("conformer", SEAME_CONFORMER | RELATIVE, 4, 5626, 47.27),
    "seame-coninnbimamba": ("conbimamba", SEAME_CONFORMER | INN, 4, 5626, 49.11),
    "seame-conextbimamba": ("conbimamba", SEAME_CONFORMER | CONCAT, 4, 5626, 55.40),
    "librispeech-transformer": ("transformer", LARGE_TRANSFORMER, 8, 5000, 99.36),
    "librispeech-transinnbimamba": ("transbimamba", LARGE_TRANSFORMER | INN, 8, 5000, 113.15),
    "librispeech-transextbimamba": ("transbimamba", LARGE_TRANSFORMER | ADD, 8, 5000, 141.46),
    "librispeech-conformer": ("conformer", LARGE_CONFORMER | RELATIVE, 8, 5000, 116.15),
    "librispeech-coninnbimamba": ("conbimamba", LARGE_CONFORMER | INN, 8, 5000, 122.18),
    "librispeech-conextbimamba": ("conbimamba", LARGE_CONFORMER | ADD, 8, 5000, 141.06),
}


@pytest.mark.parametrize(
    ("encoder", "conf", "heads", "tokens", "millions"), MODELS.values(), ids=MODELS
)
def test_parameters_of_a_recognition_model(encoder, conf, heads, tokens, millions):
    if encoder in ("transformer", "conformer"):
        conf = conf | {"attention_heads": heads}
    with torch.device("meta"):
        model = asr_model(
            encoder,
            conf,
            tokens,
            input_size=80,
            decoder_conf={"attention_heads": heads, "linear_units": 2048, "num_blocks": 6},
        )
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.01)
