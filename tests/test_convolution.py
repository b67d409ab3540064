"""Convolutions with channels side by side: nn.Conv1d's numbers, and oneDNN's fast layout."""

import copy

import pytest
import torch
from torch import nn

from espnet_bimamba.convolution import (
    ChannelsLastBatchNorm1d,
    ChannelsLastConv1d,
    PaddedConvolutionModule,
    keep_channels_last,
)
from tests.encoders.zoo import build, every_encoder

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="torch without oneDNN"
)

CAN = {
    "depthwise, odd": {"kernel_size": 31, "padding": 15, "groups": 24},
    "depthwise, even": {"kernel_size": 32, "groups": 24},
    "pointwise": {"kernel_size": 1},
    "no bias": {"kernel_size": 3, "padding": 1, "groups": 24, "bias": False},
}
CANNOT = {
    "dense": {"kernel_size": 3},
    "grouped": {"kernel_size": 3, "groups": 12},
    "strided": {"kernel_size": 3, "groups": 24, "stride": 2},
    "dilated": {"kernel_size": 3, "groups": 24, "dilation": 2},
    "circular": {"kernel_size": 3, "groups": 24, "padding": 1, "padding_mode": "circular"},
    "padding as a word": {"kernel_size": 5, "groups": 24, "padding": "same"},
    "pointwise and padded": {"kernel_size": 1, "padding": 1},
}


def convolution(options):
    torch.manual_seed(0)
    return nn.Conv1d(24, 24, **options)


def replaced(plain):
    wrapped = nn.Sequential(copy.deepcopy(plain))
    keep_channels_last(wrapped)
    return wrapped[0]


@pytest.mark.parametrize("options", CAN.values(), ids=CAN)
@pytest.mark.parametrize("layout", ["length last", "channels last"])
def test_the_numbers_are_those_of_conv1d(options, layout):
    plain = convolution(options)
    ours = replaced(plain)
    assert type(ours) is ChannelsLastConv1d
    x = torch.randn(3, 24, 40)
    if layout == "channels last":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    expected = copy.deepcopy(plain).double()(x.double())
    with torch.no_grad():
        actual = ours(x)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", CAN.values(), ids=CAN)
def test_with_gradients_it_is_conv1d_to_the_bit(options):
    plain = convolution(options)
    x = torch.randn(3, 24, 40)
    assert torch.equal(replaced(plain)(x), plain(x))


@pytest.mark.parametrize("options", CAN.values(), ids=CAN)
def test_float64_is_conv1d_to_the_bit(options):
    plain = convolution(options).double()
    x = torch.randn(3, 24, 40, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(replaced(plain)(x), plain(x))


@pytest.mark.parametrize("options", CANNOT.values(), ids=CANNOT)
def test_what_it_cannot_stand_for_stays(options):
    assert type(replaced(convolution(options))) is nn.Conv1d


def test_one_channel_of_several_frames():
    plain = nn.Conv1d(1, 1, 3, padding=1)
    x = torch.randn(2, 1, 9)
    with torch.no_grad():
        torch.testing.assert_close(replaced(plain)(x), plain(x))


@needs_onednn
@pytest.mark.parametrize("options", CAN.values(), ids=CAN)
def test_in_inference_channels_stay_side_by_side(options):
    ours = replaced(convolution(options))
    with torch.no_grad():
        out = ours(torch.randn(3, 40, 24).transpose(1, 2))
    assert out.transpose(1, 2).is_contiguous()


@needs_onednn
@pytest.mark.parametrize("causal", [True, False])
def test_a_module_without_padding_keeps_the_layout(causal):
    module = PaddedConvolutionModule(24, 31, nn.SiLU(), causal).eval()
    layouts = []
    for part in (module.pointwise_conv1, module.depthwise_conv, module.norm, module.activation):
        part.register_forward_hook(
            lambda part, inputs, output: layouts.append(output.transpose(1, 2).is_contiguous())
        )
    with torch.no_grad():
        module(torch.randn(2, 40, 24))
    assert layouts == [True] * 4


@pytest.mark.parametrize("layout", ["length last", "channels last"])
def test_the_numbers_are_those_of_batch_norm(layout):
    torch.manual_seed(0)
    plain = nn.BatchNorm1d(24, eps=0.1)
    plain(3 + 2 * torch.randn(5, 24, 40))
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    ours = replaced(plain.eval())
    assert type(ours) is ChannelsLastBatchNorm1d
    x = torch.randn(3, 24, 40)
    if layout == "channels last":
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), plain(x), rtol=1e-6, atol=1e-6)


def test_batch_norm_learns_the_same():
    torch.manual_seed(0)
    plain = nn.BatchNorm1d(24)
    ours = replaced(plain)
    x = torch.randn(3, 24, 40)
    with torch.no_grad():
        assert torch.equal(ours(x), plain(x))
    assert torch.equal(ours.running_var, plain.running_var)
    assert not torch.equal(ours.running_var, torch.ones(24))


@needs_onednn
def test_batch_norm_keeps_the_layout():
    ours = replaced(nn.BatchNorm1d(24).eval())
    with torch.no_grad():
        out = ours(torch.randn(3, 40, 24).transpose(1, 2))
    assert out.transpose(1, 2).is_contiguous()


def test_batch_norm_without_statistics():
    plain = nn.BatchNorm1d(24, track_running_stats=False).eval()
    x = torch.randn(3, 24, 40)
    with torch.no_grad():
        assert torch.equal(replaced(plain)(x), plain(x))


def test_batch_norm_of_two_dimensions():
    plain = nn.BatchNorm1d(24).eval()
    x = torch.randn(3, 24)
    with torch.no_grad():
        assert torch.equal(replaced(plain)(x), plain(x))


def test_a_sequence_without_a_batch():
    plain = convolution(CAN["depthwise, odd"])
    x = torch.randn(24, 40)
    with torch.no_grad():
        assert torch.equal(replaced(plain)(x), plain(x))


def test_without_onednn_it_is_conv1d_to_the_bit(monkeypatch):
    plain = convolution(CAN["pointwise"])
    x = torch.randn(3, 24, 40)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with torch.no_grad():
        assert torch.equal(replaced(plain)(x), plain(x))


def test_on_other_devices_it_is_conv1d(monkeypatch):
    ours = replaced(convolution(CAN["depthwise, odd"])).to("meta")
    monkeypatch.delattr(torch.nn.functional, "conv2d")
    with torch.no_grad():
        assert ours(torch.empty(3, 24, 40, device="meta")).shape == (3, 24, 40)


@pytest.mark.parametrize("options", CAN.values(), ids=CAN)
def test_an_exported_graph_has_conv1d(options):
    ours = replaced(convolution(options)).eval()
    with torch.no_grad():
        graph = torch.export.export(ours, (torch.randn(3, 24, 40),)).graph
    assert [n.target for n in graph.nodes if n.op == "call_function"] == [
        torch.ops.aten.conv1d.default
    ]


@needs_onednn
def test_batch_norm_of_real_frames_keeps_the_layout():
    encoder = build("conbimamba", mask_batch_norm=True).float().eval()
    norm = encoder.encoders[0].conv_module.norm
    with torch.no_grad():
        out = norm(torch.randn(3, 40, norm.num_features).transpose(1, 2))
    assert out.transpose(1, 2).is_contiguous()


@every_encoder
def test_every_convolution_of_a_layer_is_one_but_those_of_mixers(name):
    for layer in build(name).encoders:
        outside = [
            module
            for path, module in layer.named_modules()
            if type(module) is nn.Conv1d and "attn." not in path
        ]
        assert outside == []
