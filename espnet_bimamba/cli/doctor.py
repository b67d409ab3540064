"""``espnet-bimamba doctor``: what is installed, what knows us, and what would run."""

import argparse
import importlib
import json
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
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Imports every ESPnet task that can hold our encoders, which takes 10 to 20 seconds.\n"
            "Exit status 0: the ASR task of ESPnet's own commands knows us, and a backend runs on\n"
            "the CPU or on a GPU. 1: not so; the last line says what is missing."
        ),
        epilog=(
            "examples:\n"
            "  espnet-bimamba doctor\n"
            "  ESPNET_BIMAMBA_BACKEND=triton espnet-bimamba doctor   # can it serve?\n"
            "  espnet-bimamba doctor --json > environment.json       # for a bug report"
        ),
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


class Report:
    """Sections of labelled rows, printed as they come or, as JSON, together at the end.

    Args:
        quiet: Print nothing yet.
    """

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.sections: dict[str, dict[str, str]] = {}

    def section(self, title: str) -> None:
        """Begin a section."""
        if not self.quiet:
            print(f"\n{title}" if self.sections else title)
        self.sections[title] = {}

    def row(self, label: str, value: str) -> None:
        """Add a row to the section that was begun last."""
        if not self.quiet:
            print(f"  {label:<48} {value}")
        self.sections[list(self.sections)[-1]][label] = value


def run(args: argparse.Namespace) -> int:
    """Print the report; see the module."""
    report = Report(quiet=args.json)
    _report_versions(report)
    checks = {
        "ESPnet's commands do not know our encoders": _report_hook(report),
        "ESPnet's ASR task does not know our encoders": _report_registries(report),
        "no backend runs on the CPU or on a GPU": _report_backends(report),
    }
    failed = [reason for reason, passed in checks.items() if not passed]
    if args.json:
        verdict = {"ready": not failed, "not_ready": failed}
        print(json.dumps({**verdict, "sections": report.sections}, indent=2))
    else:
        print(f"\nNot ready: {'; '.join(failed)}." if failed else "\nReady.")
    return 1 if failed else 0


def _report_versions(report: Report) -> None:
    report.section("Versions")
    report.row("python", platform.python_version())
    report.row("espnet-bimamba", __version__)
    for package in PACKAGES:
        report.row(package, _version(package))


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _report_hook(report: Report) -> bool:
    """Return whether ESPnet's own commands know us."""
    report.section("Start-up hook")
    if os.environ.get("ESPNET_BIMAMBA_DISABLE") == "1":
        report.row("espnet_bimamba.pth", "switched off by ESPNET_BIMAMBA_DISABLE=1")
        return False
    if _starts_with_us():
        report.row("espnet_bimamba.pth", "active: ESPnet's commands know our encoders")
        return True
    report.row(
        "espnet_bimamba.pth",
        "not active: only programs that `import espnet_bimamba` know our encoders; "
        "install the wheel (not only its folder) to activate it",
    )
    return False


def _starts_with_us() -> bool:
    # This process has imported us already: only a fresh one shows what ESPnet's commands see.
    probe = "import sys; sys.exit('espnet_bimamba.startup' not in sys.modules)"
    return subprocess.run([sys.executable, "-I", "-c", probe], check=False).returncode == 0


def _report_registries(report: Report) -> bool:
    """Return whether the ASR task knows all our encoders."""
    report.section("ESPnet registries")
    known = {}
    for host, registries in registry.HOSTS.items():
        try:
            module = importlib.import_module(host)
        except Exception as error:
            report.row(host, f"cannot be imported: {type(error).__name__}: {error}")
            continue
        for attribute, table in registries.items():
            where = f"{host}.{attribute}"
            names = [name for name in table if _knows(module, attribute, name)]
            known[where] = len(names) == len(table)
            missing = ", ".join(name for name in table if name not in names)
            report.row(where, ", ".join(names) + (f" (not {missing})" if missing else ""))
    return known.get("espnet2.tasks.asr.encoder_choices", False)


def _knows(module: object, attribute: str, name: str) -> bool:
    classes = getattr(getattr(module, attribute, None), "classes", {})
    return name in classes and classes[name].__module__.startswith("espnet_bimamba.")


def _report_backends(report: Report) -> bool:
    """Return whether every operator has a backend for the tensors of one device."""
    import torch

    from espnet_bimamba.ops.backends import BACKENDS, OPERATORS

    report.section("Backends")
    for operator in OPERATORS:
        for backend in BACKENDS.values():
            report.row(f"{operator}: {backend.name}", _state(backend, operator))

    report.section("Chosen for float32 tensors")
    usable = _report_choices(report, "cpu")
    if not torch.cuda.is_available():
        report.row("GPU", "torch sees no CUDA device")
        return usable
    report.row("GPU", torch.cuda.get_device_name())
    return _report_choices(report, "cuda") or usable


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


def _report_choices(report: Report, device: str) -> bool:
    """Return whether every operator has a backend on the device."""
    from espnet_bimamba.ops.backends import OPERATORS

    usable = [_report_choice(report, operator, device) for operator in OPERATORS]
    return all(usable)


def _report_choice(report: Report, operator: str, device: str) -> bool:
    """Return whether a backend serves the operator on the device."""
    from espnet_bimamba.ops.backends import ENVIRONMENT_VARIABLE, Call, resolve

    label = f"{operator} on {device}"
    try:
        # As an encoder calls it: with the lengths of a batch.
        function = resolve(Call(operator, device, d_state=16, d_conv=4, lengths=True))
    except BiMambaError as error:
        report.row(label, str(error))
        return False
    forced = " (forced by ESPNET_BIMAMBA_BACKEND)" if os.environ.get(ENVIRONMENT_VARIABLE) else ""
    report.row(label, function.__module__.rpartition(".")[2] + forced)
    return True
