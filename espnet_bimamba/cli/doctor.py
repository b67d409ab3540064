"""``espnet-bimamba doctor``: what is installed, what knows us, and what would run."""

import argparse
import importlib
import os
import platform
import subprocess
import sys
from importlib import metadata
from typing import TYPE_CHECKING

from espnet_bimamba import __version__, registry
from espnet_bimamba.errors import BiMambaError

if TYPE_CHECKING:
    from espnet_bimamba.ops.backends import Backend

PACKAGES = ("torch", "espnet", "numba", "triton", "mamba-ssm", "causal-conv1d", "kernels")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``doctor`` to the command line."""
    parser = subparsers.add_parser(
        "doctor",
        help="say what is installed, which registries know us and which kernels would run",
        description=(
            "Imports every ESPnet task that can hold our encoders, which takes 10 to 20 seconds. "
            "Exit status 0: the ASR task of ESPnet's own commands knows us, and a backend runs on "
            "the CPU or on a GPU."
        ),
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the report; see the module."""
    _report_versions()
    checks = {
        "ESPnet's commands do not know our encoders": _report_hook(),
        "ESPnet's ASR task does not know our encoders": _report_registries(),
        "no backend runs on the CPU or on a GPU": _report_backends(),
    }
    failed = [reason for reason, passed in checks.items() if not passed]
    print(f"\nNot ready: {'; '.join(failed)}." if failed else "\nReady.")
    return 1 if failed else 0


def _report_versions() -> None:
    print("Versions")
    _row("python", platform.python_version())
    _row("espnet-bimamba", __version__)
    for package in PACKAGES:
        _row(package, _version(package))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _report_hook() -> bool:
    """Return whether ESPnet's own commands know us."""
    print("\nStart-up hook")
    if os.environ.get("ESPNET_BIMAMBA_DISABLE") == "1":
        _row("espnet_bimamba.pth", "switched off by ESPNET_BIMAMBA_DISABLE=1")
        return False
    if _starts_with_us():
        _row("espnet_bimamba.pth", "active: ESPnet's commands know our encoders")
        return True
    _row(
        "espnet_bimamba.pth",
        "not active: only programs that `import espnet_bimamba` know our encoders; "
        "install the wheel (not only its folder) to activate it",
    )
    return False


def _starts_with_us() -> bool:
    # This process has imported us already: only a fresh one shows what ESPnet's commands see.
    probe = "import sys; sys.exit('espnet_bimamba.startup' not in sys.modules)"
    return subprocess.run([sys.executable, "-I", "-c", probe], check=False).returncode == 0


def _report_registries() -> bool:
    """Return whether the ASR task knows all our encoders."""
    print("\nESPnet registries")
    known = {}
    for host, registries in registry.HOSTS.items():
        try:
            module = importlib.import_module(host)
        except Exception as error:
            _row(host, f"cannot be imported: {type(error).__name__}: {error}")
            continue
        for attribute, table in registries.items():
            where = f"{host}.{attribute}"
            names = [name for name in table if _knows(module, attribute, name)]
            known[where] = len(names) == len(table)
            missing = ", ".join(name for name in table if name not in names)
            _row(where, ", ".join(names) + (f" (not {missing})" if missing else ""))
    return known.get("espnet2.tasks.asr.encoder_choices", False)


def _knows(module: object, attribute: str, name: str) -> bool:
    classes = getattr(getattr(module, attribute, None), "classes", {})
    return name in classes and classes[name].__module__.startswith("espnet_bimamba.")


def _report_backends() -> bool:
    """Return whether every operator has a backend for the tensors of one device."""
    import torch

    from espnet_bimamba.ops.backends import BACKENDS, OPERATORS

    print("\nBackends")
    for operator in OPERATORS:
        for backend in BACKENDS.values():
            _row(f"{operator}: {backend.name}", _state(backend, operator))

    print("\nChosen for float32 tensors")
    usable = _report_choices("cpu")
    if not torch.cuda.is_available():
        _row("GPU", "torch sees no CUDA device")
        return usable
    _row("GPU", torch.cuda.get_device_name())
    return _report_choices("cuda") or usable


def _state(backend: "Backend", operator: str) -> str:
    from espnet_bimamba.ops.backends import ENVIRONMENT_VARIABLE, Call

    if backend.only_by_name and os.environ.get(ENVIRONMENT_VARIABLE) != backend.name:
        # Its files are not even imported: that may download what nobody asked for.
        present = backend.probe() or "installed"
        return f"only by name, {ENVIRONMENT_VARIABLE}={backend.name} ({present})"
    call = Call(operator, (backend.devices or ("cpu",))[0], d_state=16, d_conv=4)
    reason, remedy = backend.unavailable(operator), backend.remedy(call)
    state = f"no: {reason}" if reason else "available"
    return f"{state} (remedy: {remedy})" if remedy else state


def _report_choices(device: str) -> bool:
    """Return whether every operator has a backend on the device."""
    from espnet_bimamba.ops.backends import OPERATORS

    usable = [_report_choice(operator, device) for operator in OPERATORS]
    return all(usable)


def _report_choice(operator: str, device: str) -> bool:
    """Return whether a backend serves the operator on the device."""
    from espnet_bimamba.ops.backends import ENVIRONMENT_VARIABLE, Call, resolve

    label = f"{operator} on {device}"
    try:
        function = resolve(Call(operator, device, d_state=16, d_conv=4))
    except BiMambaError as error:
        _row(label, str(error))
        return False
    forced = " (forced by ESPNET_BIMAMBA_BACKEND)" if os.environ.get(ENVIRONMENT_VARIABLE) else ""
    _row(label, function.__module__.rpartition(".")[2] + forced)
    return True


def _row(label: str, value: str) -> None:
    print(f"  {label:<48} {value}")
