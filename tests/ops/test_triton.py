"""The Triton kernels: small shapes under Triton's interpreter, the whole matrix on a card.

``make test-triton`` runs what is marked ``interpreted`` and, with the operators' and the layers'
own tests, the whole matrix under the interpreter.
"""

import itertools

import pytest
import torch

from espnet_bimamba.ops import selective_scan
from tests.ops.cases import (
    ALL,
    BOTH,
    CONV_CASES,
    SCAN_CASES,
    ConvCase,
    ScanCase,
    every_direction,
    parametrize,
)
from tests.ops.test_causal_conv1d import INPUTS as CONV_INPUTS
from tests.ops.test_causal_conv1d import conv_with_gradients
from tests.ops.test_selective_scan import INPUTS, scan_with_gradients
from tests.tolerances import assert_close

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PASSES = {"one_pass": 0, "two_passes": 10_000}
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
every_form = pytest.mark.parametrize("processors", PASSES.values(), ids=PASSES)


@pytest.fixture
def kernels():
    """The scan's module; without Triton these tests fail, as what was asked for is missing."""
    from espnet_bimamba.ops.selective_scan import triton

    return triton


@pytest.fixture
def short_chunks(kernels, monkeypatch):
    """Chunks of two steps, so that a few frames are several chunks and segments."""
    monkeypatch.setattr(kernels, "CHUNK", 2)
    monkeypatch.setattr(kernels, "FEWEST_SEGMENTS", 4)
    kernels.Plan.of.cache_clear()
    yield
    kernels.Plan.of.cache_clear()


@pytest.fixture
def cut(kernels, monkeypatch):
    """Say how large the card is, which decides how many segments time is cut into."""
    plans = []

    def on(processors):
        monkeypatch.setattr(kernels, "multiprocessors", lambda device: processors)
        launch = kernels.Plan.launch

        def noting(plan, *args, **options):
            plans.append(plan)
            launch(plan, *args, **options)

        monkeypatch.setattr(kernels.Plan, "launch", noting)
        return plans

    return on


def check_scan(case, dtype, device, long=""):
    tensors, keywords = case.tensors(), case.keywords()
    long_of_sequences = long if dtype == torch.float32 else ""
    actual = scan_with_gradients(tensors, keywords, "triton", dtype, device, rounded=dtype)
    expected = scan_with_gradients(tensors, keywords, "reference", torch.float64, rounded=dtype)
    assert actual[0].dtype == dtype
    assert actual[1].dtype == torch.float32
    assert_close("output", actual[0].cpu(), expected[0], dtype, f"{long_of_sequences}output")
    assert_close("state", actual[1].cpu(), expected[1], torch.float32, f"{long}state")
    for name, gradient in actual[2].items():
        quantity = "gradient" if name in INPUTS else f"{long_of_sequences}weight_gradient"
        assert_close(f"gradient of {name}", gradient.cpu(), expected[2][name], dtype, quantity)


def check_conv(case, dtype, device):
    tensors, keywords = case.tensors(), case.keywords()
    actual = conv_with_gradients(tensors, keywords, "triton", dtype, device, rounded=dtype)
    expected = conv_with_gradients(tensors, keywords, "reference", torch.float64, rounded=dtype)
    assert actual[0].dtype == actual[1].dtype == dtype
    assert_close("output", actual[0].cpu(), expected[0], dtype, "output")
    assert torch.equal(actual[1].cpu().double(), expected[1]), "final states are copies of inputs"
    for name, gradient in actual[2].items():
        quantity = "gradient" if name in CONV_INPUTS else "weight_gradient"
        assert_close(f"gradient of {name}", gradient.cpu(), expected[2][name], dtype, quantity)


SMALL_SCANS = [
    ScanCase(dim=5, length=18, state=3),
    ScanCase(dim=5, length=18, state=3, options=ALL),
    ScanCase(dim=5, length=19, state=3, options=ALL, lengths=(19, 6), reverse=True),
    ScanCase(dim=5, length=18, state=3, options=ALL, lengths=(0, 18), layout="sliced"),
    *(ScanCase(dim=5, length=9, state=3, options=(name,)) for name in ALL),
    ScanCase(dim=34, length=10, state=1, options=ALL, layout="channels last"),
    ScanCase(dim=6, length=17, state=3, groups=3, options=ALL, reverse=True),
    ScanCase(dim=5, length=18, state=3, B="constant", options=ALL, lengths=(18, 7)),
    ScanCase(dim=6, length=18, state=3, C="constant", groups=2, reverse=True),
    ScanCase(dim=6, length=18, state=3, options=ALL, lengths=(18, 7), bidirectional=True),
    ScanCase(dim=6, length=17, state=3, groups=3, options=ALL, reverse=True, bidirectional=True),
    ScanCase(dim=6, length=18, state=3, B="constant", options=("z",), bidirectional=True),
    ScanCase(dim=66, length=6, state=1, groups=2, options=ALL, bidirectional=True),
]
SMALL_CONVS = [
    ConvCase(dim=5, length=9),
    ConvCase(dim=5, length=34, options=BOTH, activation="silu"),
    ConvCase(dim=5, length=40, options=BOTH, activation="silu", reverse=True, lengths=(40, 33)),
    ConvCase(dim=66, length=9, options=BOTH, lengths=(0, 2), activation="silu", layout="sliced"),
    *(ConvCase(dim=5, length=6, width=width, options=BOTH) for width in (1, 2, 9)),
    ConvCase(dim=5, length=70, options=("bias",), activation="silu", lengths=(70, 3)),
    ConvCase(
        dim=6, length=40, options=BOTH, activation="silu", lengths=(40, 33), bidirectional=True
    ),
    ConvCase(
        dim=130, length=9, options=("bias",), lengths=(9, 2), reverse=True, bidirectional=True
    ),
]


@pytest.mark.interpreted
@every_form
@parametrize(SMALL_SCANS)
def test_small_scans(case, processors, cut, short_chunks, poisoned_empty):
    plans = cut(processors)
    check_scan(case, torch.float32, "cpu")
    in_two_passes = processors > 1 and case.length > 6
    assert {plan.segments > 1 for plan in plans} == {in_two_passes}


@pytest.mark.interpreted
@parametrize(SMALL_CONVS)
def test_small_convolutions(case, poisoned_empty):
    check_conv(case, torch.float32, "cpu")


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_half_precision(dtype, short_chunks, poisoned_empty):
    lengths, options = (18, 7), {"layout": "channels last", "reverse": True}
    check_scan(
        ScanCase(dim=5, length=18, state=3, options=ALL, lengths=lengths, **options), dtype, "cpu"
    )
    check_conv(ConvCase(dim=5, length=18, options=BOTH, activation="silu", **options), dtype, "cpu")


@pytest.mark.interpreted
@every_form
@every_direction
def test_padding_reaches_nothing(processors, direction, cut, short_chunks, poisoned_empty):
    cut(processors)
    lengths = (18, 7, 0)
    size = {"batch": 3, "dim": 6, "length": 18, "state": 3}
    case = ScanCase(options=ALL, lengths=lengths, **(direction | size))
    tensors = case.tensors()
    expected = scan_with_gradients(tensors, case.keywords(), "reference", torch.float64)
    padded = {name: x.clone() for name, x in tensors.items()}
    for name, (row, end) in itertools.product(INPUTS, enumerate(lengths)):
        padded[name][row, ..., end:] = float("nan")
    actual = scan_with_gradients(padded, case.keywords(), "triton", torch.float32)
    assert_close("output", actual[0], expected[0], torch.float32, "output")
    assert_close("state", actual[1], expected[1], torch.float32, "state")
    for name, gradient in actual[2].items():
        assert_close(name, gradient, expected[2][name], torch.float32, "weight_gradient")
        for row, end in enumerate(lengths if name in INPUTS else ()):
            assert (gradient[row, ..., end:] == 0).all(), name


@pytest.mark.interpreted
def test_half_precision_sequences_beside_float32_step_sizes():
    """As under autocast: each tensor is read in its own dtype, and its gradient has it, too."""
    tensors = ScanCase(dim=5, length=9, state=3, options=("z", "softplus")).tensors()
    rounded = {
        k: x.to(torch.bfloat16 if k in "uBCz" else torch.float32) for k, x in tensors.items()
    }
    leaves = {name: x.requires_grad_() for name, x in rounded.items()}
    exact = {name: x.detach().double().requires_grad_() for name, x in leaves.items()}
    out = selective_scan(**leaves, delta_softplus=True, backend="triton")
    expected = selective_scan(**exact, delta_softplus=True, backend="reference")
    assert_close("output", out, expected, torch.bfloat16, "output")
    gradients = torch.autograd.grad(out.sum(), tuple(leaves.values()))
    right = torch.autograd.grad(expected.sum(), tuple(exact.values()))
    for (name, leaf), gradient, e in zip(leaves.items(), gradients, right, strict=True):
        assert gradient.dtype == leaf.dtype
        assert_close(name, gradient, e, leaf.dtype, "weight_gradient")


@pytest.mark.interpreted
def test_softplus_keeps_small_step_sizes():
    raw = torch.linspace(-80, 30, 64).reshape(1, 1, -1)
    ones = torch.ones_like(raw)
    zero = torch.zeros(1, 1)
    # With A zero and B, C and u one, each step adds its size: differences would lose digits.
    for frame in raw.unbind(-1):
        step = selective_scan(
            ones[..., :1], frame[..., None], zero, ones[..., :1], ones[..., :1],
            delta_softplus=True, backend="triton",
        )  # fmt: skip
        torch.testing.assert_close(
            step.double().flatten(),
            torch.nn.functional.softplus(frame.double(), threshold=100).flatten(),
            rtol=3e-7,
            atol=0,
        )


@pytest.mark.interpreted
@pytest.mark.parametrize("layout", ["channels last", "time last"])
def test_the_output_lies_in_memory_as_the_input(layout):
    case = ScanCase(dim=5, length=9, state=3, layout=layout)
    tensors = {name: x.float() for name, x in case.tensors().items()}
    out = selective_scan(**tensors, backend="triton")
    assert out.stride() == tensors["u"].stride()


@pytest.mark.parametrize(
    ("programs", "chunks", "processors", "segments"),
    [
        (0, 100, 132, 1),  # nothing to do
        (512, 125, 132, 9),  # batch 32
        (704, 125, 132, 6),
        (845, 2000, 132, 1),  # five segments would do: two passes do not pay
        (264, 2000, 132, 16),
        (16, 5, 132, 1),
        (16, 6, 132, 6),
        (16, 8, 132, 8),  # 250 frames of one recording
        (16, 32, 132, 32),
        (16, 2000, 132, 250),  # 264 wanted: 250 of 8 chunks hold them all
        (128, 32, 132, 32),  # batch 8
        (1, 2000, 1, 32),  # the interpreter counts as one processor
        (5, 2000, 1, 7),
        (6, 2000, 1, 6),
        (7, 2000, 1, 1),
    ],
)
def test_time_is_cut_only_where_it_pays(kernels, programs, chunks, processors, segments):
    found = kernels.segments_for(programs, chunks, processors)
    assert found == segments
    length = -(-chunks // found)
    assert (found - 1) * length < chunks <= found * length, "no segment is empty"


@pytest.mark.gpu
@every_form
@every_dtype
@parametrize(SCAN_CASES)
def test_scans_on_a_card(case, dtype, processors, cut, poisoned_empty):
    cut(processors)
    check_scan(case, dtype, "cuda")


@pytest.mark.gpu
@every_dtype
@parametrize(CONV_CASES)
def test_convolutions_on_a_card(case, dtype, poisoned_empty):
    check_conv(case, dtype, "cuda")


@pytest.mark.gpu
@every_form
@every_dtype
@every_direction
def test_a_long_recording_on_a_card(dtype, processors, direction, cut):
    plans = cut(processors)
    size = {"batch": 1, "dim": 64, "length": 6007}
    case = ScanCase(options=ALL, layout="channels last", **(direction | size))
    check_scan(case, dtype, "cuda", long="long ")
    assert {plan.segments > 1 for plan in plans} == {processors > 1}


@pytest.mark.gpu
@every_form
def test_a_card_gives_the_same_twice(processors, cut):
    cut(processors)
    case = ScanCase(2, 130, 700, 16, options=ALL, lengths=(700, 430))
    first, second = (
        scan_with_gradients(case.tensors(), case.keywords(), "triton", torch.float32, "cuda")
        for _ in range(2)
    )
    assert torch.equal(first[0], second[0])
    for name, gradient in first[2].items():
        assert torch.equal(gradient, second[2][name]), name
