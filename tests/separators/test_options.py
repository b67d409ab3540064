"""Options: what is refused and in which words, what each of them does."""

import re

import pytest
import torch
from espnet2.utils.get_default_kwargs import get_default_kwargs
from torch import nn

from espnet_bimamba.errors import OptionError, UnusedOptionError
from espnet_bimamba.separators.bimamba import BiMambaSeparator, resolve_causal
from tests.separators.zoo import BINS, KINDS, build, every_kind, spectra

REFUSED = {
    "block": ({"block_type": "lstm"}, "one of independent, transformer, conformer"),
    "mixer": ({"mamba_type": "bimamba"}, "one of mamba, innbimamba, extbimamba, attention"),
    "ends": ({"ends": "authors"}, "one of normalized, plain"),
    "target": ({"target": "phase"}, "one of mask, magnitude"),
    "target_of_no_name": ({"target": ["mask"]}, "one of mask, magnitude"),
    "nonlinear": ({"nonlinear": "softmax"}, "one of sigmoid, relu, tanh with target='mask'"),
    "nonlinear_of_magnitudes": (
        {"nonlinear": "sigmoid", "target": "magnitude"},
        "one of relu with target='magnitude'",
    ),
    "causal_inn": ({"causal": True, "mamba_type": "innbimamba"}, "false with mamba_type='innbi"),
    "causal_ext": ({"causal": True, "mamba_type": "extbimamba"}, "false with mamba_type='extbi"),
    "causal_conext": (
        {"causal": True, "mamba_type": "extbimamba", "block_type": "conformer"},
        "false with mamba_type='extbimamba'. Its backward direction starts at the signal's end",
    ),
    "never_noncausal": (
        {"causal": False, "mamba_type": "mamba", "block_type": "transformer"},
        "true with mamba_type='mamba' and block_type='transformer'. Nothing in such a block",
    ),
    "causal": ({"causal": "yes", "mamba_type": "mamba"}, "true or false"),
    "predict_noise": ({"predict_noise": 1}, "true or false"),
    "num_spk": ({"num_spk": 0}, "an integer of at least 1"),
    "layers": ({"layers": 2.0}, "an integer of at least 1"),
    "heads": (
        {"aheads": 3, "mamba_type": "attention", "block_type": "transformer"},
        "a divisor of adim, which is 256",
    ),
    "kernel": ({"conformer_enc_kernel_size": 0, "block_type": "conformer"}, "an integer of at"),
    "dropout": ({"dropout_rate": 1.0}, "a number from 0 up to below 1"),
    "dropout_in_quotes": ({"dropout_rate": "0.1"}, "a number from 0 up to below 1"),
    "attention_dropout": (
        {"attention_dropout_rate": -0.1, "mamba_type": "attention", "block_type": "transformer"},
        "a number from 0 up to below 1",
    ),
    "A_init": ({"A_init": "hippo"}, "one of s4d_real, random, s4d_real_noise"),
    "fusion": ({"fusion": "add", "mamba_type": "mamba"}, "nothing with mamba_type='mamba'"),
}
UNUSED = {
    "linear_units": ({"linear_units": 512}, "block_type is independent, whose layers have no feed"),
    "kernel": ({"conformer_enc_kernel_size": 31}, "block_type is independent"),
    "kernel_of_a_transformer": (
        {"conformer_enc_kernel_size": 31, "block_type": "transformer"},
        "block_type is transformer",
    ),
    "aheads": ({"aheads": 4}, "mamba_type is extbimamba"),
    "attention_dropout": ({"attention_dropout_rate": 0.1}, "mamba_type is extbimamba"),
    "d_state": ({"d_state": 8, "mamba_type": "attention"}, "mamba_type is attention"),
    "fusion": ({"fusion": "add", "mamba_type": "attention"}, "mamba_type is attention"),
}


@pytest.mark.parametrize(("options", "allowed"), REFUSED.values(), ids=REFUSED)
def test_a_value_that_cannot_be_honoured_is_refused(options, allowed):
    option, value = next(iter(options.items()))
    message = f"{option}={value!r} is not possible: allowed is {allowed}"
    with pytest.raises(OptionError, match=re.escape(message)):
        BiMambaSeparator(BINS, **options)


@pytest.mark.parametrize(("options", "reason"), UNUSED.values(), ids=UNUSED)
def test_an_option_that_would_do_nothing_is_refused(options, reason):
    option, value = next(iter(options.items()))
    message = f"this bimamba has no option {option} (given: {value!r}): {reason}"
    with pytest.raises(UnusedOptionError, match=re.escape(message)):
        BiMambaSeparator(BINS, **options)


@every_kind
def test_a_model_is_built_again_from_the_config_that_espnet_writes(options):
    """Which holds every default."""
    BiMambaSeparator(BINS, **(get_default_kwargs(BiMambaSeparator) | {"adim": 64} | options))


@pytest.mark.parametrize(
    ("block", "mixer", "causal"),
    [
        ("independent", "mamba", True),
        ("conformer", "mamba", True),
        ("transformer", "attention", False),
        ("conformer", "extbimamba", False),
    ],
)
def test_what_is_causal_when_nothing_is_said(block, mixer, causal):
    assert resolve_causal(None, block, mixer) is causal


def test_the_normalized_ends():
    """Linear without bias, LayerNorm, ReLU; LayerNorm, linear: the authors' code."""
    separator = build(KINDS["mamba4"])
    linear, norm, relu = separator.input_layer
    assert linear.bias is None
    assert isinstance(norm, nn.LayerNorm)
    assert isinstance(relu, nn.ReLU)
    assert isinstance(separator.final_norm, nn.LayerNorm)
    assert separator.output_layers[0].bias is not None


def test_the_plain_ends():
    separator = build(KINDS["plain"])
    (linear,) = separator.input_layer
    assert linear.bias is not None
    assert not list(separator.final_norm.parameters())


def test_a_mask_multiplies_the_mixture():
    separator = build(KINDS["mamba4"])
    x = spectra(1, 12, BINS)
    (source,), _, others = separator(x, torch.tensor([12]))
    assert list(others) == ["mask_spk1"]
    mask = others["mask_spk1"]
    assert 0 < mask.min() < mask.max() < 1
    assert torch.equal(source, x * mask)


def test_a_magnitude_has_the_phase_of_the_mixture():
    separator = build(KINDS["magnitude"])
    x = spectra(1, 12, BINS)
    x[0, 3] = 0
    captured = []
    separator.nonlinear.register_forward_hook(lambda *call: captured.append(call[-1]))
    (source,), _, others = separator(x, torch.tensor([12]))
    (magnitude,) = captured
    assert magnitude.max() > magnitude.min() == 0
    heard = torch.arange(12) != 3
    torch.testing.assert_close(source.abs()[:, heard], magnitude[:, heard])
    turned = source / x
    assert turned[:, heard].imag.abs().max() < 1e-14
    assert turned[:, heard].real.min() >= 0
    assert not source[0, 3].any(), "silence has no phase"
    assert others["mask_spk1"].isfinite().all()
    faint = 1e-6 * x
    (source,), _, _ = separator(faint, torch.tensor([12]))
    torch.testing.assert_close(source.abs()[:, heard], captured[-1][:, heard])


@pytest.mark.parametrize("nonlinear", ["sigmoid", "relu", "tanh"])
def test_the_nonlinearity_of_a_mask(nonlinear):
    separator = build(KINDS["mamba4"] | {"nonlinear": nonlinear})
    captured = []
    separator.output_layers[0].register_forward_hook(lambda *call: captured.append(call[-1]))
    _, _, others = separator(spectra(1, 12, BINS), torch.tensor([12]))
    assert torch.equal(others["mask_spk1"], getattr(torch, nonlinear)(captured[0]))


def test_two_speakers_and_the_noise():
    separator = build(KINDS["two_speakers_and_noise"])
    assert separator.num_spk == 2
    x = spectra(2, 12, BINS)
    sources, _, others = separator(x, torch.tensor([12, 9]))
    assert len(sources) == 2
    assert list(others) == ["mask_spk1", "mask_spk2", "mask_noise1", "noise1"]
    masks = [others[f"mask_{name}"] for name in ("spk1", "spk2", "noise1")]
    for estimate, mask in zip([*sources, others["noise1"]], masks, strict=True):
        torch.testing.assert_close(estimate[0], x[0] * mask[0])
    assert not torch.equal(masks[0], masks[1])


def test_dropout_is_in_every_part_that_it_is_said_to_be():
    separator = BiMambaSeparator(
        BINS,
        block_type="conformer",
        mamba_type="attention",
        dropout_rate=0.25,
        attention_dropout_rate=0.5,
    )
    rates = sorted(m.p for m in separator.modules() if isinstance(m, nn.Dropout))
    assert rates == 5 * [0.25, 0.25, 0.25] + 5 * [0.5]


@pytest.mark.parametrize(
    "name", ["mamba4", "transformer4_causal", "conextbimamba4", "magnitude", "conmamba4"]
)
def test_under_autocast_spectra_stay_in_float32(name):
    separator = build(KINDS[name], torch.float32)
    x = spectra(2, 20, BINS, dtype=torch.complex64)
    (expected,), _, _ = separator(x, torch.tensor([20, 13]))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (source,), _, others = separator(x, torch.tensor([20, 13]))
    others["mask_spk1"].sum().backward()
    assert source.dtype == torch.complex64
    assert others["mask_spk1"].dtype == torch.float32
    # Masks are of the order of one half; bfloat16 has three digits.
    error = (source - expected).abs().max() / expected.abs().max()
    assert 0 < error < 0.02
    gradients = [p.grad for p in separator.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
