"""The table of backends and how one of them is chosen for a call.

To add a backend: one file ``ops/<operator>/<name>.py`` for each operator it offers, with a
function of the operator's name and the reference's signature, and one record in
:data:`BACKENDS`.
"""

import functools
import importlib
import importlib.metadata
import logging
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import NamedTuple

import torch

from espnet_bimamba.errors import BackendError, OptionError

OPERATORS = ("selective_scan", "causal_conv1d")
ENVIRONMENT_VARIABLE = "ESPNET_BIMAMBA_BACKEND"

_logger = logging.getLogger(__name__)


class Call(NamedTuple):
    """What a backend needs to know of a call to say whether it can serve it.

    Attributes:
        operator: One of :data:`OPERATORS`.
        device: Device type of the tensors, ``"cpu"`` or ``"cuda"`` for example.
        dtype: Dtype of the input sequence.
        d_state: State size of a scan, 0 for a convolution.
        d_conv: Kernel width of a convolution, 0 for a scan.
        initial_state: Whether the call starts from a given state.
        final_state: Whether the call returns its last state.
        gradient: Whether the results are to be differentiated.
        lengths: Whether sequences have lengths of their own.
        turned: Whether any channel runs backwards in time.
    """

    operator: str
    device: str
    dtype: torch.dtype = torch.float32
    d_state: int = 0
    d_conv: int = 0
    initial_state: bool = False
    final_state: bool = False
    gradient: bool = False
    lengths: bool = False
    turned: bool = False


@dataclass(frozen=True)
class Backend:
    """One way to compute the operators.

    Attributes:
        name: Name of its file in each operator's folder.
        probe: Says in words what the backend needs and is not installed, or None. Cheap: it
            imports nothing heavy.
        supports: Says in words why the backend cannot serve a call, or None.
        install_hint: What to do to have the backend.
        devices: Device types it serves; empty means any.
        devices_by_name: Says which device types it serves besides, but only when asked for by
            name.
        only_by_name: Whether it is taken, and its files imported, only when asked for by name.
        yields: Names a backend that serves a call faster where it can, and says in words why, or
            None.
    """

    name: str
    probe: Callable[[], str | None]
    supports: Callable[[Call], str | None]
    install_hint: str
    devices: tuple[str, ...] = ()
    devices_by_name: Callable[[], tuple[str, ...]] = tuple
    only_by_name: bool = False
    yields: Callable[[Call], tuple[str, str] | None] = lambda _: None

    def unavailable(self, operator: str) -> str | None:
        """Why ``operator`` cannot run on this machine with this backend, or None if it can."""
        return self._no_device() or self.probe() or _import_failure(operator, self.name)

    def remedy(self, call: Call) -> str | None:
        """What to install to serve ``call``, or None where no installation helps."""
        if self._elsewhere(call, self.devices) or self._no_device() or self.supports(call):
            return None
        absent = self.probe() or _import_failure(call.operator, self.name)
        return self.install_hint if absent else None

    def _elsewhere(self, call: Call, devices: tuple[str, ...]) -> str | None:
        if not self.devices or call.device in devices:
            return None
        return f"it serves {' and '.join(devices)} tensors, these are on {call.device}"

    def _no_device(self) -> str | None:
        devices = self.devices + self.devices_by_name()
        if not devices or "cpu" in devices or torch.cuda.is_available():
            return None
        return "no CUDA device is visible to torch"

    def rejects(self, call: Call, *, by_name: bool = False) -> str | None:
        """Why this backend cannot serve ``call``, or None if it can.

        Args:
            call: What is asked for.
            by_name: Whether this backend was asked for by name.
        """
        devices = self.devices + (self.devices_by_name() if by_name else ())
        if reason := self._elsewhere(call, devices):
            return reason
        if self.only_by_name and not by_name:
            return "taken only when asked for by name"
        return self.unavailable(call.operator) or self.supports(call)

    def function(self, operator: str) -> Callable:
        """Return this backend's implementation of ``operator``."""
        return getattr(importlib.import_module(_module(operator, self.name)), operator)


@dataclass(frozen=True)
class Choice:
    """The outcome of a choice: the backend, and why those before it were passed over."""

    backend: Backend
    rejected: dict[str, str] = field(default_factory=dict)


def _module(operator: str, backend: str) -> str:
    return f"{__package__}.{operator}.{backend}"


@functools.cache
def _import_failure(operator: str, backend: str) -> str | None:
    # Any exception is a reason: Triton raises RuntimeError where there is no driver, a kernel
    # built against another torch raises OSError or AttributeError.
    try:
        importlib.import_module(_module(operator, backend))
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def _always(_: Call) -> None:
    return None


def _missing(*packages: str) -> str | None:
    missing = [package for package in packages if find_spec(package) is None]
    return f"not installed: {', '.join(missing)}" if missing else None


def _probe_mamba_ssm() -> str | None:
    # With one of the two its operator is served; importing the other's file says what it lacks.
    if _missing("mamba_ssm") and _missing("causal_conv1d"):
        return _missing("mamba_ssm", "causal_conv1d")
    return None


def _mamba_ssm_supports(call: Call) -> str | None:
    if call.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"its kernels have no {call.dtype}"
    if call.d_state > 256:
        return f"its scan has at most 256 states a channel, asked for are {call.d_state}"
    if call.operator == "selective_scan" and call.initial_state:
        return "its scan cannot start from a given state"
    if call.operator == "selective_scan" and call.final_state and call.gradient:
        return "its last state has no gradient"
    if call.operator == "causal_conv1d" and not 2 <= call.d_conv <= 4:
        return f"its convolution is 2 to 4 wide, asked for is {call.d_conv}"
    if call.operator == "causal_conv1d" and (call.initial_state or call.final_state):
        return "it carries no convolution state here"
    return None


def _mamba_ssm_yields(call: Call) -> tuple[str, str] | None:
    # Measured: docs/performance.md.
    if call.lengths or call.turned:
        return (
            "triton",
            "its kernels know no lengths and no direction: copies stand around them",
        )
    return None


def _triton_interprets() -> bool:
    # Triton's own variable: kernels run on the CPU, operation by operation in NumPy. That is to
    # test them, hundreds of times slower than any other backend.
    return os.environ.get("TRITON_INTERPRET") == "1"


def _probe_triton() -> str | None:
    if (reason := _missing("triton")) or _triton_interprets():
        return reason
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        # Installed under another name, as by some builds of torch: whether it works is seen.
        return None
    compilers = [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang"]
    # Up to here Triton compiles a launcher in C for each kind of call.
    release = re.match(r"(\d+)\.(\d+)", version)
    own_launcher = not release or tuple(map(int, release.groups())) >= (3, 8)
    if own_launcher or any(map(shutil.which, compilers)):
        return None
    return f"Triton {version} needs a C compiler and finds no {' and no '.join(compilers)}"


def _triton_supports(call: Call) -> str | None:
    if call.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it computes in float32 and does not take {call.dtype}"
    if call.d_state > 256:
        return f"its scan has at most 256 states a channel, asked for are {call.d_state}"
    return None


_HUB_KERNELS = "pip install '.[hub-kernels]' in a clone of espnet-bimamba"

BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            name="mamba_ssm",
            probe=_probe_mamba_ssm,
            supports=_mamba_ssm_supports,
            install_hint=(
                "pip install --no-build-isolation '.[cuda]' in a clone of espnet-bimamba builds it "
                "(needs nvcc; set MAMBA_KEEP_CUDA_BUILD=TRUE); without a compiler "
                f"{_HUB_KERNELS}, then ESPNET_BIMAMBA_BACKEND=hub_kernels"
            ),
            devices=("cuda",),
            yields=_mamba_ssm_yields,
        ),
        Backend(
            name="triton",
            probe=_probe_triton,
            supports=_triton_supports,
            install_hint=(
                "pip install triton, which torch's CUDA wheel for Linux brings; "
                "before Triton 3.8 (torch 2.14) gcc or clang, too"
            ),
            devices=("cuda",),
            devices_by_name=lambda: ("cpu",) if _triton_interprets() else (),
        ),
        Backend(
            name="cpu",
            probe=functools.partial(_missing, "numba"),
            supports=_always,
            install_hint="pip install numba",
            devices=("cpu",),
        ),
        Backend(
            name="reference",
            probe=lambda: None,
            supports=_always,
            install_hint="it is always there",
        ),
        Backend(
            name="hub_kernels",
            probe=functools.partial(_missing, "kernels"),
            supports=_mamba_ssm_supports,
            install_hint=(
                f"{_HUB_KERNELS}; the Hugging Face Hub must be within reach, "
                "with a build for this torch"
            ),
            devices=("cuda",),
            only_by_name=True,
        ),
    )
}


def resolve(call: Call, backend: str | None = None) -> Callable:
    """Return the function that serves ``call``.

    Args:
        call: What is asked for.
        backend: Name of a backend; None takes the one named by the environment variable
            ``ESPNET_BIMAMBA_BACKEND``, or else the first of :data:`BACKENDS` that can serve.

    Raises:
        OptionError: The name is not in :data:`BACKENDS`.
        BackendError: The backend asked for by name cannot serve the call.
    """
    if backend is not None:
        return _named("backend", backend, call).function(call.operator)
    if name := os.environ.get(ENVIRONMENT_VARIABLE):
        return _named(ENVIRONMENT_VARIABLE, name, call).function(call.operator)
    return choose(call).backend.function(call.operator)


@functools.cache
def _named(option: str, name: str, call: Call) -> Backend:
    if name not in BACKENDS:
        raise OptionError(option, name, f"one of {', '.join(BACKENDS)}")
    backend = BACKENDS[name]
    if reason := backend.rejects(call, by_name=True):
        others = " or ".join(other.name for other in BACKENDS.values() if not other.rejects(call))
        hint = backend.remedy(call)
        remedy = f"Remedy: {hint}; or choose {others}." if hint else f"Choose {others}."
        raise BackendError(name, reason, remedy)
    return backend


@functools.cache
def choose(call: Call) -> Choice:
    """Walk :data:`BACKENDS` in order and take the first that can serve ``call``.

    One that yields to a faster one which can serve it, too, is passed over.

    The outcome is logged once for each kind of call: at INFO, or as a warning when CUDA
    tensors are left to the slow reference.
    """
    rejected: dict[str, str] = {}
    for backend in BACKENDS.values():
        reason = backend.rejects(call) or _passed_over(backend, call)
        if reason is None:
            _log(call, Choice(backend, rejected))
            return Choice(backend, rejected)
        rejected[backend.name] = reason
    raise AssertionError("the reference serves every call")


def _passed_over(backend: Backend, call: Call) -> str | None:
    """Why another backend is taken although this one can serve ``call``, or None."""
    if not (other := backend.yields(call)):
        return None
    name, why = other
    return None if BACKENDS[name].rejects(call) else why


def _log(call: Call, choice: Choice) -> None:
    slow = call.device != "cpu" and choice.backend.name == "reference"
    why = "; ".join(f"{name}: {reason}" for name, reason in choice.rejected.items())
    message = f"{call.operator} on {call.device} runs with backend {choice.backend.name!r}"
    if slow:
        fast = [b for b in BACKENDS.values() if call.device in b.devices and not b.only_by_name]
        hints = [hint for b in fast if (hint := b.remedy(call))]
        message += ", which is slow"
        message += f". To have a fast one: {' or '.join(hints)}" if hints else ""
    _log_once(logging.WARNING if slow else logging.INFO, f"{message} ({why or 'first choice'})")


@functools.cache
def _log_once(level: int, message: str) -> None:
    _logger.log(level, message)
