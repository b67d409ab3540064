"""The scan: its definition against plain NumPy, every backend against the definition in float64."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from espnet_bimamba.errors import LengthsError, ShapeError
from espnet_bimamba.ops import selective_scan
from espnet_bimamba.ops.backends import ENVIRONMENT_VARIABLE
from tests.conftest import most_precise, skip_unless_served
from tests.ops.cases import ALL, SCAN_CASES, ScanCase, every_direction, laid_out, parametrize
from tests.tolerances import assert_close

INPUTS = ("u", "delta", "B", "C", "z")


def scan_with_gradients(
    tensors,
    keywords,
    backend,
    dtype,
    device="cpu",
    rounded=torch.float64,
    layout="time last",
    state_weight=1.0,
    with_state=True,
):
    """Return outputs and gradients of one call on ``tensors`` rounded to ``rounded``."""
    leaves = {
        # Float32 parameters beside half-precision sequences, as under autocast.
        name: tensor.to(rounded if name in INPUTS else torch.promote_types(rounded, torch.float32))
        .to(dtype if name in INPUTS else torch.promote_types(dtype, torch.float32))
        .to(device)
        .requires_grad_()
        for name, tensor in tensors.items()
    }
    results = selective_scan(
        **laid_out(leaves, layout), **keywords, return_last_state=with_state, backend=backend
    )
    out, state = results if with_state else (results, None)
    generator = torch.Generator().manual_seed(5)
    weights = [
        torch.randn(y.shape, generator=generator, dtype=torch.float64).to(rounded).to(y)
        for y in (out, state)
        if y is not None
    ]
    weights[1:] = [weight * state_weight for weight in weights[1:]]
    gradients = torch.autograd.grad(
        results, tuple(leaves.values()), weights, materialize_grads=True
    )
    return out, state, dict(zip(leaves, gradients, strict=True))


def scan_in_numpy(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, initial_state=None, **options
):
    """The recurrence of Mamba's equation 2 with loops over everything but the state."""
    batch, dim, length = u.shape
    state = A.shape[1]
    out = np.zeros_like(u)
    last = np.zeros((batch, dim, state))
    for b in range(batch):
        end = length if options["lengths"] is None else int(options["lengths"][b])
        for d in range(dim):
            against = options["bidirectional"] and d >= dim // 2
            order = range(end) if options["reverse"] == against else reversed(range(end))
            h = np.zeros(state) if initial_state is None else initial_state[b, d].copy()
            for t in order:
                dt = delta[b, d, t] + (0 if delta_bias is None else delta_bias[d])
                if options["delta_softplus"]:
                    dt = np.log1p(np.exp(dt))
                h = np.exp(dt * A[d]) * h + dt * matrix_at(B, b, d, t, dim) * u[b, d, t]
                y = (matrix_at(C, b, d, t, dim) * h).sum()
                if D is not None:
                    y += D[d] * u[b, d, t]
                if z is not None:
                    y *= z[b, d, t] / (1 + np.exp(-z[b, d, t]))
                out[b, d, t] = y
            last[b, d] = h
    return out, last


def matrix_at(matrix, b, d, t, dim):
    if matrix.ndim == 2:
        return matrix[d]
    if matrix.ndim == 3:
        return matrix[b, :, t]
    return matrix[b, d // (dim // matrix.shape[1]), :, t]


@parametrize([case for case in SCAN_CASES if case.state <= 16 and case.dim <= 33])
def test_reference_is_the_recurrence(case):
    tensors, keywords = case.tensors(), case.keywords()
    expected = scan_in_numpy(**{k: v.numpy() for k, v in tensors.items()}, **keywords)
    actual = selective_scan(**tensors, **keywords, return_last_state=True, backend="reference")
    for name, a, e in zip(("output", "state"), actual, expected, strict=True):
        assert_close(name, a, torch.from_numpy(e), torch.float64, name)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
@parametrize(SCAN_CASES)
def test_matches_the_definition_in_float64(backend, device, case, dtype, poisoned_empty):
    if (backend, dtype) == ("reference", torch.float64):
        pytest.skip("this is the definition itself")
    skip_unless_served(backend, dtype)
    tensors, keywords = case.tensors(), case.keywords()
    out, state, gradients = scan_with_gradients(
        tensors, keywords, backend, dtype, device, rounded=dtype, layout=case.layout
    )
    expected = scan_with_gradients(
        tensors, keywords, "reference", torch.float64, rounded=dtype, layout=case.layout
    )
    assert out.dtype == dtype
    assert state.dtype == torch.promote_types(dtype, torch.float32)
    assert_close("output", out.cpu(), expected[0], dtype, "output")
    assert_close("state", state.cpu(), expected[1], dtype, "state")
    for name, gradient in gradients.items():
        quantity = "gradient" if name in INPUTS else "weight_gradient"
        assert_close(f"gradient of {name}", gradient.cpu(), expected[2][name], dtype, quantity)


GRADCHECK_CASES = [
    ScanCase(dim=3, length=5, state=2, options=options, reverse=reverse, lengths=lengths)
    for options in ((), ALL, ("D",), ("z",), ("delta_bias",), ("softplus",), ("initial_state",))
    for reverse in (False, True)
    for lengths in (None, (5, 3))
] + [
    ScanCase(dim=4, length=5, state=2, groups=2, options=ALL),
    ScanCase(dim=3, length=5, state=2, B="constant", C="constant", options=ALL, lengths=(2, 5)),
    ScanCase(dim=4, length=5, state=2, options=ALL, bidirectional=True, lengths=(5, 3)),
    ScanCase(dim=4, length=5, state=2, groups=2, options=ALL, bidirectional=True, reverse=True),
    ScanCase(dim=6, length=5, state=2, groups=3, B="constant", options=ALL, bidirectional=True),
]


@parametrize(GRADCHECK_CASES)
def test_gradcheck_over_every_argument(backend, case):
    skip_unless_served(backend, torch.float64)
    tensors, keywords = case.tensors(), case.keywords()
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]

    def call(*args):
        named = dict(zip(tensors, args, strict=True))
        return selective_scan(**named, **keywords, return_last_state=True, backend=backend)

    assert torch.autograd.gradcheck(call, leaves, eps=1e-6, atol=1e-7, rtol=1e-5)


@every_direction
@pytest.mark.parametrize("padding", [float("nan"), float("inf"), 1e30], ids=str)
def test_alone_equals_batched_whatever_the_padding_holds(backend, padding, direction):
    lengths = (31, 20, 0)
    case = ScanCase(batch=3, length=31, options=ALL, lengths=lengths, **direction)
    tensors, keywords = case.tensors(), case.keywords()
    for name in INPUTS:
        for row, end in enumerate(lengths):
            tensors[name][row, ..., end:] = padding
    out, state, gradients = scan_with_gradients(tensors, keywords, backend, torch.float32)
    summed = {name: 0 for name in tensors if name not in (*INPUTS, "initial_state")}
    for row, end in enumerate(lengths):
        assert (out[row, :, end:] == 0).all()
        for name in INPUTS:
            assert (gradients[name][row, ..., end:] == 0).all(), name
        alone = {
            name: tensor[row : row + 1, ..., :end]
            if name in INPUTS
            else tensor[row : row + 1]
            if name == "initial_state"
            else tensor
            for name, tensor in tensors.items()
        }
        generator = torch.Generator().manual_seed(5)
        weights = [
            torch.randn(y.shape, generator=generator, dtype=torch.float64) for y in (out, state)
        ]
        leaves = {name: x.double().requires_grad_() for name, x in alone.items()}
        y, last = selective_scan(
            **leaves,
            **(keywords | {"lengths": None}),
            return_last_state=True,
            backend="reference",
        )
        grads = torch.autograd.grad(
            (y, last),
            tuple(leaves.values()),
            (weights[0][row : row + 1, :, :end], weights[1][row : row + 1]),
            materialize_grads=True,
        )
        assert_close(f"output {row}", out[row : row + 1, :, :end], y, torch.float32, "output")
        assert_close(f"state {row}", state[row : row + 1], last, torch.float32, "state")
        for name, gradient in zip(leaves, grads, strict=True):
            if name in summed:
                summed[name] = summed[name] + gradient
            elif name in INPUTS:
                own = gradients[name][row : row + 1, ..., :end]
                assert_close(f"{name} {row}", own, gradient, torch.float32, "gradient")
    for name, gradient in summed.items():
        assert_close(name, gradients[name], gradient, torch.float32, "weight_gradient")


def test_a_plain_flip_would_break_the_padding_promise():
    case = ScanCase(length=31, options=("z",), lengths=(31, 20))
    tensors = case.tensors()
    right = selective_scan(**tensors, lengths=torch.tensor([31, 20]), reverse=True)
    flipped = {name: x.flip(-1) if name in INPUTS else x for name, x in tensors.items()}
    wrong = selective_scan(**flipped).flip(-1)
    assert torch.allclose(right[0], wrong[0])
    assert (right[1, :, :20] - wrong[1, :, :20]).abs().max() > 0.1 * right[1].abs().max()


@pytest.mark.parametrize("cut", [0, 1, 7, 30, 31])
def test_a_sequence_in_two_parts_gives_what_the_whole_gives(backend, cut):
    case, dtype = ScanCase(length=31, options=ALL), most_precise(backend)
    tensors = {name: x.to(dtype) for name, x in case.tensors().items()}
    keywords = case.keywords()
    whole, last = selective_scan(**tensors, **keywords, return_last_state=True, backend=backend)
    parts, state = [], tensors["initial_state"]
    for span in (slice(None, cut), slice(cut, None)):
        part = {name: x[..., span] if name in INPUTS else x for name, x in tensors.items()}
        part["initial_state"] = state
        y, state = selective_scan(**part, **keywords, return_last_state=True, backend=backend)
        parts.append(y)
    assert_close("output", torch.cat(parts, -1), whole, dtype, "output")
    assert_close("state", state, last, dtype, "state")


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_large_half_precision_values_stay_finite(backend, reverse):
    """|u| up to 6e4 and |delta| up to 50, with results that float16 can hold."""
    generator = torch.Generator().manual_seed(3)
    u = (torch.rand(2, 8, 40, generator=generator) * 2 - 1) * 6e4
    delta = torch.rand(2, 8, 40, generator=generator) * 100 - 50
    tensors = {
        "u": u,
        "delta": delta,
        "A": -torch.rand(8, 4, generator=generator) * 4 - 0.1,
        "B": torch.randn(2, 4, 40, generator=generator) * 1e-3,
        "C": torch.randn(2, 4, 40, generator=generator) * 5e-5,
        "D": torch.randn(8, generator=generator) * 5e-2,
        "z": torch.randn(2, 8, 40, generator=generator),
    }
    keywords = {"delta_softplus": True, "reverse": reverse, "lengths": torch.tensor([40, 33])}
    # The gradient of B is that of the state times 3e6: float16 must be able to hold it.
    weight = {"rounded": torch.float16, "state_weight": 1e-4}
    actual = scan_with_gradients(tensors, keywords, backend, torch.float16, **weight)
    expected = scan_with_gradients(tensors, keywords, "reference", torch.float64, **weight)
    assert expected[0].abs().max() > 1e3, "the case must use the range it is about"
    assert_close("output", actual[0], expected[0], torch.float16, "output")
    for name, gradient in actual[2].items():
        quantity = "gradient" if name in INPUTS else "weight_gradient"
        assert_close(name, gradient, expected[2][name], torch.float16, quantity)


@every_direction
@pytest.mark.parametrize(
    ("batch", "length"), [(0, 5), (2, 0), (0, 0)], ids=["no_rows", "no_frames", "nothing"]
)
def test_empty_input(backend, batch, length, direction):
    case = ScanCase(batch=batch, length=length, options=ALL, **direction)
    out, state, gradients = scan_with_gradients(
        case.tensors(), case.keywords(), backend, torch.float32
    )
    assert out.shape == (batch, case.dim, length)
    assert torch.equal(state, case.tensors()["initial_state"].float())
    for name in ("A", "D", "delta_bias"):
        assert (gradients[name] == 0).all()


def test_no_gradient_no_kept_states(backend):
    case, dtype = ScanCase(options=ALL), most_precise(backend)
    tensors, keywords = case.tensors(), case.keywords()
    expected = selective_scan(**tensors, **keywords)
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    with torch.inference_mode():
        inferred = selective_scan(**tensors, **keywords, backend=backend)
    assert_close("output", inferred, expected, dtype, "output")
    assert not inferred.requires_grad


MEMORY_PROBE = """
import resource, sys, torch
from espnet_bimamba.ops import selective_scan
batch, dim, length, state = 1, 32, int(sys.argv[1]), 128
def tensor(*shape):
    return torch.randn(*shape).requires_grad_()
def scan(length):
    u, delta, z = (tensor(batch, length, dim) for _ in range(3))
    B, C = (tensor(batch, length, state) for _ in range(2))
    A = -torch.rand(dim, state)
    u_, d_, z_, B_, C_ = (x.transpose(1, 2) for x in (u, delta, z, B, C))
    selective_scan(u_, d_, A, B_, C_, z=z_, delta_softplus=True).sum().backward()
scan(10)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
scan(length)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_no_tensor_over_batch_dim_length_and_state_is_stored():
    length = 40_000
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_PROBE, str(length)],
        capture_output=True,
        text=True,
        env=os.environ | {ENVIRONMENT_VARIABLE: "cpu"},
        check=True,
    )
    every_state = 32 * length * 128 * 4
    sequences = length * (32 * 3 + 128 * 2) * 4 * 2
    assert int(run.stdout) < every_state / 2, "655 MB would be every state"
    assert int(run.stdout) < 2.5 * sequences, "inputs and gradients are 113 MB"


def test_the_caller_may_modify_the_output_in_place(backend):
    case = ScanCase(options=ALL)
    dtype = most_precise(backend)
    leaves = {name: x.to(dtype).requires_grad_() for name, x in case.tensors().items()}
    options = case.keywords() | {"return_last_state": True, "backend": backend}
    out, _ = selective_scan(**leaves, **options)
    (expected,) = torch.autograd.grad((2 * out).sum(), leaves["u"])
    out, _ = selective_scan(**leaves, **options)
    out *= 2
    (actual,) = torch.autograd.grad(out.sum(), leaves["u"])
    assert expected.isfinite().all()
    assert torch.equal(actual, expected)


@every_direction
def test_no_channels(backend, direction):
    case = ScanCase(length=5, **(direction | {"dim": 0}))
    tensors = {name: x.float() for name, x in case.tensors().items()}
    assert selective_scan(**tensors, **case.keywords(), backend=backend).shape == (2, 0, 5)


def valid_call(**changes):
    tensors = {
        "u": torch.randn(2, 4, 6),
        "delta": torch.rand(2, 4, 6),
        "A": -torch.rand(4, 3),
        "B": torch.randn(2, 3, 6),
        "C": torch.randn(2, 3, 6),
    }
    return selective_scan(**(tensors | changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"u": torch.randn(4, 6)}, r"u must be \(batch, dim, length\), got shape \(4, 6\)"),
        ({"delta": torch.rand(2, 4, 5)}, r"delta must have shape \(2, 4, 6\), got \(2, 4, 5\)"),
        ({"A": torch.rand(3, 3)}, r"A must be \(dim=4, state\), got shape \(3, 3\)"),
        ({"A": torch.rand(4, 3).to(torch.complex64)}, "A is torch.complex64: only real tensors"),
        ({"B": torch.rand(2, 3, 5)}, r"B must have shape \(4, 3\), \(2, 3, 6\) or"),
        ({"C": torch.rand(2, 3, 3, 6)}, "C must have shape .* dim=4 a multiple of group"),
        ({"D": torch.rand(3)}, r"D must have shape \(4,\), got \(3,\)"),
        ({"z": torch.rand(2, 4, 7)}, r"z must have shape \(2, 4, 6\)"),
        ({"delta_bias": torch.rand(1)}, r"delta_bias must have shape \(4,\)"),
        ({"initial_state": torch.rand(2, 4, 6)}, r"initial_state must have shape \(2, 4, 3\)"),
        ({"u": torch.ones(2, 4, 6, dtype=torch.long)}, "u must have a floating dtype, got torch.i"),
        ({"D": torch.rand(4, device="meta")}, "D is on meta, u is on cpu"),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_a_tensor_that_does_not_fit_is_named(changes, message):
    with pytest.raises(ShapeError, match=message):
        valid_call(**changes)


def test_an_odd_number_of_channels_has_no_two_directions():
    tensors = {name: x.float() for name, x in ScanCase(dim=5, length=6).tensors().items()}
    with pytest.raises(ShapeError, match=r"bidirectional=True u must have an even .* got 5"):
        selective_scan(**tensors, bidirectional=True)


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([6, 6], "lengths must be a tensor of integers, got list"),
        (torch.tensor([6.0, 6.0]), "lengths must be int16, int32 or int64, got torch.float32"),
        (torch.tensor([True, True]), "lengths must be int16, int32 or int64, got torch.bool"),
        (torch.tensor([6, 6], dtype=torch.uint8), "int16, int32 or int64, got torch.uint8"),
        (torch.tensor([6, 6, 6]), r"lengths must have shape \(2,\).*got \(3,\)"),
        (torch.tensor([6, 7]), r"between 0 and 6, the length of the tensor, got \[6, 7\]"),
        (torch.tensor([-1, 6]), r"between 0 and 6, the length of the tensor, got \[-1, 6\]"),
    ],
    ids=["list", "float", "bool", "uint8", "size", "too_long", "negative"],
)
def test_lengths_that_do_not_fit_are_refused(lengths, message):
    with pytest.raises(LengthsError, match=message):
        valid_call(lengths=lengths)
