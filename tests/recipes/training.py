"""Short trainings on what the demo has prepared: a changed copy of its configuration."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml

#: What ESPnet writes into an experiment's config.yaml and does not read back.
WRITTEN_ONLY = ("config", "distributed", "output_dir", "required", "version")

#: An encoder_conf for every encoder, two layers of width 64 without dropout.
ENCODER_CONF = {
    "output_size": 64,
    "linear_units": 128,
    "num_blocks": 2,
    "dropout_rate": 0.0,
    "positional_dropout_rate": 0.0,
    "input_layer": "conv2d",
}


def write_config(demo, file, **changes):
    """Writes the demo's training configuration with some keys changed; returns ``file``."""
    config = yaml.safe_load((demo.exp / "config.yaml").read_text())
    config = {key: value for key, value in config.items() if key not in WRITTEN_ONLY}
    config |= {"use_matplotlib": False, "use_tensorboard": False, **changes}
    file.write_text(yaml.safe_dump(config))
    return file


def start(demo, config, out, *options, program=("-m", "espnet2.bin.asr_train")):
    """Starts a training as ESPnet's run.sh does: in the recipe's folder, with one thread."""
    command = [sys.executable, *program, "--config", str(config), "--output_dir", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [*command, *options],
        cwd=demo.recipe,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    """Waits for a training; its output is the message of the assertion that it succeeded."""
    output, _ = process.communicate()
    assert process.returncode == 0, output[-6000:]
    return output


def train(demo, config, out, *options, **kwargs):
    return finish(start(demo, config, out, *options, **kwargs))


def losses(out, part="train"):
    """The loss of each epoch, to the last digit, as the trainer keeps it for resuming."""
    stats = _load(out / "checkpoint.pth")["reporter"]["stats"]
    return [stats[epoch][part]["loss"] for epoch in sorted(stats)]


def parameters(out, name="latest.pth"):
    return _load(out / name)


def _load(file: Path):
    return torch.load(file, map_location="cpu", weights_only=False)
