"""Positions: none is ESPnet's position layer without its table; its scale and dropout stay."""

import math

import pytest
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.embedding import (
    PositionalEncoding,
    ScaledPositionalEncoding,
)
from torch import nn

from espnet_bimamba.encoders.positions import NoPositionalEncoding
from tests.encoders.zoo import ENCODERS, FEATURES, build, every_encoder, padded

INPUTS = [
    (name, options["input_layer"])
    for name, encoder in ENCODERS.items()
    for id, options in encoder.options.items()
    if "input_layer" in options and id != "no_input_layer_but_a_projection"
]
#: TransformerEncoder with no input layer and the right width has no position layer.
WITHOUT = [("transbimamba", None), ("bimamba", None)]
every_input = pytest.mark.parametrize(
    ("name", "input_layer"),
    [pair for pair in INPUTS if pair not in WITHOUT],
    ids=[f"{name}-{layer}" for name, layer in INPUTS if (name, layer) not in WITHOUT],
)


def options_for(input_layer: str | None) -> dict:
    # An input layer of `wav2vec` or none keeps the width of the features.
    width = FEATURES if input_layer in (None, "wav2vec") else 8
    return {"input_layer": input_layer, "output_size": width}


def positions_in(encoder: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (PositionalEncoding, NoPositionalEncoding)
    return [(name, m) for name, m in encoder.named_modules() if isinstance(m, kinds)]


@every_input
def test_none_is_the_stock_layer_without_its_table(name, input_layer):
    options = options_for(input_layer)
    ours = build(name, pos_enc_layer_type="none", **options).eval()
    stock = build(name, pos_enc_layer_type="abs_pos", **options).eval()
    ((path, none),) = positions_in(ours)
    ((stock_path, absolute),) = positions_in(stock)
    assert path == stock_path
    assert type(none) is NoPositionalEncoding
    assert type(absolute) is PositionalEncoding
    assert none.scale == absolute.xscale == math.sqrt(options["output_size"])
    x = torch.randn(2, 30, options["output_size"], dtype=torch.float64)
    with_table = absolute(x)
    table = absolute.pe[:, :30].double()
    assert torch.equal(none(x), x * math.sqrt(options["output_size"]))
    torch.testing.assert_close(with_table - none(x), table.expand(2, -1, -1), rtol=0, atol=1e-12)
    assert table.abs().max() == 1


@every_input
def test_dropout_is_the_stock_layers(name, input_layer):
    rates = {"dropout_rate": 0.2, "positional_dropout_rate": 0.3}
    encoder = build(name, **options_for(input_layer), **rates)
    row = ENCODERS[name]
    stock = row.stock(
        FEATURES,
        num_blocks=1,
        **options_for(input_layer),
        **rates,
        **row.cls.stock_options,
    )
    ((path, none),) = positions_in(encoder)
    assert none.dropout.p == stock.get_submodule(path).dropout.p
    x = torch.ones(50, 40, 8, dtype=torch.float64)
    torch.manual_seed(0)
    dropped = (none.train()(x) == 0).double().mean().item()
    assert dropped == pytest.approx(none.dropout.p, abs=0.02)
    assert (none.eval()(x) == none.scale).all()


@every_encoder
def test_scaled_positions_are_espnets_and_learn(name):
    encoder = build(name, pos_enc_layer_type="scaled_abs_pos")
    ((_, layer),) = positions_in(encoder)
    assert type(layer) is ScaledPositionalEncoding
    assert layer.alpha.dim() == 0
    encoder(*padded(fill=0.0))[0].square().sum().backward()
    assert layer.alpha.grad.abs() > 0


@every_encoder
@pytest.mark.parametrize("positions", ["none", "abs_pos", "scaled_abs_pos"])
def test_only_positions_tell_shifted_signals_apart(name, positions):
    """The first layer's input: without positions, frames that are equal are encoded equal."""
    encoder = build(name, pos_enc_layer_type=positions, input_layer="linear").eval()
    embedded = encoder.embed(torch.ones(1, 6, FEATURES, dtype=torch.float64))
    same = torch.equal(embedded, embedded[:, :1].expand_as(embedded))
    assert same == (positions == "none")


@every_encoder
def test_the_option_is_kept_for_espnet_to_read(name):
    assert build(name).pos_enc_layer_type == "none"
    assert build(name, pos_enc_layer_type="abs_pos").pos_enc_layer_type == "abs_pos"
