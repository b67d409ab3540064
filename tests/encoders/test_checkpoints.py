"""Checkpoints: saved and loaded to the bit, started from a stock one, refused where none fits."""

import logging
import pickle

import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask
from espnet2.torch_utils.load_pretrained_model import load_pretrained_model

from espnet_bimamba.errors import CheckpointError
from tests.encoders.asr import asr_model, options_of, tiny_conf
from tests.encoders.zoo import ENCODERS, MIXERS, build, every_encoder, every_mixer, inputs, padded

# The stock encoder that a user would start from, with attention keys that ours has not.
STOCK = {
    "conbimamba": "conformer",
    "transbimamba": "transformer",
    "bimamba": "transformer",
    "e_branchbimamba": "e_branchformer",
}


def stock_model(name: str) -> torch.nn.Module:
    torch.manual_seed(8)
    conf = {k: v for k, v in tiny_conf(name).items() if k != "d_state"} | {"attention_heads": 2}
    return asr_model(STOCK[name], conf)


def our_model(name: str, **options) -> torch.nn.Module:
    torch.manual_seed(9)
    return asr_model(name, tiny_conf(name, **options))


def encode(model: torch.nn.Module) -> torch.Tensor:
    x, lengths = padded(dtype=torch.float32)
    return model.eval().encoder(x, lengths)[0]


@every_encoder
@every_mixer
def test_a_saved_model_loads_to_the_bit(name, mixer, tmp_path):
    saved, loaded = our_model(name, **mixer), our_model(name, A_init="random", **mixer)
    assert not torch.equal(encode(saved), encode(loaded))
    torch.save(saved.state_dict(), tmp_path / "model.pth")
    loaded.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True), strict=True)
    assert torch.equal(encode(saved), encode(loaded))


@every_encoder
def test_a_pickled_encoder_encodes_the_same(name):
    encoder = build(name, dtype=torch.float32, gradient_checkpoint_layers=[0, 1])
    encoder = encoder.eval()
    x, lengths = padded(dtype=torch.float32)
    assert torch.equal(pickle.loads(pickle.dumps(encoder))(x, lengths)[0], encoder(x, lengths)[0])


@every_encoder
def test_a_model_built_again_from_its_files_is_the_same(name, tmp_path):
    """What ESPnet's inference does with config.yaml, every default written out, and model.pth."""
    torch.manual_seed(9)
    args = options_of(name, tiny_conf(name, mamba_type="innbimamba"))
    model = ASRTask.build_model(args)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    again, _ = ASRTask.build_model_from_file(tmp_path / "config.yaml", tmp_path / "model.pth")
    assert torch.equal(encode(again), encode(model))


def test_the_wrong_config_beside_a_checkpoint_is_named_as_the_cause(tmp_path):
    """ESPnet's inference loads without strictness: nothing else would tell."""
    torch.save(our_model("conbimamba", mamba_type="mamba").state_dict(), tmp_path / "model.pth")
    args = options_of("conbimamba", tiny_conf("conbimamba", mamba_type="innbimamba"))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
    with pytest.raises(CheckpointError, match=r"holds mamba_type: mamba at encoder.encoders.0"):
        ASRTask.build_model_from_file(tmp_path / "config.yaml", tmp_path / "model.pth")


# Every pair of mixers is tried in tests/layers.
PAIRS = [("mamba", "innbimamba"), ("extbimamba_add", "extbimamba_concat")]


@every_encoder
@pytest.mark.parametrize(("saved", "built"), PAIRS, ids=[f"{a}-into-{b}" for a, b in PAIRS])
def test_another_mamba_type_is_named_as_the_cause(name, saved, built):
    state = build(name, **MIXERS[saved]).state_dict()
    with pytest.raises(CheckpointError) as error:
        build(name, **MIXERS[built]).load_state_dict(state)
    place = f"encoders.0.{ENCODERS[name].attention}.mixer"
    assert f"the checkpoint holds mamba_type: {MIXERS[saved]['mamba_type']}" in str(error.value)
    assert f" at {place}, but the model is built with mamba_type: " in str(error.value)
    assert len(str(error.value)) < 300


@every_encoder
def test_a_stock_checkpoint_is_named_as_the_cause(name):
    with pytest.raises(CheckpointError) as error:
        our_model(name).load_state_dict(stock_model(name).state_dict())
    assert f"self-attention at encoder.encoders.0.{ENCODERS[name].attention}," in str(error.value)
    assert "--ignore_init_mismatch true" in str(error.value)


@every_encoder
def test_init_param_takes_what_a_stock_checkpoint_shares(name, tmp_path, caplog):
    """``--init_param stock.pth --ignore_init_mismatch true``, by ESPnet's own function."""
    stock, model = stock_model(name), our_model(name)
    torch.save(stock.state_dict(), tmp_path / "stock.pth")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with caplog.at_level(logging.WARNING):
        load_pretrained_model(str(tmp_path / "stock.pth"), model, ignore_init_mismatch=True)
    theirs, after = stock.state_dict(), model.state_dict()
    left_out = {k for k in theirs if k not in after or theirs[k].shape != after[k].shape}

    def is_mixer(key):
        return key.startswith("encoder.encoders.") and f".{ENCODERS[name].attention}." in key

    if name == "bimamba":
        # Its layers share the Transformer's first norm, and have no feed-forward.
        rest = {key for key in left_out if not is_mixer(key)}
        assert all("norm2" in key or "feed_forward" in key for key in rest)
    else:
        assert all(is_mixer(key) for key in left_out)
    said = {record.message for record in caplog.records}
    assert all(any(f"Filter out {k} from" in message for message in said) for k in left_out)
    for key, value in after.items():
        assert torch.equal(value, before[key] if is_mixer(key) else theirs[key]), key
    shared = {key.split(".")[0] for key in theirs.keys() & after.keys()}
    assert shared == {"encoder", "decoder", "ctc"}


@every_encoder
def test_init_param_without_the_flag_says_what_to_do(name, tmp_path):
    torch.save(stock_model(name).state_dict(), tmp_path / "stock.pth")
    with pytest.raises(CheckpointError, match="--ignore_init_mismatch true"):
        load_pretrained_model(str(tmp_path / "stock.pth"), our_model(name), False)


@pytest.mark.filterwarnings("ignore:.*quantiz.* deprecated")
@every_encoder
def test_int8_quantisation_of_a_whole_encoder(name):
    """As ``asr_inference --quantize_asr_model true`` does it, by ESPnet's own function."""
    from espnet2.torch_utils.quantization import quantize_dynamic

    encoder = build(name, dtype=torch.float32, output_size=32).eval()
    x, lengths = inputs(2, 60, 20, dtype=torch.float32), torch.tensor([60, 31])
    expected, _, _ = encoder(x, lengths)
    quantized = quantize_dynamic(encoder, qconfig_spec={torch.nn.Linear}, dtype=torch.qint8)
    out, olens, _ = quantized(x, lengths)
    error = ((out - expected).norm() / expected.norm()).item()
    assert 0 < error < 0.15
    assert not out[1, olens[1] :].any()
