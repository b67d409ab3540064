"""Mamba itself: a drop-in for mamba-ssm's, and a signal in chunks."""

import pytest
import torch

from espnet_bimamba.errors import LengthsError, ShapeError
from espnet_bimamba.layers import Mamba
from tests.layers import plain
from tests.layers.zoo import BIDIRECTIONAL, MIXERS, assert_same_gradients, every_mixer, inputs
from tests.tolerances import assert_close

# As mamba_ssm/modules/mamba_simple.py names and shapes them, for d_model 20, d_state 5, d_conv 3,
# expand 2: d_inner 40, dt_rank ceil(20 / 16) = 2.
MAMBA_SSM_STATE_DICT = {
    "A_log": (40, 5),
    "D": (40,),
    "in_proj.weight": (80, 20),
    "conv1d.weight": (40, 1, 3),
    "conv1d.bias": (40,),
    "x_proj.weight": (2 + 5 + 5, 40),
    "dt_proj.weight": (40, 2),
    "dt_proj.bias": (40,),
    "out_proj.weight": (20, 40),
}


def test_state_dict_has_mamba_ssm_names_and_shapes():
    layer = Mamba(20, d_state=5, d_conv=3)
    shapes = {name: tuple(tensor.shape) for name, tensor in layer.state_dict().items()}
    assert shapes == MAMBA_SSM_STATE_DICT


def test_a_mamba_ssm_checkpoint_loads_strictly():
    torch.manual_seed(1)
    saved = {name: torch.randn(shape) / 4 for name, shape in MAMBA_SSM_STATE_DICT.items()}
    layer = Mamba(20, d_state=5, d_conv=3)
    layer.load_state_dict(saved, strict=True)
    assert all(torch.equal(layer.state_dict()[name], saved[name]) for name in saved)
    x = inputs(1, 30, 20)
    expected = plain.mamba(x[0], {name: tensor.double() for name, tensor in saved.items()})
    assert_close("output", layer.double()(x)[0], expected, torch.float64, "output")


CUTS = {
    "one_chunk": [23],
    "frame_by_frame": [1] * 23,
    "shorter_than_the_convolution": [2, 1, 2, 1, 17],
    "empty_chunks": [0, 10, 0, 0, 13, 0],
    "uneven": [5, 11, 7],
}


@pytest.mark.usefixtures("forced_backend")
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
@pytest.mark.parametrize("d_conv", [1, 2, 4, 8])
def test_chunks_give_what_the_whole_gives(cuts, d_conv, precision):
    layer = MIXERS["mamba"].build(d_conv=d_conv, dtype=precision)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    x = inputs(2, 23, 6, dtype=precision).requires_grad_()
    whole = layer(x)
    state, outs = None, []
    for chunk in x.split(cuts, dim=1):
        out, state = layer.forward_chunk(chunk, state)
        outs.append(out)
    chunked = torch.cat(outs, dim=1)
    _, whole_state = layer.forward_chunk(x)
    assert_close("output", chunked, whole, precision, "output")
    assert_close("window", state.conv, whole_state.conv, precision, "state")
    assert_close("state", state.ssm, whole_state.ssm, precision, "state")

    weights = inputs(*whole.shape, seed=9, dtype=precision)
    dx, *d_parameters = torch.autograd.grad((chunked * weights).sum(), [x, *parameters])
    whole_dx, *whole_d_parameters = torch.autograd.grad((whole * weights).sum(), [x, *parameters])
    assert_close("input gradient", dx, whole_dx, precision, "gradient")
    assert_same_gradients(
        dict(zip(names, d_parameters, strict=True)),
        dict(zip(names, whole_d_parameters, strict=True)),
        precision,
    )


@pytest.mark.usefixtures("forced_backend")
def test_a_chunk_leaves_the_state_it_was_given_as_it_was(precision):
    layer = MIXERS["mamba"].build(dtype=precision)
    _, state = layer.forward_chunk(inputs(2, 5, 6, dtype=precision))
    before = [tensor.clone() for tensor in state]
    first, _ = layer.forward_chunk(inputs(2, 5, 6, dtype=precision), state)
    again, _ = layer.forward_chunk(inputs(2, 5, 6, dtype=precision), state)
    assert torch.equal(first, again)
    assert all(torch.equal(old, new) for old, new in zip(before, state, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_carried_state_is_float32_at_least(dtype):
    layer = Mamba(8).to(dtype)
    out, state = layer.forward_chunk(inputs(2, 5, 8, dtype=dtype))
    assert out.dtype == state.conv.dtype == dtype
    assert state.ssm.dtype == torch.float32
    assert layer.initial_state(2).ssm.dtype == torch.float32


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_a_bidirectional_mixer_refuses_chunks(name):
    mixer = MIXERS[name].build()
    with pytest.raises(ShapeError, match="backward direction starts at the signal's end") as error:
        mixer.forward_chunk(inputs(1, 5, 6))
    assert type(mixer).__name__ in str(error.value)
    assert "mamba_type: mamba" in str(error.value)


def test_a_reversed_mamba_refuses_chunks():
    with pytest.raises(ShapeError, match="reversed Mamba cannot take a signal in chunks"):
        Mamba(6, reverse=True).forward_chunk(torch.zeros(1, 5, 6))


BAD_INPUTS = {
    "two_dimensions": (torch.zeros(5, 6), None, ShapeError, r"\(batch, length, 6\).*\(5, 6\)"),
    "another_width": (torch.zeros(2, 5, 7), None, ShapeError, r"length, 6\), got.*\(2, 5, 7\)"),
    "lengths_too_many": (torch.zeros(2, 5, 6), [5, 5, 5], LengthsError, r"\(2,\).*got \(3,\)"),
    "lengths_too_long": (torch.zeros(2, 5, 6), [6, 5], LengthsError, r"0 and 5.*got \[6, 5\]"),
    "lengths_negative": (torch.zeros(2, 5, 6), [5, -1], LengthsError, r"0 and 5.*\[5, -1\]"),
    "lengths_float": (torch.zeros(2, 5, 6), [5.0, 1.0], LengthsError, "got torch.float32"),
}


@every_mixer
@pytest.mark.parametrize(("x", "lengths", "error", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_bad_input_is_refused(case, x, lengths, error, message):
    lengths = None if lengths is None else torch.tensor(lengths)
    with pytest.raises(error, match=message):
        case.build(dtype=torch.float32)(x, lengths)


@every_mixer
def test_lengths_must_be_a_tensor(case):
    with pytest.raises(LengthsError, match="tensor of integers, got list"):
        case.build()(inputs(2, 5, 6), [5, 5])
