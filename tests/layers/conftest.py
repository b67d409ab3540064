"""Every layer test runs with poisoned memory; those that ask for it, with each backend."""

import pytest
import torch

from espnet_bimamba.ops.backends import BACKENDS, ENVIRONMENT_VARIABLE
from tests.conftest import TEST_BACKENDS, most_precise, serves_cpu


def _serves_cpu(name: str) -> bool:
    # A name that is no backend's stays in, so that the run fails on it.
    return name not in BACKENDS or serves_cpu(name)


@pytest.fixture(autouse=True)
def _poisoned(poisoned_empty):
    """Whatever is read before it was written is NaN."""


@pytest.fixture(autouse=True)
def _one_thread():
    """Small tensors gain nothing from threads, which only wait for each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=[name for name in TEST_BACKENDS if _serves_cpu(name)])
def forced_backend(request, monkeypatch):
    """Run with one backend, as a user would force it."""
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, request.param)
    return request.param


@pytest.fixture
def precision(forced_backend):
    """The most precise dtype that the forced backend computes in."""
    return most_precise(forced_backend)
