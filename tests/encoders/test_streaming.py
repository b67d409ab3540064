"""A causal encoder's chunks give what the whole utterance gives, in memory that does not grow."""

import copy
import inspect
from pathlib import Path

import pytest
import torch
import yaml
from espnet2.asr.encoder.contextual_block_conformer_encoder import ContextualBlockConformerEncoder
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from torch import nn

from espnet_bimamba.encoders.conbimamba import ConBiMambaEncoder
from espnet_bimamba.errors import LengthsError, OptionError, UnusedOptionError
from tests.encoders.zoo import ENCODERS, FEATURES, build, inputs
from tests.tolerances import assert_close

#: Inputs between two frames, and inputs that a frame sees, from the kernels and strides in
#: ESPnet's documentation of its input layers: 3, 3 with strides 2, 2 for conv2d, and so on.
LOCAL = {
    "conv2d": (4, 7),
    "conv2d1": (1, 5),
    "conv2d2": (2, 7),
    "conv2d6": (6, 11),
    "conv2d8": (8, 15),
    "conv1d2": (2, 5),
    "linear": (1, 1),
    None: (1, 1),
}
STREAMING = ("conbimamba", "transbimamba", "bimamba")
# Options whose layers do something else in chunks, or might.
OTHERS = {
    "conbimamba": {
        "macaron": {"macaron_style": True},
        "concat_after": {"concat_after": True},
        "post_norm": {"normalize_before": False},
        "no_cnn_module": {"use_cnn_module": False},
        "mask_batch_norm": {"mask_batch_norm": True},
        "stack": {"layer_drop_rate": 0.5, "gradient_checkpoint_layers": [0, 1]},
        "sizes": {"d_state": 7, "d_conv": 1, "cnn_module_kernel": 31},
        "interctc": {"interctc_layer_idx": [1]},
    },
    "transbimamba": {
        "wav2vec": {"input_layer": "wav2vec", "output_size": FEATURES},
        "post_norm": {"normalize_before": False},
    },
    "bimamba": {"no_residual": {"residual": False}, "ffn": {"ffn": True, "linear_units": 12}},
}
INPUT_LAYERS = [
    (name, layer)
    for name in STREAMING
    for layer in LOCAL
    if layer is None or any(o.get("input_layer") == layer for o in ENCODERS[name].options.values())
]
KINDS = {
    **{
        f"{name}-{layer}": (name, {"input_layer": layer} | ({} if layer else {"output_size": 20}))
        for name, layer in INPUT_LAYERS
    },
    **{f"{n}-{id}": (n, options) for n, row in OTHERS.items() for id, options in row.items()},
}
every_kind = pytest.mark.parametrize(("name", "options"), KINDS.values(), ids=KINDS)
every_streaming = pytest.mark.parametrize("name", STREAMING)

LENGTH = 61
CUTS = {
    "frames": [1] * LENGTH,
    "chunks": [0, 3, 17, 1, 0, 4, 2, 34],
    "nothing_last": [LENGTH, 0],
    "one": [LENGTH],
}


def causal(name, dtype=torch.float64, **options):
    return build(name, dtype=dtype, mamba_type="mamba", causal=True, **options).eval()


def encode(encoder, x):
    out, olens, state = encoder(x, torch.full((len(x),), x.shape[1]))
    assert state is None
    return (out[0] if isinstance(out, tuple) else out), olens


def stream(encoder, x, cuts):
    """Call the encoder as ``espnet2.bin.asr_inference_streaming`` does; return all it gave."""
    state, outs = None, []
    chunks = x.split(cuts, dim=1)
    for number, chunk in enumerate(chunks):
        lengths, last = torch.full((len(x),), chunk.shape[1]), number == len(chunks) - 1
        out, olens, state = encoder(chunk, lengths, state, is_final=last, infer_mode=True)
        assert olens.tolist() == [out.shape[1]] * len(x)
        assert olens.dtype == torch.int64
        outs.append(out)
    assert state is None
    return outs


@every_kind
@torch.no_grad()
def test_the_chunks_give_what_the_whole_gives(name, options):
    encoder, x = causal(name, **options), inputs(2, LENGTH, FEATURES)
    whole, olens = encode(encoder, x)
    for cut, lengths in CUTS.items():
        outs = stream(encoder, x, lengths)
        assert_close(cut, torch.cat(outs, dim=1), whole, torch.float64, "output")
        assert [sum(out.shape[1] for out in outs)] * 2 == olens.tolist()


@every_kind
@torch.no_grad()
def test_in_float32_to_a_hundred_thousandth(name, options):
    encoder, x = causal(name, torch.float32, **options), inputs(2, LENGTH, FEATURES).float()
    whole, _ = encode(encoder, x)
    out = torch.cat(stream(encoder, x, CUTS["frames"]), dim=1)
    assert (out - whole).abs().max() < 1e-5
    assert whole.abs().max() > 0.5


@every_streaming
@torch.no_grad()
def test_tokens_in_chunks(name):
    encoder = causal(name, features=11, input_layer="embed")
    tokens = torch.randint(0, 11, (2, 12), generator=torch.Generator().manual_seed(0))
    whole, _ = encode(encoder, tokens)
    out = torch.cat(stream(encoder, tokens, [1, 0, 4, 7]), dim=1)
    assert_close("output", out, whole, torch.float64, "output")


@pytest.mark.parametrize(("name", "input_layer"), INPUT_LAYERS)
def test_a_frame_sees_its_inputs_and_none_behind(name, input_layer):
    stride, field = LOCAL[input_layer]
    options = {} if input_layer else {"output_size": FEATURES}
    encoder = causal(name, input_layer=input_layer, **options)
    x = inputs(1, LENGTH, FEATURES).requires_grad_()
    whole, _ = encode(encoder, x)
    assert whole.shape[1] == (LENGTH - field) // stride + 1
    for frame in (0, 2):
        end = frame * stride + field
        (gradient,) = torch.autograd.grad(whole[:, : frame + 1].pow(2).sum(), x, retain_graph=True)
        assert not gradient[:, end:].any()
        assert gradient[:, :end].abs().amax(dim=-1).min() > 0


@pytest.mark.parametrize(("name", "input_layer"), INPUT_LAYERS)
@torch.no_grad()
def test_a_frame_comes_with_the_last_of_its_inputs(name, input_layer):
    stride, field = LOCAL[input_layer]
    options = {} if input_layer else {"output_size": FEATURES}
    encoder = causal(name, input_layer=input_layer, **options)
    given = [out.shape[1] for out in stream(encoder, inputs(1, LENGTH, FEATURES), CUTS["frames"])]
    due = range(field, LENGTH + 1, stride)
    assert given == [int(heard in due) for heard in range(1, LENGTH + 1)]


def test_without_causal_the_convolution_module_sees_later_frames():
    encoder = build("conbimamba", mamba_type="mamba", input_layer="linear").eval()
    x = inputs(1, 20, FEATURES).requires_grad_()
    whole, _ = encode(encoder, x)
    (gradient,) = torch.autograd.grad(whole[:, :10].pow(2).sum(), x)
    # Two layers with kernels of five.
    assert gradient[:, 10:].abs().amax(dim=-1).nonzero()[-1, 1] == 3


@every_streaming
def test_training_is_the_same_computation(name):
    encoder, x = causal(name), inputs(2, LENGTH, FEATURES)
    expected, _ = encode(encoder, x)
    encoder.train()
    for module in encoder.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eval()
    trained, _, state = encoder(x, torch.tensor([LENGTH] * 2), is_final=False, infer_mode=True)
    assert state is None
    assert_close("output", trained, expected, torch.float64, "output")


@every_streaming
@torch.no_grad()
def test_flags_may_come_by_their_place_as_espnets_encoders_have_them(name):
    stock = inspect.signature(ContextualBlockConformerEncoder.forward)
    assert list(stock.parameters)[4:] == ["is_final", "infer_mode"]
    encoder, x = causal(name), inputs(2, LENGTH, FEATURES)
    lengths = torch.tensor([LENGTH] * 2)
    expected = encoder(x, lengths, None, is_final=False, infer_mode=True)
    out, olens, state = encoder(x, lengths, None, False, True)
    assert torch.equal(out, expected[0])
    assert torch.equal(olens, expected[1])
    assert all(map(torch.equal, tensors(state), tensors(expected[2])))
    whole, _ = encode(encoder, x)
    for flags in [(True,), (True, False), (False, False)]:
        assert torch.equal(encoder(x, lengths, None, *flags)[0], whole)
    # Where stock's whole-utterance encoders have masks and ctc, nothing has changed.
    assert torch.equal(encoder(x, lengths, None, None)[0], whole)
    with pytest.raises(TypeError, match="positional arguments"):
        encoder(x, lengths, None, True, False, None)


@every_streaming
@torch.no_grad()
def test_a_call_leaves_the_state_it_was_given_as_it_was(name):
    encoder, x = causal(name), inputs(2, 40, FEATURES)
    lengths = torch.tensor([20, 20])
    _, _, state = encoder.forward_chunk(x[:, :20], lengths)
    before = copy.deepcopy(state)
    first, _, _ = encoder.forward_chunk(x[:, 20:], lengths, state)
    again, _, _ = encoder.forward_chunk(x[:, 20:], lengths, state)
    assert torch.equal(first, again)
    for now, then in zip(tensors(state), tensors(before), strict=True):
        assert torch.equal(now, then)
    fresh, _, _ = encoder.forward_chunk(x[:, 20:], lengths)
    assert first.shape[1] == fresh.shape[1] + 1
    assert not torch.equal(first[:, 1:], fresh), "the past must count"


def tensors(state):
    layers = [t for layer in state.layers for t in (*layer.mixer, layer.frames)]
    return [state.pending, *(t for t in layers if t is not None)]


def held(state):
    """Bytes that the state keeps alive: of whole storages, of which a tensor may be a view."""
    storages = {s.data_ptr(): s.nbytes() for s in (t.untyped_storage() for t in tensors(state))}
    return sum(storages.values())


@torch.no_grad()
def test_an_hour_takes_the_state_of_a_chunk():
    """360,000 features of 10 ms, half a second at a time, and they are the whole hour's."""
    encoder = causal("conbimamba", torch.float32, num_blocks=1)
    x = inputs(1, 360_000, FEATURES, dtype=torch.float32)
    state, outs, sizes = None, [], []
    for chunk in x.split(3200, dim=1):
        out, _, state = encoder.forward_chunk(chunk, torch.tensor([chunk.shape[1]]), state)
        outs.append(out)
        sizes.append(held(state))
    assert max(sizes) == sizes[0]
    # Three inputs, the window and states of a Mamba of 16 channels, and the convolution's past.
    assert sizes[0] <= 4 * (6 * FEATURES + 16 * 3 + 16 * 4 + 8 * 4)
    whole, _ = encode(encoder, x)
    assert whole.shape[1] == 89_999
    assert (torch.cat(outs, dim=1) - whole).abs().max() < 1e-5


REFUSED = {
    "innbimamba": ({"mamba_type": "innbimamba"}, "It reads later frames."),
    "extbimamba": ({"mamba_type": "extbimamba"}, "It reads later frames."),
    "attention": ({"mamba_type": "attention"}, "It reads later frames."),
    "abs_pos": (
        {"pos_enc_layer_type": "abs_pos"},
        "A table of positions would grow with the utterance.",
    ),
    "scaled_abs_pos": (
        {"pos_enc_layer_type": "scaled_abs_pos"},
        "A table of positions would grow with the utterance.",
    ),
    "conv1d": ({"positionwise_layer_type": "conv1d"}, "Its convolution reads later frames."),
    "conditioning": (
        {"interctc_use_conditioning": True},
        "ESPnet's streaming programs give the encoder no CTC layer.",
    ),
}


@every_streaming
@pytest.mark.parametrize(("options", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_causal_is_refused_by_name(name, options, reason):
    ffn = {"ffn": True} if name == "bimamba" else {}
    with pytest.raises(OptionError) as error:
        build(name, **({"mamba_type": "mamba", "causal": True} | ffn | options))
    [(option, value)] = options.items()
    expected = f"causal=True is not possible: allowed is false with {option}={value!r}. {reason}"
    assert str(error.value) == expected


def test_causal_with_the_default_mixer_names_it():
    with pytest.raises(OptionError, match="allowed is false with mamba_type='extbimamba'"):
        build("conbimamba", causal=True)


BLOCKS = {"look_ahead": 0, "hop_size": 1, "block_size": 1}


@every_streaming
@pytest.mark.parametrize("option", BLOCKS)
def test_blocks_are_refused_by_name(name, option):
    causal(name, **BLOCKS)
    with pytest.raises(OptionError) as error:
        causal(name, **{option: 16})
    assert str(error.value) == (
        f"{option}=16 is not possible: allowed is {BLOCKS[option]} with causal: true. "
        "Each frame is encoded as it comes."
    )
    with pytest.raises(UnusedOptionError) as error:
        build(name, mamba_type="mamba", **{option: BLOCKS[option]})
    assert str(error.value) == (
        f"{name} has no option {option} (given: {BLOCKS[option]}): it has no blocks; "
        "remove the line, or add causal: true"
    )


@every_streaming
def test_an_encoder_that_is_not_causal_says_so(name):
    encoder = build(name, mamba_type="mamba").eval()
    with pytest.raises(OptionError) as error:
        encoder(inputs(1, 9, FEATURES), torch.tensor([9]), is_final=False, infer_mode=True)
    assert str(error.value) == (
        "causal=False is not possible: allowed is true for streaming. "
        "Its frames read the whole utterance."
    )


@every_streaming
@pytest.mark.parametrize(
    "input_layer", [layer for layer in LOCAL if layer and layer.startswith("conv2d")]
)
def test_an_utterance_too_short_for_the_subsampling_raises_espnets_error(name, input_layer):
    encoder, (_, field) = causal(name, input_layer=input_layer), LOCAL[input_layer]
    x = inputs(1, field, FEATURES)
    assert [out.shape[1] for out in stream(encoder, x, [1, field - 1])] == [0, 1]
    with pytest.raises(TooShortUttError, match=f"has {field - 1} frames") as error:
        stream(encoder, x[:, :-1], [1, field - 2])
    assert (error.value.actual_size, error.value.limit) == (field - 1, field)


def test_the_example_in_the_documentation_builds():
    text = (Path(__file__).parents[2] / "docs" / "streaming.md").read_text()
    example = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    assert example["encoder"] == ConBiMambaEncoder.name
    with torch.device("meta"):
        assert ConBiMambaEncoder(80, **example["encoder_conf"]).causal


@pytest.mark.parametrize("lengths", [[9, 8], [10, 10], [0, 0]], ids=repr)
def test_a_chunk_has_no_padding(lengths):
    with pytest.raises(LengthsError, match="must be its 9 frames for each utterance") as error:
        causal("bimamba").forward_chunk(inputs(2, 9, FEATURES), torch.tensor(lengths))
    assert str(lengths) in str(error.value)


@every_streaming
def test_espnets_programs_take_it_for_one_of_their_encoders_and_nothing_of_that_is_built(name):
    encoder = build(name, mamba_type="mamba")
    assert isinstance(encoder, ContextualBlockConformerEncoder)
    theirs = ContextualBlockConformerEncoder(
        FEATURES, output_size=8, num_blocks=2, attention_heads=1
    )
    ours = set(vars(encoder)) | set(encoder._modules)
    assert not {"block_size", "hop_size", "look_ahead", "pos_enc"} & ours
    assert {"block_size", "hop_size", "look_ahead", "pos_enc"} <= set(vars(theirs)) | set(
        theirs._modules
    )
    assert type(encoder).forward.__module__ == "espnet_bimamba.encoders.streaming"
