"""The scans that ours is compared with; all take what :func:`benchmarks.ops.scan_inputs` makes."""

import ctypes
import hashlib
import shutil
import subprocess
import tempfile
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

_SOURCE = Path(__file__).with_name("scan.cpp")
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-fno-math-errno", "-shared", "-fPIC", "-pthread")


def loop_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor
) -> Tensor:
    """Scan step by step in PyTorch, with all decays and inputs computed before.

    The recurrence of mamba-ssm's ``selective_scan_ref``, as fast as it gets in plain PyTorch:
    frames are unbound once, since the gradient of picking them one by one is quadratic in length.
    """
    dt = F.softplus(delta)
    decays = torch.exp(dt.transpose(1, 2)[..., None] * A)
    inputs = (dt * u).transpose(1, 2)[..., None] * B.transpose(1, 2)[:, :, None]
    h = torch.zeros_like(decays[:, 0])
    steps = []
    for decay, entering, row in zip(decays.unbind(1), inputs.unbind(1), C.unbind(2), strict=True):
        h = decay * h + entering
        steps.append((h @ row[..., None].to(h.dtype)).squeeze(-1))
    return (torch.stack(steps, dim=2) + D[:, None] * u) * F.silu(z)


def mambapy_missing() -> str:
    """Say why mambapy's scan cannot run; empty if it can."""
    return "" if find_spec("mambapy") else "mambapy is not installed (extra `bench`)"


def mambapy_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor
) -> Tensor:
    """Scan with mambapy's parallel scan, in the steps of its ``MambaBlock.selective_scan``."""
    from mambapy.pscan import pscan

    x, dt = u.transpose(1, 2), F.softplus(delta.transpose(1, 2))
    decays = torch.exp(dt[..., None] * A)
    inputs = dt[..., None] * B.transpose(1, 2)[:, :, None] * x[..., None]
    states = pscan(decays, inputs)
    y = (states @ C.transpose(1, 2)[..., None].to(states.dtype)).squeeze(-1) + D * x
    return (y * F.silu(z.transpose(1, 2))).transpose(1, 2)


class CppScan:
    """The hand-written C++ scan of ``scan.cpp``, compiled for this machine.

    Raises:
        RuntimeError: There is no C++ compiler, or it failed; the message says which.
    """

    def __init__(self) -> None:
        compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
        if compiler is None:
            raise RuntimeError("no C++ compiler was found")
        key = hashlib.sha256(_SOURCE.read_bytes() + " ".join(_FLAGS).encode()).hexdigest()[:12]
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / f"scan-{key}.so"
            command = [compiler, *_FLAGS, str(_SOURCE), "-o", str(library)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"scan.cpp does not compile: {done.stderr.splitlines()[-1:]}")
            self._library = ctypes.CDLL(str(library))
        self._lanes = self._library.lanes()

    def __call__(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor
    ) -> Tensor:
        """Scan forward, with as many threads as PyTorch uses."""
        batch, dim, length = u.shape
        if dim % self._lanes or A.shape[1] != 16:
            raise RuntimeError(f"scan.cpp serves 16 states and multiples of {self._lanes} channels")
        lines = [x.transpose(1, 2) for x in (u, delta, B, C, z)]
        if not all(x.is_contiguous() and x.dtype == torch.float32 for x in (*lines, A, D)):
            raise RuntimeError("scan.cpp serves float32, neighbouring channels side by side")
        u, delta, B, C, z = lines
        out = torch.empty_like(u)
        sizes = map(ctypes.c_int64, (batch, dim, length, torch.get_num_threads()))
        tensors = (u, delta, A, B, C, D, z, out)
        self._library.scan(*(ctypes.c_void_p(x.data_ptr()) for x in tensors), *sizes)
        return out.transpose(1, 2)
