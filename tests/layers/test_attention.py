"""The stand-in for ESPnet's self-attention: its call, and what it does with the mask."""

import pytest
import torch

from espnet_bimamba.errors import ShapeError
from espnet_bimamba.layers import MixerAttention
from tests.layers.zoo import MIXERS, inputs

LENGTHS = torch.tensor([9, 4, 0])


def attention() -> MixerAttention:
    return MixerAttention(MIXERS["extbimamba_add"].build())


def mask() -> torch.Tensor:
    return (torch.arange(9) < LENGTHS[:, None])[:, None]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8], ids=str)
def test_a_mask_means_lengths(dtype):
    stand_in, x = attention(), inputs(3, 9, 6)
    assert torch.equal(stand_in(x, x, x, mask().to(dtype)), stand_in.mixer(x, LENGTHS))


def test_a_relative_position_call_passes():
    stand_in, x = attention(), inputs(3, 9, 6)
    positions = inputs(1, 17, 6)
    assert torch.equal(stand_in(x, x, x, positions, mask()), stand_in.mixer(x, LENGTHS))


def test_no_mask_means_no_padding():
    stand_in, x = attention(), inputs(3, 9, 6)
    assert torch.equal(stand_in(x, x, x, None), stand_in.mixer(x))


def test_the_padding_comes_out_as_zero():
    stand_in, x = attention(), inputs(3, 9, 6)
    out = stand_in(x, x, x, mask())
    assert torch.equal(out[~mask().squeeze(1)], torch.zeros(14, 6, dtype=torch.float64))


WRONG_MASKS = {
    "one_row_for_each_query": (3, 9, 9),
    "two_dimensions": (3, 9),
    "for_heads": (3, 1, 1, 9),
    "another_batch": (2, 1, 9),
    "another_length": (3, 1, 8),
}


@pytest.mark.parametrize("shape", WRONG_MASKS.values(), ids=WRONG_MASKS)
def test_a_mask_of_another_shape_is_refused(shape):
    x = inputs(3, 9, 6)
    with pytest.raises(ShapeError, match=r"\(batch, 1, length\) = \(3, 1, 9\)") as error:
        attention()(x, x, x, torch.ones(shape, dtype=torch.bool))
    assert str(tuple(shape)) in str(error.value)
