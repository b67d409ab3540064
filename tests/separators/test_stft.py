"""The square-root Hann pair: torch's transform, perfect reconstruction, padding, streaming."""

import pytest
import torch
from espnet2.enh.decoder.stft_decoder import STFTDecoder
from espnet2.enh.encoder.stft_encoder import STFTEncoder
from torch_complex.tensor import ComplexTensor

from espnet_bimamba.errors import OptionError
from espnet_bimamba.separators.stft import SqrtHannDecoder, SqrtHannEncoder, sqrt_hann_window
from tests.tolerances import assert_close

PAPER = {"n_fft": 512, "win_length": 512, "hop_length": 256}
SIZES = {
    "paper": PAPER,
    "short_window": {"n_fft": 64, "win_length": 48, "hop_length": 12},
    "odd": {"n_fft": 50, "win_length": 49, "hop_length": 16},
    "normalized": {"n_fft": 64, "hop_length": 32, "normalized": True},
    "twosided": {"n_fft": 64, "hop_length": 32, "onesided": False},
    "without_center": {"n_fft": 64, "hop_length": 32, "center": False},
    "compressed": {"n_fft": 64, "hop_length": 32, "spec_transform_type": "exponent"},
}
every_size = pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)


def signals(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_the_window_is_half_a_sine_whose_squares_add_up_to_one():
    window = sqrt_hann_window(512, dtype=torch.float64)
    torch.testing.assert_close(window**2, torch.hann_window(512, dtype=torch.float64))
    squares = window**2
    torch.testing.assert_close(squares[:256] + squares[256:], torch.ones(256).double())


def test_espnet_has_no_such_window():
    """Or ours would not be needed."""
    with pytest.raises(ValueError, match="sqrt_hann window is not implemented"):
        STFTEncoder(window="sqrt_hann")


@every_size
def test_it_is_torchs_transform_with_the_window(sizes):
    encoder = SqrtHannEncoder(**sizes)
    x = signals(2, 4000)
    spectrum, frames = encoder(x, torch.tensor([4000, 4000]))
    n_fft = sizes["n_fft"]
    window = sqrt_hann_window(sizes.get("win_length", n_fft), dtype=torch.float64)
    expected = torch.stft(
        x,
        n_fft,
        sizes["hop_length"],
        len(window),
        window,
        center=sizes.get("center", True),
        normalized=sizes.get("normalized", False),
        onesided=sizes.get("onesided", True),
        return_complex=True,
    ).transpose(1, 2)
    expected = encoder.spec_transform_func(expected)
    assert spectrum.dtype == torch.complex128
    assert spectrum.shape[-1] == encoder.output_dim
    assert frames.tolist() == [expected.shape[1]] * 2
    assert_close(
        "spectrum", *map(torch.view_as_real, (spectrum, expected)), torch.float64, "output"
    )


def test_what_windows_hardly_share_is_reconstructed_too():
    sizes = {"n_fft": 512, "hop_length": 511}
    encoder, decoder = SqrtHannEncoder(**sizes), SqrtHannDecoder(**sizes)
    # Seven hops: of more, no whole frame would cover the end.
    x, lengths = signals(2, 7 * 511), torch.tensor([7 * 511, 7 * 511])
    y, _ = decoder(encoder(x, lengths)[0], lengths)
    torch.testing.assert_close(y, x, rtol=0, atol=1e-9)


@every_size
@pytest.mark.parametrize("samples", [4000, 4096, 4097])
def test_reconstruction_is_perfect(sizes, samples):
    encoder, decoder = SqrtHannEncoder(**sizes), SqrtHannDecoder(**sizes)
    x, lengths = signals(2, samples), torch.tensor([samples, samples])
    y, olens = decoder(encoder(x, lengths)[0], lengths)
    assert y.shape == x.shape
    assert torch.equal(olens, lengths)
    # Without centring, what no whole frame covers is lost, and the window is zero at the start.
    covered = samples - sizes["n_fft"] if not sizes.get("center", True) else samples
    begin = 0 if sizes.get("center", True) else 1
    assert (y - x)[:, begin:covered].abs().max() < 1e-9


def test_in_float32_to_a_hundred_thousandth():
    encoder, decoder = SqrtHannEncoder(**PAPER), SqrtHannDecoder(**PAPER)
    x, lengths = signals(3, 16001, dtype=torch.float32), torch.tensor([16001, 9000, 300])
    y, _ = decoder(encoder(x, lengths)[0], lengths)
    for signal, other, length in zip(x, y, lengths, strict=True):
        assert (signal - other)[:length].abs().max() < 1e-5
        assert not other[length:].any()


def test_espnets_own_pair_fades_the_end_of_shorter_signals():
    """Or ours would have no need to treat each as if it were alone."""
    encoder, decoder = STFTEncoder(**PAPER), STFTDecoder(**PAPER)
    x, lengths = signals(2, 5000, dtype=torch.float32), torch.tensor([5000, 4000])
    y, _ = decoder(encoder(x, lengths)[0], lengths)
    assert (y - x)[0].abs().max() < 1e-5
    assert (y - x)[1, :3800].abs().max() < 1e-5
    assert (y - x)[1, 3900:4000].abs().max() > 0.1


@every_size
def test_alone_equals_batched_whatever_the_padding_holds(sizes):
    encoder, decoder = SqrtHannEncoder(**sizes), SqrtHannDecoder(**sizes)
    lengths = torch.tensor([2000, 1234, 640])
    x = signals(3, 2000)
    for signal, length in zip(x, lengths, strict=True):
        signal[length:] = float("nan")
    spectra, frames = encoder(x, lengths)
    y, _ = decoder(spectra, lengths)
    for index, length in enumerate(lengths):
        own, own_frames = encoder(x[index : index + 1, :length], lengths[index : index + 1])
        assert frames[index] == own_frames[0]
        assert torch.equal(spectra[index, : frames[index]], own[0])
        assert not spectra[index, frames[index] :].any()
        wave, _ = decoder(own, lengths[index : index + 1])
        assert_close("wave", y[index, :length], wave[0], torch.float64, "output")
        assert not y[index, length:].any()


# Without centring torch refuses a window that is zero where nothing overlaps it.
@pytest.mark.parametrize("name", [name for name in SIZES if name != "without_center"])
def test_a_single_signal_decodes_as_torch_decodes_it(name):
    sizes = SIZES[name]
    decoder = SqrtHannDecoder(**sizes)
    # Frames that no signal has: what overlaps does not agree.
    frames = signals(1, 20, sizes["n_fft"])
    spectrum = (torch.fft.rfft if sizes.get("onesided", True) else torch.fft.fft)(frames)
    window = sqrt_hann_window(decoder.win_length, dtype=torch.float64)
    expected = torch.istft(
        decoder.spec_back(spectrum).transpose(1, 2),
        sizes["n_fft"],
        sizes["hop_length"],
        decoder.win_length,
        window,
        normalized=sizes.get("normalized", False),
        onesided=sizes.get("onesided", True),
    )
    samples = torch.tensor([expected.shape[1]])
    assert_close("wave", decoder(spectrum, samples)[0], expected, torch.float64, "output")
    assert_close(
        "wave",
        decoder.stft.inverse(decoder.spec_back(spectrum))[0],
        expected,
        torch.float64,
        "output",
    )


def test_channels_are_transformed_each():
    encoder, decoder = SqrtHannEncoder(**PAPER), SqrtHannDecoder(**PAPER)
    x, lengths = signals(2, 3000, 3), torch.tensor([3000, 2000])
    spectra, frames = encoder(x, lengths)
    assert spectra.shape == (2, 12, 3, 257)
    for channel in range(3):
        own, own_frames = encoder(x[..., channel], lengths)
        assert torch.equal(spectra[:, :, channel], own)
        assert torch.equal(frames, own_frames)
    y, _ = decoder(spectra, lengths)
    assert y.shape == x.shape
    assert (y - x)[0].abs().max() < 1e-12


def test_torch_complex_half_precision_and_another_rate():
    encoder = SqrtHannEncoder(**PAPER, use_builtin_complex=False)
    decoder = SqrtHannDecoder(**PAPER)
    x, lengths = signals(1, 3000), torch.tensor([3000])
    spectra, _ = encoder(x, lengths)
    assert isinstance(spectra, ComplexTensor)
    assert (decoder(spectra, lengths)[0] - x).abs().max() < 1e-12
    half = SqrtHannEncoder(**PAPER)
    expected, _ = half(x.float(), lengths)
    rounded, _ = encoder(x.half(), lengths)
    assert rounded.real.dtype == torch.float16
    assert (rounded.real.float() - expected.real).abs().max() < 0.02
    # At twice the rate twice the samples: windows keep their duration.
    spectra, frames = half(signals(1, 6000), 2 * lengths, fs=32000)
    assert spectra.shape == (1, 12, 513)
    assert frames.tolist() == [12]
    assert half(x, lengths)[0].shape == (1, 12, 257)


# ESPnet's streaming does not honour `normalized`, and shifts odd windows by half a sample.
@pytest.mark.parametrize(
    "name", ["paper", "short_window", "twosided", "without_center", "compressed"]
)
def test_frame_by_frame_as_espnets_streaming_does_it(name):
    sizes = SIZES[name]
    encoder, decoder = SqrtHannEncoder(**sizes), SqrtHannDecoder(**sizes)
    x, lengths = signals(2, 2000), torch.tensor([2000, 2000])
    whole, _ = encoder(x, lengths)
    frames = [encoder.forward_streaming(frame) for frame in encoder.streaming_frame(x)]
    pair = map(torch.view_as_real, (torch.cat(frames, dim=1), whole))
    assert_close("frames", *pair, torch.float64, "output")
    waves = [decoder.forward_streaming(frame) for frame in frames]
    if decoder.center:
        merged = decoder.streaming_merge(waves, lengths)
        assert (merged - x).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("ours", "stock"), [(SqrtHannEncoder, STFTEncoder), (SqrtHannDecoder, STFTDecoder)]
)
def test_options_are_espnets_but_for_the_window(ours, stock):
    from espnet2.utils.get_default_kwargs import get_default_kwargs

    assert get_default_kwargs(ours) == get_default_kwargs(stock) | {"window": "sqrt_hann"}
    with pytest.raises(
        OptionError, match="window='hann' is not possible: allowed is sqrt_hann here"
    ):
        ours(window="hann")
    with pytest.raises(OptionError, match=r"hop_length=512 .* less than win_length, which is 512"):
        SqrtHannEncoder(n_fft=512, hop_length=512)
    with pytest.raises(TypeError, match="hopp"):
        ours(hopp=3)
