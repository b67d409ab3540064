"""The loss against its formula in NumPy, on padded batches, and in ESPnet's wrappers."""

import numpy as np
import pytest
import torch
from espnet2.enh.loss.wrappers.fixed_order import FixedOrderSolver
from espnet2.enh.loss.wrappers.pit_solver import PITSolver

from espnet_bimamba.errors import OptionError, ShapeError
from espnet_bimamba.separators.loss import CompressedMagnitudeMSE
from tests.separators.zoo import spectra

SHAPE = (2, 7, 5)


def mask(seed=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(*SHAPE, generator=generator, dtype=torch.float64)


def by_formula(reference, estimate, exponent):
    reference, estimate = (np.abs(x.numpy()) ** exponent for x in (reference, estimate))
    return torch.from_numpy(((reference - estimate) ** 2).mean(axis=(1, 2)))


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1, 1.0])
def test_on_masks_it_is_the_formula(exponent):
    criterion = CompressedMagnitudeMSE(exponent)
    assert criterion.compute_on_mask
    mixture, speech = spectra(*SHAPE), spectra(*SHAPE, seed=2)
    (label,) = criterion.create_mask_label(mixture, [speech])
    loss = criterion(label, mask())
    torch.testing.assert_close(
        loss, by_formula(speech, mask() * mixture, exponent), rtol=1e-12, atol=0
    )
    assert loss.shape == (2,)


@pytest.mark.parametrize("exponent", [0.3, 1])
def test_on_spectra_it_is_the_formula(exponent):
    criterion = CompressedMagnitudeMSE(exponent, stft_consistency=True)
    assert not criterion.compute_on_mask
    reference, estimate = spectra(*SHAPE), spectra(*SHAPE, seed=2)
    loss = criterion(reference, estimate)
    torch.testing.assert_close(loss, by_formula(reference, estimate, exponent), rtol=1e-12, atol=0)
    turned = estimate * torch.exp(1j * spectra(*SHAPE, seed=3).real)
    torch.testing.assert_close(criterion(reference, turned), loss, rtol=1e-12, atol=0)


def test_a_separator_without_masks_is_judged_by_its_spectrum():
    criterion = CompressedMagnitudeMSE()
    mixture, speech, estimate = (spectra(*SHAPE, seed=seed) for seed in range(3))
    labels, estimates = (
        criterion.create_mask_label(mixture, [spectrum]) for spectrum in (speech, estimate)
    )
    torch.testing.assert_close(
        criterion(labels[0], estimates[0]), by_formula(speech, estimate, 0.3), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("consistent", [False, True])
def test_padding_does_not_count(consistent):
    criterion = CompressedMagnitudeMSE(stft_consistency=consistent)
    mixture, speech = spectra(*SHAPE), spectra(*SHAPE, seed=2)
    masks = mask()
    for tensor in (mixture, speech):
        tensor[1, 4:] = 0

    def loss(rows, frames):
        if consistent:
            return criterion(speech[rows, :frames], (masks * mixture)[rows, :frames])
        (label,) = criterion.create_mask_label(mixture[rows, :frames], [speech[rows, :frames]])
        return criterion(label, masks[rows, :frames])

    batched = loss(slice(None), 7)
    torch.testing.assert_close(batched[:1], loss(slice(1), 7), rtol=1e-14, atol=0)
    torch.testing.assert_close(batched[1:], loss(slice(1, 2), 4), rtol=1e-14, atol=0)


def test_what_is_left_of_the_noise_where_nobody_speaks_counts():
    criterion = CompressedMagnitudeMSE()
    mixture, speech = spectra(*SHAPE), spectra(*SHAPE, seed=2)
    speech[:, 3:5] = 0
    (label,) = criterion.create_mask_label(mixture, [speech])
    faintest = speech.abs().clamp_min(1e-5)
    torch.testing.assert_close(
        criterion(label, mask()), by_formula(faintest, mask() * mixture, 0.3), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("consistent", [False, True])
def test_magnitudes_below_a_hundred_thousandth_count_as_one(consistent):
    criterion = CompressedMagnitudeMSE(stft_consistency=consistent)
    reference = torch.full(SHAPE, 1.0, dtype=torch.complex128)
    for faint in (0.0, 1e-7, 0.99e-5):
        estimate = torch.full(SHAPE, faint, dtype=torch.complex128)
        if consistent:
            loss = criterion(reference, estimate)
        else:
            loss = criterion(criterion.create_mask_label(reference, [reference])[0], estimate.real)
        expected = torch.full((2,), (1 - 1e-5**0.3) ** 2, dtype=torch.float64)
        torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("consistent", [False, True])
def test_gradients(consistent):
    criterion = CompressedMagnitudeMSE(stft_consistency=consistent)
    mixture, speech = spectra(*SHAPE), spectra(*SHAPE, seed=2)

    def loss(masks):
        if consistent:
            return criterion(speech, masks * mixture)
        return criterion(criterion.create_mask_label(mixture, [speech])[0], masks)

    assert torch.autograd.gradcheck(loss, mask().requires_grad_())


@pytest.mark.parametrize("consistent", [False, True])
def test_silence_has_no_infinite_gradient(consistent):
    criterion = CompressedMagnitudeMSE(stft_consistency=consistent)
    mixture, speech, masks = spectra(*SHAPE), spectra(*SHAPE, seed=2), mask()
    mixture[0], speech[1], masks[1, 2] = 0, 0, 0
    masks.requires_grad_()
    if consistent:
        loss = criterion(speech, masks * mixture)
    else:
        loss = criterion(criterion.create_mask_label(mixture, [speech])[0], masks)
    (gradient,) = torch.autograd.grad(loss.sum(), masks)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_in_espnets_wrappers():
    criterion = CompressedMagnitudeMSE()
    mixture, one, other = (spectra(*SHAPE, seed=seed) for seed in range(3))
    labels = criterion.create_mask_label(mixture, [one, other])
    masks = [mask(5), mask(6)]
    expected = (criterion(labels[0], masks[0]) + criterion(labels[1], masks[1])).mean() / 2
    loss, stats, _ = FixedOrderSolver(criterion)(labels, masks)
    torch.testing.assert_close(loss, expected)
    assert stats == {"MSE_on_Mag^0.3": expected}
    best, _, _ = PITSolver(criterion)(labels, masks)
    swapped, _, _ = PITSolver(criterion)(labels, masks[::-1])
    torch.testing.assert_close(best, swapped)
    assert best <= loss


@pytest.mark.parametrize("exponent", [0, -0.3, 1.1, float("nan"), True])
def test_an_exponent_out_of_range_is_refused(exponent):
    with pytest.raises(OptionError, match=r"exponent=.* allowed is a number above 0 and up to 1"):
        CompressedMagnitudeMSE(exponent)


def test_other_nonsense_is_refused():
    with pytest.raises(OptionError, match=r"exponent='0.3' .* a number above 0"):
        CompressedMagnitudeMSE("0.3")
    with pytest.raises(OptionError, match=r"stft_consistency='no' .* true or false"):
        CompressedMagnitudeMSE(stft_consistency="no")
    with pytest.raises(ShapeError, match=r"got \(2, 7, 5, 2\) and \(2, 6, 5\)"):
        CompressedMagnitudeMSE()(torch.zeros(*SHAPE, 2), torch.zeros(2, 6, 5))
    with pytest.raises(ShapeError, match=r"got \(2, 7, 3, 5\) and \(2, 7, 3, 5\)"):
        CompressedMagnitudeMSE(stft_consistency=True)(*[torch.zeros(2, 7, 3, 5)] * 2)
