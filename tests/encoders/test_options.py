"""``encoder_conf``: what is taken, what is refused by name, what ESPnet sees of it."""

import inspect
import re
from pathlib import Path

import pytest
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError
from espnet2.utils.get_default_kwargs import get_default_kwargs

from espnet_bimamba.encoders.options import REFUSED, REFUSED_POSITIONS
from espnet_bimamba.errors import LengthsError, OptionError, ShapeError, UnusedOptionError
from espnet_bimamba.layers.bimamba import InnBiMamba
from espnet_bimamba.layers.mamba import Mamba
from espnet_bimamba.layers.mixers import build_mixer
from espnet_bimamba.registry import ENCODERS as REGISTERED
from espnet_bimamba.separators.bimamba import BiMambaSeparator
from tests.encoders.zoo import COMMON, ENCODERS, FEATURES, build, every_encoder, inputs

OURS = {"mamba_type", "fusion", "A_init", "d_state", "d_conv", "expand", "dt_rank"}


def test_every_registered_encoder_is_in_the_table_of_tests():
    classes = {n: f"{e.cls.__module__}:{e.cls.__qualname__}" for n, e in ENCODERS.items()}
    assert classes == REGISTERED
    assert set(REFUSED) == set(REGISTERED)
    assert all(encoder.cls.name == name for name, encoder in ENCODERS.items())


@every_encoder
def test_espnet_sees_ours_and_the_stock_options_but_for_the_refused(name):
    encoder = ENCODERS[name]
    seen = set(inspect.signature(encoder.cls).parameters)
    stock = set(inspect.signature(encoder.stock).parameters)
    assert seen >= OURS
    assert {"gradient_checkpoint_layers", "pos_enc_layer_type"} <= seen
    assert stock - set(REFUSED[name]) <= seen
    assert not seen & set(REFUSED[name])


@every_encoder
def test_the_readmes_table_has_every_option_that_stock_has_not(name):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    rows = text.partition("## Options\n")[2].partition("\n## ")[0].splitlines()
    keys = [row.split("|")[1] for row in rows if row.startswith("|")]
    told = {name for key in keys for name in re.findall(r"`(\w+)`", key)}
    encoder = ENCODERS[name]
    ours = set(inspect.signature(encoder.cls).parameters)
    ours -= set(inspect.signature(encoder.stock).parameters) | {"input_size", "kwargs"}
    assert ours <= told


#: Everything that has the options of a mixer written out; ExtBiMamba hands them to its Mambas.
WITH_MIXERS = [*(encoder.cls for encoder in ENCODERS.values()), Mamba, InnBiMamba, BiMambaSeparator]


@pytest.mark.parametrize("cls", WITH_MIXERS, ids=lambda cls: cls.__name__)
def test_a_mixers_options_have_the_readmes_defaults_everywhere(cls):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    [A_init] = re.findall(r"^\| `A_init` \| `(\w+)` \|", text, re.MULTILINE)
    [sizes] = re.findall(
        r"^\| `d_state`, `d_conv`, `expand`, `dt_rank` \| (\d+), (\d+), (\d+), `(\w+)` \|",
        text,
        re.MULTILINE,
    )
    options = inspect.signature(cls).parameters
    names = ("d_state", "d_conv", "expand", "dt_rank")
    assert options["A_init"].default == A_init == "s4d_real_noise"
    assert tuple(str(options[name].default) for name in names) == sizes == ("16", "4", "2", "auto")


def test_of_a_mixers_defaults_alone_attention_has_no_use():
    """With any other it would be refused, as one that silently does nothing."""
    options = inspect.signature(Mamba).parameters
    names = ("A_init", "d_state", "d_conv", "expand", "dt_rank")
    build_mixer("attention", 8, **{name: options[name].default for name in names})


@every_encoder
def test_a_config_with_every_default_written_out_builds(name):
    """ESPnet merges the defaults into the config.yaml from which a model is loaded again."""
    defaults = get_default_kwargs(ENCODERS[name].cls)
    assert not set(defaults) & set(REFUSED[name])
    assert defaults["mamba_type"] == "extbimamba"
    assert defaults["A_init"] == "s4d_real_noise"
    assert defaults["pos_enc_layer_type"] == "none"
    small = {"output_size": 8, "num_blocks": 1}
    encoder = ENCODERS[name].cls(FEATURES, **(defaults | small))
    assert encoder.output_size() == 8
    stock = get_default_kwargs(ENCODERS[name].stock)
    for option in set(stock) & set(defaults) - {"pos_enc_layer_type"}:
        assert stock[option] == defaults[option] or not (stock[option] or defaults[option]), option


@every_encoder
def test_the_paper_s_sizes_are_the_defaults(name):
    encoder = ENCODERS[name].cls(80, num_blocks=1)
    mixer = getattr(encoder.encoders[0], ENCODERS[name].attention).mixer
    assert encoder.output_size() == 256
    assert sum(p.numel() for p in mixer.parameters()) == 875_520


EVERY_REFUSED = [(name, key) for name in ENCODERS for key in REFUSED[name]]


@pytest.mark.parametrize(("name", "key"), EVERY_REFUSED, ids=[f"{n}-{k}" for n, k in EVERY_REFUSED])
def test_a_key_that_means_nothing_is_refused_by_name(name, key):
    parameters = inspect.signature(ENCODERS[name].stock).parameters
    default = parameters[key].default if key in parameters else "of another encoder"
    with pytest.raises(UnusedOptionError) as error:
        build(name, **{key: default})
    assert (
        str(error.value)
        == f"{name} has no option {key} (given: {default!r}): " + (REFUSED[name][key])
    )


@every_encoder
@pytest.mark.parametrize("positions", [*REFUSED_POSITIONS, "sinusoidal", "", None])
def test_other_positions_are_refused(name, positions):
    with pytest.raises(OptionError) as error:
        build(name, pos_enc_layer_type=positions)
    expected = (
        f"pos_enc_layer_type={positions!r} is not possible: "
        "allowed is one of none, abs_pos, scaled_abs_pos."
    )
    assert str(error.value) == f"{expected} {REFUSED_POSITIONS.get(positions, '')}".rstrip()


@pytest.mark.parametrize("name", ["transbimamba", "bimamba", "e_branchbimamba"])
def test_positions_are_refused_where_espnet_has_no_place_for_them(name):
    with pytest.raises(OptionError, match="allowed is none with this input_layer"):
        build(name, input_layer=None, pos_enc_layer_type="abs_pos")
    build(name, input_layer=None, pos_enc_layer_type="none")


BAD_OPTIONS = {
    "mamba_type": ("mamba2", "one of mamba, innbimamba, extbimamba, attention"),
    "fusion": ("sum", "one of add, concat"),
    "A_init": ("s4d_lin", "one of s4d_real, random, s4d_real_noise"),
    "d_state": (1000, "an integer from 1 to 256"),
    "d_conv": ("4", "an integer of at least 1"),
    "expand": (0.5, "an integer of at least 1"),
    "dt_rank": ("Auto", 'an integer of at least 1 or "auto"'),
    "gradient_checkpoint_layers": ([3], "a list of indices from 0 (the input layer) to 2"),
}


@every_encoder
@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_a_bad_value_is_refused_by_option_value_and_remedy(name, option):
    value, allowed = BAD_OPTIONS[option]
    with pytest.raises(OptionError) as error:
        build(name, **{option: value})
    assert str(error.value) == f"{option}={value!r} is not possible: allowed is {allowed}."


FLAGS = [("conbimamba", "mask_batch_norm"), ("bimamba", "residual"), ("bimamba", "ffn")]


@pytest.mark.parametrize(("name", "option"), FLAGS)
@pytest.mark.parametrize("value", ["no", "false", 0, None], ids=repr)
def test_a_flag_is_true_or_false(name, option, value):
    with pytest.raises(OptionError) as error:
        build(name, **{option: value})
    assert str(error.value) == f"{option}={value!r} is not possible: allowed is true or false."


def test_without_batch_norm_there_is_none_to_mask():
    with pytest.raises(OptionError, match="allowed is false with use_cnn_module: false"):
        build("conbimamba", mask_batch_norm=True, use_cnn_module=False)


@every_encoder
@pytest.mark.parametrize("layers", [[-1], ["1"], [0, 1.5], [0, None], 1, True, "0"], ids=repr)
def test_bad_checkpoint_indices_are_refused(name, layers):
    with pytest.raises(OptionError, match=r"gradient_checkpoint_layers=.* is not possible"):
        build(name, gradient_checkpoint_layers=layers)


@every_encoder
@pytest.mark.parametrize("mamba_type", ["mamba", "innbimamba"])
def test_fusion_is_refused_where_there_is_nothing_to_fuse(name, mamba_type):
    with pytest.raises(OptionError, match=r"^fusion='add' .* remove the line\.$"):
        build(name, mamba_type=mamba_type, fusion="add")


@every_encoder
@pytest.mark.parametrize(
    ("key", "hint"), [("mamba_typ", r"Did you mean mamba_type\?$"), ("zzz", "Known: .*, fusion, ")]
)
def test_an_unknown_key_is_refused_with_the_nearest(name, key, hint):
    with pytest.raises(OptionError, match=hint) as error:
        build(name, **{key: "mamba"})
    assert str(error.value).startswith(
        f"encoder_conf={key!r} is not possible: allowed is an option of {name}. "
    )
    assert "input_size" not in str(error.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("linear_units", 512),
        ("positionwise_layer_type", "conv1d"),
        ("positionwise_conv_kernel_size", 3),
    ],
)
def test_bimamba_refuses_feed_forward_options_without_a_feed_forward(option, value):
    with pytest.raises(UnusedOptionError, match=f"bimamba has no option {option} .*ffn: true"):
        build("bimamba", **{option: value})
    build("bimamba", ffn=True, **{option: value})


SHORTEST = {
    "conv1d1": 5,
    "conv1d2": 5,
    "conv1d3": 7,
    "conv2d": 7,
    "conv2d1": 5,
    "conv2d2": 7,
    "conv2d6": 11,
    "conv2d8": 15,
}
SUBSAMPLING = [
    (name, options["input_layer"])
    for name, encoder in ENCODERS.items()
    for options in encoder.options.values()
    if options.get("input_layer") in SHORTEST
]


@pytest.mark.parametrize(
    ("name", "input_layer"), SUBSAMPLING, ids=[f"{n}-{i}" for n, i in SUBSAMPLING]
)
def test_a_batch_too_short_for_the_subsampling_raises_espnets_error(name, input_layer):
    encoder, shortest = build(name, input_layer=input_layer).eval(), SHORTEST[input_layer]
    out, olens, _ = encoder(inputs(1, shortest, FEATURES), torch.tensor([shortest]))
    assert out.shape[1] == int(olens) >= 1
    with pytest.raises(TooShortUttError, match=f"has {shortest - 1} frames") as error:
        encoder(inputs(1, shortest - 1, FEATURES), torch.tensor([shortest - 1]))
    assert (error.value.actual_size, error.value.limit) == (shortest - 1, shortest)


BAD_LENGTHS = {
    "too_long": [31, 5],
    "negative": [30, -5],
}


@every_encoder
@pytest.mark.parametrize("lengths", BAD_LENGTHS.values(), ids=BAD_LENGTHS)
def test_lengths_that_do_not_describe_the_batch_are_refused(name, lengths):
    with pytest.raises(LengthsError, match="2 lengths from 0 to 30 frames") as error:
        build(name)(inputs(2, 30, FEATURES), torch.tensor(lengths))
    assert str(lengths) in str(error.value)


LENGTHS_OF_ANOTHER_KIND = {
    "list": ([30, 20], "ilens must be a tensor of integers, got list"),
    "none": (None, "ilens must be a tensor of integers, got NoneType"),
    "float": (torch.tensor([30.0, 20.5]), "ilens must be int16, int32 or int64, got torch.float32"),
    "bool": (torch.tensor([True, False]), "ilens must be int16, int32 or int64, got torch.bool"),
    "size": (torch.tensor([30, 20, 10]), r"ilens must have shape \(2,\), .* got \(3,\)"),
    "two_dimensions": (torch.tensor([[30], [5]]), r"ilens must have shape \(2,\), .* \(2, 1\)"),
}


@every_encoder
@pytest.mark.parametrize(
    ("lengths", "message"), LENGTHS_OF_ANOTHER_KIND.values(), ids=LENGTHS_OF_ANOTHER_KIND
)
def test_lengths_of_another_kind_are_refused(name, lengths, message):
    with pytest.raises(LengthsError, match=message):
        build(name)(inputs(2, 30, FEATURES), lengths)


def mask_of(*lengths):
    return torch.arange(30) >= torch.tensor(lengths)[:, None]


@every_encoder
def test_a_mask_in_place_of_lengths_gives_the_same(name):
    encoder, x, lengths = build(name).eval(), inputs(2, 30, FEATURES), torch.tensor([30, 17])
    expected, _, _ = encoder(x, lengths)
    actual, _, _ = encoder(x, lengths, masks=mask_of(30, 17))
    assert torch.equal(actual, expected)


def hole(masks):
    masks[1, 4:9] = True
    return masks


BAD_MASKS = {
    "hole": (hole(mask_of(30, 17)), "true past each utterance's end only"),
    "inverted": (~mask_of(30, 17), "true past each utterance's end only"),
    "shape": (mask_of(30, 17)[:, None], r"must be \(batch, length\) = \(2, 30\) of torch.bool"),
    "dtype": (mask_of(30, 17).long(), r"got \(2, 30\) of torch.int64"),
}


@every_encoder
@pytest.mark.parametrize(("masks", "message"), BAD_MASKS.values(), ids=BAD_MASKS)
def test_a_mask_that_is_no_padding_is_refused(name, masks, message):
    with pytest.raises(ShapeError, match=message):
        build(name)(inputs(2, 30, FEATURES), torch.tensor([30, 17]), masks=masks)


@every_encoder
def test_a_batch_without_utterances_is_refused(name):
    with pytest.raises(LengthsError, match=r"0 lengths .* for at least one utterance"):
        build(name)(inputs(0, 30, FEATURES), torch.tensor([], dtype=torch.int64))


@every_encoder
def test_attention_is_gone(name):
    encoder = build(name)
    keys = "".join(encoder.state_dict())
    assert "linear_q" not in keys
    assert "pos_bias" not in keys
    assert all(
        type(getattr(encoder.encoders[i], ENCODERS[name].attention)).__name__ == "MixerAttention"
        for i in range(COMMON["num_blocks"])
    )
