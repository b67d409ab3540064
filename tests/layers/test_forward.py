"""The mixers compute what the paper's algorithms say, and differentiate it."""

import pytest
import torch
from torch.func import functional_call

from tests.conftest import skip_unless_served
from tests.layers.zoo import (
    MIXERS,
    assert_same_gradients,
    every_mixer,
    gradients,
    inputs,
)
from tests.tolerances import assert_close

pytestmark = pytest.mark.usefixtures("forced_backend")

LENGTHS = {"no_lengths": None, "lengths": [9, 4, 1, 0]}
every_lengths = pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)

# What options change in the arithmetic; the mixers share it, so one of each kind is enough.
SIZES = {
    "expand1": {"expand": 1},
    "expand4": {"expand": 4},
    "d_state1": {"d_state": 1},
    "d_state2": {"d_state": 2},
    "d_state32": {"d_state": 32},
    "d_state256": {"d_state": 256},
    "d_conv1": {"d_conv": 1},
    "d_conv2": {"d_conv": 2},
    "d_conv8": {"d_conv": 8},
    "dt_rank1": {"dt_rank": 1},
    "dt_rank5": {"dt_rank": 5},
    "odd_width": {"d_model": 33},
}


def check_against_plain(case, dtype, lengths=None, **options):
    mixer = case.build(dtype=dtype, **options)
    x = inputs(4, 9, mixer.d_model, dtype=dtype)
    real = torch.tensor(lengths if lengths is not None else [9] * 4)

    class Plain(torch.nn.Module):
        def forward(self, x):
            return case.expected(mixer, x, real)

        def named_parameters(self):
            return mixer.named_parameters()

    out, dx, d_weights = gradients(mixer, x, None if lengths is None else real)
    mixer.double()
    expected, expected_dx, expected_d_weights = gradients(Plain(), x.double())
    assert_close("output", out, expected, dtype, "output")
    assert_close("input gradient", dx, expected_dx, dtype, "gradient")
    assert_same_gradients(d_weights, expected_d_weights, dtype)


@every_mixer
@every_lengths
def test_equals_the_plain_algorithm(case, lengths, precision):
    check_against_plain(case, precision, lengths)


@pytest.mark.parametrize("options", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("name", ["mamba", "innbimamba"])
def test_equals_the_plain_algorithm_at_size(name, options, precision):
    check_against_plain(MIXERS[name], precision, [9, 3, 1, 0], **options)


@every_mixer
@pytest.mark.parametrize("lengths", [None, [3, 1, 0]], ids=LENGTHS)
def test_gradcheck(case, lengths, forced_backend):
    skip_unless_served(forced_backend, torch.float64)
    mixer = case.build(d_model=2, d_state=2, d_conv=3)
    names, parameters = zip(*mixer.named_parameters(), strict=True)
    lengths = None if lengths is None else torch.tensor(lengths)

    def run(x, *parameters):
        return functional_call(mixer, dict(zip(names, parameters, strict=True)), (x, lengths))

    x = inputs(3, 3, 2).requires_grad_()
    assert torch.autograd.gradcheck(run, (x, *parameters), fast_mode=True)


@every_mixer
def test_float32_stays_near_float64_at_hostile_lengths(case):
    mixer = case.build(d_model=5, dtype=torch.float32)
    lengths = torch.tensor([1, 2, 3, 63, 129, 151])
    x = inputs(6, 151, 5, dtype=torch.float32)
    out, dx, d_weights = gradients(mixer, x, lengths)
    expected, expected_dx, expected_d_weights = gradients(mixer.double(), x.double(), lengths)
    assert_close("output", out, expected, torch.float32, "output")
    assert_close("input gradient", dx, expected_dx, torch.float32, "gradient")
    assert_same_gradients(d_weights, expected_d_weights, torch.float32)


@every_mixer
def test_an_empty_batch_and_an_empty_signal_pass(case, precision):
    mixer = case.build(dtype=precision)
    for shape in ((0, 5, 6), (2, 0, 6)):
        x = inputs(*shape, dtype=precision)
        out, dx, _ = gradients(mixer, x, torch.zeros(shape[0], dtype=torch.int64))
        assert out.shape == dx.shape == shape


@every_mixer
def test_a_strided_input_gives_what_its_copy_gives(case, precision):
    mixer = case.build(dtype=precision)
    x = inputs(6, 9, 2, dtype=precision).permute(2, 1, 0)
    assert not x.is_contiguous()
    assert torch.equal(mixer(x), mixer(x.contiguous()))
