"""Speech recognition models built as ESPnet builds them: parser, options, ``build_model``."""

import argparse
import copy
import functools
from typing import Any

import torch
from espnet2.tasks.asr import ASRTask

import espnet_bimamba  # noqa: F401  (registers the encoders)
from tests.encoders.zoo import COMMON, ENCODERS, FEATURES

DECODER_CONF = {"attention_heads": 1, "linear_units": 8, "num_blocks": 1}


@functools.cache
def _parsed(encoder: str) -> argparse.Namespace:
    return ASRTask.get_parser().parse_args(["--encoder", encoder])


def options_of(
    encoder: str, encoder_conf: dict[str, Any], tokens: int = 7, **options: Any
) -> argparse.Namespace:
    """Parse the options of a training that names ``encoder``."""
    args = copy.deepcopy(_parsed(encoder))
    words = [f"w{n}" for n in range(tokens - 3)]
    options = {
        "input_size": FEATURES,
        "encoder_conf": encoder_conf,
        "decoder": "transformer",
        "decoder_conf": DECODER_CONF,
        "token_list": ["<blank>", "<unk>", *words, "<sos/eos>"],
        "normalize": None,
        "model_conf": {"report_cer": False, "report_wer": False},
        **options,
    }
    for option, value in options.items():
        if not hasattr(args, option):
            raise AttributeError(f"ASRTask has no option {option}")
        setattr(args, option, value)
    return args


def asr_model(
    encoder: str, encoder_conf: dict[str, Any], tokens: int = 7, **options: Any
) -> torch.nn.Module:
    """Build a model through ESPnet's task."""
    return ASRTask.build_model(options_of(encoder, encoder_conf, tokens, **options))


def tiny_conf(encoder: str, **options: Any) -> dict[str, Any]:
    return COMMON | ENCODERS[encoder].tiny | options
