"""Frame by frame and in chunks, a causal Mamba gives what the whole signal gives."""

import copy

import pytest
import torch

from espnet_bimamba.errors import OptionError, ShapeError
from tests.separators.zoo import BINS, KINDS, build, spectra
from tests.tolerances import assert_close

STREAMING = {
    name: options
    for name, options in KINDS.items()
    if options["mamba_type"] == "mamba" and options.get("causal") is not False
}
every_streaming_kind = pytest.mark.parametrize("options", STREAMING.values(), ids=STREAMING)
FRAMES = 40
CUTS = {"frames": [1] * FRAMES, "chunks": [7, 1, 2, 17, 13], "one": [FRAMES]}


def stream(separator, x, cuts):
    states, sources, masks = None, [], []
    for chunk in x.split(cuts, dim=1):
        (source, *_), states, others = separator.forward_streaming(chunk, states)
        sources.append(source)
        masks.append(others["mask_spk1"])
    return torch.cat(sources, dim=1), torch.cat(masks, dim=1)


@every_streaming_kind
@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
def test_the_chunks_give_what_the_whole_gives(options, cuts):
    separator = build(options)
    x = spectra(2, FRAMES, BINS)
    (whole, *_), _, others = separator(x, torch.tensor([FRAMES, FRAMES]))
    source, mask = stream(separator, x, cuts)
    pair = (torch.view_as_real(out) for out in (source, whole))
    assert_close("source", *pair, torch.float64, "output")
    assert_close("mask", mask, others["mask_spk1"], torch.float64, "output")


@every_streaming_kind
def test_in_float32_to_a_hundred_thousandth(options):
    separator = build(options, torch.float32)
    x = spectra(2, FRAMES, BINS, dtype=torch.complex64)
    (whole, *_), _, others = separator(x, torch.tensor([FRAMES, FRAMES]))
    source, mask = stream(separator, x, CUTS["frames"])
    assert (mask - others["mask_spk1"]).abs().max() < 1e-5
    assert (source - whole).abs().max() < 1e-5


@every_streaming_kind
@torch.no_grad()
def test_a_call_leaves_the_states_it_was_given_as_they_were(options):
    separator = build(options)
    x = spectra(2, 10, BINS)
    _, states, _ = separator.forward_streaming(x[:, :5])
    before = copy.deepcopy(states)
    (first, *_), _, _ = separator.forward_streaming(x[:, 5:], states)
    (again, *_), _, _ = separator.forward_streaming(x[:, 5:], states)
    assert torch.equal(first, again)
    for state, old in zip(states, before, strict=True):
        assert all(map(torch.equal, state.mixer, old.mixer))
        assert (state.frames is None) == (options.get("block_type") != "conformer")
        assert state.frames is None or torch.equal(state.frames, old.frames)
    (fresh, *_), _, _ = separator.forward_streaming(x[:, 5:])
    assert not torch.equal(first, fresh), "the past must count"


@every_streaming_kind
def test_the_states_do_not_grow(options):
    separator = build(options)
    sizes = []
    states = None
    for _ in range(3):
        _, states, _ = separator.forward_streaming(spectra(1, 50, BINS), states)
        tensors = [t for s in states for t in (*s.mixer, s.frames) if t is not None]
        sizes.append([tuple(t.shape) for t in tensors])
    assert sizes[0] == sizes[1] == sizes[2]


@pytest.mark.parametrize("name", [name for name in KINDS if name not in STREAMING])
def test_the_other_kinds_say_why_they_cannot(name):
    separator = build(KINDS[name])
    reasons = {
        "mamba": "causal=False is not possible: allowed is true for streaming. The convolution",
        "attention": "mamba_type='attention' .* mamba for streaming. Attention would keep every",
        "innbimamba": "mamba_type='innbimamba' .* mamba for streaming. Its backward direction",
        "extbimamba": "mamba_type='extbimamba' .* mamba for streaming. Its backward direction",
    }
    with pytest.raises(OptionError, match=reasons[separator.mamba_type]):
        separator.forward_streaming(spectra(1, 1, BINS))


def test_a_frame_of_another_shape_is_refused():
    with pytest.raises(ShapeError, match=r"\(batch, frames, 9\), got \(1, 9\)"):
        build(KINDS["mamba4"]).forward_streaming(spectra(1, BINS))
