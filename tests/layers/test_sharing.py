"""What both directions share: the numbers of one after the other, and where nothing is shared."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils._python_dispatch import TorchDispatchMode

from espnet_bimamba.layers import InnBiMamba, mamba
from espnet_bimamba.ops.backends import ENVIRONMENT_VARIABLE
from tests.conftest import skip_unless_served
from tests.layers import plain
from tests.layers.zoo import (
    MIXERS,
    Case,
    PlainExtBiMamba,
    assert_same_gradients,
    every_mixer,
    gradients,
    inputs,
)
from tests.tolerances import assert_close

PLAIN_CONCAT = Case(PlainExtBiMamba, plain.algorithm_2_concat, {"fusion": "concat"})
# Name -> the mixer that shares, and the definition of what it computes.
PAIRS = {
    "innbimamba": (MIXERS["innbimamba_sharing"], MIXERS["innbimamba"]),
    "extbimamba_add": (MIXERS["extbimamba_add"], MIXERS["extbimamba_plain"]),
    "extbimamba_concat": (MIXERS["extbimamba_concat"], PLAIN_CONCAT),
}
every_pair = pytest.mark.parametrize(("shared", "apart"), PAIRS.values(), ids=PAIRS)
every_fusion = pytest.mark.parametrize("name", ["extbimamba_add", "extbimamba_concat"])
SHARED = {"causal_conv1d": 1, "selective_scan": 1}
APART = {"causal_conv1d": 2, "selective_scan": 2}
LENGTHS = torch.tensor([9, 4, 1, 0])


@pytest.fixture
def calls(monkeypatch):
    """How often each operator was called."""
    seen = Counter()

    def counted(run):
        def spy(*args, **kwargs):
            seen[run.__name__] += 1
            return run(*args, **kwargs)

        return spy

    for name in SHARED:
        monkeypatch.setattr(mamba, name, counted(getattr(mamba, name)))
    return seen


@pytest.mark.usefixtures("calls")
@every_pair
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["no_lengths", "lengths"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_sharing_changes_no_number(shared, apart, lengths, dtype, forced_backend, monkeypatch):
    skip_unless_served(forced_backend, dtype)
    mixer, exact = shared.build(dtype=dtype), apart.build(dtype=dtype)
    exact.load_state_dict(mixer.state_dict())
    x = inputs(4, 9, 6, dtype=dtype)
    for row, end in enumerate([] if lengths is None else lengths.tolist()):
        x[row, end:] = float("nan")
    out, dx, d_weights = gradients(mixer, x, lengths)
    with torch.no_grad():
        inferred = mixer(x, lengths)
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "reference")
    expected, expected_dx, expected_d_weights = gradients(exact.double(), x.double(), lengths)
    assert_close("output", out, expected, dtype, "output")
    assert_close("output without gradients", inferred, expected, dtype, "output")
    assert_close("input gradient", dx, expected_dx, dtype, "gradient")
    assert_same_gradients(d_weights, expected_d_weights, dtype)


@every_pair
def test_nothing_passes_without_gradients_too(shared, apart):
    for shape in ((0, 5, 6), (2, 0, 6)):
        with torch.inference_mode():
            assert shared.build()(inputs(*shape)).shape == shape


@every_pair
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_each_operator_is_called_once_for_both(shared, apart, grad, calls):
    x = inputs(4, 9, 6)
    with torch.set_grad_enabled(grad):
        shared.build()(x, LENGTHS)
        assert calls == SHARED
        calls.clear()
        apart.build()(x, LENGTHS)
        assert calls == APART


def test_the_directions_of_innbimamba_share_their_calls_elsewhere_than_on_the_cpu(
    calls, monkeypatch
):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    InnBiMamba(6)(torch.zeros(2, 5, 6))
    assert calls == APART
    calls.clear()
    out = InnBiMamba(6).to("meta")(torch.zeros(2, 5, 6, device="meta"))
    assert out.shape == (2, 5, 6)
    assert calls == SHARED


class Products(TorchDispatchMode):
    """Counts matrix products."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function.overloadpacket.__name__ in ("mm", "addmm", "bmm")
        return function(*args, **(kwargs or {}))


def products(mixer) -> int:
    with Products() as seen:
        mixer(inputs(2, 9, 6), LENGTHS[:2])
    return seen.count


def test_projections_of_both_directions_are_one_product():
    # x_proj and dt_proj twice each, and once or twice in_proj and out_proj; fusion_proj.
    assert products(MIXERS["extbimamba_add"].build()) == 4 + 1 + 1
    assert products(MIXERS["extbimamba_plain"].build()) == 4 + 2 + 2
    assert products(MIXERS["extbimamba_concat"].build()) == 4 + 1 + 2 + 1
    assert products(PLAIN_CONCAT.build()) == 4 + 2 + 2 + 1


@every_fusion
def test_the_weights_stay_apart_in_the_state_dict(name):
    directions = {
        f"{direction}_mamba.{parameter}"
        for direction in ("forward", "backward")
        for parameter in MIXERS["mamba"].build().state_dict()
    }
    fusion = {"fusion_proj.weight", "fusion_proj.bias"} if "concat" in name else set()
    assert MIXERS[name].build().state_dict().keys() == directions | fusion


@every_fusion
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_step_sizes_are_the_same_without_gradients_under_autocast(name, dtype, monkeypatch):
    seen, scan = [], mamba.selective_scan

    def spy(**tensors):
        seen.append(tensors["delta"])
        return scan(**tensors)

    monkeypatch.setattr(mamba, "selective_scan", spy)
    mixer, x = MIXERS[name].build(16, dtype=torch.float32), inputs(3, 40, 16, dtype=torch.float32)
    for grad in (True, False):
        with torch.autocast("cpu", dtype), torch.set_grad_enabled(grad):
            mixer(x)
    expected, actual = seen
    assert actual.dtype == torch.float32
    assert_close("step sizes", actual, expected, torch.float32, "output")


class LoRALinear(nn.Linear):
    """What LoRA adapters of ESPnet are: a kind of ``nn.Linear`` with more in its forward."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.to(linear.weight.dtype).load_state_dict(linear.state_dict())

    def forward(self, x):
        return super().forward(x) + 0.5 * x.mean(-1, keepdim=True)


class Wrapped(nn.Module):
    """What LoRA adapters of PEFT are: another module around the ``nn.Linear``."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.base_layer = linear

    def forward(self, x):
        return self.base_layer(x) + 0.5 * x.mean(-1, keepdim=True)


class OwnKind(torch.Tensor):
    """A tensor that flattens to others, as quantised ones and shards do."""

    def __tensor_flatten__(self):
        raise NotImplementedError


def with_bias(linear: nn.Linear) -> nn.Linear:
    linear.bias = nn.Parameter(torch.full_like(linear.weight[:, 0], 0.5))
    return linear


def with_forward_of_its_own(linear: nn.Linear) -> nn.Linear:
    linear.forward = lambda x: F.linear(x, linear.weight) + 0.5
    return linear


def with_pre_hook(linear: nn.Linear) -> nn.Linear:
    linear.register_forward_pre_hook(lambda _, args: (args[0] + 0.5,))
    return linear


def with_hook(linear: nn.Linear) -> nn.Linear:
    linear.register_forward_hook(lambda *args: args[2] + 0.5)
    return linear


CHANGES = {
    "subclass": LoRALinear,
    "wrapper": Wrapped,
    "bias": with_bias,
    "forward": with_forward_of_its_own,
    "pre_hook": with_pre_hook,
    "hook": with_hook,
    "pruning": lambda linear: prune.random_unstructured(linear, "weight", 0.5),
    "weight_norm": lambda linear: with_hook(parametrizations.weight_norm(linear)),
}


@every_fusion
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("at", ["forward_mamba.in_proj", "backward_mamba.out_proj"])
def test_another_projection_is_called_as_it_is(name, at, change, grad, calls):
    mixer = MIXERS[name].build()
    before = mixer(inputs(4, 9, 6), LENGTHS)
    calls.clear()
    torch.manual_seed(5)
    mixer.set_submodule(at, change(mixer.get_submodule(at)))
    with torch.set_grad_enabled(grad):
        out = mixer(inputs(4, 9, 6), LENGTHS)
    assert calls == APART
    with torch.set_grad_enabled(grad):
        assert torch.equal(out, mixer.plain_forward(inputs(4, 9, 6), LENGTHS))
    assert (out - before).abs().max() > 0.01


@every_fusion
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
@pytest.mark.parametrize(
    "change", [CHANGES[kind] for kind in ("subclass", "wrapper", "pre_hook", "hook", "pruning")]
)
@pytest.mark.parametrize("at", ["forward_mamba.dt_proj", "backward_mamba.x_proj"])
def test_the_inner_projections_are_modules_wherever_they_are_changed(name, at, change, grad, calls):
    mixer = MIXERS[name].build()
    torch.manual_seed(5)
    mixer.set_submodule(at, change(mixer.get_submodule(at)))
    with torch.set_grad_enabled(grad):
        out = mixer(inputs(4, 9, 6), LENGTHS)
    assert calls == SHARED
    expected = mixer.plain_forward(inputs(4, 9, 6), LENGTHS)
    assert_close("output", out, expected, torch.float64, "output")


@every_fusion
def test_hooks_on_a_direction_are_run(name, calls):
    mixer, seen = MIXERS[name].build(), []
    mixer.backward_mamba.register_forward_hook(lambda *args: seen.append(args[2].shape))
    mixer(inputs(4, 9, 6), LENGTHS)
    assert seen == [(4, 9, 6)]
    assert calls == APART


def test_hooks_on_every_module_are_run(calls):
    mixer, seen = MIXERS["extbimamba_add"].build(), []
    hook = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(m))
    try:
        with torch.no_grad():
            mixer(inputs(4, 9, 6), LENGTHS)
    finally:
        hook.remove()
    assert {module for module in mixer.modules() if isinstance(module, nn.Linear)} <= {*seen}
    assert calls == APART


def test_gradient_hooks_are_run():
    mixer, seen = MIXERS["extbimamba_add"].build(), []
    x = inputs(4, 9, 6).requires_grad_()
    mixer.forward_mamba.in_proj.register_full_backward_hook(lambda *_: seen.append("gradient"))
    mixer.forward_mamba.out_proj.register_full_backward_pre_hook(lambda *_: seen.append("output"))
    mixer(x, LENGTHS).sum().backward()
    assert seen == ["output", "gradient"]


def test_weights_of_another_kind_are_left_to_their_module(calls):
    mixer = MIXERS["extbimamba_add"].build()
    weight = mixer.forward_mamba.in_proj.weight
    mixer.forward_mamba.in_proj.weight = nn.Parameter(weight.detach().as_subclass(OwnKind))
    mixer(inputs(4, 9, 6), LENGTHS)
    assert calls == APART


@pytest.mark.filterwarnings("ignore:.*quantiz.* deprecated")
@every_fusion
def test_int8_runs_one_direction_after_the_other(name, calls):
    mixer = MIXERS[name].build(dtype=torch.float32).eval()
    quantized = torch.ao.quantization.quantize_dynamic(mixer, {nn.Linear}, dtype=torch.qint8)
    quantized(inputs(4, 9, 6, dtype=torch.float32), LENGTHS)
    assert calls == APART


@every_mixer
def test_what_a_call_shares_is_not_kept(case):
    mixer = case.build()
    x, other = inputs(4, 9, 6), copy.deepcopy(mixer)
    with torch.no_grad():
        mixer(x, LENGTHS)
        for parameter in (*mixer.parameters(), *other.parameters()):
            parameter.mul_(0.5)
        assert torch.equal(mixer(x, LENGTHS), other(x, LENGTHS))
