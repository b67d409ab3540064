"""What every test can use: which backends are asked for, poisoned memory, visible GPU gaps."""

import os
from pathlib import Path

import pytest
import torch

from espnet_bimamba import recipes
from espnet_bimamba.ops.backends import BACKENDS, Call
from tests import triton_interpreter

# A backend asked for here that cannot run is a failure, not a skip.
TEST_BACKENDS = os.environ.get("ESPNET_BIMAMBA_TEST_BACKENDS", "reference,cpu").split(",")
TRITON_INTERPRETS = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_configure(config):
    # The tensors of tests are small: a second thread costs more than it brings, several times
    # more on a busy machine. What is about threads asks for `several_threads`.
    torch.set_num_threads(1)
    if TRITON_INTERPRETS:
        triton_interpreter.correct()


def pytest_collection_modifyitems(config, items):
    gaps = {"gpu": (torch.cuda.is_available(), "torch sees no CUDA device")}
    gaps["interpreted"] = (
        TRITON_INTERPRETS,
        "`make test-triton` runs them with TRITON_INTERPRET=1",
    )
    config.deselected_by_marker = {}
    for marker, (present, reason) in gaps.items():
        gone = [item for item in items if not present and item.get_closest_marker(marker)]
        items[:] = [item for item in items if item not in gone]
        config.hook.pytest_deselected(items=gone)
        config.deselected_by_marker[marker] = (len(gone), reason)


def pytest_sessionfinish(session):
    # A worker of pytest-xdist has no terminal: what it left out is said by who started it.
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["deselected_by_marker"] = session.config.deselected_by_marker


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    # Every worker collects everything.
    node.config.deselected_by_marker = getattr(node, "workeroutput", {}).get(
        "deselected_by_marker", {}
    )


def pytest_terminal_summary(terminalreporter, config):
    for marker, (count, reason) in getattr(config, "deselected_by_marker", {}).items():
        if count:
            message = f"{count} {marker} tests were deselected: {reason}"
            terminalreporter.write_line(message, yellow=True)


def serves_cpu(name):
    """Whether the backend serves CPU tensors when asked for by name."""
    record = BACKENDS[name]
    return not record.devices or "cpu" in record.devices + record.devices_by_name()


def most_precise(name):
    """Return float64 where the backend computes in it, else float32."""
    refused = BACKENDS[name].supports(Call("selective_scan", "cpu", torch.float64))
    return torch.float32 if refused else torch.float64


def skip_unless_served(name, dtype):
    """Skip what the backend says it does not serve."""
    if reason := BACKENDS[name].supports(Call("selective_scan", "cpu", dtype)):
        pytest.skip(f"{name}: {reason}")


@pytest.fixture(params=TEST_BACKENDS)
def backend(request):
    """Name of a backend that the run asked for; fails where it cannot run."""
    assert request.param in BACKENDS, f"no backend {request.param!r}, there are {list(BACKENDS)}"
    for operator in ("selective_scan", "causal_conv1d"):
        assert (reason := BACKENDS[request.param].unavailable(operator)) is None, reason
    return request.param


@pytest.fixture
def device(backend):
    """A device that ``backend`` serves."""
    if serves_cpu(backend):
        return "cpu"
    return BACKENDS[backend].devices[0]


@pytest.fixture(scope="session")
def tree():
    """The stock recipes, which no test fetches itself."""
    path = Path(__file__).parents[1] / ".cache" / f"espnet-{recipes.installed_version()}"
    if not path.is_dir():
        # Skipped, the comparisons with ESPnet would be missed by nobody.
        pytest.fail(f"{path} is not there: run `make recipes` (or `make test-quick`) first")
    return path


@pytest.fixture
def several_threads():
    """Let torch, and so the CPU kernels, use more threads than tests do otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(threads)


@pytest.fixture
def poisoned_empty(monkeypatch):
    """Fill whatever is allocated without being initialised with NaN."""

    def poison(allocate):
        def poisoned(*args, **kwargs):
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return poisoned

    allocators = [(torch, "empty"), (torch, "empty_like"), (torch, "empty_strided")]
    for owner, name in [*allocators, (torch.Tensor, "new_empty")]:
        monkeypatch.setattr(owner, name, poison(getattr(owner, name)))
