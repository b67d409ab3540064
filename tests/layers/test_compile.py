"""Layers under ``torch.compile``: one graph without a break, and what eager mode gives."""

import shutil

import pytest
import torch
from torch import Tensor, nn

from espnet_bimamba.layers.mamba import Mamba
from tests.layers.zoo import MIXERS, assert_same_gradients, every_mixer, gradients, inputs
from tests.tolerances import assert_close

DTYPE = torch.float32
LENGTHS = torch.tensor([40, 13, 0])
OTHERS = [name for name in MIXERS if name != "mamba"]


@pytest.fixture(autouse=True)
def _nothing_compiled_yet():
    torch._dynamo.reset()


def compiled(function, *, dynamic: bool = True, backend: str = "aot_eager"):
    return torch.compile(function, fullgraph=True, backend=backend, dynamic=dynamic)


def check_same(mixer: nn.Module, other: nn.Module, x: Tensor, *lengths: Tensor) -> None:
    out, dx, d_parameters = gradients(mixer, x, *lengths)
    expected, expected_dx, expected_d = gradients(other, x, *lengths)
    assert_close("output", out, expected, DTYPE, "output")
    assert_close("input gradient", dx, expected_dx, DTYPE, "gradient")
    d_parameters = {k.removeprefix("_orig_mod."): d for k, d in d_parameters.items()}
    assert_same_gradients(d_parameters, expected_d, DTYPE)


@every_mixer
def test_a_layer_is_one_graph(case):
    check_one_graph(case.build(16, dtype=DTYPE), dynamic=True)


@pytest.mark.slow
def test_a_layer_is_one_graph_for_a_single_size():
    check_one_graph(MIXERS["extbimamba_concat"].build(16, dtype=DTYPE), dynamic=False)


def check_one_graph(mixer: nn.Module, *, dynamic: bool) -> None:
    x = inputs(3, 40, 16, dtype=DTYPE)
    x[1, 13:] = float("nan")
    x[2] = float("inf")
    run = compiled(mixer, dynamic=dynamic)
    check_same(run, mixer, x, LENGTHS)
    assert not run(x, LENGTHS)[1, 13:].any()


@pytest.mark.slow
@every_mixer
def test_a_layer_without_lengths_is_one_graph(case):
    mixer = case.build(16, dtype=DTYPE)
    check_same(compiled(mixer), mixer, inputs(3, 40, 16, dtype=DTYPE))


# Each takes seconds: test-quick has one of them.
@pytest.mark.parametrize(
    "case",
    [MIXERS["mamba"], *(pytest.param(MIXERS[name], marks=pytest.mark.slow) for name in OTHERS)],
    ids=["mamba", *OTHERS],
)
def test_autocast(case):
    check_autocast(case.build(16, dtype=DTYPE), torch.bfloat16)


@pytest.mark.slow
def test_autocast_to_float16():
    check_autocast(MIXERS["mamba"].build(16, dtype=DTYPE), torch.float16)


def check_autocast(mixer: nn.Module, dtype: torch.dtype) -> None:
    run = compiled(mixer)
    x = inputs(3, 40, 16, dtype=DTYPE)
    with torch.autocast("cpu", dtype):
        out, dx, _ = gradients(run, x, LENGTHS)
        expected, expected_dx, _ = gradients(mixer, x, LENGTHS)
    assert out.dtype == expected.dtype == dtype
    assert_close("output", out, expected, dtype, "output")
    assert_close("input gradient", dx, expected_dx, dtype, "gradient")


def test_a_dynamic_graph_serves_every_batch_and_length():
    mixer = MIXERS["extbimamba_add"].build(16, dtype=DTYPE)
    run = compiled(mixer)
    gradients(run, inputs(3, 40, 16, dtype=DTYPE), LENGTHS)
    # 32 is the mixer's inner width: equal sizes must not be taken for the same.
    with torch.compiler.set_stance("fail_on_recompile"):
        for batch, length in ((2, 17), (32, 5), (5, 32)):
            lengths = torch.randint(0, length + 1, (batch,))
            x = inputs(batch, length, 16, dtype=DTYPE)
            check_same(run, mixer, x, lengths)


def test_a_signal_in_chunks():
    mixer = Mamba(8)
    run = compiled(mixer.forward_chunk)
    state = expected_state = None
    for length in (5, 7, 3):
        x = inputs(2, length, 8, dtype=DTYPE)
        out, state = run(x, state)
        expected, expected_state = mixer.forward_chunk(x, expected_state)
        assert_close("output", out, expected, DTYPE, "output")
        for mine, wanted in zip(state, expected_state, strict=True):
            assert_close("state", mine, wanted, DTYPE, "state")


@pytest.mark.parametrize("lengths", [[40, 41, 0], [-1, 3, 3]])
def test_lengths_that_do_not_fit_are_refused(lengths):
    run = compiled(MIXERS["mamba"].build(16, dtype=DTYPE))
    x = inputs(3, 40, 16, dtype=DTYPE)
    run(x, LENGTHS)
    with pytest.raises(RuntimeError, match="lengths must lie between 0 and the length"):
        run(x, torch.tensor(lengths))


@pytest.mark.slow  # Inductor calls the C++ compiler
@pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++"))), reason="Inductor needs a C++ compiler"
)
def test_inductor():
    mixer = MIXERS["innbimamba"].build(16, dtype=DTYPE)
    run = compiled(mixer, backend="inductor")
    check_same(run, mixer, inputs(3, 40, 16, dtype=DTYPE), LENGTHS)
