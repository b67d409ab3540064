"""How a backend is chosen: order, reasons, what is logged, without any hardware."""

import inspect
import logging
import re
import sys
from dataclasses import replace

import pytest
import torch

from espnet_bimamba.errors import BackendError, OptionError
from espnet_bimamba.ops import backends, causal_conv1d, selective_scan
from espnet_bimamba.ops.backends import BACKENDS, OPERATORS, Backend, Call


def fake(name, why_not=None, unsupported=None, devices=("cuda",)):
    return Backend(
        name=name,
        probe=lambda: why_not,
        supports=lambda call: unsupported,
        install_hint=f"install {name}",
        devices=devices,
    )


@pytest.fixture
def table(monkeypatch):
    """Replace the table of backends; every entry but the reference is a fake that imports."""

    def replace(*entries):
        for function in (backends.choose, backends._named, backends._log_once):
            function.cache_clear()
        reference = BACKENDS["reference"]
        entries = {entry.name: entry for entry in (*entries, reference)}
        monkeypatch.setattr(backends, "BACKENDS", entries)
        monkeypatch.setattr(backends, "_import_failure", lambda operator, name: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    yield replace
    for function in (backends.choose, backends._named, backends._log_once):
        function.cache_clear()


CUDA = Call("selective_scan", "cuda")


def test_the_first_that_serves_is_taken(table):
    table(fake("first"), fake("second"))
    choice = backends.choose(CUDA)
    assert choice.backend.name == "first"
    assert choice.rejected == {}


def test_rejections_carry_their_reasons_in_order(table):
    table(
        fake("absent", why_not="not installed: absent"),
        fake("narrow", unsupported="no float32"),
        fake("elsewhere", devices=("cpu",)),
        fake("last"),
    )
    choice = backends.choose(CUDA)
    assert choice.backend.name == "last"
    assert list(choice.rejected.items()) == [
        ("absent", "not installed: absent"),
        ("narrow", "no float32"),
        ("elsewhere", "it serves cpu tensors, these are on cuda"),
    ]


def test_the_choice_is_logged_once_at_info(table, caplog):
    table(fake("absent", why_not="not installed"), fake("fast"))
    with caplog.at_level(logging.INFO, backends.__name__):
        for _ in range(3):
            backends.choose(CUDA)
    assert [(r.levelname, r.message) for r in caplog.records] == [
        ("INFO", "selective_scan on cuda runs with backend 'fast' (absent: not installed)")
    ]


def test_cuda_left_to_the_reference_is_a_warning_with_the_remedy(table, caplog):
    table(fake("fast", why_not="not installed"))
    with caplog.at_level(logging.INFO, backends.__name__):
        backends.choose(CUDA)
        backends.choose(Call("selective_scan", "cuda", initial_state=True))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "which is slow. To have a fast one: install fast" in caplog.text
    assert "fast: not installed" in caplog.text


def test_an_explicit_backend_never_falls_back(table):
    table(fake("fast", why_not="not installed: fast"))
    with pytest.raises(BackendError) as caught:
        backends.resolve(CUDA, "fast")
    assert str(caught.value) == (
        "backend 'fast' cannot serve: not installed: fast. "
        "Remedy: install fast; or choose reference."
    )


def test_what_is_taken_only_by_name_is_not_even_imported(table, monkeypatch):
    table(replace(fake("hub"), only_by_name=True), fake("second"))
    imported = []
    monkeypatch.setattr(backends, "_import_failure", lambda _, name: imported.append(name))
    choice = backends.choose(CUDA)
    assert choice.backend.name == "second"
    assert choice.rejected == {"hub": "taken only when asked for by name"}
    assert "hub" not in imported
    monkeypatch.setattr(Backend, "function", lambda self, operator: self.name)
    assert backends.resolve(CUDA, "hub") == "hub"
    assert "hub" in imported


def test_no_installation_is_named_where_none_would_help(table, monkeypatch):
    table(fake("fast"), fake("absent", why_not="not installed: absent"))
    for call, name, end in (
        (Call("selective_scan", "cpu"), "fast", "on cpu. Choose reference."),
        (Call("selective_scan", "cpu"), "absent", "on cpu. Choose reference."),
        (
            CUDA,
            "absent",
            "not installed: absent. Remedy: install absent; or choose fast or reference.",
        ),
    ):
        with pytest.raises(BackendError) as caught:
            backends.resolve(call, name)
        assert str(caught.value).endswith(end)
    backends._named.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("fast", "absent"):
        with pytest.raises(BackendError, match=r"no CUDA device is visible .*\. Choose reference"):
            backends.resolve(CUDA, name)


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_environment_variable_obeys_the_same_rules(table, monkeypatch, operator):
    table(fake("fast", unsupported="no such shape"))
    monkeypatch.setenv("ESPNET_BIMAMBA_BACKEND", "fast")
    with pytest.raises(BackendError, match="no such shape"):
        backends.resolve(Call(operator, "cuda"))
    monkeypatch.setenv("ESPNET_BIMAMBA_BACKEND", "quick")
    with pytest.raises(OptionError, match=r"ESPNET_BIMAMBA_BACKEND='quick'.*fast, reference"):
        backends.resolve(Call(operator, "cuda"))


def test_the_argument_goes_before_the_environment_variable(monkeypatch):
    monkeypatch.setenv("ESPNET_BIMAMBA_BACKEND", "mamba_ssm")
    x = torch.randn(1, 2, 3)
    assert causal_conv1d(x, torch.ones(2, 1), backend="reference").equal(x)
    with pytest.raises(BackendError, match=r"backend 'mamba_ssm' cannot serve: it serves cuda"):
        causal_conv1d(x, torch.ones(2, 1))


def test_an_unknown_name_lists_the_names():
    with pytest.raises(
        OptionError, match=r"backend='numba'.*one of mamba_ssm, triton, cpu, reference, hub_kernels"
    ):
        causal_conv1d(torch.randn(1, 2, 3), torch.ones(2, 1), backend="numba")


def test_any_exception_of_an_import_is_a_reason(monkeypatch):
    def broken(name):
        raise RuntimeError("0 active drivers")

    backends._import_failure.cache_clear()
    monkeypatch.setattr(backends.importlib, "import_module", broken)
    reason = BACKENDS["reference"].unavailable("selective_scan")
    backends._import_failure.cache_clear()
    assert reason == "RuntimeError: 0 active drivers"


def test_a_missing_numba_leaves_the_reference(monkeypatch):
    monkeypatch.setattr(backends, "find_spec", lambda package: None)
    backends.choose.cache_clear()
    choice = backends.choose(Call("selective_scan", "cpu"))
    backends.choose.cache_clear()
    assert choice.backend.name == "reference"
    assert choice.rejected["cpu"] == "not installed: numba"


@pytest.fixture
def fresh_choices():
    """Forget what was chosen before and, afterwards, what the test made be chosen."""
    functions = (backends.choose, backends._named, backends._import_failure, backends._log_once)
    for function in functions:
        function.cache_clear()
    yield
    for function in functions:
        function.cache_clear()


@pytest.fixture
def cuda_with(monkeypatch, fresh_choices):
    """Pretend that there is a CUDA device and that just these packages work."""

    def pretend(*packages):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(backends, "find_spec", lambda name: name if name in packages else None)
        monkeypatch.setattr(backends, "_import_failure", lambda operator, name: None)

    return pretend


def test_cuda_tensors_take_mamba_ssm_then_triton_then_the_reference(cuda_with):
    assert list(BACKENDS) == ["mamba_ssm", "triton", "cpu", "reference", "hub_kernels"]
    call = Call("selective_scan", "cuda", d_state=16)
    for packages, expected in (
        (("mamba_ssm", "causal_conv1d", "triton"), "mamba_ssm"),
        (("triton", "numba"), "triton"),
        (("numba",), "reference"),
    ):
        cuda_with(*packages)
        backends.choose.cache_clear()
        assert backends.choose(call).backend.name == expected


def test_what_mamba_ssm_leaves_goes_to_triton(cuda_with):
    cuda_with("mamba_ssm", "causal_conv1d", "triton")
    for call in (
        Call("selective_scan", "cuda", d_state=16, initial_state=True),
        Call("causal_conv1d", "cuda", d_conv=8),
        Call("causal_conv1d", "cuda", d_conv=4, final_state=True),
    ):
        choice = backends.choose(call)
        assert choice.backend.name == "triton"
        assert list(choice.rejected) == ["mamba_ssm"]


def test_without_any_kernel_the_warning_names_both_remedies(cuda_with, caplog):
    cuda_with()
    with caplog.at_level(logging.INFO, backends.__name__):
        assert backends.choose(CUDA).backend.name == "reference"
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "pip install --no-build-isolation '.[cuda]'" in record.message
    assert "pip install triton" in record.message
    assert "triton: not installed: triton" in record.message


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (Call("selective_scan", "cuda", torch.float64), "in float32 and does not take torch.float"),
        (Call("causal_conv1d", "cuda", torch.float64), "in float32 and does not take torch.float"),
        (Call("selective_scan", "cuda", d_state=257), "at most 256 states .* asked for are 257"),
        (Call("selective_scan", "cuda", torch.bfloat16, d_state=256), None),
        (Call("causal_conv1d", "cuda", torch.float16, d_conv=64), None),
    ],
    ids=["float64_scan", "float64_conv", "states", "largest", "wide"],
)
def test_what_triton_cannot_serve_has_a_reason(call, reason):
    found = BACKENDS["triton"].supports(call)
    assert found is None if reason is None else re.search(reason, found)


def test_without_a_card_triton_is_out_and_says_so(monkeypatch, fresh_choices):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    reason = BACKENDS["triton"].unavailable("selective_scan")
    assert reason == "no CUDA device is visible to torch"
    with pytest.raises(BackendError, match="it serves cuda tensors, these are on cpu"):
        backends.resolve(Call("selective_scan", "cpu"), "triton")


def test_the_interpreter_serves_cpu_tensors_only_when_asked_for_by_name(monkeypatch, fresh_choices):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    call = Call("selective_scan", "cpu", d_state=16)
    choice = backends.choose(call)
    assert choice.backend.name == "cpu"
    assert choice.rejected["triton"] == "it serves cuda tensors, these are on cpu"
    named = backends.resolve(call, "triton")
    assert named.__module__ == "espnet_bimamba.ops.selective_scan.triton"


def test_cpu_tensors_take_the_cpu_backend():
    for operator in OPERATORS:
        assert backends.choose(Call(operator, "cpu")).backend.name == "cpu"


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (Call("selective_scan", "cuda", torch.float64), "no torch.float64"),
        (Call("selective_scan", "cuda", d_state=300), "256 states a channel, asked for are 300"),
        (Call("selective_scan", "cuda", initial_state=True), "cannot start from a given state"),
        (Call("causal_conv1d", "cuda", d_conv=5), "2 to 4 wide, asked for is 5"),
        (Call("causal_conv1d", "cuda", d_conv=4, final_state=True), "no convolution state"),
    ],
    ids=["float64", "states", "initial_state", "wide", "final_state"],
)
def test_what_mamba_ssm_cannot_serve_has_a_reason(call, reason):
    assert reason in BACKENDS["mamba_ssm"].supports(call)


@pytest.mark.parametrize("public", [selective_scan, causal_conv1d], ids=OPERATORS)
def test_the_public_functions_add_only_the_choice_of_a_backend(public):
    parameters = dict(inspect.signature(public).parameters)
    assert parameters.pop("backend").default is None
    reference = BACKENDS["reference"].function(public.__name__)
    # A backend is given the tensor.
    parameters["lengths"] = parameters["lengths"].replace(annotation=torch.Tensor | None)
    assert parameters == dict(inspect.signature(reference).parameters)


def test_one_of_the_two_cuda_packages_serves_its_operator(monkeypatch):
    present = {"mamba_ssm", "causal_conv1d"}
    monkeypatch.setattr(backends, "find_spec", lambda name: name in present or None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert BACKENDS["mamba_ssm"].probe() is None
    present.remove("causal_conv1d")
    assert BACKENDS["mamba_ssm"].probe() is None
    present.remove("mamba_ssm")
    assert BACKENDS["mamba_ssm"].probe() == "not installed: mamba_ssm, causal_conv1d"


def test_a_last_state_that_is_differentiated_is_not_for_mamba_ssm():
    supports = BACKENDS["mamba_ssm"].supports
    call = Call("selective_scan", "cuda", final_state=True)
    assert supports(call) is None
    assert supports(call._replace(gradient=True)) == "its last state has no gradient"
    assert supports(call._replace(gradient=True, final_state=False)) is None


@pytest.mark.parametrize(
    ("version", "compilers", "cc", "reason"),
    [
        ("3.6.0", {"gcc"}, None, None),
        ("3.7.1", {"clang"}, None, None),
        ("3.7.1", {"/opt/cc"}, "/opt/cc", None),
        ("3.7.1", {"gcc"}, "/no/cc", "Triton 3.7.1 needs a C compiler and finds no /no/cc"),
        ("3.7.1", set(), None, "Triton 3.7.1 needs a C compiler and finds no gcc and no clang"),
        ("3.8.0", set(), None, None),
        ("3.10.0+git1", set(), None, None),
        ("3.8rc1", set(), None, None),
        ("main", set(), None, None),
    ],
)
def test_an_older_triton_is_taken_where_it_finds_a_compiler(
    monkeypatch, version, compilers, cc, reason
):
    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    monkeypatch.setattr(backends.importlib.metadata, "version", lambda name: version)
    monkeypatch.setattr(backends.shutil, "which", lambda name: name in compilers or None)
    monkeypatch.delenv("CC", raising=False)
    if cc:
        monkeypatch.setenv("CC", cc)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert BACKENDS["triton"].probe() == reason
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert BACKENDS["triton"].probe() is None, "the interpreter compiles nothing"


def test_a_triton_of_another_distribution_is_tried(monkeypatch):
    def no_such(name):
        raise backends.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(backends, "find_spec", lambda name: name)
    monkeypatch.setattr(backends.importlib.metadata, "version", no_such)
    monkeypatch.setattr(backends.shutil, "which", lambda name: None)
    assert BACKENDS["triton"].probe() is None


PADDED, TURNED = (Call("selective_scan", "cuda", **{what: True}) for what in ("lengths", "turned"))


@pytest.mark.parametrize("call", [PADDED, TURNED])
def test_a_backend_yields_to_one_that_is_faster_and_can(table, call):
    """mamba-ssm's kernels know no lengths and no direction; Triton's do, if Triton is there."""
    mamba_ssm, triton = BACKENDS["mamba_ssm"], BACKENDS["triton"]
    table(replace(mamba_ssm, probe=lambda: None), replace(triton, probe=lambda: None))
    assert backends.choose(CUDA).backend.name == "mamba_ssm"
    choice = backends.choose(call)
    assert choice.backend.name == "triton"
    assert "no lengths and no direction" in choice.rejected["mamba_ssm"]
    table(replace(mamba_ssm, probe=lambda: None), replace(triton, probe=lambda: "not installed"))
    assert backends.choose(call).backend.name == "mamba_ssm"
    assert backends._named("backend", "mamba_ssm", call).name == "mamba_ssm", "by name always"


@pytest.mark.parametrize("requires_grad", [False, True])
def test_the_choice_knows_whether_a_gradient_is_asked_for(monkeypatch, requires_grad):
    calls = []

    def resolve(call, backend):
        calls.append(call)
        return lambda *args, **kwargs: args[0]

    monkeypatch.setattr(sys.modules[selective_scan.__module__], "resolve", resolve)
    x = torch.ones(1, 1, 2)
    A = torch.ones(1, 1, requires_grad=requires_grad)
    selective_scan(x, x, A, x, x)
    with torch.no_grad():
        selective_scan(x, x, A, x, x)
    assert [call.gradient for call in calls] == [requires_grad, False]
