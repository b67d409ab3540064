"""Compilation and threads of the CPU kernels, where ESPnet runs them."""

import multiprocessing
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from espnet_bimamba.ops import causal_conv1d, cpu_runtime, selective_scan
from espnet_bimamba.ops.causal_conv1d import cpu as convolution_kernels
from espnet_bimamba.ops.selective_scan import cpu as scan_kernels
from tests.ops.cases import ALL, CONV_CASES, SCAN_CASES, ConvCase, ScanCase
from tests.tolerances import assert_close

CASE = ScanCase(batch=3, dim=70, length=40, options=ALL, lengths=(40, 12, 0), reverse=True)


def run_case(dtype=torch.float32):
    """Return output and gradients of one call by the cpu backend."""
    leaves = {name: x.to(dtype).requires_grad_() for name, x in CASE.tensors().items()}
    out = selective_scan(**leaves, **CASE.keywords(), backend="cpu")
    return [out.detach(), *torch.autograd.grad(out.square().sum(), tuple(leaves.values()))]


def run_forward():
    """Return the output alone: in a forked child torch refuses gradients once they were used."""
    with torch.no_grad():
        return [selective_scan(**CASE.tensors(), **CASE.keywords(), backend="cpu")]


def assert_bit_equal(actual, expected):
    for a, e in zip(actual, expected, strict=True):
        assert torch.equal(a, e)


CONVOLUTION = ConvCase(
    batch=3,
    dim=70,
    length=40,
    options=("bias", "initial_states"),
    lengths=(40, 12, 0),
    activation="silu",
)


@pytest.mark.parametrize("state", ["return_last_state", "return_final_states"])
def test_without_gradients_every_result_is_the_same(state):
    scan = state == "return_last_state"
    operator, case = (selective_scan, CASE) if scan else (causal_conv1d, CONVOLUTION)
    # States that are no multiple of what the kernel takes at a time are filled up.
    tensors = (replace(case, state=5) if scan else case).tensors()
    leaves = {name: x.float().requires_grad_() for name, x in tensors.items()}
    options = case.keywords() | {state: True, "backend": "cpu"}
    expected = operator(**leaves, **options)
    assert all(x.requires_grad for x in expected)
    with torch.no_grad():
        found = operator(**leaves, **options)
    assert_bit_equal(found, [x.detach() for x in expected])
    assert not any(x.requires_grad for x in found)
    with torch.inference_mode():
        assert_bit_equal(operator(**leaves, **options), found)


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_the_result_does_not_depend_on_the_number_of_threads(threads):
    before = torch.get_num_threads()
    expected = run_case()
    try:
        torch.set_num_threads(threads)
        assert_bit_equal(run_case(), expected)
    finally:
        torch.set_num_threads(before)


def test_many_python_threads_at_once(several_threads):
    expected = run_case()
    with ThreadPoolExecutor(8) as pool:
        for result in pool.map(lambda _: run_case(), range(40)):
            assert_bit_equal(result, expected)


def test_callers_that_use_different_numbers_of_threads_at_once():
    before = torch.get_num_threads()
    expected = run_case()

    def serve(threads):
        # The number is torch's own for each Python thread.
        torch.set_num_threads(threads)
        return [run_case() for _ in range(20)]

    try:
        with ThreadPoolExecutor(6) as pool:
            for results in pool.map(serve, (2, 4, 6, 8, 12, 16)):
                for result in results:
                    assert_bit_equal(result, expected)
    finally:
        torch.set_num_threads(before)


def test_without_openmp_the_result_is_the_same(several_threads, monkeypatch):
    expected = run_case()
    monkeypatch.setattr(cpu_runtime, "torch_fork", lambda: 0)
    assert_bit_equal(run_case(), expected)


def test_without_openmp_the_work_is_given_to_other_threads(several_threads, monkeypatch):
    monkeypatch.setattr(cpu_runtime, "torch_fork", lambda: 0)
    together = threading.Barrier(several_threads)
    spans = []

    def kernel(team):
        spans.append((team.first, team.last))
        together.wait(timeout=30)  # which fails unless as many threads get here

    cpu_runtime.run_parallel(kernel, 100)
    assert sorted(spans) == [(0, 33), (33, 66), (66, 100)]


def test_kernels_are_compiled_for_the_listed_signatures_and_no_others():
    """The whole matrix in one process: what a user waits for, and what the cache on disk holds."""
    for dtype in SIGNATURES_BY_DTYPE:
        for case in (*SCAN_CASES, *CONV_CASES):
            call_in(case, dtype)
        for case in (CASE, CONVOLUTION):
            for name in case.tensors():
                call_in(case, dtype, in_single=name)
    for module in (scan_kernels, convolution_kernels):
        for kernel in (module._forward, module._backward):
            compiled = kernel._compiled.signatures
            types = {(str(own.dtype), str(like.dtype)) for _, own, like, *_ in compiled}
            assert types == set(SIGNATURES_BY_DTYPE.values())
            assert len(compiled) == len(cpu_runtime.SIGNATURES) == 4


SIGNATURES_BY_DTYPE = {
    torch.float32: ("float32", "float32"),
    torch.bfloat16: ("uint16", "float32"),
    torch.float16: ("int16", "float32"),
    torch.float64: ("float64", "float64"),
}


def call_in(case, dtype, in_single=None):
    """Run a case forward and backward in ``dtype``, but for one tensor in float32."""
    operator = selective_scan if isinstance(case, ScanCase) else causal_conv1d
    leaves = {
        name: x.to(torch.float32 if name == in_single else dtype).requires_grad_()
        for name, x in case.tensors().items()
    }
    options = case.keywords()
    if in_single:  # a number in the place of a bool is another type to Numba
        options = {k: int(v) if isinstance(v, bool) else v for k, v in options.items()}
    operator(**leaves, **options, backend="cpu").sum().backward()
    with torch.inference_mode():
        operator(**leaves, **options, backend="cpu")


def put_case(queue, threads):
    torch.set_num_threads(threads)
    queue.put([x.numpy() for x in run_forward()])


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_a_forked_child_starts_threads_of_its_own(several_threads):
    expected = run_forward()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=put_case, args=(queue, several_threads), daemon=True)
    child.start()
    result = queue.get(timeout=60)
    child.join(timeout=60)
    assert child.exitcode == 0
    assert_bit_equal(map(torch.from_numpy, result), expected)
    assert_bit_equal(run_forward(), expected)


FORK_WHILE_COMPILING = """
import os, threading, time
import torch
from espnet_bimamba.ops import causal_conv1d, cpu_runtime

x, weight = torch.ones(1, 1, 6), torch.ones(1, 2)
convolve = threading.Thread(target=causal_conv1d, args=(x, weight), kwargs={"backend": "cpu"})
first_call, compiling = cpu_runtime.Kernel._first_call, threading.Event()

def announced(*args):
    compiling.set()
    first_call(*args)

def say(name):
    result = causal_conv1d(x, weight, backend="cpu").sum().item()
    os.write(1, f"{name} {result}\\n".encode())  # a line at once, where print writes twice

cpu_runtime.Kernel._first_call = announced
convolve.start()
compiling.wait()
if os.fork() == 0:
    say("child")
    os._exit(0)
convolve.join()
say("parent")
os.wait()
"""


@pytest.mark.slow
def test_a_fork_while_another_thread_compiles(tmp_path):
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORK_WHILE_COMPILING],
        capture_output=True,
        text=True,
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        timeout=90,
        check=True,
    )
    assert sorted(run.stdout.splitlines()) == ["child 11.0", "parent 11.0"]


class Cases(torch.utils.data.Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return run_forward()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_dataloader_workers_after_use_in_the_parent(several_threads):
    expected = run_forward()
    loader = DataLoader(Cases(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    for result in loader:
        assert_bit_equal(result, expected)
    assert_bit_equal(run_forward(), expected)


KERNEL = """
from espnet_bimamba.ops.cpu_runtime import Kernel

def add_one(first, last, x):
    for i in range(first, last):
        x[i] += 1

kernel = Kernel(add_one)
"""
SCRIPT = """
import logging
logging.basicConfig(level=logging.INFO)
import numpy as np
from numba.core import caching
from kernel import kernel

def no_space(*_):
    raise OSError(28, "No space left on device")

{sabotage}
x = np.zeros(4)
kernel(1, 3, x)
print(x.tolist())
"""


def log_of_first_use(folder, sabotage="", **environment):
    """Run a small kernel in a new process, with its cache in ``folder``; return what it logs."""
    environment = environment or {"NUMBA_CACHE_DIR": str(folder / "cache")}
    if not (folder / "kernel.py").exists():  # Numba compares when it was written
        (folder / "kernel.py").write_text(KERNEL)
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(sabotage=sabotage)],
        capture_output=True,
        text=True,
        env=os.environ | environment | {"PYTHONPATH": path},
        check=True,
    )
    assert run.stdout == "[0.0, 1.0, 1.0, 0.0]\n"
    return run.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sabotage", "reason"),
    [
        ("caching.CacheImpl._locator_classes = []", "no locator available"),
        ("caching.IndexDataCacheFile._save_index = no_space", "No space left on device"),
    ],
    ids=["no_locator", "full_disk"],
)
def test_a_cache_that_numba_cannot_write_is_survived(tmp_path, sabotage, reason):
    log = log_of_first_use(tmp_path, sabotage)
    assert "no cache of compiled code on disk" in log
    assert reason in log


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "NUMBA_CACHE_DIR"])
def test_without_a_folder_to_write_to_nothing_is_left_beside_the_source(tmp_path, variable):
    (tmp_path / "file").touch()  # not even root makes a folder below it
    log = log_of_first_use(tmp_path, **{variable: str(tmp_path / "file" / "cache")})
    assert "no cache of compiled code on disk" in log
    assert "Not a directory" in log
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".nbi", ".nbc")]


AT_ONCE = "from espnet_bimamba.ops import cpu_runtime; cpu_runtime._SILENCE = 0.0"


def test_a_kernel_that_takes_long_to_compile_is_told_aloud_meanwhile(tmp_path):
    log = log_of_first_use(tmp_path, AT_ONCE)
    told = [line for line in log.splitlines() if "compiled for this machine" in line]
    assert [line.split(":")[0] for line in told] == ["WARNING", "INFO"]
    assert "kernel.add_one: being compiled" in told[0]


def test_a_kernel_that_is_there_at_once_is_not(tmp_path):
    assert "being compiled" not in log_of_first_use(tmp_path, AT_ONCE.replace("0.0", "60.0"))


OTHER_PROCESS = """
import fcntl, sys
lock = open(sys.argv[1], "a")
fcntl.lockf(lock, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read(1)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("other", "waits"), [("add_one", True), ("add_two", False)])
def test_another_process_is_waited_for_only_if_it_compiles_the_same_kernel(tmp_path, other, waits):
    log_of_first_use(tmp_path)
    command = [sys.executable, "-c", OTHER_PROCESS, tmp_path / "cache" / f"kernel.{other}.lock"]
    with (
        ThreadPoolExecutor(1) as pool,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process,
    ):
        assert process.stdout.readline() == b"locked\n"
        use = pool.submit(log_of_first_use, tmp_path)
        if waits:
            with pytest.raises(TimeoutError):
                use.result(timeout=10)
            process.stdin.close()
        assert "compiled for this machine in" not in use.result(timeout=120)
        assert (process.poll() is None) == (not waits)


@pytest.mark.slow
def test_compiled_code_is_found_again_and_a_truncated_cache_is_survived(tmp_path):
    assert "compiled for this machine" in log_of_first_use(tmp_path)
    assert "compiled" not in log_of_first_use(tmp_path)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".nbi", ".nbc")]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[:20])
    assert "no cache of compiled code on disk" in log_of_first_use(tmp_path)


def test_float64_agrees_with_float32_to_its_precision():
    for i, (single, double) in enumerate(zip(run_case(), run_case(torch.float64), strict=True)):
        assert_close(str(i), single, double, torch.float32, "weight_gradient")
