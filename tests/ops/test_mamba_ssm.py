"""The fused kernels' wrappers: called against stand-ins here, against the kernels on a GPU.

A stand-in checks what the kernels demand (dtypes, strides) and computes with the definition, so
that argument order, per-length reversal and the padding are right before a GPU is at hand.
"""

import importlib
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch

from espnet_bimamba.ops import selective_scan
from espnet_bimamba.ops.causal_conv1d.reference import causal_conv1d as conv_reference
from espnet_bimamba.ops.selective_scan.reference import selective_scan as scan_reference
from tests.ops.cases import (
    ALL,
    CONV_CASES,
    DIRECTIONS,
    SCAN_CASES,
    ConvCase,
    ScanCase,
    every_direction,
    laid_out,
    parametrize,
)
from tests.ops.test_causal_conv1d import conv_with_gradients
from tests.ops.test_selective_scan import INPUTS, scan_with_gradients
from tests.tolerances import assert_close

WITHOUT_STATE = tuple(option for option in ALL if option != "initial_state")


def selective_scan_fn(
    u,
    delta,
    A,
    B,
    C,
    D=None,
    z=None,
    delta_bias=None,
    delta_softplus=False,
    return_last_state=False,
):
    """What mamba-ssm's function demands of its arguments, computed by the definition."""
    assert u.numel(), "there is no launch of nothing"
    sequences = [x for x in (u, delta, z) if x is not None]
    sequences += [x for x in (B, C) if x.dim() > 2]
    for x in sequences:
        assert x.dtype == u.dtype
        assert x.stride(-1) == 1 or x.numel() == 0
        assert not x.isnan().any(), "the kernel must not see the padding"
    for x in (A, D, delta_bias):
        assert x is None or x.dtype == torch.float32
    # The host code takes the number of groups from B and asks C for as many.
    groups = [1 if x.dim() < 4 else x.shape[1] for x in (B, C)]
    assert C.dim() == 2 or groups[0] == groups[1]
    result = scan_reference(u, delta, A, B, C, D, z, delta_bias, delta_softplus, return_last_state)
    if not return_last_state:
        return result
    # A constant B is not in the kernel's state: seen on an H100.
    plain = torch.ones_like(B) if B.dim() == 2 else B
    _, state = scan_reference(u, delta, A, plain, C, D, z, delta_bias, delta_softplus, True)
    return result[0], state.detach()


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, activation=None):
    """What causal-conv1d's function demands of its arguments, computed by the definition."""
    assert x.numel(), "there is no launch of nothing"
    assert 2 <= weight.shape[1] <= 4
    row, channel, frame = x.stride()
    if channel == 1 and frame > 1:
        # The kernel for neighbouring channels, as its host code checks it; it checks the gradient
        # likewise, whose strides are those of a tensor of one frame where there is one.
        assert x.shape[1] % 8 == row % 8 == frame % 8 == 0
        assert x.shape[2] > 1
    else:
        assert frame == 1
    assert not x.isnan().any(), "the kernel must not see the padding"
    return conv_reference(x, weight, bias, activation=activation)


def stand_in(name, **functions):
    module = ModuleType(name)
    vars(module).update(functions)
    return module


REPOSITORIES = {
    "kernels-community/mamba-ssm": stand_in("mamba_ssm", selective_scan_fn=selective_scan_fn),
    "kernels-community/causal-conv1d": stand_in("conv", causal_conv1d_fn=causal_conv1d_fn),
}


def get_kernel(repo_id, *, version):
    """What Hugging Face's ``kernels`` does, without the download."""
    assert version >= 1
    return REPOSITORIES[repo_id]


MODULES = {
    "mamba_ssm": (
        stand_in("mamba_ssm"),
        stand_in("mamba_ssm.ops"),
        stand_in("mamba_ssm.ops.selective_scan_interface", selective_scan_fn=selective_scan_fn),
        stand_in("selective_scan_cuda"),
        stand_in("causal_conv1d", causal_conv1d_fn=causal_conv1d_fn),
    ),
    "hub_kernels": (stand_in("kernels", get_kernel=get_kernel),),
}


@pytest.fixture(params=MODULES)
def wrappers(request, monkeypatch):
    """Import both wrappers on stand-ins for the packages that bring the kernels."""
    for module in MODULES[request.param]:
        monkeypatch.setitem(sys.modules, module.__name__, module)
    modules = {}
    for operator in ("selective_scan", "causal_conv1d"):
        path = f"espnet_bimamba.ops.{operator}.{request.param}"
        monkeypatch.delitem(sys.modules, path, raising=False)
        modules[operator] = getattr(importlib.import_module(path), operator)
        monkeypatch.delitem(sys.modules, path)
    return modules


SERVED_SCANS = [
    *(case for case in SCAN_CASES if "initial_state" not in case.options),
    *(
        ScanCase(options=WITHOUT_STATE, lengths=lengths, **direction)
        for direction in DIRECTIONS.values()
        for lengths in (None, (63, 40), (0, 63))
    ),
    *(
        replace(case, options=WITHOUT_STATE, length=min(case.length, 63))
        for case in SCAN_CASES
        if case.bidirectional and "initial_state" in case.options and case.groups > 1
    ),
    *(ScanCase(options=WITHOUT_STATE, **nothing) for nothing in ({"batch": 0}, {"length": 0})),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@parametrize(SERVED_SCANS)
def test_the_scan_gives_the_kernel_what_it_wants(wrappers, case, dtype):
    tensors, keywords = case.tensors(), case.keywords()
    if case.lengths is not None:
        for name in INPUTS:
            if name in tensors and tensors[name].dim() > 2:
                for row, end in enumerate(case.lengths):
                    tensors[name][row, ..., end:] = float("nan")
    rounded = {
        name: x.to(dtype if name in INPUTS and x.dim() > 2 else torch.float32)
        for name, x in tensors.items()
    }
    if dtype != torch.float32:
        # As under autocast: step sizes in float32 beside half-precision sequences.
        rounded["delta"] = tensors["delta"].float()
    out, state = wrappers["selective_scan"](**rounded, **keywords, return_last_state=True)
    exact = {name: x.double() for name, x in rounded.items()}
    expected = scan_reference(**exact, **keywords, return_last_state=True)
    assert out.dtype == dtype
    assert_close("output", out, expected[0], dtype, "output")
    assert_close("state", state, expected[1], torch.float32, "state")


@every_direction
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_scan_passes_gradients_through_the_reversal(wrappers, dtype, groups, direction):
    direction = {"dim": 18} | direction
    case = ScanCase(options=WITHOUT_STATE, lengths=(63, 40), groups=groups, **direction)
    rounded = {
        name: x.to(dtype if name in INPUTS else torch.float32) for name, x in case.tensors().items()
    }
    leaves = {name: x.requires_grad_() for name, x in rounded.items()}
    exact = {name: x.detach().double().requires_grad_() for name, x in leaves.items()}
    weight = torch.randn(2, 18, 63, generator=torch.Generator().manual_seed(5)).to(dtype)
    out = wrappers["selective_scan"](**leaves, **case.keywords())
    expected = scan_reference(**exact, **case.keywords())
    actual = torch.autograd.grad(out, tuple(leaves.values()), weight)
    right = torch.autograd.grad(expected, tuple(exact.values()), weight.double())
    for name, a, e in zip(leaves, actual, right, strict=True):
        assert_close(name, a, e, dtype, "weight_gradient")


SERVED_CONVS = [
    case for case in CONV_CASES if "initial_states" not in case.options and 2 <= case.width <= 4
] + [
    ConvCase(options=("bias",), activation="silu", lengths=lengths, **direction)
    for direction in DIRECTIONS.values()
    for lengths in (None, (63, 40), (0, 63))
]
SERVED_CONVS += [
    ConvCase(dim=dim, length=length, options=("bias",), layout=layout)
    for dim, length in ((10, 63), (16, 63), (257, 63), (3, 1), (8, 1), (24, 1))
    for layout in ("channels last", "sliced", "held", "one row")
]
SERVED_CONVS += [ConvCase(options=("bias",), **no) for no in ({"batch": 0}, {"length": 0})]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@parametrize(SERVED_CONVS)
def test_the_convolution_gives_the_kernel_what_it_wants(wrappers, case, dtype):
    tensors, keywords = case.tensors(), case.keywords()
    for row, end in enumerate(case.lengths or ()):
        tensors["x"][row, :, end:] = float("nan")
    rounded = {k: x.to(dtype if k == "x" else torch.float32) for k, x in tensors.items()}
    out = wrappers["causal_conv1d"](**laid_out(rounded, case.layout), **keywords)
    exact = {k: x.double() for k, x in rounded.items()}
    expected = conv_reference(**laid_out(exact, case.layout), **keywords)
    assert out.dtype == dtype
    assert_close("output", out, expected, dtype, "output")


def test_a_sequence_that_the_kernel_can_read_is_not_copied(wrappers, monkeypatch):
    seen = []
    weight = torch.ones(16, 4)

    def noting(x, *args, **keywords):
        seen.append(x)
        return causal_conv1d_fn(x, *args, **keywords)

    monkeypatch.setitem(wrappers["causal_conv1d"].__globals__, "causal_conv1d_fn", noting)
    for x in (torch.randn(2, 16, 9), torch.randn(2, 9, 16).transpose(1, 2)):
        wrappers["causal_conv1d"](x, weight)
        assert seen[-1].data_ptr() == x.data_ptr()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@parametrize(SERVED_SCANS)
def test_the_fused_scan_matches_the_definition(case, dtype):
    tensors, keywords = case.tensors(), case.keywords()
    options = {"rounded": dtype, "layout": case.layout, "with_state": False}
    out, _, gradients = scan_with_gradients(
        tensors, keywords, "mamba_ssm", dtype, "cuda", **options
    )
    expected = scan_with_gradients(tensors, keywords, "reference", torch.float64, **options)
    assert_close("output", out.cpu(), expected[0], dtype, "output")
    for name, gradient in gradients.items():
        quantity = "gradient" if name in INPUTS else "weight_gradient"
        assert_close(name, gradient.cpu(), expected[2][name], dtype, quantity)


@pytest.mark.gpu
@parametrize(SERVED_SCANS)
def test_the_fused_scans_last_state_is_that_of_the_definition(case):
    keywords = case.keywords() | {"return_last_state": True}
    exact = {name: x.float().double() for name, x in case.tensors().items()}
    on_gpu = {name: x.float().cuda() for name, x in exact.items()}
    _, state = selective_scan(**on_gpu, **keywords, backend="mamba_ssm")
    _, expected = selective_scan(**exact, **keywords, backend="reference")
    assert_close("state", state.cpu(), expected, torch.float32, "state")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
# In one row, a gradient is a sum of what was rounded for each: no figure of the kernel's.
@parametrize([case for case in SERVED_CONVS if case.layout != "one row"])
def test_the_fused_convolution_matches_the_definition(case, dtype):
    tensors, keywords = case.tensors(), case.keywords()
    options = {"rounded": dtype, "layout": case.layout, "with_states": False}
    out, _, gradients = conv_with_gradients(
        tensors, keywords, "mamba_ssm", dtype, "cuda", **options
    )
    expected = conv_with_gradients(tensors, keywords, "reference", torch.float64, **options)
    assert_close("output", out.cpu(), expected[0], dtype, "output")
    for name, gradient in gradients.items():
        assert_close(name, gradient.cpu(), expected[2][name], dtype, "weight_gradient")
