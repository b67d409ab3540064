"""ESPnet's subsampling in pieces: the same numbers, never more activations than a piece has."""

import copy

import pytest
import torch
from torch import nn

from espnet_bimamba.encoders import subsampling
from espnet_bimamba.encoders.subsampling import SubsamplingConvolutions
from tests.encoders.zoo import FEATURES, build, every_encoder

INPUT_LAYERS = ["conv2d", "conv2d1", "conv2d2", "conv2d6", "conv2d8"]


@pytest.fixture
def short_pieces(monkeypatch):
    monkeypatch.setattr(subsampling, "PIECE", 3)


def seen_by(module):
    """Note how many frames each call of ``module`` gives."""
    frames = []
    module.register_forward_hook(lambda module, inputs, output: frames.append(output.shape[2]))
    return frames


def encode(encoder, length, monkeypatch, piece):
    monkeypatch.setattr(subsampling, "PIECE", piece)
    torch.manual_seed(1)
    x = torch.randn(2, length, FEATURES, dtype=next(encoder.parameters()).dtype)
    with torch.inference_mode():
        return encoder(x, torch.tensor([length, length - 5]))


@every_encoder
@pytest.mark.parametrize("input_layer", INPUT_LAYERS)
# The last frames of a piece, of the whole, and those that no output sees fall in every place.
@pytest.mark.parametrize("length", [47, 48, 49, 50, 51, 83])
def test_pieces_give_what_the_whole_gives(name, input_layer, length, monkeypatch):
    encoder = build(name, input_layer=input_layer).eval()
    frames = seen_by(encoder.embed.conv[-1])
    expected = encode(encoder, length, monkeypatch, piece=10_000)
    actual = encode(encoder, length, monkeypatch, piece=3)
    assert frames[0] == sum(frames[1:])
    assert max(frames[1:]) <= 3
    assert max(frames[1:]) - min(frames[1:]) <= 1
    # To the bit on Intel's processors; on others a product of another size is added up otherwise.
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-12, atol=1e-12)
    assert torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("input_layer", INPUT_LAYERS)
@pytest.mark.parametrize("length", [47, 50, 83])
def test_in_float32_pieces_give_what_training_gives(input_layer, length, short_pieces):
    convolutions = build("conbimamba", input_layer=input_layer).embed.conv.float()
    x = torch.randn(2, 1, length, FEATURES)
    expected = copy.deepcopy(convolutions).double()(x.double())
    with torch.no_grad():
        actual = convolutions(x)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frames", [257, 260, 264, 511, 513, 520, 770])
@torch.inference_mode()
def test_pieces_at_size_give_what_the_whole_gives(frames, monkeypatch, several_threads):
    torch.manual_seed(frames)
    convolutions = build("conbimamba", output_size=256, input_layer="conv2d").embed.conv.float()
    x = torch.randn(1, 1, 4 * frames + 4, 80)
    pieces = convolutions(x)
    monkeypatch.setattr(subsampling, "PIECE", 10_000)
    torch.testing.assert_close(pieces, convolutions(x), rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_in_float32_channels_are_side_by_side_from_the_first_convolution_on():
    convolutions = build("conbimamba").embed.conv.float()
    layouts = []
    for module in convolutions:
        module.register_forward_hook(
            lambda module, inputs, output: layouts.append(
                output.is_contiguous(memory_format=torch.channels_last)
            )
        )
    with torch.no_grad():
        convolutions(torch.randn(2, 1, 47, FEATURES))
    assert layouts == [True] * len(convolutions)


def test_convolutions_over_time_alone(short_pieces):
    convolutions = build("transbimamba", input_layer="conv1d2").embed.conv
    x = torch.randn(2, FEATURES, 40, dtype=torch.float64)
    expected = nn.Sequential(*convolutions)(x)
    with torch.no_grad():
        torch.testing.assert_close(convolutions(x), expected, rtol=1e-12, atol=1e-12)


def test_what_lies_behind_copies_nothing(short_pieces):
    convolutions = build("conbimamba").embed.conv
    with torch.no_grad():
        y = convolutions(torch.randn(2, 1, 47, FEATURES, dtype=torch.float64))
    assert y.transpose(1, 2).is_contiguous()


def test_training_takes_the_whole(short_pieces):
    encoder = build("conbimamba").train()
    frames = seen_by(encoder.embed.conv[-1])
    x = torch.randn(1, 47, FEATURES, dtype=torch.float64)
    encoder(x, torch.tensor([47]))[0].sum().backward()
    assert frames == [11]


def test_the_activations_of_ten_minutes_are_those_of_a_piece():
    encoder = build("conbimamba").eval()
    frames = seen_by(encoder.embed.conv[0])
    with torch.inference_mode():
        encoder.embed.conv(torch.randn(1, 1, 60_000, FEATURES, dtype=torch.float64))
    assert max(frames) <= 2 * subsampling.PIECE + 1


@pytest.mark.parametrize(
    "module", [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, dilation=2), nn.InstanceNorm2d(3)]
)
def test_what_cannot_be_cut_is_not(module, short_pieces):
    convolutions = SubsamplingConvolutions(nn.Conv2d(1, 3, 3), module)
    frames = seen_by(module)
    x = torch.randn(1, 1, 30, 9)
    with torch.no_grad():
        assert torch.equal(convolutions(x), module(convolutions[0](x)))
    assert len(frames) == 2
