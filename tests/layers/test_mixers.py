"""Sizes of the mixers, and the options they refuse."""

import pytest
import torch

from espnet_bimamba.errors import OptionError
from espnet_bimamba.layers import MIXERS, Mamba, build_mixer

# The paper's mixers, counted by hand: bias-free projections, convolution with bias, d_state 16,
# d_conv 4, expand 2, dt_rank ceil(D / 16).
PARAMETERS = {
    ("mamba", None, 256): 437_760,
    ("innbimamba", None, 256): 482_304,
    ("extbimamba", None, 256): 875_520,
    ("extbimamba", "add", 256): 875_520,
    ("extbimamba", "concat", 256): 1_006_848,
    ("mamba", None, 512): 1_694_720,
    ("innbimamba", None, 512): 1_816_576,
    ("extbimamba", "add", 512): 3_389_440,
    ("extbimamba", "concat", 512): 3_914_240,
    ("attention", None, 256): 263_168,
}


@pytest.mark.parametrize(
    ("mamba_type", "fusion", "d_model"),
    PARAMETERS,
    ids=["-".join(str(word) for word in key if word) for key in PARAMETERS],
)
def test_parameter_count(mamba_type, fusion, d_model):
    mixer = build_mixer(mamba_type, d_model, fusion)
    count = sum(parameter.numel() for parameter in mixer.parameters())
    assert count == PARAMETERS[mamba_type, fusion, d_model]


@pytest.mark.parametrize(("d_model", "rank"), [(1, 1), (16, 1), (17, 2), (256, 16)])
def test_automatic_rank(d_model, rank):
    assert Mamba(d_model).dt_rank == rank


INTEGER = "an integer of at least 1"
BAD_OPTIONS = [
    (
        {"mamba_type": "bimamba"},
        "mamba_type='bimamba'",
        "one of mamba, innbimamba, extbimamba, attention",
    ),
    ({"mamba_type": None}, "mamba_type=None", "one of mamba, innbimamba, extbimamba, attention"),
    (
        {"mamba_type": ["mamba"]},
        "mamba_type=['mamba']",
        "one of mamba, innbimamba, extbimamba, attention",
    ),
    ({"mamba_type": "attention", "d_state": 8}, "d_state=8", "Only a Mamba reads it"),
    ({"mamba_type": "attention", "d_model": 100}, "d_model=100", "a multiple of 64 above it"),
    ({"mamba_type": "attention", "fusion": "add"}, "fusion='add'", "remove the line"),
    ({"fusion": "gate"}, "fusion='gate'", "one of add, concat"),
    ({"mamba_type": "innbimamba", "fusion": "add"}, "fusion='add'", "remove the line"),
    ({"mamba_type": "mamba", "fusion": "concat"}, "fusion='concat'", "remove the line"),
    ({"A_init": "hippo"}, "A_init='hippo'", "one of s4d_real, random, s4d_real_noise"),
    ({"A_init": ["random"]}, "A_init=['random']", "one of s4d_real, random, s4d_real_noise"),
    ({"d_model": 0}, "d_model=0", INTEGER),
    ({"d_model": 8.0}, "d_model=8.0", INTEGER),
    ({"d_state": 0}, "d_state=0", "an integer from 1 to 256"),
    ({"d_state": 257}, "d_state=257", "an integer from 1 to 256"),
    ({"d_state": "16"}, "d_state='16'", "an integer from 1 to 256"),
    ({"d_state": True}, "d_state=True", "an integer from 1 to 256"),
    ({"d_conv": 0}, "d_conv=0", INTEGER),
    ({"d_conv": 4.5}, "d_conv=4.5", INTEGER),
    ({"expand": 0}, "expand=0", INTEGER),
    ({"expand": 1.5}, "expand=1.5", INTEGER),
    ({"expand": None}, "expand=None", INTEGER),
    ({"dt_rank": 0}, "dt_rank=0", 'an integer of at least 1 or "auto"'),
    ({"dt_rank": -1}, "dt_rank=-1", 'an integer of at least 1 or "auto"'),
    ({"dt_rank": "full"}, "dt_rank='full'", 'an integer of at least 1 or "auto"'),
    ({"dt_min": -1}, "dt_min=-1", "a number above 0"),
    ({"dt_min": 0.1, "dt_max": 0.01}, "dt_max=0.01", "at least dt_min, which is 0.1"),
    ({"dt_init_floor": 0}, "dt_init_floor=0", "a number above 0"),
]


@pytest.mark.parametrize(
    ("options", "given", "allowed"), BAD_OPTIONS, ids=[given for _, given, _ in BAD_OPTIONS]
)
def test_a_bad_option_is_refused_by_name_value_and_remedy(options, given, allowed):
    options = {"mamba_type": "extbimamba", "d_model": 8} | options
    with pytest.raises(OptionError) as refusal:
        build_mixer(**options)
    assert str(refusal.value).startswith(f"{given} is not possible: allowed is ")
    assert allowed in str(refusal.value)


@pytest.mark.parametrize("mamba_type", MIXERS)
@pytest.mark.parametrize("option", ["d_state", "d_conv", "expand", "dt_rank", "A_init"])
def test_every_mixer_checks_every_option(mamba_type, option):
    with pytest.raises(OptionError, match=f"{option}=-3 is not possible"):
        build_mixer(mamba_type, 8, **{option: -3})


@pytest.mark.parametrize("mamba_type", [name for name in MIXERS if "mamba" in name])
def test_every_option_reaches_every_direction(mamba_type):
    mixer = build_mixer(mamba_type, 8, d_state=3, d_conv=2, expand=3, dt_rank=5, A_init="random")
    directions = [module for module in mixer.modules() if hasattr(module, "A_log")]
    assert len(directions) == (1 if mamba_type == "mamba" else 2)
    for direction in directions:
        assert direction.A_log.shape == (24, 3)
        assert direction.conv1d.weight.shape == (24, 1, 2)
        assert direction.dt_proj.weight.shape == (24, 5)
        assert direction.A_init == "random"


def test_the_directions_start_differently():
    for mamba_type in ("innbimamba", "extbimamba"):
        mixer = build_mixer(mamba_type, 8)
        ahead, back = (module for module in mixer.modules() if hasattr(module, "A_log"))
        assert (ahead.reverse, back.reverse) == (False, True)
        assert not torch.equal(ahead.A_log, back.A_log)
        assert not torch.equal(ahead.dt_proj.bias, back.dt_proj.bias)
