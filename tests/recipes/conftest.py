"""One recipe tree, one working copy and one trained model that the recipe tests share."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from espnet_bimamba import recipes

HOME = Path(__file__).resolve().parents[2]


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items):
    """Let pytest-xdist give one process what shares a trained model, else a file."""
    shared = ("overfitted", "overfitted3")
    for item in items:
        if item.get_closest_marker("recipe"):
            names = [name for name in shared if name in item.fixturenames]
            item.add_marker(pytest.mark.xdist_group(names[0] if names else item.path.stem))


def demo_command(work, *options):
    return [sys.executable, str(HOME / "egs/mini_an4/demo.py"), "--work", str(work), *options]


def demo(work, *options, check=True):
    """Runs the demo into ``work``, as `make demo` does; returns what it printed."""
    command = demo_command(work, *options)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def heed_ctrl_c():
    """In a child: a shell lets what runs in its background ignore Ctrl-C, and it is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def interrupted_demo(work, *options, after):
    """Runs the demo until it prints ``after``, then does what Ctrl-C does."""
    with subprocess.Popen(
        demo_command(work, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=heed_ctrl_c,
    ) as process:
        printed = ""
        while after not in printed:
            line = process.stdout.readline()
            assert line, f"it ended before {after!r}:\n{printed}"
            printed += line
        process.send_signal(signal.SIGINT)
        printed += process.stdout.read()
    assert process.returncode == 130, printed
    return printed


@dataclass(frozen=True)
class Demo:
    """What a run of the demo left and printed, also before it was interrupted."""

    root: Path
    printed: str
    printed_before: str = ""

    @property
    def report(self):
        return json.loads((self.root / "report.json").read_text())

    @property
    def recipe(self):
        return self.root / "egs2" / "mini_an4" / "asr1"

    @property
    def exp(self):
        return Path(self.report["files"]["Training log"]).parent


@pytest.fixture(scope="session")
def tree():
    """The stock recipes, which no test fetches itself."""
    path = HOME / ".cache" / f"espnet-{recipes.installed_version()}"
    if not path.is_dir():
        pytest.fail(f"{path} is not there: run `make recipes` (or `make test`) first")
    return path


@pytest.fixture(autouse=True)
def one_thread():
    """As ESPnet's path.sh has it: what a test trains or decodes itself is comparable."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def overfitted(tree, tmp_path_factory):
    """The demo's ``conbimamba``, which has learnt four utterances by heart.

    Interrupted in the middle of its training and started again.
    """
    root = tmp_path_factory.mktemp("conbimamba")
    before = interrupted_demo(root, "--encoder", "conbimamba", after="epoch 2:")
    return Demo(root, demo(root, "--encoder", "conbimamba").stdout, before)


@pytest.fixture(scope="session")
def overfitted3(tree, tmp_path_factory):
    """The same the ESPnet3 way, with another encoder."""
    root = tmp_path_factory.mktemp("e_branchbimamba_espnet3")
    return Demo(root, demo(root, "--encoder", "e_branchbimamba", "--espnet", "3").stdout)
