"""In every causal row of the paper no output sees a later frame; in every other one some do."""

import pytest
import torch
from torch import nn

from espnet_bimamba.convolution import PaddedConvolutionModule
from espnet_bimamba.separators.bimamba import BiMambaSeparator
from espnet_bimamba.separators.stft import SqrtHannDecoder, SqrtHannEncoder
from tests.separators.zoo import BINS, KINDS, ROWS, build, every_kind, spectra

# More frames than the kernel of 32 sees.
FRAMES = 40
CUT = 35
# As many bins as the separators under test have; the paper's are 512 and 256.
WINDOW, HOP = 2 * (BINS - 1), BINS - 1
# At the paper's depth and kernel, in few channels.
SIZES = {
    name: {"conformer_enc_kernel_size": 32} if row.options["block_type"] == "conformer" else {}
    for name, row in ROWS.items()
}
CAUSAL = {name: row.options | SIZES[name] for name, row in ROWS.items() if row.causal}
NONCAUSAL = {name: row.options | SIZES[name] for name, row in ROWS.items() if not row.causal}
every_causal_row = pytest.mark.parametrize("options", CAUSAL.values(), ids=CAUSAL)
every_other_row = pytest.mark.parametrize("options", NONCAUSAL.values(), ids=NONCAUSAL)


def past_and_future_gradients(separator: BiMambaSeparator) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the outputs before the cut, by the inputs before it and from it on."""
    x = spectra(2, FRAMES, BINS).requires_grad_()
    (out, *_), _, _ = separator(x, torch.tensor([FRAMES, FRAMES - 2]))
    weights = spectra(2, FRAMES, BINS, seed=2)
    loss = (out[:, :CUT] * weights[:, :CUT]).abs().sum()
    (gradient,) = torch.autograd.grad(loss, x)
    return gradient[:, :CUT], gradient[:, CUT:]


@every_causal_row
def test_gradients_by_future_frames_are_exactly_zero(options):
    past, future = past_and_future_gradients(build(options))
    assert past.abs().amax(dim=(0, 2)).min() > 0
    assert torch.equal(future, torch.zeros_like(future))


@every_causal_row
def test_another_future_moves_no_bit_of_the_past(options):
    separator = build(options)
    x = spectra(2, FRAMES, BINS)
    other = x.clone()
    other[:, CUT:] = 100 * spectra(2, FRAMES - CUT, BINS, seed=3)
    lengths = torch.tensor([FRAMES, FRAMES])
    (out,), _, others = separator(x, lengths)
    (changed,), _, changed_others = separator(other, lengths)
    assert torch.equal(out[:, :CUT], changed[:, :CUT])
    assert torch.equal(others["mask_spk1"][:, :CUT], changed_others["mask_spk1"][:, :CUT])
    assert not torch.equal(others["mask_spk1"][:, CUT:], changed_others["mask_spk1"][:, CUT:])


@every_other_row
def test_the_other_rows_see_the_future(options):
    _, future = past_and_future_gradients(build(options))
    assert future[0].abs().amax(dim=-1).min() > 0 or options["block_type"] == "conformer"
    assert future[0].abs().max() > 0


@every_kind
def test_a_separator_says_whether_it_is_causal(options):
    separator = build(options)
    _, future = past_and_future_gradients(separator)
    assert separator.causal == (not future.any())


def test_every_kind_of_a_row_is_among_those_that_other_tests_take():
    kinds = {(kind.get("block_type"), kind["mamba_type"]) for kind in KINDS.values()}
    assert kinds >= {
        (row.options["block_type"], row.options["mamba_type"]) for row in ROWS.values()
    }


@every_causal_row
@torch.no_grad()
def test_from_sound_to_sound_only_a_window_is_waited_for(options):
    """A sample is in two windows, of which the later ends up to a window behind it."""
    separator, sizes = build(options), {"n_fft": WINDOW, "win_length": WINDOW, "hop_length": HOP}
    encoder, decoder = SqrtHannEncoder(**sizes), SqrtHannDecoder(**sizes)

    def enhanced(x):
        lengths = torch.tensor([x.shape[1]])
        (source, *_), _, _ = separator(*encoder(x, lengths))
        return decoder(source, lengths)[0]

    x = torch.randn(1, 40 * HOP, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = enhanced(x)
    for cut in (35 * HOP, 35 * HOP + 1, 36 * HOP - 1):
        other = x.clone()
        other[:, cut:] += 1.0
        moved = (enhanced(other) - before)[0].abs()
        assert moved[: cut - (WINDOW - 1)].max() < 1e-12
        assert moved[cut:].max() > 0.01
    # The last cut is at the end of a window, whose first sample has no weight.
    assert moved[cut - (WINDOW - 2)] > 1e-6


@pytest.mark.parametrize(
    ("kernel", "causal", "past", "future"),
    [
        (32, False, 16, 15),
        (31, False, 15, 15),
        (32, True, 31, 0),
        (31, True, 30, 0),
        (1, True, 0, 0),
    ],
)
def test_what_a_convolution_sees(kernel, causal, past, future):
    """An even kernel's frame more is one of the past."""
    torch.manual_seed(0)
    module = PaddedConvolutionModule(2, kernel, nn.SiLU(), causal).double().eval()
    x = torch.randn(1, 81, 2, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(module(x)[0, 40].sum(), x)
    seen = gradient[0].abs().sum(-1).nonzero().flatten()
    assert (seen.min().item(), seen.max().item(), len(seen)) == (40 - past, 40 + future, kernel)


@pytest.mark.parametrize("kernel", [1, 5, 31])
def test_an_odd_kernel_that_is_not_causal_is_espnets_module(kernel):
    from espnet2.legacy.nets.pytorch_backend.conformer.convolution import ConvolutionModule

    torch.manual_seed(0)
    ours = PaddedConvolutionModule(6, kernel, nn.SiLU(), causal=False).double()
    stock = ConvolutionModule(6, kernel, nn.SiLU()).double()
    stock.load_state_dict(ours.state_dict())
    x = torch.randn(2, 40, 6, dtype=torch.float64)
    mask = torch.arange(40) < torch.tensor([40, 33])[:, None, None]
    for training in (True, False):
        expected = stock.train(training)(x, mask_pad=mask)
        torch.testing.assert_close(
            ours.train(training)(x, mask_pad=mask), expected, rtol=0, atol=1e-14
        )
