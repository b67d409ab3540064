"""Checkpoints of the mixers: kept to the bit, and refused in words where they do not fit."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from espnet_bimamba.errors import CheckpointError
from espnet_bimamba.layers import MixerAttention
from tests.layers.zoo import MIXERS, every_mixer, inputs

KINDS = {
    "mamba": "mamba_type: mamba",
    "innbimamba": "mamba_type: innbimamba",
    "extbimamba_add": "mamba_type: extbimamba, fusion: add",
    "extbimamba_concat": "mamba_type: extbimamba, fusion: concat",
}
PAIRS = [(saved, built) for saved in KINDS for built in KINDS if saved != built]


@pytest.mark.parametrize(("saved", "built"), PAIRS, ids=[f"{a}-into-{b}" for a, b in PAIRS])
def test_another_mixer_is_named_as_the_cause(saved, built):
    state = MixerAttention(MIXERS[saved].build()).state_dict(prefix="encoders.0.self_attn.")
    model = nn.ModuleDict({"encoders": nn.ModuleList([nn.ModuleDict()])})
    model["encoders"][0]["self_attn"] = MixerAttention(MIXERS[built].build())
    with pytest.raises(CheckpointError) as error:
        model.load_state_dict(state)
    message = str(error.value)
    assert f"the checkpoint holds {KINDS[saved]} at encoders.0.self_attn.mixer," in message
    assert f"but the model is built with {KINDS[built]};" in message
    assert "encoder_conf" in message
    assert "Missing key" not in message


def test_the_root_is_named_too():
    with pytest.raises(CheckpointError, match="innbimamba at its root"):
        MIXERS["mamba"].build().load_state_dict(MIXERS["innbimamba"].build().state_dict())


def test_loading_that_is_not_strict_is_refused_as_well():
    # ESPnet's inference loads so; no key would fit, and the mixer would stay as it was drawn.
    with pytest.raises(CheckpointError, match="innbimamba at its root"):
        MIXERS["mamba"].build().load_state_dict(
            MIXERS["innbimamba"].build().state_dict(), strict=False
        )


def test_a_state_dict_without_a_mixer_is_left_to_pytorch():
    with pytest.raises(RuntimeError, match="Missing key"):
        MIXERS["mamba"].build().load_state_dict({})


def test_self_attention_is_named_as_the_cause():
    saved = {
        f"self_attn.linear_{name}.weight": torch.zeros(6, 6) for name in ("q", "k", "v", "out")
    }
    model = nn.ModuleDict({"self_attn": MixerAttention(MIXERS["innbimamba"].build())})
    with pytest.raises(CheckpointError) as error:
        model.load_state_dict(saved)
    assert "the checkpoint holds self-attention at self_attn," in str(error.value)
    assert "--init_param" in str(error.value)
    assert "--ignore_init_mismatch true" in str(error.value)


def _through_a_file(mixer):
    buffer = io.BytesIO()
    torch.save(mixer.state_dict(), buffer)
    buffer.seek(0)
    other = copy.deepcopy(mixer)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(torch.load(buffer, weights_only=True))
    return other


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda mixer: pickle.loads(pickle.dumps(mixer)),
    "state_dict": _through_a_file,
}


@every_mixer
@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
def test_a_copy_gives_the_same_bits(case, copied):
    mixer = case.build(dtype=torch.float32)
    x, lengths = inputs(2, 9, 6, dtype=torch.float32), torch.tensor([9, 4])
    other = copied(mixer)
    assert torch.equal(other(x, lengths), mixer(x, lengths))
