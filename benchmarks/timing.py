"""How everything here is measured: threads, rounds, peak memory, and on what machine.

Only ratios of one run mean anything: all that is compared is measured in alternating rounds
(A B C A B C ...), so that a machine that slows down slows down everyone.
"""

import contextlib
import ctypes
import gc
import importlib.metadata
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
# Shorter calls are repeated within a sample until it lasts this long.
SHORTEST_SAMPLE = 0.05
# OpenMP's threads spin for some milliseconds after their work and would slow the next call.
SETTLING = 0.01
# Fewer on a card, where more precisions, batches and peers take their turns: all of them shall be
# measured in nine minutes.
ROUNDS = {"cpu": 15, "cuda": 7}
PACKAGES = (
    *("torch", "numpy", "numba", "triton", "espnet", "espnet-bimamba"),
    *("mambapy", "mamba-ssm", "causal-conv1d", "flash-attn"),
)


@dataclass(frozen=True)
class Settings:
    """How a run is made.

    Attributes:
        device: ``cpu`` or ``cuda``.
        threads: Threads of PyTorch and of this package's kernels.
        scale: ``full``, ``quick`` (ratios only) or ``tiny`` (for tests: figures mean nothing).
        malloc: ``keep`` lets the process keep what it frees, ``default`` leaves that to glibc.
    """

    device: str = "cpu"
    threads: int = 2
    scale: str = "full"
    malloc: str = "keep"

    def apply(self) -> None:
        """Fix the number of threads, the seed, and what is done with freed memory."""
        torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        if self.malloc == "keep" and self.scale != "tiny":
            _keep_freed_memory()

    @property
    def precisions(self) -> tuple[str, ...]:
        """What models run in: on CUDA under bfloat16 autocast as well."""
        return ("float32", "bfloat16") if self.device == "cuda" else ("float32",)


def _keep_freed_memory() -> None:
    """Tell glibc, where it is, not to give freed memory back to the system.

    It would give back a layer's tensors after each layer or keep them all, by a threshold that
    what ran before has moved; on a virtual machine, memory taken afresh costs as much as what is
    computed in it. PyTorch's tuning guide exchanges the allocator for the same reason.
    """
    trim_threshold, mmap_most = -1, -4
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(trim_threshold, -1)
        libc.mallopt(mmap_most, 0)


@contextlib.contextmanager
def precision(name: str, device: str) -> Iterator[None]:
    """Run models in ``float32``, or under autocast in ``bfloat16``."""
    if name == "float32":
        yield
    else:
        with torch.autocast(device, dtype=getattr(torch, name)):
            yield


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    settings: Settings,
    seconds: float,
    least: int = 3,
    most: int | None = None,
) -> dict[str, list[float]]:
    """Time calls in alternating rounds, after one call of each for warming up.

    Args:
        calls: What to time, by name.
        settings: Says on what device.
        seconds: As many rounds are made as fit in here ...
        least: ... but at least so many ...
        most: ... and at most so many, :data:`ROUNDS` where nothing is said.

    Returns:
        Seconds a call, a sample a round. A sample is the mean of several calls if they are short.
    """
    most = most or ROUNDS[settings.device]
    if settings.scale == "tiny":
        least = most = 2
    if settings.scale == "quick":
        least = min(least, 2)
    for call in calls.values():
        call()
    gc.collect()
    gc.disable()
    try:
        first = {name: _sample(call, 1, settings.device) for name, call in calls.items()}
        shortest = 0.0 if settings.scale == "tiny" else SHORTEST_SAMPLE
        inner = {name: max(1, math.ceil(shortest / first[name])) for name in calls}
        a_round = sum(max(shortest, duration) for duration in first.values())
        rounds = max(least, min(most, int(seconds / a_round)))
        samples: dict[str, list[float]] = {name: [] for name in calls}
        # A first round of long calls was a round like any other.
        if max(inner.values()) == 1:
            samples, rounds = {name: [duration] for name, duration in first.items()}, rounds - 1
        for _ in range(rounds):
            for name, call in calls.items():
                samples[name].append(_sample(call, inner[name], settings.device))
    finally:
        gc.enable()
    return samples


def _sample(call: Callable[[], object], times: int, device: str) -> float:
    time.sleep(SETTLING)
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(times):
            call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000 / times
    start_time = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start_time) / times


@dataclass(frozen=True)
class Peak:
    """Memory and time of one call.

    Attributes:
        above: Bytes that the call needed above those held before it.
        total: Bytes that the process held at the most, on CUDA those of tensors on the device.
        seconds: Duration of the call.
    """

    above: int
    total: int
    seconds: float


def peak_memory(call: Callable[[], object], device: str) -> Peak:
    """Call once and return what it needed; in a fresh process, warmed up, or it says little."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        seconds = _sample(call, 1, device)
        total = torch.cuda.max_memory_allocated()
        return Peak(total - before, total, seconds)
    # What the warm-up freed goes back to the system first, or the call could use it unseen.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    seconds = _sample(call, 1, device)
    total = _status("VmHWM")
    return Peak(total - before, total, seconds)


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def available_memory(device: str) -> int:
    """Return the bytes that a call could take."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


def apart(target: str, settings: Settings, **arguments: Any) -> Any:
    """Call ``package.module:function(settings, **arguments)`` where nothing before it shows.

    On the CPU that is a process of its own, for it is the process whose memory is measured. On
    CUDA, where the allocator counts every tensor, it is this one: a process takes longer to start
    than to measure.

    Returns:
        What it returns, or ``{"failed": why}``.
    """
    if settings.device == "cpu":
        return in_fresh_process(target, settings, **arguments)
    gc.collect()
    torch.cuda.empty_cache()
    try:
        return resolve_name(target)(settings, **arguments)
    except RuntimeError as error:  # torch.OutOfMemoryError is one
        return {"failed": first_sentence(error)}


def first_sentence(error: Exception) -> str:
    """Return what an error says, without the advice that PyTorch adds."""
    first, *_ = str(error).splitlines() or [type(error).__name__]
    return first.partition(". ")[0]


def in_fresh_process(target: str, settings: Settings, **arguments: Any) -> Any:
    """Call ``package.module:function(settings, **arguments)`` in a Python of its own.

    Returns:
        What it returns, by way of JSON, or ``{"failed": why}``.
    """
    order = {"target": target, "settings": asdict(settings), "arguments": arguments}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "fresh", json.dumps(order)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode < 0:
        return {"failed": f"the process was ended by signal {-done.returncode}"}
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def obey(order: str) -> str:
    """Do what :func:`in_fresh_process` asks for, in the fresh process."""
    asked = json.loads(order)
    settings = Settings(**asked["settings"])
    settings.apply()
    return json.dumps(resolve_name(asked["target"])(settings, **asked["arguments"]))


def machine(settings: Settings) -> dict[str, Any]:
    """Describe the machine, without its name or paths."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    pairs = [line.partition(":") for line in reversed(lines)]
    info = {name.strip(): value.strip() for name, _, value in pairs}
    flags = info.get("flags", "").split()
    description = {
        "cpu": info.get("model name", platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "vectors": next((f for f in ("avx512f", "avx2", "avx") if f in flags), "unknown"),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.machine()}",
        "load_before": os.getloadavg()[0],
    }
    if settings.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        description["gpu"] = properties.name
        description["gpu_memory_bytes"] = properties.total_memory
    return description


def versions() -> dict[str, str]:
    """Return the versions of what takes part, and of this repository."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    if torch.version.cuda:
        found["cuda of torch"] = torch.version.cuda
    for command, name in (
        (["git", "describe", "--always", "--dirty"], "commit"),
        (["c++", "--version"], "c++"),
    ):
        if shutil.which(command[0]):
            said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            if said.returncode == 0:
                found[name] = said.stdout.splitlines()[0]
    return found
