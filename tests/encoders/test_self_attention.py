"""`bimamba` with attention as its mixer, residual and feed-forward is ESPnet's Transformer."""

import pytest
import torch
from espnet2.asr.encoder.transformer_encoder import TransformerEncoder

from espnet_bimamba.encoders.bimamba import BiMambaEncoder
from tests.encoders.zoo import FEATURES, inputs
from tests.tolerances import assert_close

OPTIONS = {
    "output_size": 128,
    "num_blocks": 2,
    "linear_units": 24,
    "dropout_rate": 0.0,
    "positional_dropout_rate": 0.0,
}


def renamed(state):
    """Name the Transformer's weights as ours are named."""
    ours = {}
    for name, value in state.items():
        head, attention, tail = name.partition("self_attn.")
        if not attention:
            ours[name] = value
        elif "linear_out" in tail:
            ours[f"{head}self_attn.mixer.attention.out_proj.{tail.split('.')[1]}"] = value
        elif "linear_q" in tail:
            kind = tail.split(".")[1]
            parts = [state[f"{head}self_attn.linear_{part}.{kind}"] for part in "qkv"]
            ours[f"{head}self_attn.mixer.attention.in_proj_{kind}"] = torch.cat(parts)
    return ours


@pytest.fixture
def twins():
    torch.manual_seed(5)
    stock = TransformerEncoder(FEATURES, attention_heads=2, use_flash_attn=False, **OPTIONS)
    ours = BiMambaEncoder(
        FEATURES, mamba_type="attention", ffn=True, pos_enc_layer_type="abs_pos", **OPTIONS
    )
    with torch.no_grad():
        for parameter in stock.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    ours.load_state_dict(renamed(stock.state_dict()))
    return ours.double().eval(), stock.double().eval()


@torch.no_grad()
def test_it_gives_what_the_transformer_gives(twins):
    ours, stock = twins
    x, lengths = inputs(2, 67, FEATURES), torch.tensor([67, 40])
    (out, frames, _), (expected, expected_frames, _) = ours(x, lengths), stock(x, lengths)
    assert torch.equal(frames, expected_frames)
    for row, n in enumerate(frames.tolist()):
        assert_close("output", out[row, :n], expected[row, :n], x.dtype, "output")


@torch.no_grad()
@pytest.mark.parametrize("option", ["residual", "ffn"])
def test_without_its_residual_or_feed_forward_it_gives_something_else(twins, option):
    _, stock = twins
    options = {"ffn": True} | {option: False}
    if option == "ffn":
        options["linear_units"] = 2048
    ours = BiMambaEncoder(
        FEATURES,
        mamba_type="attention",
        pos_enc_layer_type="abs_pos",
        **(OPTIONS | options),
    )
    ours.double().eval().load_state_dict(renamed(stock.state_dict()), strict=False)
    x, lengths = inputs(1, 67, FEATURES), torch.tensor([67])
    assert (ours(x, lengths)[0] - stock(x, lengths)[0]).abs().mean() > 0.01
