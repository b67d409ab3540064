"""Two processes that share a batch train as one process with the whole batch does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.recipes.conftest import HOME
from tests.recipes.training import (
    ENCODER_CONF,
    finish,
    losses,
    parameters,
    start,
    train,
    write_config,
)

pytestmark = pytest.mark.recipe

PROGRAM = (str(Path(__file__).with_name("train_with_fixed_batch_norm.py")),)

TRAINING_DATA = [
    ["dump/raw/train_nodev/wav.scp", "speech", "sound"],
    ["dump/raw/train_nodev/text", "text", "text"],
]


@pytest.fixture(params=["transbimamba", "e_branchbimamba", "conbimamba"])
def config(request, overfitted, tmp_path):
    return write_config(
        overfitted,
        tmp_path / "config.yaml",
        encoder=request.param,
        encoder_conf=ENCODER_CONF,
        # A centred STFT reflects the end of the longest utterance and sees zeros after that of
        # the others: who is longest changes with the split.
        frontend_conf={"n_fft": 512, "win_length": 400, "hop_length": 160, "center": False},
        batch_size=4,
        num_iters_per_epoch=2,
        max_epoch=3,
        # ESPnet wants an utterance for each process, and the valid set has only one.
        valid_data_path_and_name_and_type=TRAINING_DATA,
        valid_shape_file=["exp/asr_stats_raw_en_bpe30/train/speech_shape"],
        # Adam would blow rounding errors of tiny gradients up to whole steps.
        optim="sgd",
        optim_conf={"lr": 0.01},
    )


def test_two_espnet2_processes_agree_with_one(overfitted, config, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    train(overfitted, config, one, program=PROGRAM)

    def rank(number):
        return start(
            overfitted,
            config,
            two,
            *("--multiprocessing_distributed", "false"),
            *("--dist_world_size", "2", "--dist_rank", str(number)),
            *("--dist_backend", "gloo", "--dist_init_method", f"file://{tmp_path}/meeting"),
            program=PROGRAM,
        )

    outputs = [finish(process) for process in [rank(0), rank(1)]]

    assert ":0/2]" in outputs[0], "it should have been the first of two"
    assert len(losses(one)) == 3
    assert losses(one)[2] < losses(one)[0] - 5, "the training should get somewhere"
    torch.testing.assert_close(losses(two), losses(one), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(losses(two, "valid"), losses(one, "valid"), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(parameters(two), parameters(one), rtol=1e-4, atol=1e-5)


# Stand-ins for a queue of two machines: the one submits, the other starts a task on each machine.
SLURM = {
    "slurm.pl": """\
#!/usr/bin/env bash
[ "$1 $2 $5 $6" = "--gpu 0 --num_nodes 2" ] || exit 3
exec "${@:8}" > "$7" 2>&1
""",
    "srun": """\
#!/usr/bin/env bash
export SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=2 SLURM_STEP_NODELIST='node[1-2]' SLURM_LOCALID=0
SLURM_PROCID=0 SLURM_NODEID=0 "${@:2}" & first=$!
SLURM_PROCID=1 SLURM_NODEID=1 "${@:2}" & second=$!
wait $first && wait $second
""",
}


@pytest.mark.parametrize("config", ["transbimamba"], indirect=True)
def test_two_machines_of_a_slurm_queue_agree_with_one_process(
    overfitted, config, tmp_path, monkeypatch
):
    one, two, log = tmp_path / "one", tmp_path / "two", tmp_path / "train.log"
    train(overfitted, config, one)
    for name, script in SLURM.items():
        (tmp_path / name).write_text(script)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    launcher = ["-m", "espnet2.bin.launch", "--cmd", "slurm.pl", "--log", str(log)]
    launcher += ["--ngpu", "0", "--num_nodes", "2", "--init_file_prefix", f"{tmp_path}/meeting_"]
    program = (*launcher, "--", sys.executable, "-m", "espnet2.bin.asr_train")
    train(overfitted, config, two, program=program)

    assert "--dist_launcher slurm" in log.read_text()
    assert ":0/2]" in log.read_text(), "it should have been the first of two"
    torch.testing.assert_close(losses(two), losses(one), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(parameters(two), parameters(one), rtol=1e-4, atol=1e-5)


# Of the training loss ESPnet3 logs the first process's share, of the validation loss the mean.
EPOCH_ENDS = re.compile(r"epoch_summary:\d+epoch:valid: .*?\bloss=([^,]+),")


def lightning_config(file, encoder, processes):
    """The demo's ESPnet3 training, with one batch of all four utterances shared by processes."""
    stock = HOME / "conf" / "mini_an4" / "espnet3" / f"training_{encoder}.yaml"
    config = yaml.safe_load(stock.read_text())
    config["num_device"] = processes
    config["seed"] = 0
    config["dataset"]["valid"] = config["dataset"]["train"]
    config["model"]["frontend_conf"]["center"] = False
    config["optimizer"] = {"_target_": "torch.optim.SGD", "lr": 0.05}
    shared = {"batch_distribution": "global", "dist_world_size": processes}
    batches = {
        "type": "unsorted",
        "batch_size": 4,
        "shape_files": ["${stats_dir}/train/feats_shape"],
    }
    config["dataloader"] = {
        "train": shared | {"iter_factory": {"num_iters_per_epoch": 2, "batches": batches}},
        "valid": shared | {"iter_factory": {"batches": batches}},
    }
    config["trainer"] = {
        "accelerator": "cpu",
        "max_epochs": 3,
        "log_every_n_steps": 1,
        "strategy": "ddp" if processes > 1 else "auto",
    }
    file.write_text(yaml.safe_dump(config))
    return file


def run_espnet3(recipe, *options):
    """Runs stages of an ESPnet3 recipe, with one thread; returns what they printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(recipe)}
    done = subprocess.run(
        [sys.executable, "run.py", "--stages", *map(str, options)],
        cwd=recipe,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
    return done.stdout + done.stderr


def train_with_lightning(recipe, config):
    printed = run_espnet3(recipe, "train", "--training_config", config)
    exp = recipe / "exp" / config.stem
    state = torch.load(exp / "last.ckpt", map_location="cpu", weights_only=False)["state_dict"]
    losses = [float(loss) for loss in EPOCH_ENDS.findall((exp / "train.log").read_text())]
    return printed, losses, state


@pytest.mark.parametrize("encoder", ["transbimamba", "e_branchbimamba"])
def test_two_lightning_processes_agree_with_one(overfitted3, encoder, tmp_path):
    recipe = overfitted3.root / "egs3" / "mini_an4" / "esp2_asr"
    one_config = lightning_config(tmp_path / f"{encoder}_one.yaml", encoder, processes=1)
    two_config = lightning_config(tmp_path / f"{encoder}_two.yaml", encoder, processes=2)
    _, one, one_state = train_with_lightning(recipe, one_config)
    output, two, two_state = train_with_lightning(recipe, two_config)

    assert "distributed_backend=gloo" in output
    assert len(one) == 3
    assert one[2] < one[0] - 1, "the training should get somewhere"
    torch.testing.assert_close(two, one, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(two_state, one_state, rtol=1e-4, atol=1e-5)


def test_two_dask_workers_transcribe_as_one_does(overfitted3, tmp_path):
    recipe = overfitted3.root / "egs3" / "mini_an4" / "esp2_asr"
    conf = HOME / "conf" / "mini_an4" / "espnet3"
    config = yaml.safe_load((conf / "inference.yaml").read_text())
    config["dataset"]["test"] = [{"name": "train", "data_src_args": {"split": "train"}}]
    config["batch_size"] = 1  # what a worker gets is whole batches
    config["parallel"] |= {"env": "local", "n_workers": 2}
    file = tmp_path / "two_workers.yaml"
    file.write_text(yaml.safe_dump(config))
    training = conf / "training_e_branchbimamba.yaml"
    run_espnet3(recipe, "infer", "--training_config", training, "--inference_config", file)

    exp = recipe / "exp" / training.stem
    one, two = exp / "inference" / "train", exp / "two_workers" / "train"
    parts = [(two / f"split.{part}" / "text.scp").read_text() for part in range(2)]
    assert [len(part.splitlines()) for part in parts] == [2, 2]
    assert (two / "text.scp").read_text() == (one / "text.scp").read_text() == "".join(parts)
