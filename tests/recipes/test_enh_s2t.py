"""The paper's two halves as one model, trained a few steps on mini_an4 in its noise."""

import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch

from espnet_bimamba import recipes
from tests.recipes.conftest import HOME
from tests.recipes.training import finish

pytestmark = pytest.mark.recipe


def add_noise(scp, folder):
    """Write each recording of a list with noise at about 10 dB; return the new list."""
    generator, lines = np.random.default_rng(0), []
    for name, path in (line.split() for line in scp.read_text().splitlines()):
        speech, rate = soundfile.read(scp.parents[3] / path)
        noise = generator.standard_normal(len(speech)) * speech.std() * 10**-0.5
        soundfile.write(folder / f"{name}.wav", speech + noise, rate)
        lines.append(f"{name} {folder / name}.wav\n")
    (folder / f"{scp.parent.name}.scp").write_text("".join(lines))
    return folder / f"{scp.parent.name}.scp"


def test_a_separator_and_an_encoder_learn_together(overfitted, tmp_path):
    options = ["--config", str(HOME / "conf/mini_an4/train_enh_s2t_conbimamba.yaml")]
    for part, name in (("train", "train_nodev"), ("valid", "train_dev")):
        folder = overfitted.recipe / "dump/raw" / name
        files = {
            "speech,sound": add_noise(folder / "wav.scp", tmp_path),
            "speech_ref1,sound": folder / "wav.scp",
            "text_spk1,text": folder / "text",
        }
        for kind, file in files.items():
            options += [f"--{part}_data_path_and_name_and_type", f"{file},{kind}"]
        options += [f"--{part}_shape_file", str(folder / "utt2num_samples")]
    tokens = "data/en_token_list/bpe_unigram30"
    options += [
        "--text_name",
        "text_spk1",
        "--token_type",
        "bpe",
        "--bpemodel",
        f"{tokens}/bpe.model",
    ]
    options += ["--token_list", f"{tokens}/tokens.txt", "--output_dir", str(tmp_path / "exp")]
    options += ["--max_epoch", "2", "--num_iters_per_epoch", "12", "--num_workers", "0"]
    options += ["--use_matplotlib", "false", "--use_tensorboard", "false", "--ngpu", "0"]
    finish(
        subprocess.Popen(
            [sys.executable, "-m", "espnet2.bin.enh_s2t_train", *options],
            cwd=overfitted.recipe,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    )
    checkpoint = torch.load(tmp_path / "exp" / "checkpoint.pth", weights_only=False)
    first, second = (checkpoint["reporter"]["stats"][epoch]["train"] for epoch in (1, 2))
    for loss in ("loss", "loss_enh", "loss_asr"):
        assert second[loss] < first[loss], loss


def test_the_documented_command_runs_the_stock_recipe(tree, tmp_path):
    """To the transcribed test utterances, after few updates."""
    text = (HOME / "docs/enhancement.md").read_text()
    command = text.partition("Both halves in one model")[2].partition("```sh\n")[2]
    command = command.partition("```")[0].partition("./run.sh ")[2].replace("\\\n", "")
    few = "--use_matplotlib false --max_epoch 1 --num_iters_per_epoch 2"
    command = command.replace("--use_matplotlib false", few)
    config = HOME / "conf/mini_an4/train_enh_s2t_conbimamba.yaml"
    work = recipes.link(tree, "mini_an4/enh_asr1", tmp_path)
    done = subprocess.run(
        ["bash", "-c", f"config={config}; ./run.sh {command.strip()} --stop_stage 13"],
        cwd=work,
        env=os.environ | {"PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (experiment,) = work.glob("exp/enh_asr_train_*")
    assert len((experiment / "enhanced_test/spk1.scp").read_text().splitlines()) == 2
    (text,) = experiment.glob("decode_*/test/text_spk1")
    assert len(text.read_text().splitlines()) == 2
