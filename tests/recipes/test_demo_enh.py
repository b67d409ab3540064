"""`make demo-enh` from end to end with a separator made smaller, then once more."""

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import soundfile
import yaml

from tests.recipes.conftest import HOME

pytestmark = pytest.mark.recipe
for package in ("fast_bss_eval", "mir_eval", "pesq", "pystoi"):
    pytest.importorskip(package, reason="the extra `enh` is not installed")


def demo(work, *options):
    command = [sys.executable, str(HOME / "egs/mini_an4/demo_enh.py"), "--work", str(work)]
    return subprocess.run([*command, *options], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The shipped YAML, narrower and with fewer and larger steps."""
    config = yaml.safe_load((HOME / "conf/mini_an4/train_enh_mamba.yaml").read_text())
    config["separator_conf"] |= {"layers": 1, "adim": 32}
    config |= {"max_epoch": 2, "num_iters_per_epoch": 40, "num_workers": 0}
    config |= {"use_tensorboard": False, "optim_conf": {"lr": 0.01}}
    file = tmp_path_factory.mktemp("conf") / "train_enh_small.yaml"
    file.write_text(yaml.safe_dump(config))
    return file


@pytest.fixture(scope="module")
def finished_enh(tree, small, tmp_path_factory):
    work = tmp_path_factory.mktemp("demo_enh")
    done = demo(work, "--config", str(small))
    assert done.returncode == 0, done.stdout + done.stderr
    return work, done.stdout


def test_the_packed_model_takes_noise_out(finished_enh):
    work, printed = finished_enh
    for stage in ("1", "3", "4", "5", "6", "7", "8", "11"):
        assert f"stage {stage}: " in printed
    assert "    epoch 2: loss " in printed
    report = json.loads((work / "report.json").read_text())
    training = report["training"]
    assert training["after"]["SI-SDR"] - training["before"]["SI-SDR"] >= 2.0
    # What was mixed at 5 dB has an SI-SDR of about that.
    assert training["before"]["SI-SDR"] == pytest.approx(5, abs=0.5)
    assert report["test"]["utterance"] in ("fcaw-cen8-b", "mmxg-cen8-b")
    names = zipfile.ZipFile(report["files"]["Packed model"]).namelist()
    for content in ("meta.yaml", "config.yaml", "RESULTS.md", "images/loss.png", ".pth"):
        assert any(name.endswith(content) for name in names), (content, names)
    for heading in ("Training", "Test"):
        sounds = [report["files"][f"{heading} {kind}"] for kind in ("noisy", "enhanced", "clean")]
        assert len({soundfile.info(sound).frames for sound in sounds}) == 1
        picture = Path(report["files"][f"{heading} spectrograms"])
        assert picture.read_bytes()[:4] == b"\x89PNG"
    assert "|train_dev|" in Path(report["files"]["Results"]).read_text().replace("enhanced_", "")


def test_what_is_done_is_not_done_again(finished_enh, small):
    work, _ = finished_enh
    again = demo(work, "--config", str(small))
    assert again.returncode == 0
    assert "stage 6" not in again.stdout
    assert "the demo has passed" in again.stdout


def test_an_unknown_separator_lists_the_known(tmp_path):
    done = demo(tmp_path, "--separator", "tcn")
    assert done.returncode == 2
    assert "no separator 'tcn' here; there are extbimamba, mamba" in done.stderr
