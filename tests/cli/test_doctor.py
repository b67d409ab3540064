"""`espnet-bimamba doctor`: what it says and when it says no."""

import json
import platform
from dataclasses import replace
from importlib import metadata

import pytest
import torch

import espnet_bimamba
from espnet_bimamba import registry
from espnet_bimamba.cli import doctor, main
from espnet_bimamba.ops import backends

NAMES = "conbimamba, transbimamba, bimamba, e_branchbimamba"


@pytest.fixture(autouse=True)
def _few_hosts(monkeypatch):
    """Every host takes 20 seconds to import, and a fresh interpreter does not know this tree."""
    asr = {"encoder_choices": registry.ENCODERS}
    monkeypatch.setattr(registry, "HOSTS", {"espnet2.tasks.asr": asr})
    monkeypatch.setattr(doctor, "_starts_with_us", lambda: True)
    monkeypatch.delenv(backends.ENVIRONMENT_VARIABLE, raising=False)
    backends._import_failure.cache_clear()
    backends._named.cache_clear()
    backends.choose.cache_clear()


@pytest.fixture
def report(capsys):
    """Run `doctor`; return its exit status and the value of each row."""

    def run() -> tuple[int, dict[str, str]]:
        status = main(["doctor"])
        rows = [line.strip() for line in capsys.readouterr().out.splitlines() if line[:2] == "  "]
        return status, {row[:48].strip(): row[48:].strip() for row in rows}

    return run


def test_everything_in_order(report):
    status, rows = report()
    assert status == 0
    assert rows["python"] == platform.python_version()
    assert rows["espnet-bimamba"] == espnet_bimamba.__version__
    assert rows["torch"] == metadata.version("torch")
    assert rows["espnet"] == metadata.version("espnet")
    assert rows["espnet2.tasks.asr.encoder_choices"] == NAMES
    for operator in backends.OPERATORS:
        assert rows[f"{operator}: cpu"] == "available"
        assert rows[f"{operator}: reference"] == "available"
        assert rows[f"{operator} on cpu"] == "cpu"


def test_as_json_it_says_the_same(report, capsys):
    _, rows = report()
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["ready"], found["not_ready"]) == (True, [])
    assert {
        label: value for part in found["sections"].values() for label, value in part.items()
    } == (rows)


def test_as_json_it_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "_starts_with_us", lambda: False)
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["ready"] is False
    assert found["not_ready"] == ["ESPnet's commands do not know our encoders"]


def test_a_package_that_is_missing_is_said_to_be(report, monkeypatch):
    monkeypatch.setattr(doctor, "PACKAGES", ("no-such-package",))
    assert report()[1]["no-such-package"] == "not installed"


def test_a_backend_that_is_out_says_why_and_what_to_do(report, monkeypatch):
    broken = backends.Backend(
        "cpu", lambda: "numba is broken", lambda _: None, "pip install numba", ("cpu",)
    )
    monkeypatch.setitem(backends.BACKENDS, "cpu", broken)
    status, rows = report()
    assert status == 0, "the reference still runs"
    assert rows["selective_scan: cpu"] == "no: numba is broken (remedy: pip install numba)"
    assert rows["selective_scan on cpu"] == "reference"


def test_the_ready_built_kernels_are_a_remedy_and_not_downloaded(report, monkeypatch):
    def import_failure(operator, name):
        assert name != "hub_kernels", "importing it downloads"

    monkeypatch.setattr(backends, "_import_failure", import_failure)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    for missing, state in (
        ("not installed: kernels", "not installed: kernels"),
        (None, "installed"),
    ):
        hub = replace(backends.BACKENDS["hub_kernels"], probe=lambda missing=missing: missing)
        monkeypatch.setitem(backends.BACKENDS, "hub_kernels", hub)
        _, rows = report()
        by_name = f"only by name, ESPNET_BIMAMBA_BACKEND=hub_kernels ({state})"
        assert rows["selective_scan: hub_kernels"] == by_name
    remedy = "without a compiler pip install '.[hub-kernels]' in a clone of espnet-bimamba"
    assert remedy in rows["selective_scan: mamba_ssm"]


def test_without_any_backend_it_is_not_ready(report, monkeypatch, capsys):
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "mamba_ssm")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "backend 'mamba_ssm' cannot serve" in out
    assert out.endswith("Not ready: no backend runs on the CPU or on a GPU.\n")


def test_a_backend_forced_for_the_gpu_alone_is_ready(report, monkeypatch):
    fused = backends.Backend("mamba_ssm", lambda: None, lambda _: None, "build it", ("cuda",))
    monkeypatch.setitem(backends.BACKENDS, "mamba_ssm", fused)
    monkeypatch.setattr(backends, "_import_failure", lambda operator, name: None)
    monkeypatch.setattr(backends.Backend, "function", lambda self, operator: report)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "mamba_ssm")
    status, rows = report()
    assert status == 0
    assert "it serves cuda tensors, these are on cpu" in rows["selective_scan on cpu"]


def test_a_forced_backend_is_said_to_be_forced(report, monkeypatch):
    monkeypatch.setenv(backends.ENVIRONMENT_VARIABLE, "reference")
    status, rows = report()
    assert status == 0
    assert rows["causal_conv1d on cpu"] == "reference (forced by ESPNET_BIMAMBA_BACKEND)"


def test_a_host_that_cannot_be_imported_says_why(report, monkeypatch):
    monkeypatch.setitem(registry.HOSTS, "espnet2.tasks.gone", {"encoder_choices": {}})
    status, rows = report()
    assert status == 0
    expected = "cannot be imported: ModuleNotFoundError: No module named 'espnet2.tasks.gone'"
    assert rows["espnet2.tasks.gone"] == expected


def test_an_asr_task_that_lacks_a_name_is_not_ready(report, monkeypatch):
    import espnet2.tasks.asr as asr

    monkeypatch.setitem(asr.encoder_choices.classes, "bimamba", object)
    status, rows = report()
    assert status == 1
    known = "conbimamba, transbimamba, e_branchbimamba (not bimamba)"
    assert rows["espnet2.tasks.asr.encoder_choices"] == known


@pytest.mark.parametrize(
    ("starts", "variables", "expected", "status"),
    [
        (True, {}, "active: ESPnet's commands know our encoders", 0),
        (False, {}, "not active: only programs that `import espnet_bimamba` know our encoders", 1),
        (True, {"ESPNET_BIMAMBA_DISABLE": "1"}, "switched off by ESPNET_BIMAMBA_DISABLE=1", 1),
    ],
)
def test_the_start_up_hook(report, monkeypatch, starts, variables, expected, status):
    monkeypatch.setattr(doctor, "_starts_with_us", lambda: starts)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found, rows = report()
    assert found == status
    assert rows["espnet_bimamba.pth"].startswith(expected)


@pytest.mark.parametrize("available", [True, False])
def test_the_gpu_is_named(report, monkeypatch, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
    _, rows = report()
    assert rows["GPU"] == ("Some GPU" if available else "torch sees no CUDA device")
    assert ("selective_scan on cuda" in rows) is available
