"""A mixture gives the same alone and in a batch, whatever the padding holds."""

import pytest
import torch
from torch_complex.tensor import ComplexTensor

from espnet_bimamba.errors import LengthsError, ShapeError
from tests.separators.zoo import BINS, KINDS, build, every_kind, spectra
from tests.tolerances import assert_close

LENGTHS = (23, 14, 1)
FILLS = {"huge": 1e30, "inf": float("inf"), "nan": float("nan")}


def padded(fill: float = float("nan"), seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    x = spectra(len(LENGTHS), max(LENGTHS), BINS, seed=seed)
    lengths = torch.tensor(LENGTHS)
    past = torch.arange(max(LENGTHS)) >= lengths[:, None]
    return x.masked_fill(past[..., None], complex(fill, fill)), lengths


def run(separator, x, lengths):
    """Sources and masks side by side, and gradients of the parameters and of the input."""
    x = x.clone().requires_grad_()
    sources, olens, others = separator(x, lengths)
    assert torch.equal(olens, lengths)
    results = [*sources, *others.values()]
    loss = sum((torch.view_as_real(r) if r.is_complex() else r).sin().sum() for r in results)
    parameters = dict(separator.named_parameters())
    dx, *gradients = torch.autograd.grad(loss, [x, *parameters.values()], allow_unused=True)
    return results, dict(zip(parameters, gradients, strict=True)), dx


@every_kind
def test_alone_equals_batched(options):
    separator = build(options)
    x, lengths = padded()
    batched, gradients, dx = run(separator, x, lengths)
    alone = [run(separator, x[i : i + 1, :n], lengths[i : i + 1]) for i, n in enumerate(LENGTHS)]
    for index, (results, _, own_dx) in enumerate(alone):
        for name, (whole, own) in enumerate(zip(batched, results, strict=True)):
            whole, own = (torch.view_as_real(r) if r.is_complex() else r for r in (whole, own))
            length = LENGTHS[index]
            assert_close(f"result {name}", whole[index, :length], own[0], torch.float64, "output")
            assert not whole[index, length:].any()
        pair = (torch.view_as_real(g) for g in (dx[index, : LENGTHS[index]], own_dx[0]))
        assert_close("input gradient", *pair, torch.float64, "gradient")
        assert not dx[index, LENGTHS[index] :].any()
    for name, gradient in gradients.items():
        expected = sum(own[name] for _, own, _ in alone)
        # A key's bias shifts all of a query's scores alike: its gradient is rounding.
        if not name.endswith("linear_k.bias"):
            assert_close(name, gradient, expected, torch.float64, "weight_gradient")


@every_kind
@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
def test_what_the_padding_holds_changes_no_bit(options, fill):
    separator = build(options)
    results, gradients, dx = run(separator, *padded(fill))
    expected, expected_gradients, expected_dx = run(separator, *padded(0.0))
    assert all(torch.equal(*pair) for pair in zip(results, expected, strict=True))
    assert torch.equal(dx, expected_dx)
    assert all(torch.equal(gradients[name], expected_gradients[name]) for name in gradients)


@pytest.mark.parametrize("name", ["mamba4", "magnitude", "two_speakers_and_noise"])
def test_torch_complex_gives_what_torch_gives(name):
    separator = build(KINDS[name])
    x, lengths = padded()
    expected, _, expected_others = separator(x, lengths)
    sources, _, others = separator(ComplexTensor(x.real, x.imag), lengths)
    assert list(others) == list(expected_others)
    for source, other in zip(sources, expected, strict=True):
        assert isinstance(source, ComplexTensor)
        torch.testing.assert_close(torch.complex(source.real, source.imag), other)


def test_real_features_are_taken_as_they_are():
    separator = build(KINDS["mamba4"])
    x, lengths = padded()
    (source,), _, others = separator(x.real, lengths)
    assert source.dtype == torch.float64
    real = x.real.nan_to_num()
    assert torch.equal(source, real * others["mask_spk1"])


def test_bad_input_is_refused():
    separator = build(KINDS["mamba4"])
    with pytest.raises(ShapeError, match=r"\(batch, frames, 9\), got \(2, 5, 3, 9\).*channels"):
        separator(spectra(2, 5, 3, BINS), torch.tensor([5, 5]))
    with pytest.raises(ShapeError, match=r"frames, 9\), got \(2, 5, 8\)"):
        separator(spectra(2, 5, 8), torch.tensor([5, 5]))
    with pytest.raises(LengthsError, match=r"between 0 and 5.*got \[6, 5\]"):
        separator(spectra(2, 5, BINS), torch.tensor([6, 5]))
