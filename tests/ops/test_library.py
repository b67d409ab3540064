"""The operators as torch sees them while it traces: custom operators with shapes and gradients."""

import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from espnet_bimamba.errors import BackendError
from espnet_bimamba.ops import causal_conv1d, library, selective_scan
from espnet_bimamba.ops.backends import BACKENDS, ENVIRONMENT_VARIABLE
from tests.conftest import most_precise
from tests.ops.cases import ALL, BOTH, ConvCase, ScanCase, parametrize
from tests.tolerances import assert_close

SCANS = [
    ScanCase(dim=5, length=9, state=3),
    ScanCase(dim=5, length=9, state=3, options=ALL, lengths=(9, 4), reverse=True),
    ScanCase(dim=6, length=9, state=3, options=("D", "z"), B="constant", groups=2, C="grouped"),
    ScanCase(batch=1, dim=1, length=1, state=1, options=ALL),
    ScanCase(dim=5, length=9, state=3, options=("z",), layout="sliced"),
    ScanCase(dim=6, length=9, state=3, options=ALL, groups=2, lengths=(9, 4), bidirectional=True),
]
CONVOLUTIONS = [
    ConvCase(dim=5, length=9),
    ConvCase(dim=5, length=9, options=BOTH, activation="silu", lengths=(9, 4), reverse=True),
    ConvCase(batch=1, dim=1, length=1, width=1, options=BOTH),
    ConvCase(dim=5, length=9, options=("bias",), layout="sliced"),
    ConvCase(dim=6, length=9, options=BOTH, lengths=(9, 4), bidirectional=True),
]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
STATES = pytest.mark.parametrize("states", [False, True], ids=["output", "and_states"])


def arguments(case, states: bool, dtype=torch.float64, backend=None) -> list:
    """Return the arguments of the case's custom operator, in the order of its schema."""
    public = selective_scan if isinstance(case, ScanCase) else causal_conv1d
    given = {k: x.to(dtype).requires_grad_() for k, x in case.tensors().items()} | case.keywords()
    given |= {"backend": backend, "return_last_state": states, "return_final_states": states}
    names = inspect.signature(public).parameters
    return [given.get(name, names[name].default) for name in names]


def operators(case):
    """Return the case's public function and its custom operator."""
    if isinstance(case, ScanCase):
        return selective_scan, torch.ops.espnet_bimamba.selective_scan.default
    return causal_conv1d, torch.ops.espnet_bimamba.causal_conv1d.default


def call(public, args: list) -> list[Tensor]:
    keywords = dict(zip(inspect.signature(public).parameters, args, strict=True))
    result = public(**keywords)
    return list(result) if isinstance(result, tuple) else [result]


def gradients(results: list[Tensor], args: list) -> tuple[Tensor, ...]:
    inputs = [x for x in args if isinstance(x, Tensor) and x.requires_grad]
    loss = sum(x.cos().sum() for x in results)
    return torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)


@DTYPES
@STATES
@parametrize([SCANS[1], SCANS[2], SCANS[-1], CONVOLUTIONS[1], CONVOLUTIONS[-1]])
def test_opcheck(case, states, dtype):
    _, operator = operators(case)
    # Not the test of all of ahead-of-time compilation, which tests/layers/test_compile.py makes.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(operator, arguments(case, states, dtype), test_utils=checks)


@parametrize([SCANS[1], SCANS[-1], CONVOLUTIONS[1], CONVOLUTIONS[-1]])
def test_opcheck_of_compilation_with_dynamic_shapes(case):
    _, operator = operators(case)
    torch.library.opcheck(
        operator, arguments(case, True, torch.float32), test_utils="test_aot_dispatch_dynamic"
    )


@parametrize([SCANS[1], SCANS[-1], CONVOLUTIONS[1], CONVOLUTIONS[-1]])
def test_opcheck_of_the_gradient(case):
    _, operator = operators(case)
    args = arguments(case, True, torch.float32)
    needed = [isinstance(x, Tensor) and x.requires_grad for x in args]
    args = [x.detach() if isinstance(x, Tensor) else x for x in args]
    dys = [torch.randn_like(y) for y in operator(*args)]
    backward = getattr(torch.ops.espnet_bimamba, f"{operator._opname}_backward").default
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(backward, [dys, needed, *args], test_utils=checks)


@STATES
@parametrize([*SCANS, *CONVOLUTIONS])
def test_it_gives_what_the_backend_gives(case, states, backend, device):
    public, operator = operators(case)
    dtype = most_precise(backend)
    args = [
        x.detach().to(device).requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x
        for x in arguments(case, states, dtype, backend)
    ]
    actual, expected = operator(*args), call(public, args)
    for mine, wanted in zip(actual, expected, strict=True):
        assert torch.equal(mine, wanted)
    # Not to the bit: sums over frames run in the order of the layout.
    for mine, wanted in zip(gradients(actual, args), gradients(expected, args), strict=True):
        assert_close("gradient", mine, wanted, dtype, "weight_gradient")


@STATES
@parametrize([*SCANS, *CONVOLUTIONS])
def test_results_and_shapes_agree_in_every_backend(case, states, backend):
    _, operator = operators(case)
    args = arguments(case, states, most_precise(backend), backend)
    meta = [x.to("meta") if isinstance(x, Tensor) else x for x in args]
    actual, promised = operator(*args), operator(*meta)
    pairs = [*zip(actual, promised, strict=True)]
    pairs += zip(gradients(actual, args), gradients(promised, meta), strict=True)
    for mine, wanted in pairs:
        assert (mine.shape, mine.dtype) == (wanted.shape, wanted.dtype)
        strides = zip(mine.shape, mine.stride(), wanted.stride(), strict=True)
        assert all(size == 1 or has == want for size, has, want in strides)


@DTYPES
@parametrize(
    [
        replace(SCANS[1], layout="channels last", lengths=None),
        replace(CONVOLUTIONS[1], layout="channels last"),
    ]
)
def test_the_cpu_backend_writes_that_layout_itself(case, dtype, monkeypatch):
    _, operator = operators(case)
    args = arguments(case, True, dtype, backend="cpu")
    copied = []
    empty = library.empty
    monkeypatch.setattr(library, "empty", lambda *args: copied.append(args) or empty(*args))
    results = operator(*args)
    assert not copied
    gradients(results, args)
    # Those of B and C are summed with neighbouring states side by side, and copied.
    few = 2 if isinstance(case, ScanCase) else 0
    assert len(copied) <= few
    assert all(shape == (case.batch, case.state, case.length) for shape, *_ in copied)


@parametrize([ScanCase(dim=3, length=0, state=2, options=("initial_state",))])
def test_a_gradient_that_is_passed_on_as_it_is_has_its_own_memory(case):
    _, operator = operators(case)
    args = arguments(case, True, backend="reference")
    _, last_state = operator(*args)
    given = torch.randn_like(last_state)
    (found,) = torch.autograd.grad(last_state, args[10], given)
    assert torch.equal(found, given)
    assert found.data_ptr() != given.data_ptr()


def test_the_backend_is_chosen_when_the_graph_runs(monkeypatch):
    seen = []

    def inspected(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    torch._dynamo.reset()
    run = torch.compile(causal_conv1d, fullgraph=True, backend=inspected)
    x, weight = torch.randn(2, 3, 7), torch.randn(3, 4)
    assert torch.equal(run(x, weight), causal_conv1d(x, weight))
    assert "espnet_bimamba.causal_conv1d.default" in seen
    nodes = len(seen)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "mamba_ssm")
    with pytest.raises(BackendError, match="it serves cuda tensors"):
        run(x, weight)
    assert len(seen) == nodes, "it was traced again"


@pytest.mark.parametrize("lengths", [[7, 8], [-1, 7]])
def test_a_traced_graph_refuses_lengths_that_do_not_fit(lengths):
    torch._dynamo.reset()
    run = torch.compile(causal_conv1d, fullgraph=True, backend="aot_eager")
    x, weight = torch.randn(2, 3, 7), torch.randn(3, 4)
    run(x, weight, lengths=torch.tensor([7, 0]))
    with pytest.raises(RuntimeError, match="lengths must lie between 0 and the length"):
        run(x, weight, lengths=torch.tensor(lengths))


class Allocations(TorchDispatchMode):
    """Counts the elements of everything that is made while it is on."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if "empty" in function.overloadpacket._qualified_op_name:
            self.elements += result.numel()
        return result


WITHOUT_GRAD = pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])


def scan_of_a_parameter(backend=None, run=None) -> tuple[list[Tensor], list[Tensor]]:
    """Scan with a D that requires a gradient; return results and what is kept for its gradient."""
    case = ScanCase(dim=16, length=256, state=8, options=("D", "z"))
    tensors = {name: x.float() for name, x in case.tensors().items()}
    tensors["D"].requires_grad_()
    kept = []
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x)
    with hooks:
        result = run(**tensors) if run else selective_scan(**tensors, backend=backend)
    return result, kept


def elements_made(run) -> int:
    """Count what a scan makes; by a backend's function, since a mode sees the whole as one call."""
    with Allocations() as made:
        scan_of_a_parameter(run=run)
    return made.elements


@WITHOUT_GRAD
def test_nothing_is_kept_for_a_backward_pass_that_never_comes(mode, backend):
    _, kept = scan_of_a_parameter(backend)
    assert kept, "the hooks see what a backward pass needs"
    with mode():
        result, kept = scan_of_a_parameter(backend)
    assert not kept
    assert result.grad_fn is None
    if backend == "cpu":
        run = BACKENDS[backend].function("selective_scan")
        with_grad = elements_made(run)
        with mode():
            without_grad = elements_made(run)
        # The states at the chunks' starts: 256 steps of 16 channels by 8 states, at least 1 in 128.
        assert with_grad - without_grad >= 256 // 128 * 16 * 8


@WITHOUT_GRAD
@pytest.mark.parametrize("public", [selective_scan, causal_conv1d])
def test_no_backend_is_asked_for_gradients_where_none_are_recorded(mode, public, monkeypatch):
    case = (SCANS if public is selective_scan else CONVOLUTIONS)[1]
    seen = []

    def backend(*args, **keywords):
        seen.extend(x for x in (*args, *keywords.values()) if isinstance(x, Tensor))
        return args[0]

    module = inspect.getmodule(public)
    monkeypatch.setattr(module, "resolve", lambda *_: backend)
    call(public, arguments(case, False))
    assert any(x.requires_grad for x in seen)
    seen.clear()
    with mode():
        call(public, arguments(case, False))
    assert seen
    assert not any(x.requires_grad for x in seen)
