"""A tiny training of our encoders in the stock mini_an4 recipes of other tasks.

mini_an4's own ``ssl1`` runs HuBERT, whose task cannot host our encoders (registry.py says why);
what can is ``TEMPLATE/ssl1/ssl.sh``, here on the data of that recipe.
"""

import math
import os
import random
import re
import subprocess
import sys

import pytest
import soundfile
import yaml

from espnet_bimamba import recipes

pytestmark = pytest.mark.recipe

ENCODER_CONF = {"output_size": 16, "linear_units": 16, "num_blocks": 2}
EPOCH_ENDS = re.compile(r"1epoch results: \[train\].*? loss=([^,]+),.*\[valid\].*? loss=([^,]+),")


def run(work, script, *options):
    """Runs a recipe's script in its working copy with this Python."""
    environment = os.environ | {"VIRTUAL_ENV": sys.prefix, "iter": "0"}
    command = [f"./{script}", "--ngpu", "0", "--nj", "1", *options]
    done = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def check_training(work, config):
    """One epoch of the configured encoder is in the log, with finite losses."""
    [log] = work.glob("exp/*/train.log")
    text = log.read_text()
    assert f"encoder: {config['encoder']}\n" in (log.parent / "config.yaml").read_text()
    [losses] = EPOCH_ENDS.findall(text)
    assert all(math.isfinite(float(loss)) and float(loss) > 0 for loss in losses)


def with_our_encoder(stock, encoder, file):
    """ESPnet's own training YAML with the encoder changed; returns the file and its content."""
    config = yaml.safe_load(stock.read_text())
    config |= {"encoder": encoder, "encoder_conf": ENCODER_CONF | {"input_layer": "conv2d"}}
    config["num_att_plot"] = 0
    file.write_text(yaml.safe_dump(config))
    return file, config


def test_s2t1(tree, tmp_path):
    work = recipes.link(tree, "mini_an4/s2t1", tmp_path)
    stock = work / "conf" / "train_transformer.yaml"
    file, config = with_our_encoder(stock, "transbimamba", tmp_path / "train_s2t.yaml")
    run(work, "run.sh", "--stop_stage", "11", "--s2t_config", str(file))
    check_training(work, config)


def test_st1(tree, tmp_path):
    work = recipes.link(tree, "mini_an4/st1", tmp_path)
    stock = work / "conf" / "train_st_debug.yaml"
    file, config = with_our_encoder(stock, "conbimamba", tmp_path / "train_st.yaml")
    run(work, "run.sh", "--stop_stage", "11", "--st_config", str(file))
    check_training(work, config)


SSL = {
    "input_size": "none",
    "frontend": "wav2vec_cnn",
    "frontend_conf": {
        "norm_mode": "layer_norm",
        "conv_mode": "standard",
        "bias": False,
        "normalize_audio": False,
    },
    "normalize": None,
    "specaug": None,
    "preencoder": "linear",
    "preencoder_conf": {"output_size": 16},
    "encoder": "e_branchbimamba",
    "encoder_conf": ENCODER_CONF | {"cgmlp_linear_units": 16, "input_layer": None},
    "loss": [{"name": "hubert", "conf": {"num_classes": 10, "final_dim": 8}}],
    "collate_fn_conf": {"label_downsampling": 1, "pad": False, "rand_crop": True},
    "num_att_plot": 0,
    "init": "none",
    "best_model_criterion": [["valid", "loss", "min"]],
    "keep_nbest_models": 1,
    "max_epoch": 1,
    "num_iters_per_epoch": 2,
    "batch_type": "unsorted",
    "batch_size": 2,
}


def write_pseudo_labels(work):
    """A random class of ten for each frame of 20 ms, where k-means labels would stand."""
    rng = random.Random(0)
    for part in ("train_nodev", "train_dev"):
        text = work / "data" / part / "text"
        sphere = {
            line.split()[0]: work / line.split()[-2]
            for line in (work / "data" / part / "wav.scp").read_text().splitlines()
        }
        lines = []
        for name, file in sphere.items():
            info = soundfile.info(file)
            frames = (info.frames * 1000 // info.samplerate - 25) // 20 + 1
            lines.append(" ".join([name, *(str(rng.randrange(10)) for _ in range(frames))]))
        text.write_text("\n".join(lines) + "\n")
    (work / "tokens.txt").write_text("\n".join([*map(str, range(10)), "<unk>", "<pad>"]) + "\n")


def test_ssl1(tree, tmp_path):
    work = recipes.link(tree, "mini_an4/ssl1", tmp_path)
    (work / "ssl.sh").symlink_to(tree / "egs2" / "TEMPLATE" / "ssl1" / "ssl.sh")
    config = tmp_path / "train_ssl.yaml"
    config.write_text(yaml.safe_dump(SSL))
    options = ["--lang", "en", "--token_type", "word", "--token_list", "tokens.txt"]
    options += ["--train_set", "train_nodev", "--valid_set", "train_dev"]
    options += ["--train_config", str(config)]
    run(work, "ssl.sh", *options, "--stop_stage", "1")
    write_pseudo_labels(work)
    run(work, "ssl.sh", *options, "--stage", "2", "--stop_stage", "7")
    check_training(work, SSL)
