"""The convolution: its definition against F.conv1d, every backend against it in float64."""

import pytest
import torch
import torch.nn.functional as F

from espnet_bimamba.errors import LengthsError, OptionError, ShapeError
from espnet_bimamba.ops import causal_conv1d
from tests.conftest import most_precise, skip_unless_served
from tests.ops.cases import BOTH, CONV_CASES, ConvCase, every_direction, laid_out, parametrize
from tests.tolerances import assert_close

INPUTS = ("x", "initial_states")


def conv_with_gradients(
    tensors,
    keywords,
    backend,
    dtype,
    device="cpu",
    rounded=torch.float64,
    layout="time last",
    with_states=True,
):
    """Return outputs and gradients of one call on ``tensors`` rounded to ``rounded``."""
    leaves = {
        name: tensor.to(rounded if name in INPUTS else torch.promote_types(rounded, torch.float32))
        .to(dtype if name in INPUTS else torch.promote_types(dtype, torch.float32))
        .to(device)
        .requires_grad_()
        for name, tensor in tensors.items()
    }
    results = causal_conv1d(
        **laid_out(leaves, layout), **keywords, return_final_states=with_states, backend=backend
    )
    results = results if with_states else (results, None)
    generator = torch.Generator().manual_seed(5)
    weights = [
        torch.randn(y.shape, generator=generator, dtype=torch.float64).to(rounded).to(y)
        for y in results
        if y is not None
    ]
    gradients = torch.autograd.grad(
        results[: len(weights)], tuple(leaves.values()), weights, materialize_grads=True
    )
    return *results, dict(zip(leaves, gradients, strict=True))


def conv_by_definition(x, weight, bias=None, initial_states=None, **options):
    """Row by row through F.conv1d with the history in front, flipped where time runs back."""
    if options["bidirectional"]:
        half = x.shape[1] // 2
        ahead, back = (
            conv_by_definition(
                x[:, channels],
                weight[channels],
                None if bias is None else bias[channels],
                None if initial_states is None else initial_states[:, channels],
                **options | {"bidirectional": False, "reverse": reverse},
            )
            for channels, reverse in (
                (slice(half), options["reverse"]),
                (slice(half, None), not options["reverse"]),
            )
        )
        return torch.cat([ahead, back], 1)
    width = weight.shape[1]
    out = torch.zeros_like(x)
    for row in range(len(x)):
        end = x.shape[2] if options["lengths"] is None else int(options["lengths"][row])
        frames = x[row, :, :end].flip(-1) if options["reverse"] else x[row, :, :end]
        history = torch.zeros(x.shape[1], width - 1, dtype=x.dtype)
        if initial_states is not None:
            history = initial_states[row]
        if end == 0:
            continue
        y = F.conv1d(
            torch.cat([history, frames], -1)[None], weight[:, None], bias, groups=x.shape[1]
        )[0]
        if options["activation"] is not None:
            y = y * torch.sigmoid(y)
        out[row, :, :end] = y.flip(-1) if options["reverse"] else y
    return out


@parametrize(CONV_CASES)
def test_reference_is_the_definition(case):
    tensors, keywords = case.tensors(), case.keywords()
    expected = conv_by_definition(**tensors, **keywords)
    actual = causal_conv1d(**tensors, **keywords, backend="reference")
    assert_close("output", actual, expected, torch.float64, "output")


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
@parametrize(CONV_CASES)
def test_matches_the_definition_in_float64(backend, device, case, dtype, poisoned_empty):
    if (backend, dtype) == ("reference", torch.float64):
        pytest.skip("this is the definition itself")
    skip_unless_served(backend, dtype)
    tensors, keywords = case.tensors(), case.keywords()
    out, states, gradients = conv_with_gradients(
        tensors, keywords, backend, dtype, device, rounded=dtype, layout=case.layout
    )
    expected = conv_with_gradients(
        tensors, keywords, "reference", torch.float64, rounded=dtype, layout=case.layout
    )
    assert out.dtype == states.dtype == dtype
    assert_close("output", out.cpu(), expected[0], dtype, "output")
    assert torch.equal(states.cpu().double(), expected[1]), "final states are copies of inputs"
    for name, gradient in gradients.items():
        quantity = "gradient" if name in INPUTS else "weight_gradient"
        assert_close(f"gradient of {name}", gradient.cpu(), expected[2][name], dtype, quantity)


@pytest.mark.parametrize("activation", [None, "silu"])
@every_direction
@pytest.mark.parametrize("lengths", [None, (6, 2)], ids=["whole", "lengths"])
@pytest.mark.parametrize("options", [(), BOTH], ids=["bare", "full"])
def test_gradcheck_over_every_argument(backend, options, lengths, direction, activation):
    skip_unless_served(backend, torch.float64)
    size = {"dim": 4 if "bidirectional" in direction else 3, "length": 6}
    case = ConvCase(options=options, lengths=lengths, activation=activation, **(direction | size))
    tensors, keywords = case.tensors(), case.keywords()
    leaves = [tensor.requires_grad_() for tensor in tensors.values()]

    def call(*args):
        named = dict(zip(tensors, args, strict=True))
        return causal_conv1d(**named, **keywords, return_final_states=True, backend=backend)

    assert torch.autograd.gradcheck(call, leaves, eps=1e-6, atol=1e-7, rtol=1e-5)


@every_direction
@pytest.mark.parametrize("padding", [float("nan"), float("inf"), 1e30], ids=str)
def test_alone_equals_batched_whatever_the_padding_holds(backend, padding, direction):
    lengths = (31, 20, 0)
    case = ConvCase(
        batch=3, length=31, options=("bias",), lengths=lengths, activation="silu", **direction
    )
    tensors, keywords = case.tensors(), case.keywords()
    for row, end in enumerate(lengths):
        tensors["x"][row, :, end:] = padding
    out, _, gradients = conv_with_gradients(tensors, keywords, backend, torch.float32)
    clean = tensors | {"x": tensors["x"].nan_to_num(0, 0, 0).where(tensors["x"] != 1e30, 0)}
    expected = conv_with_gradients(clean, keywords, "reference", torch.float64)
    assert_close("output", out, expected[0], torch.float32, "output")
    for name, gradient in gradients.items():
        assert_close(name, gradient, expected[2][name], torch.float32, "weight_gradient")
    for row, end in enumerate(lengths):
        assert (out[row, :, end:] == 0).all()
        assert (gradients["x"][row, :, end:] == 0).all()
        x = tensors["x"][row : row + 1, :, :end].float()
        alone = causal_conv1d(
            x,
            tensors["weight"].float(),
            tensors["bias"].float(),
            **(keywords | {"lengths": None}),
            backend=backend,
        )
        assert_close("alone", alone, expected[0][row : row + 1, :, :end], torch.float32, "output")


@pytest.mark.parametrize("cut", [0, 1, 2, 7, 30, 31])
def test_a_sequence_in_two_parts_gives_what_the_whole_gives(backend, cut):
    dtype = most_precise(backend)
    tensors = {k: x.to(dtype) for k, x in ConvCase(length=31, options=BOTH).tensors().items()}
    options = {"activation": "silu", "return_final_states": True, "backend": backend}
    whole, last = causal_conv1d(**tensors, **options)
    parts, states = [], tensors["initial_states"]
    for span in (slice(None, cut), slice(cut, None)):
        part = tensors | {"x": tensors["x"][..., span], "initial_states": states}
        y, states = causal_conv1d(**part, **options)
        parts.append(y)
    assert_close("output", torch.cat(parts, -1), whole, dtype, "output")
    assert torch.equal(states, last)


@every_direction
@pytest.mark.parametrize(("batch", "length"), [(0, 5), (2, 0)], ids=["no_rows", "no_frames"])
def test_empty_input(backend, batch, length, direction):
    case = ConvCase(batch=batch, length=length, options=BOTH, activation="silu", **direction)
    out, states, gradients = conv_with_gradients(
        case.tensors(), case.keywords(), backend, torch.float32
    )
    assert out.shape == (batch, case.dim, length)
    assert torch.equal(states, case.tensors()["initial_states"].float())
    assert (gradients["weight"] == 0).all()


def test_the_caller_may_modify_the_output_in_place(backend):
    tensors = ConvCase(options=BOTH).tensors()
    leaves = {name: x.to(most_precise(backend)).requires_grad_() for name, x in tensors.items()}
    out, _ = causal_conv1d(**leaves, return_final_states=True, backend=backend)
    expected = torch.autograd.grad((2 * out).sum(), leaves["x"])
    out, _ = causal_conv1d(**leaves, return_final_states=True, backend=backend)
    out *= 2
    assert torch.equal(torch.autograd.grad(out.sum(), leaves["x"])[0], expected[0])


def valid_call(**changes):
    tensors = {"x": torch.randn(2, 4, 6), "weight": torch.randn(4, 3)}
    return causal_conv1d(**(tensors | changes))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": torch.randn(4, 6)}, ShapeError, r"x must be \(batch, dim, length\)"),
        ({"weight": torch.randn(4, 1, 3)}, ShapeError, r"weight must be \(dim=4, width\)"),
        ({"bias": torch.randn(3)}, ShapeError, r"bias must have shape \(4,\), got \(3,\)"),
        ({"initial_states": torch.randn(2, 4, 3)}, ShapeError, r"initial_states .*\(2, 4, 2\)"),
        ({"x": torch.randn(2, 4, 6, dtype=torch.cfloat)}, ShapeError, "real floating dtype"),
        ({"bias": torch.randn(4, device="meta")}, ShapeError, "bias is on meta, x is on cpu"),
        ({"activation": "gelu"}, OptionError, "activation='gelu' .* None, 'silu', 'swish'"),
        ({"lengths": torch.tensor([6, 7])}, LengthsError, r"between 0 and 6.*got \[6, 7\]"),
        (
            {"x": torch.randn(2, 5, 6), "weight": torch.randn(5, 3), "bidirectional": True},
            ShapeError,
            "bidirectional=True x must have an even .* got 5",
        ),
    ],
    ids=[
        *("x", "weight", "bias", "initial_states", "complex", "device", "activation", "lengths"),
        "odd",
    ],
)
def test_what_does_not_fit_is_named(changes, error, message):
    with pytest.raises(error, match=message):
        valid_call(**changes)
