"""The laws by which parameters are drawn, by their moments; every test fixes the seed."""

import math

import pytest
import torch
import torch.nn.functional as F

from espnet_bimamba.layers.initialization import A_INITS, initial_A_log, initial_dt_bias
from espnet_bimamba.layers.mamba import Mamba
from tests.layers.zoo import MIXERS, every_mixer

CHANNELS, STATES = 800, 128
SAMPLES = CHANNELS * STATES


def drawn(A_init: str, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return initial_A_log(A_init, CHANNELS, STATES).double()


def near(value: torch.Tensor, expected: float, deviation: float, samples: int = SAMPLES) -> bool:
    """Whether a mean over ``samples`` is within five standard errors."""
    return abs(value.item() - expected) < 5 * deviation / math.sqrt(samples)


@pytest.mark.parametrize("A_init", A_INITS)
def test_A_is_negative_and_finite(A_init):
    A_log = initial_A_log(A_init, CHANNELS, STATES)
    A = -torch.exp(A_log)
    assert A_log.dtype == torch.float32
    assert A_log.shape == (CHANNELS, STATES)
    assert A_log.isfinite().all()
    assert A.isfinite().all()
    assert (A < 0).all()


@pytest.mark.parametrize("A_init", A_INITS)
def test_the_seed_decides(A_init):
    again, other = drawn(A_init), drawn(A_init, seed=1)
    assert torch.equal(drawn(A_init), again)
    assert torch.equal(again, other) == (A_init == "s4d_real")


def test_s4d_real_is_minus_one_to_minus_n():
    A = -torch.exp(drawn("s4d_real"))
    expected = -torch.arange(1.0, STATES + 1).double().expand(CHANNELS, -1)
    # log, rounded to float32, and exp again.
    torch.testing.assert_close(A, expected, rtol=5e-7, atol=0)


def test_random_is_log_normal():
    g = drawn("random")
    assert near(g.mean(), 0, 1)
    assert near((g**2).mean(), 1, math.sqrt(2))
    assert near((g**3).mean(), 0, math.sqrt(15))
    assert near((g**4).mean(), 3, math.sqrt(96))
    # No row and no column of its own.
    assert near((g[:, :-1] * g[:, 1:]).mean(), 0, 1)
    assert near((g[:-1] * g[1:]).mean(), 0, 1)


def test_noise_multiplies_s4d_real_by_a_half_normal_factor_with_a_floor():
    factor = torch.exp(drawn("s4d_real_noise")) / torch.arange(1.0, STATES + 1).double()
    mean = math.sqrt(2 / math.pi)
    assert near(factor.mean(), mean, math.sqrt(1 - mean**2))
    assert near((factor**2).mean(), 1, math.sqrt(2))
    assert near((factor**4).mean(), 3, math.sqrt(96))
    assert factor.min().item() == pytest.approx(1e-3, rel=1e-5)
    # |g| < 0.001 has probability 0.000798: so many factors stand on the floor.
    at_floor = (factor < 1e-3 * (1 + 1e-5)).double()
    assert near(at_floor.mean(), math.erf(1e-3 / math.sqrt(2)), math.sqrt(8e-4))


def test_step_sizes_are_log_uniform():
    torch.manual_seed(0)
    dt = F.softplus(initial_dt_bias(SAMPLES, 1e-3, 0.1, 1e-4).double())
    assert dt.min().item() == pytest.approx(1e-3, rel=1e-3)
    assert dt.max().item() == pytest.approx(0.1, rel=1e-3)
    position = (dt.log() - math.log(1e-3)) / (math.log(0.1) - math.log(1e-3))
    assert near(position.mean(), 1 / 2, math.sqrt(1 / 12))
    assert near((position**2).mean(), 1 / 3, math.sqrt(4 / 45))


def test_step_sizes_have_a_floor():
    torch.manual_seed(0)
    dt = F.softplus(initial_dt_bias(10_000, 1e-6, 1e-2, 1e-4).double())
    assert dt.min().item() == pytest.approx(1e-4, rel=1e-3)
    assert near((dt < 1.0001e-4).double().mean(), 1 / 2, 1 / 2, 10_000)


@pytest.mark.parametrize("A_init", A_INITS)
def test_a_layer_starts_as_documented(A_init):
    torch.manual_seed(0)
    layer = Mamba(256, A_init=A_init)
    torch.manual_seed(0)
    again = Mamba(256, A_init=A_init)
    assert all(
        torch.equal(a, b) for a, b in zip(layer.parameters(), again.parameters(), strict=True)
    )
    weight, dt = layer.dt_proj.weight.double(), F.softplus(layer.dt_proj.bias.double())
    assert dt.min() >= 0.001 * (1 - 1e-4)
    assert dt.max() <= 0.1 * (1 + 1e-4)
    # Uniform within 1 / sqrt(rank), rank 16.
    assert weight.abs().max() <= 0.25
    assert near((weight**2).mean(), 0.25**2 / 3, 0.25**2 * math.sqrt(4 / 45), weight.numel())
    # PyTorch's own initialisation of a depthwise convolution: uniform within 1 / sqrt(width).
    conv = layer.conv1d.weight.double()
    assert conv.abs().max() <= 0.5
    assert near((conv**2).mean(), 1 / 12, 0.25 * math.sqrt(4 / 45), conv.numel())
    assert torch.equal(layer.D, torch.ones(512))


@every_mixer
def test_the_initialisation_function_restores_every_direction(case):
    torch.manual_seed(0)
    mixer = case.make(d_model=32, **case.options)
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.fill_(7)
    for module in mixer.modules():
        if hasattr(module, "espnet_initialization_fn"):
            module.espnet_initialization_fn()
    own = ("A_log", "D", "dt_proj.weight", "dt_proj.bias", "conv1d.weight", "conv1d.bias")
    for name, parameter in mixer.named_parameters():
        assert (parameter == 7).all() == (not name.endswith(own)), name


def test_A_log_and_D_are_marked_against_weight_decay():
    for case in MIXERS.values():
        for name, parameter in case.build().named_parameters():
            marked = getattr(parameter, "_no_weight_decay", False)
            assert marked == name.endswith(("A_log", "D")), name
