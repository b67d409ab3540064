"""Starting from another checkpoint, freezing parts, and LoRA."""

import contextlib
import re

import pytest
import torch
import yaml
from espnet2.tasks.asr import ASRTask

from tests.recipes.training import ENCODER_CONF, parameters, write_config

pytestmark = pytest.mark.recipe

FEED_FORWARD = "encoder.encoders.0.feed_forward.w_1.weight"


def train_here(overfitted, out, *options, **changes):
    """One update in this process, which has ESPnet imported already."""
    changes = {"max_epoch": 1, "num_iters_per_epoch": 1, "encoder_conf": ENCODER_CONF} | changes
    out.mkdir(parents=True, exist_ok=True)
    config = write_config(overfitted, out / "changed.yaml", **changes)
    with contextlib.chdir(overfitted.recipe):
        ASRTask.main(cmd=["--config", str(config), "--output_dir", str(out), *options])
    return parameters(out, "1epoch.pth")


@pytest.fixture(scope="module")
def conformer(overfitted, tmp_path_factory):
    """A stock Conformer's checkpoint: file and content."""
    out = tmp_path_factory.mktemp("conformer")
    conf = ENCODER_CONF | {"macaron_style": True, "use_cnn_module": True, "cnn_module_kernel": 15}
    saved = train_here(overfitted, out, encoder="conformer", encoder_conf=conf | {
        "attention_heads": 4, "selfattention_layer_type": "rel_selfattn",
        "rel_pos_type": "latest", "pos_enc_layer_type": "rel_pos",
    })  # fmt: skip
    return out / "1epoch.pth", saved


OURS = ENCODER_CONF | {"macaron_style": True, "use_cnn_module": True, "cnn_module_kernel": 15}
NO_STEP = {"optim": "sgd", "optim_conf": {"lr": 0.0}, "encoder_conf": OURS}


def test_stock_conformer_checkpoint_gives_what_fits(overfitted, conformer, tmp_path):
    file, stock = conformer
    ours = train_here(
        overfitted, tmp_path, "--init_param", str(file), "--ignore_init_mismatch", "true", **NO_STEP
    )
    attention = {name for name in stock if re.match(r"encoder\.encoders\.\d+\.self_attn", name)}
    assert attention
    for name, value in stock.items():
        if name in attention:
            assert name not in ours
        elif "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(ours[name], value, rtol=0.0, atol=0.0)
    mixers = {name for name in ours if name not in stock}
    assert mixers
    assert all(".self_attn." in name for name in mixers)


def test_stock_conformer_checkpoint_without_ignoring_is_refused(overfitted, conformer, tmp_path):
    with pytest.raises(RuntimeError, match="self_attn"):
        train_here(overfitted, tmp_path, "--init_param", str(conformer[0]), **NO_STEP)


def test_one_part_of_a_checkpoint(overfitted, conformer, tmp_path):
    file, stock = conformer
    ours = train_here(overfitted, tmp_path, "--init_param", f"{file}:decoder:decoder", **NO_STEP)
    name = "decoder.decoders.0.feed_forward.w_1.weight"
    torch.testing.assert_close(ours[name], stock[name], rtol=0.0, atol=0.0)
    assert not torch.equal(ours[FEED_FORWARD], stock[FEED_FORWARD])


def test_frozen_parts_stay(overfitted, tmp_path):
    start = overfitted.exp / "train.loss.ave.pth"
    before = parameters(overfitted.exp, "train.loss.ave.pth")
    frozen = "encoder.encoders.0.self_attn"
    after = train_here(
        overfitted,
        tmp_path,
        *("--init_param", str(start), "--freeze_param", frozen),
        encoder_conf=trained_conf(overfitted),
    )
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not [name for name in moved if name.startswith(frozen + ".")]
    assert "encoder.encoders.1.self_attn" in {".".join(name.split(".")[:4]) for name in moved}


def trained_conf(overfitted):
    return yaml.safe_load((overfitted.exp / "config.yaml").read_text())["encoder_conf"]


def test_lora_trains_its_own_matrices_only(overfitted, tmp_path):
    start = overfitted.exp / "train.loss.ave.pth"
    before = parameters(overfitted.exp, "train.loss.ave.pth")
    after = train_here(
        overfitted,
        tmp_path,
        *("--init_param", str(start), "--use_adapter", "true", "--adapter", "lora"),
        # ESPnet's adapter freezes the layers it adapts, the rest is the user's to freeze.
        *("--freeze_param", "encoder", "decoder", "ctc"),
        encoder_conf=trained_conf(overfitted),
        adapter_conf={"rank": 2, "alpha": 2, "target_modules": ["in_proj", "x_proj", "out_proj"]},
        save_strategy="all",
        num_iters_per_epoch=3,
    )
    added = {name for name in after if "lora_" in name}
    # Two layers of two mixers of three projections, an A and a B for each.
    assert len(added) == 2 * 2 * 3 * 2
    assert all((after[name] != 0).any() for name in added), "B starts at zero and must move"
    for name, value in before.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_A" in after:
            # loralib adds the product to the weight while a model is in evaluation mode.
            value = value + after[f"{layer}.lora_B"] @ after[f"{layer}.lora_A"]
            torch.testing.assert_close(after[name], value, rtol=0.0, atol=1e-6)
        elif not re.search("running|num_batches", name):
            torch.testing.assert_close(after[name], value, rtol=0.0, atol=0.0)
