"""Half precision, autocast and int8: what is rounded where, and that nothing else is.

The expected result is the plain algorithm in float64 with the same roundings: parameters, inputs
and what a projection or an operator writes. State, A and step sizes stay exact, so a scan that
kept them in half precision would be found. What is left are the results that fall to the other
side of a rounding: few, so the error as a whole is far below that of one rounding more.
"""

import pytest
import torch
from torch import nn

from espnet_bimamba.layers import mamba
from tests.layers.zoo import MIXERS, every_mixer, inputs

HALF = [torch.bfloat16, torch.float16]
LENGTHS = torch.tensor([40, 13, 1])


def rounding_to(dtype: torch.dtype):
    return lambda x: x.to(dtype).double()


def check(case, actual, mixer, x, dtype, **rounding):
    expected = case.expected(mixer.double(), x.double(), LENGTHS, **rounding)
    assert actual.dtype == dtype
    error = ((actual.double() - expected).norm() / expected.norm()).item()
    assert error < torch.finfo(dtype).eps / 4, f"error {error:.1e}"
    assert torch.equal(actual[1, 13:], torch.zeros_like(actual[1, 13:]))


@pytest.mark.usefixtures("forced_backend")
@every_mixer
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast(case, dtype):
    mixer = case.build(16, dtype=torch.float32)
    x = inputs(3, 40, 16, dtype=torch.float32)
    seen = []
    for module in mixer.modules():
        if hasattr(module, "dt_proj"):
            module.dt_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
            module.dt_proj.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    with torch.autocast("cpu", dtype):
        out = mixer(x, LENGTHS)
    # The bias of the step sizes does not survive bfloat16.
    assert set(seen) == {torch.float32}
    with torch.no_grad():
        for name, parameter in mixer.named_parameters():
            if name.endswith(("in_proj.weight", "x_proj.weight", "out_proj.weight")) or (
                "fusion_proj" in name
            ):
                parameter.copy_(parameter.to(dtype))
    check(case, out, mixer, x.to(dtype), dtype, stored=rounding_to(dtype))


@pytest.mark.usefixtures("forced_backend")
@every_mixer
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_a_whole_module_in_half_precision(case, dtype):
    mixer = case.build(16, dtype=torch.float32).to(dtype)
    x = inputs(3, 40, 16, dtype=dtype).requires_grad_()
    out = mixer(x, LENGTHS)
    out.float().square().sum().backward()
    for name, parameter in (*mixer.named_parameters(), ("input", x)):
        assert parameter.grad.dtype == dtype, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name
    rounding = rounding_to(dtype)
    check(case, out.detach(), mixer, x.detach(), dtype, stored=rounding, stored_dt=rounding)


@every_mixer
@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_autocast_over_a_half_precision_module(case, dtype):
    mixer = case.build(16, dtype=torch.float32).to(dtype)
    x = inputs(3, 40, 16, dtype=dtype)
    with torch.autocast("cpu", dtype):
        out = mixer(x, LENGTHS)
    rounding = rounding_to(dtype)
    check(case, out, mixer, x, dtype, stored=rounding, stored_dt=rounding)


@every_mixer
@pytest.mark.parametrize("autocast", [True, False], ids=["autocast", "whole_module"])
@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_the_scan_is_given_A_and_D_in_float32(case, grad, dtype, autocast, monkeypatch):
    seen, scan = [], mamba.selective_scan

    def spy(**inputs):
        seen.append({name: inputs[name].dtype for name in ("u", "delta", "A", "B", "C", "D")})
        return scan(**inputs)

    monkeypatch.setattr(mamba, "selective_scan", spy)
    mixer = case.build(16, dtype=torch.float32 if autocast else dtype)
    x = inputs(3, 40, 16, dtype=torch.float32 if autocast else dtype)
    with torch.autocast("cpu", dtype, enabled=autocast), torch.set_grad_enabled(grad):
        mixer(x, LENGTHS)
    # Half precision is what projections write; step sizes have their parameters' precision.
    half = dict.fromkeys(("u", "B", "C"), dtype)
    single = dict.fromkeys(("A", "D"), torch.float32)
    step = {"delta": torch.float32 if autocast else dtype}
    assert seen
    assert all(call == half | single | step for call in seen)


@every_mixer
def test_autocast_leaves_gradients_in_float32(case):
    mixer = case.build(16, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = mixer(inputs(3, 40, 16, dtype=torch.float32), LENGTHS)
    out.float().square().sum().backward()
    for name, parameter in mixer.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.filterwarnings("ignore:.*quantiz.* deprecated")
@every_mixer
def test_int8_dynamic_quantisation(case):
    mixer = case.build(32, dtype=torch.float32).eval()
    x = inputs(3, 40, 32, dtype=torch.float32)
    quantized = torch.ao.quantization.quantize_dynamic(mixer, {nn.Linear}, dtype=torch.qint8)
    projections = [name for name, module in mixer.named_modules() if isinstance(module, nn.Linear)]
    replaced = torch.ao.nn.quantized.dynamic.Linear
    assert all(isinstance(quantized.get_submodule(name), replaced) for name in projections)
    out, expected = quantized(x, LENGTHS), mixer(x, LENGTHS)
    # int8 knows 127 steps: a projection is off by up to a percent or two, several add up.
    error = ((out - expected).norm() / expected.norm()).item()
    assert 0 < error < 0.1
    assert torch.equal(out[1, 13:], torch.zeros(27, 32))


def test_double_is_served_in_double():
    case = MIXERS["innbimamba"]
    out = case.build()(inputs(2, 9, 6), torch.tensor([9, 4]))
    assert out.dtype == torch.float64
