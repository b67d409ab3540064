"""Lengths that are known to fit: nobody checks them again, and they mean what the tensor means."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from espnet_bimamba.errors import LengthsError
from espnet_bimamba.layers import MIXERS, MixerAttention, build_mixer
from espnet_bimamba.ops import causal_conv1d, selective_scan
from espnet_bimamba.ops import lengths as lengths_module
from espnet_bimamba.ops.lengths import Lengths, fitting

FRAMES = torch.tensor([7, 4])


def scan(lengths):
    generator = torch.Generator().manual_seed(0)
    u, delta, B, C = torch.randn(4, 2, 6, 7, generator=generator)
    A = -torch.rand(6, 6, generator=generator)
    return selective_scan(u, delta, A, B, C, lengths=lengths)


def convolve(lengths):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*size, generator=generator) for size in ((2, 6, 7), (6, 4)))
    return causal_conv1d(x, weight, lengths=lengths)


every_operator = pytest.mark.parametrize("operator", [scan, convolve])


@every_operator
def test_known_lengths_give_what_the_tensor_gives(operator):
    assert torch.equal(operator(Lengths(FRAMES, 7)), operator(FRAMES))


@every_operator
@pytest.mark.parametrize("known", [Lengths(FRAMES, 8), Lengths(FRAMES[:1], 7)])
def test_those_of_another_batch_are_refused(operator, known):
    with pytest.raises(LengthsError, match=r"lengths are those of .* \(batch, length\)"):
        operator(known)


@every_operator
def test_those_that_a_kernel_could_not_read_are_refused(operator):
    with pytest.raises(LengthsError, match=r"must be int64 on cpu, .* got torch\.int32 on cpu"):
        operator(Lengths(FRAMES.int(), 7))
    with pytest.raises(LengthsError, match=r"got torch\.int64 on meta"):
        operator(Lengths(FRAMES.to("meta"), 7))


@pytest.mark.parametrize("bad", [[8, 4], [7, -1]])
def test_what_does_not_fit_does_not_become_known(bad):
    with pytest.raises(LengthsError, match="between 0 and 7"):
        fitting(torch.tensor(bad), 2, 7, torch.device("cpu"))


def test_a_mask_counts_its_frames():
    mask = torch.arange(7) < FRAMES[:, None]
    frames, length = Lengths.of(mask)
    assert frames.tolist() == [7, 4]
    assert length == 7


class Fills(TorchDispatchMode):
    """Counts what is zeroed past an end."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "masked_fill" in func.__name__
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in MIXERS if name != "attention"])
def test_an_encoders_layer_checks_no_value(monkeypatch, name):
    """On a card each look at the values is six launches; the mask says that they fit."""
    looks = []
    check = lengths_module.check_lengths
    monkeypatch.setattr(lengths_module, "check_lengths_kind", lambda *_: looks.append(1))
    layer = MixerAttention(build_mixer(name, 16)).eval()
    mask = (torch.arange(7) < FRAMES[:, None])[:, None]
    x = torch.randn(2, 7, 16)
    layer(x, x, x, mask)
    assert not looks
    check(FRAMES, 2, 7, x.device)
    assert looks, "the test can see a look"


@pytest.mark.parametrize("name", [name for name in MIXERS if name != "attention"])
def test_padding_is_filled_only_where_a_gradient_could_carry_it(name):
    mixer = build_mixer(name, 16).eval()
    x = torch.randn(2, 7, 16)
    x[1, 4:] = float("nan")
    with torch.no_grad(), Fills() as in_inference:
        out = mixer(x, FRAMES)
    with Fills() as in_training:
        expected = mixer(x, FRAMES)
    assert not in_inference.count
    assert in_training.count
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    assert not out[1, 4:].any()
