"""The first promise: an utterance gives the same alone and in a batch, whatever the padding."""

import pytest
import torch
from torch import nn

from tests.layers.zoo import (
    BIDIRECTIONAL,
    MIXERS,
    assert_same_gradients,
    every_mixer,
    gradients,
    inputs,
)
from tests.tolerances import assert_close

LENGTHS = torch.tensor([11, 7, 3, 1, 0])
PADDINGS = {"zeros": 0.0, "huge": 1e30, "inf": float("inf"), "nan": float("nan")}


def padded(padding: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    x = inputs(len(LENGTHS), int(LENGTHS.max()), 6, dtype=dtype)
    for row, n in enumerate(LENGTHS.tolist()):
        x[row, n:] = padding
    return x


class Alone(nn.Module):
    """Give each sequence to the mixer by itself, without padding and without lengths."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for row, n in enumerate(LENGTHS.tolist()):
            out[row, :n] = self.mixer(x[row : row + 1, :n])[0]
        return out


def check_alone_equals_batched(mixer: nn.Module, x: torch.Tensor, *lengths: torch.Tensor) -> None:
    dtype = x.dtype
    out, dx, d_weights = gradients(mixer, x, *lengths)
    alone, alone_dx, alone_d_weights = gradients(Alone(mixer), x)
    alone_d_weights = {k.removeprefix("mixer."): v for k, v in alone_d_weights.items()}
    assert_close("output", out, alone, dtype, "output")
    assert_close("input gradient", dx, alone_dx, dtype, "gradient")
    assert_same_gradients(d_weights, alone_d_weights, dtype)
    for row, n in enumerate(LENGTHS.tolist()):
        assert torch.equal(out[row, n:], torch.zeros_like(out[row, n:]))
        assert torch.equal(dx[row, n:], torch.zeros_like(dx[row, n:]))


@pytest.mark.usefixtures("forced_backend")
@every_mixer
@pytest.mark.parametrize("padding", PADDINGS.values(), ids=PADDINGS)
def test_alone_equals_batched(case, padding, precision):
    check_alone_equals_batched(case.build(dtype=precision), padded(padding, precision), LENGTHS)


@pytest.mark.usefixtures("forced_backend")
@every_mixer
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_alone_equals_batched_in_float32(case, training):
    mixer = case.build(dtype=torch.float32).train(training)
    check_alone_equals_batched(mixer, padded(float("nan"), torch.float32), LENGTHS)


@every_mixer
@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64], ids=str)
def test_lengths_of_any_integer_dtype(case, dtype):
    mixer, x = case.build(), padded(0.0)
    assert torch.equal(mixer(x, LENGTHS.to(dtype)), mixer(x, LENGTHS))


@every_mixer
def test_full_lengths_equal_no_lengths(case):
    mixer, x = case.build(), inputs(3, 8, 6)
    torch.testing.assert_close(mixer(x, torch.tensor([8, 8, 8])), mixer(x), rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("name", BIDIRECTIONAL)
def test_the_check_fails_without_lengths(name):
    with pytest.raises(AssertionError, match=r"output: relative error [1-9].*e-0[0-3], limit"):
        check_alone_equals_batched(MIXERS[name].build(), padded(0.0))


def test_the_check_fails_where_a_padded_batch_is_flipped():
    mamba = MIXERS["mamba"].build()

    class Flipping(nn.Module):
        """What common BiMamba code does for the backward direction."""

        def forward(self, x: torch.Tensor, lengths: torch.Tensor | None = None) -> torch.Tensor:
            out = mamba(x.flip(1)).flip(1)
            if lengths is None:
                return out
            return out * (torch.arange(x.shape[1]) < lengths[:, None])[..., None]

        def named_parameters(self):
            return mamba.named_parameters()

    with pytest.raises(AssertionError, match=r"output: relative error [1-9].*e-0[0-3], limit"):
        check_alone_equals_batched(Flipping(), padded(0.0), LENGTHS)


@every_mixer
def test_the_check_fails_where_nan_is_not_masked(case, monkeypatch):
    monkeypatch.setattr("espnet_bimamba.layers.mamba.masked_frames", lambda x, *_: x)
    monkeypatch.setattr("espnet_bimamba.layers.bimamba.masked_frames", lambda x, *_: x)
    with pytest.raises(AssertionError):
        check_alone_equals_batched(case.build(), padded(float("nan")), LENGTHS)
