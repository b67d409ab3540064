"""Kernels on torch's OpenMP threads."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
import torch
from numba import njit

from espnet_bimamba.ops import cpu_runtime
from espnet_bimamba.ops.cpu_runtime import Kernel, run_parallel
from espnet_bimamba.ops.cpu_team import Team, share_out, torch_fork


@njit
def _count(first, last, seen):
    for item in range(first, last):
        seen[item] += 1


@Kernel
def count(team, seen):
    share_out(_count, team, (seen,))


PATIENCE = 1e9  # seconds


@njit
def _meet(first, last, arrived, ticks):
    """Wait in each item until every item has begun, which takes as many threads."""
    for item in range(first, last):
        arrived[item] = 1
        while arrived.sum() < arrived.size and ticks[item] < PATIENCE:
            ticks[item] += 1  # what is written between two sums makes the compiler read anew


@Kernel
def meet(team, arrived, ticks):
    share_out(_meet, team, (arrived, ticks))


@njit
def _fail(first, last, seen):
    if first <= 2 < last:
        raise ValueError
    seen[first:last] += 1


@Kernel
def fail(team, seen):
    share_out(_fail, team, (seen,))


@pytest.fixture
def openmp():
    if not torch_fork():
        pytest.skip("this torch has no OpenMP that knows GOMP_parallel")
    return torch_fork()


def test_torch_for_linux_has_openmp():
    if not (torch.backends.openmp.is_available() and sys.platform == "linux"):
        pytest.skip("not a torch with OpenMP for Linux")
    assert torch_fork()


@pytest.mark.parametrize("threads", [1, 2, 3, 40])
@pytest.mark.parametrize("items", [0, 1, 2, 7, 8, 9, 100])
def test_every_item_is_worked_on_once(openmp, threads, items):
    for fork in (openmp, 0):
        seen = np.zeros(120)
        count(Team(fork, threads, 5, 5 + items), seen)
        assert seen.tolist() == [0] * 5 + [1] * items + [0] * (115 - items)


def test_torch_threads_work_at_the_same_time(openmp, several_threads):
    ticks = np.zeros(several_threads)
    meet(Team(openmp, several_threads, 0, several_threads), np.zeros(several_threads), ticks)
    assert ticks.max() < PATIENCE


def test_a_failure_in_any_thread_is_told(openmp):
    for fork in (openmp, 0):
        with pytest.raises(MemoryError):
            fail(Team(fork, 2, 0, 8), np.zeros(8))


def test_run_parallel_takes_torch_threads(openmp, several_threads):
    teams = []
    run_parallel(teams.append, 100)
    assert teams == [Team(openmp, several_threads, 0, 100)]


class Trouble(BaseException):
    """Like Ctrl-C: no Exception."""


@pytest.mark.parametrize("failing", [0, 1], ids=["the_callers_own_part", "another_threads_part"])
def test_an_error_is_raised_when_no_thread_works_any_more(monkeypatch, failing):
    """Kernels know addresses only: whoever catches the error may free what is still written to."""
    monkeypatch.setattr(cpu_runtime, "torch_fork", lambda: 0)
    failed, may_end, finished = threading.Event(), threading.Event(), []

    def kernel(team):
        if team.first == failing:
            failed.set()
            raise Trouble
        if team.first == 0:
            return
        assert may_end.wait(timeout=30)
        finished.append(team.first)

    def call():
        torch.set_num_threads(3)  # which is each Python thread's own
        run_parallel(kernel, 3)

    with ThreadPoolExecutor(1) as caller:
        running = caller.submit(call)
        assert failed.wait(timeout=30)
        done, _ = wait([running], timeout=0.3)
        may_end.set()
        assert not done, "the caller got the error while others were at work"
        with pytest.raises(Trouble):
            running.result(timeout=30)
    assert sorted(finished) == [first for first in (1, 2) if first != failing]


def test_a_thread_that_cannot_start_leaves_none_at_work(monkeypatch):
    monkeypatch.setattr(cpu_runtime, "torch_fork", lambda: 0)
    ended = []

    def kernel(team):
        time.sleep(0.3)
        ended.append(team.first)

    class Pool(ThreadPoolExecutor):
        def submit(self, kernel, team):
            if team.first == 2:
                raise RuntimeError("can't start new thread")
            return super().submit(kernel, team)

    def call():
        torch.set_num_threads(3)
        with pytest.raises(RuntimeError, match="can't start"):
            run_parallel(kernel, 3)
        return list(ended)

    with Pool(2) as pool, ThreadPoolExecutor(1) as caller:
        monkeypatch.setattr(cpu_runtime, "_pool", pool)
        assert caller.submit(call).result(timeout=30) == [1]
