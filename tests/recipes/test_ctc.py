"""A shipped CTC YAML through ESPnet's own stages: statistics, training, decoding."""

import os
import shutil
import subprocess
import sys

import pytest

from espnet_bimamba.cli.conf.shipped import find
from tests.recipes.conftest import HOME

pytestmark = pytest.mark.recipe

#: Small enough to learn four utterances by heart: no other line of the YAML changes.
SHRUNK = {
    "batch_type": "unsorted",
    "batch_size": 2,
    "accum_grad": 1,
    "max_epoch": 5,
    "num_iters_per_epoch": 20,
    "best_model_criterion": "train,loss,min",
    "keep_nbest_models": 1,
    "scheduler": "none",
    "specaug": "none",
}
ENCODER = {
    "output_size": 64,
    "linear_units": 128,
    "num_blocks": 2,
    "dropout_rate": 0.0,
    "positional_dropout_rate": 0.0,
}


def test_the_ctc_yaml_trains_and_decodes_in_a_recipe(overfitted):
    sets = overfitted.recipe / "dump" / "raw"
    # asr.sh decodes no set that it has trained on by its name.
    shutil.copytree(sets / "train_nodev", sets / "learnt", dirs_exist_ok=True)
    arguments = [f"--{option} {value}" for option, value in SHRUNK.items()]
    arguments += [f"--encoder_conf {option}={value}" for option, value in ENCODER.items()]
    options = {
        "--asr_config": find("librispeech_100/conextbimamba_ctc").path,
        "--inference_config": find("librispeech_100/decode_asr_ctc").path,
        "--inference_asr_model": "train.loss.ave.pth",
        "--asr_args": " ".join([*arguments, "--optim_conf lr=0.005"]),
        "--asr_tag": "ctc",
        "--asr_stats_dir": "exp/asr_stats_ctc",
        "--test_sets": "learnt",
        "--nj": 1,
        "--inference_nj": 1,
        "--stage": 10,
        "--stop_stage": 12,
    }
    words = [str(word) for option in options.items() for word in option]
    done = subprocess.run(
        [HOME / "egs/mini_an4/asr1/run.sh", "--work", overfitted.root, *words],
        env=os.environ | {"PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    [heard] = (overfitted.recipe / "exp" / "asr_ctc").glob("decode_*/learnt/text")
    assert heard.read_text() == (sets / "learnt" / "text").read_text()
