"""What the CPU kernels of all operators share: compilation, threads, views of tensors.

Numba's own parallel layers are not used: the workqueue layer aborts on concurrent entry and
GNU OpenMP aborts after a fork, and ESPnet does both (DataLoader workers, inference servers).
Kernels are compiled with ``nogil`` and run on torch's OpenMP threads (``cpu_team.py``); after a
fork, and where torch has no OpenMP, on a pool of Python threads.
"""

import contextlib
import fcntl
import functools
import hashlib
import itertools
import logging
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numba import carray, config, njit, types
from numba.extending import intrinsic
from torch import Tensor

from espnet_bimamba.errors import ShapeError
from espnet_bimamba.files import user_cache
from espnet_bimamba.ops.cpu_team import Team, torch_fork

_logger = logging.getLogger(__name__)

# Reentrant: a fork waits for it (see below), also one that happens while its thread compiles.
_compile_lock = threading.RLock()

# Seconds after which a user wonders.
_SILENCE = 2.0

# No thread is started before there is work for it, so this is no more than what torch would start
# for as many callers.
_MOST_THREADS = 1024


class Kernel:
    """A function that Numba compiles at its first call for each combination of argument types.

    The machine code is cached in ``~/.cache/espnet-bimamba`` (``XDG_CACHE_HOME`` and
    ``NUMBA_CACHE_DIR`` are obeyed). Without a folder to write to, or with a broken cache, the
    function is compiled in memory and works the same.

    Args:
        function: What to compile; it may call other ``njit`` functions.
    """

    def __init__(self, function: Callable) -> None:
        self._function = function
        self._compiled: Any = None
        self._known: set[tuple] = set()

    def __call__(self, *args: Any) -> None:
        """Run the kernel; every argument is a NumPy array or a scalar."""
        kind = _kind(args)
        if kind in self._known and self._compiled is not None:
            self._compiled(*args)
            return
        name = f"{self._function.__module__}.{self._function.__qualname__}"
        with _compile_lock, _told_meanwhile(name), _one_process_at_a_time(name):
            self._first_call(name, args)
            self._known.add(kind)

    def _first_call(self, name: str, args: tuple) -> None:
        start = time.perf_counter()
        found = False
        try:
            self._compiled = self._compiled or self._jit(cache=True)
            before = self._compiled.stats.cache_hits.total()
            self._compiled(*args)
            found = self._compiled.stats.cache_hits.total() > before
        except Exception as error:
            # Numba raises RuntimeError without a folder, OSError on a full disk, and whatever
            # unpickling raises on a truncated file. A fault of the kernel comes up again here.
            _logger.info("%s: no cache of compiled code on disk (%s)", name, error)
            self._compiled = self._jit(cache=False)
            self._compiled(*args)
        if not found:
            seconds = time.perf_counter() - start
            _logger.info("%s: compiled for this machine in %.1f s", name, seconds)

    def _jit(self, cache: bool) -> Any:
        if not cache:
            return self._dispatcher(cache)
        # Numba's own choice, beside the source, is what `pip uninstall` would leave behind. It
        # also is what Numba turns to where it cannot write to the folder that it is given.
        folder = Path(config.CACHE_DIR or _own_cache())
        _check_writable(folder)
        with _numba_cache_in(folder):
            return self._dispatcher(cache)

    def _dispatcher(self, cache: bool) -> Any:
        # No fastmath: it would mark the sums in `cpu_lanes` that must not be simplified, too.
        return njit(nogil=True, cache=cache, error_model="numpy")(self._function)


@contextlib.contextmanager
def _told_meanwhile(name: str) -> Iterator[None]:
    """Say what takes so long while it does, if it does: what is on disk is there in no time."""
    message = "%s: being compiled for this machine, once for each kind of input"
    timer = threading.Timer(_SILENCE, _logger.warning, (message, name))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _own_cache() -> Path:
    return user_cache() / _fingerprint()


def _check_writable(folder: Path) -> None:
    """Raise OSError unless files can be made in ``folder``, which is made if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


@functools.cache
def _fingerprint() -> str:
    """Hash what kernels take from here: Numba sees only a change of their own files."""
    sources = (
        Path(__file__).with_name(name) for name in ("cpu_lanes.py", "cpu_runtime.py", "cpu_team.py")
    )
    return hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:12]


@contextlib.contextmanager
def _numba_cache_in(folder: Path) -> Iterator[None]:
    """Let Numba choose ``folder`` for what is declared within; read when a kernel is declared."""
    before = config.CACHE_DIR
    config.CACHE_DIR = str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = before


@contextlib.contextmanager
def _one_process_at_a_time(name: str) -> Iterator[None]:
    """Let one process compile the kernel of that name and the others find what it left.

    Numba numbers its cache files by an index that two processes can read before either writes;
    without the lock one would overwrite the other's code. The lock lies where the cache does:
    jobs of a cluster share a home, each with temporary files of its own. Each kernel has its own,
    since it has its own index: who finds a kernel on disk does not wait for another's.
    """
    cache = Path(config.CACHE_DIR or _own_cache())
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context((cache / f"{name}.lock").open("a"))
            # Not flock, which a forked child would hold on to.
            fcntl.lockf(lock, fcntl.LOCK_EX)
        yield


def _kind(args: tuple) -> tuple:
    """Return what of the arguments decides which machine code runs: the types of the arrays.

    All else has the same type in every call.
    """
    return tuple(x.dtype for x in args if isinstance(x, np.ndarray))


def run_parallel(kernel: Callable, items: int, *args: Any) -> None:
    """Call ``kernel(team, *args)`` so that all teams together cover the items ``0 .. items``.

    As many threads work at a time as torch uses, which are torch's own where it uses OpenMP.
    Safe to call from several Python threads, after a fork and in DataLoader workers.
    """
    threads = torch.get_num_threads()
    if threads == 1 or items <= 1:
        kernel(Team(0, 1, 0, items), *args)
        return
    fork = 0 if _is_forked else torch_fork()
    if fork:
        kernel(Team(fork, threads, 0, items), *args)
        return
    workers = min(threads, items)
    bounds = [items * worker // workers for worker in range(workers + 1)]
    first, *others = [Team(0, 1, *span) for span in itertools.pairwise(bounds)]
    futures: list[Future] = []
    try:
        for team in others:
            futures.append(_pool.submit(kernel, team, *args))
        kernel(first, *args)
    finally:
        # Kernels know addresses only: an error or Ctrl-C would have the caller free the tensors.
        wait(futures)
    for future in futures:
        future.result()


def _new_pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_MOST_THREADS, thread_name_prefix="espnet-bimamba")


_pool = _new_pool()
_is_forked = False


def _start_anew_in_child() -> None:
    """Forget the parent's threads, which do not exist in a forked child.

    OpenMP would wait for them forever.
    """
    global _pool, _is_forked
    _pool, _is_forked = _new_pool(), True
    _compile_lock.release()


# A fork waits until nothing is being compiled: the child would inherit Numba's lock, held by a
# thread that it does not have.
os.register_at_fork(
    before=_compile_lock.acquire,
    after_in_parent=_compile_lock.release,
    after_in_child=_start_anew_in_child,
)


class Place(NamedTuple):
    """Where a tensor lies: its first element's address and the steps of its axes, in elements."""

    address: int
    batch: int
    group: int
    state: int
    length: int


class View(NamedTuple):
    """A tensor as kernels read it: a line of memory and the steps of the axes in it."""

    line: np.ndarray
    batch: int
    group: int
    state: int
    length: int


def address(x: Tensor | None) -> int:
    """Return where ``x``'s first element lies; 0 if there is none.

    Kernels get addresses and not arrays: a dozen arrays take as long to make as a short utterance
    takes to convolve. Whoever asks for an address keeps the tensor until the kernel has returned.

    Raises:
        ShapeError: ``x`` only pretends to have numbers.
    """
    if x is None or x.numel() == 0:
        return 0
    if where := x.data_ptr():
        return where
    raise ShapeError(f"{type(x).__name__} of shape {tuple(x.shape)} has no memory to compute in")


def place(x: Tensor | None) -> Place:
    """Locate (batch, dim, length) or (batch, group, state, length); an axis it lacks has step 0."""
    if x is None:
        return _NOWHERE
    steps = x.stride()
    if len(steps) == 3:
        return Place(address(x), steps[0], 0, 0, steps[2])
    return Place(address(x), *steps)


_NOWHERE = Place(0, 0, 0, 0, 0)


def kind(dtype: torch.dtype) -> np.ndarray:
    """Return an empty array that tells a kernel what lies at an address.

    NumPy has no bfloat16, so half precision goes by its bits (see ``cpu_lanes.py``).
    """
    return _KINDS[dtype]


_KINDS: dict[torch.dtype, np.ndarray] = {
    torch.float32: np.empty(0, np.float32),
    torch.float64: np.empty(0, np.float64),
    torch.bfloat16: np.empty(0, np.uint16),
    torch.float16: np.empty(0, np.int16),
}


def kinds(own: torch.dtype, like: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Return what a kernel is compiled for: one of :data:`SIGNATURES`.

    Args:
        own: Dtype of the sequences that are read as they are.
        like: Dtype of all else, in which the kernel computes.
    """
    return SIGNATURES[own, like]


# Each kernel is compiled for these and no others: all else that it is given has one type.
SIGNATURES: dict[tuple[torch.dtype, torch.dtype], tuple[np.ndarray, np.ndarray]] = {
    (own, like): (kind(own), kind(like))
    for own, like in (
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    )
}

# What lengths are.
INTEGERS = np.empty(0, np.int64)


@intrinsic
def _pointer(_: Any, address: Any, like: Any) -> Any:
    pointer = types.CPointer(like.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(pointer))

    return pointer(types.int64, like), codegen


@njit
def line(address: int, like: np.ndarray) -> np.ndarray:
    """View what lies from ``address`` on as one contiguous array; at 0 lies nothing.

    Kernels index the line by the steps of a :class:`Place`, so that slices of a projection's output
    are read in place while the compiler still knows that neighbours are adjacent.
    """
    return carray(_pointer(address, like), (_WITHOUT_END if address else 0,))


_WITHOUT_END = 2**60


@njit
def view(place: Place, like: np.ndarray) -> View:
    """View a tensor where it lies."""
    return View(line(place.address, like), place.batch, place.group, place.state, place.length)


def in_dtype[T: (Tensor, Tensor | None)](x: T, dtype: torch.dtype) -> T:
    """Return ``x`` in ``dtype``, its memory holding its numbers and not their negatives.

    In a tenth of the time of ``x.to`` where there is nothing to do.
    """
    if x is None or (x.dtype == dtype and not x.is_neg()):
        return x
    return x.resolve_neg().to(dtype)


def channels_last(x: Tensor) -> Tensor:
    """Return ``x`` (batch, dim, length) with neighbouring channels side by side in memory."""
    if x.stride(1) == 1 or x.shape[1] == 1:
        return x
    return x.transpose(1, 2).contiguous().transpose(1, 2)


def empty_channels_last(shape: Sequence[int], like: Tensor) -> Tensor:
    """Return (batch, dim, length), not initialised, neighbouring channels side by side."""
    batch, dim, length = shape
    # Not a transposed view: what a function with two outputs returns as a view could not be
    # modified in place by the caller.
    return torch.empty_strided(
        (batch, dim, length), (length * dim, 1, dim), dtype=like.dtype, device=like.device
    )
