"""Attention as a mixer, against the formula of "Attention Is All You Need"; its padding."""

import pytest
import torch

from espnet_bimamba.errors import CheckpointError, LengthsError, ShapeError
from espnet_bimamba.layers import Mamba, build_mixer
from tests.layers.zoo import gradients, inputs
from tests.tolerances import assert_close

WIDTH = 128


@pytest.fixture
def mixer():
    torch.manual_seed(3)
    mixer = build_mixer("attention", WIDTH).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return mixer


def formula(x, weights):
    """Mix one sequence (length, width); heads of 64 channels."""
    bias, matrix = weights["attention.in_proj_bias"], weights["attention.in_proj_weight"]
    query, key, value = (x @ matrix.T + bias).chunk(3, dim=-1)
    heads = []
    for head in range(WIDTH // 64):
        q, k, v = (part[:, 64 * head : 64 * (head + 1)] for part in (query, key, value))
        heads.append(torch.softmax(q @ k.T / 64**0.5, dim=-1) @ v)
    out = torch.cat(heads, dim=-1) @ weights["attention.out_proj.weight"].T
    return out + weights["attention.out_proj.bias"]


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_each_sequence_follows_the_formula_alone(mixer, training):
    mixer.train(training)
    x, lengths = inputs(4, 9, WIDTH), torch.tensor([9, 4, 1, 0])
    weights = dict(mixer.named_parameters())
    with torch.set_grad_enabled(training):
        out = mixer(x, lengths)
    for row, n in enumerate(lengths.tolist()):
        assert not out[row, n:].any()
        if n:
            assert_close("output", out[row, :n], formula(x[row, :n], weights), x.dtype, "output")


def test_padding_reaches_nothing(mixer):
    lengths = torch.tensor([9, 4, 0])
    clean, poisoned = inputs(3, 9, WIDTH), inputs(3, 9, WIDTH)
    for row, n in enumerate(lengths.tolist()):
        clean[row, n:], poisoned[row, n:] = 0, float("nan")
    (out, dx, d_parameters), (expected, _, expected_d) = (
        gradients(mixer, x, lengths) for x in (poisoned, clean)
    )
    assert torch.equal(out, expected)
    for row, n in enumerate(lengths.tolist()):
        assert not dx[row, n:].any()
    assert dx.isfinite().all()
    for name, gradient in d_parameters.items():
        assert torch.equal(gradient, expected_d[name]), name


def test_it_looks_in_both_directions(mixer):
    x = inputs(1, 9, WIDTH)
    changed = x.clone()
    changed[0, 8] += 1
    assert not torch.equal(mixer(x)[0, 0], mixer(changed)[0, 0])


def test_bad_input_is_refused(mixer):
    with pytest.raises(ShapeError, match=r"x must be \(batch, length, 128\)"):
        mixer(inputs(1, 9, WIDTH + 1))
    with pytest.raises(LengthsError, match="between 0 and 9"):
        mixer(inputs(1, 9, WIDTH), torch.tensor([10]))


def test_another_mixers_weights_are_refused_by_kind(mixer):
    with pytest.raises(CheckpointError, match=r"mamba_type: attention .* with mamba_type: mamba"):
        Mamba(WIDTH).load_state_dict(mixer.state_dict())
    with pytest.raises(CheckpointError, match=r"mamba_type: mamba .* with mamba_type: attention"):
        mixer.load_state_dict(Mamba(WIDTH).state_dict())
