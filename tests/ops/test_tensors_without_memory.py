"""What looks like a tensor and is none that a kernel could read; who transforms or traces calls."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from espnet_bimamba.errors import ShapeError
from espnet_bimamba.layers import ExtBiMamba
from espnet_bimamba.ops import causal_conv1d, cpu_runtime, selective_scan
from tests.ops.cases import ConvCase, ScanCase
from tests.tolerances import assert_close

SCAN = ScanCase(batch=2, dim=6, length=9, state=3, options=("D", "z"), lengths=(9, 4))
CONVOLUTION = ConvCase(batch=2, dim=6, length=9, options=("bias",), lengths=(9, 4))
OPERATORS = {"scan": (selective_scan, SCAN, "u"), "convolution": (causal_conv1d, CONVOLUTION, "x")}
every_operator = pytest.mark.parametrize(
    ("operator", "case", "sequence"), OPERATORS.values(), ids=OPERATORS
)
every_mode = pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])


def call(operator, case, backend="cpu", **tensors):
    tensors = {name: x.float() for name, x in case.tensors().items()} | tensors
    return operator(**tensors, **case.keywords(), backend=backend)


@every_operator
@every_mode
def test_fake_tensors_give_a_fake_result(operator, case, sequence, grad):
    with FakeTensorMode() as mode, torch.set_grad_enabled(grad):
        tensors = {name: mode.from_tensor(x.float()) for name, x in case.tensors().items()}
        out = operator(**tensors, backend="cpu")
    assert out.shape == tensors[sequence].shape
    assert type(out) is type(tensors[sequence])


@every_operator
@pytest.mark.parametrize("transform", [make_fx, torch.func.functionalize], ids=["fx", "func"])
def test_a_traced_graph_holds_the_operator(operator, case, sequence, transform):
    tensors = {name: x.float() for name, x in case.tensors().items()}

    def run(x):
        return operator(**(tensors | {sequence: x}), backend="cpu")

    x, other = tensors[sequence], torch.randn_like(tensors[sequence])
    with torch.no_grad():
        traced = transform(run)(x) if transform is make_fx else transform(run)
        assert torch.equal(traced(other), run(other))


@every_operator
def test_a_gradient_of_torch_func_is_refused(operator, case, sequence):
    def loss(x):
        return call(operator, case, **{sequence: x}).square().sum()

    # Torch's own words; whoever needs such gradients has backend="reference".
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(loss)(case.tensors()[sequence].float())


@every_operator
@every_mode
def test_a_forward_mode_gradient_is_refused_and_not_dropped(operator, case, sequence, grad):
    x = case.tensors()[sequence].float()
    with forward_ad.dual_level(), torch.set_grad_enabled(grad):
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises((NotImplementedError, RuntimeError), match=r"jvp|forward mode AD"):
            call(operator, case, **{sequence: dual})


@every_operator
@every_mode
def test_the_default_device_is_not_asked(operator, case, sequence, grad):
    tensors = {name: x.float() for name, x in case.tensors().items()}
    expected = operator(**tensors, backend="cpu")
    with torch.device("meta"), torch.set_grad_enabled(grad):
        out = operator(**tensors, backend="cpu")
    assert torch.equal(out, expected)


def test_a_layer_runs_under_another_default_device():
    mixer, x = ExtBiMamba(4), torch.randn(2, 5, 4)
    with torch.inference_mode():
        expected = mixer(x)
        with torch.device("meta"):
            out = mixer(x)
    assert torch.equal(out, expected)


@every_operator
@every_mode
def test_memory_that_holds_the_negative_is_read_right(operator, case, sequence, grad):
    tensors = {
        name: torch._neg_view(-x.float()) if x.dim() != 2 else x.float()
        for name, x in case.tensors().items()
    }
    assert any(x.is_neg() for x in tensors.values())
    with torch.set_grad_enabled(grad):
        out = operator(**tensors, **case.keywords(), backend="cpu")
    assert_close("output", out, call(operator, case), torch.float32, "output")


@every_operator
def test_the_custom_operator_checks_what_it_is_called_with(operator, case, sequence):
    x, weight = torch.zeros(2, 24, 9), torch.zeros(8, 4)
    args = (x, weight, None, None, False, None, False, False, None, "cpu")
    with pytest.raises(ShapeError, match="weight must be"):
        torch.ops.espnet_bimamba.causal_conv1d(*args)


def test_no_channel_at_all():
    u, B = torch.zeros(2, 0, 5), torch.zeros(0, 3)
    assert selective_scan(u, u, B, B, B, backend="cpu").shape == (2, 0, 5)


def test_an_address_is_only_given_of_what_has_memory():
    with pytest.raises(ShapeError, match=r"Tensor of shape \(3,\) has no memory"):
        cpu_runtime.address(torch.empty(3, device="meta"))
    assert cpu_runtime.address(torch.empty(0)) == 0
