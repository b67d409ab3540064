"""Where the time goes in one mixer and in one block, in inference."""

import contextlib
import functools
import re
import statistics
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._C._autograd import DeviceType
from torch._C._profiler import _RecordFunctionFast
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.models import encoder
from benchmarks.products import operations_of, products_of
from benchmarks.results import Bar, Measurement, Results, ratio_bar
from benchmarks.timing import Settings, interleaved
from espnet_bimamba.layers import ExtBiMamba, InnBiMamba, mamba

LENGTHS = {"full": (250, 1000), "quick": (250,), "tiny": (12,)}
_CALLS_PROFILED = {"full": 20, "quick": 5, "tiny": 1}
# Profiles taken, of which one is kept.
_PROFILES = 3
# Rows and columns of a product that is large enough to run as fast as products can.
_SQUARE = {"full": 2048, "quick": 2048, "tiny": 16}

# The first pattern that is found in the name of a profiled operation decides; see `README.md`.
_PARTS = {
    "selective scan": r"selective_?scan",
    "causal convolution": r"causal_?conv",
    "projections": r"aten::(mm|addmm_?|bmm|baddbmm|linear|matmul|_addmm_activation)$|mkldnn_linear",
    "ESPnet's convolutions": r"conv",
    "Adam's step": r"_foreach|addcdiv|addcmul|lerp|_fused_adam|Optimizer",
    "dropout": r"dropout|bernoulli",
    "CTC": r"ctc",
    "norms": r"norm",
    "activations": r"silu|sigmoid|glu|relu|softplus|softmax",
    "copies": r"copy|clone|contiguous|aten::cat$|_to_copy",
    "masks, sums, products": r"aten::(add_?|mul_?|masked_fill_?|exp|neg|sum|where|fill_?|zero_)$",
}
_REST = "the rest of PyTorch"
_PYTHON = "Python between operations"
_WAITING = "the card waits"
_WHOLE = "whole call"
SQUARE = "square product"


def run(settings: Settings) -> list[Measurement]:
    """Measure layers against their products alone, and take them apart."""
    results: list[Measurement] = []
    for length in LENGTHS[settings.scale]:
        subjects = _subjects(settings, length)
        for name, call in subjects.items():
            size = {"length": length, "batch": 1}
            alone = {"products": products_of(call), SQUARE: _square(settings)}
            operations = {case: {"operations": operations_of(run)} for case, run in alone.items()}
            samples = interleaved({"whole": call, **alone}, settings, seconds=2, least=5)
            results += [
                Measurement("layer", case, name, "s", taken, size | operations.get(case, {}))
                for case, taken in samples.items()
            ]
            whole = statistics.median(samples["whole"])
            results += [
                Measurement("layer parts", part, name, "s", [seconds], size)
                for part, seconds in parts(call, settings, whole).items()
            ]
    return results


def _square(settings: Settings) -> Callable[[], object]:
    """Return the product that says how fast products can be on this machine."""
    n = _SQUARE[settings.scale]
    a, b = (torch.randn(n, n, device=settings.device) for _ in range(2))
    return lambda: a @ b


def bars(results: Results) -> list[Bar]:
    """Hold what was measured to the bars."""
    lengths = [m.size["length"] for m in results.select("layer", "whole")]
    if not lengths:
        return []
    length = min(lengths)
    return [
        ratio_bar(
            f"layer-products-{name}",
            f"{name}, inference, L={length}: share of the projections",
            results.find("layer", "products", name, length=length),
            results.find("layer", "whole", name, length=length),
            least=0.6,
            unit="%",
        )
        for name in ("ExtBiMamba", "InnBiMamba")
    ]


def _subjects(settings: Settings, length: int) -> dict[str, Callable[[], object]]:
    width = 16 if settings.scale == "tiny" else 256
    device = settings.device
    x = torch.randn(1, length, width, device=device)
    lengths = torch.tensor([length], device=device)
    mask = torch.ones(1, 1, length, dtype=torch.bool, device=device)
    block: Any = encoder("conbimamba-ext", settings).build()
    block = block.encoders[0].to(device)

    def inference(module: nn.Module, *inputs: Tensor) -> Callable[[], object]:
        def call() -> object:
            with torch.inference_mode():
                return module(*inputs)

        return call

    return {
        "ExtBiMamba": inference(ExtBiMamba(width).eval().to(device), x, lengths),
        "InnBiMamba": inference(InnBiMamba(width).eval().to(device), x, lengths),
        "ConBiMamba block (ExtBiMamba)": inference(block, x, mask),
    }


def parts(
    call: Callable[[], object],
    settings: Settings,
    whole: float,
    times: int | None = None,
    profiles: int = _PROFILES,
) -> dict[str, float]:
    """Return the seconds that each part of a call takes, by PyTorch's profiler.

    Its own cost is spread over all parts. On the CPU what is left of its wall time is Python's; on
    CUDA what is left of ``whole``, in which the card waits, and parts are times of the card.
    Of several profiles the one is kept whose parts together come nearest to the time of the call:
    one that the system disturbs would show the disturbance, not the call.

    Args:
        call: What to profile; it has run before.
        settings: How the run is made.
        whole: Seconds that the call takes without a profiler.
        times: How many calls a profile; None takes as many as fit one of milliseconds.
        profiles: How many profiles are taken.
    """
    times = times or _CALLS_PROFILED[settings.scale]
    found = [_profile(call, settings, times) for _ in range(profiles)]
    if settings.device == "cuda":
        found = [_with_waiting(parts, whole) for parts in found]
    return min(found, key=lambda parts: abs(sum(parts.values()) - whole))


def _profile(call: Callable[[], object], settings: Settings, times: int) -> dict[str, float]:
    cuda = settings.device == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with _named_operators(), profile(activities=activities) as profiled, record_function(_WHOLE):
        for _ in range(times):
            call()
        if cuda:
            torch.cuda.synchronize()
    return _by_part(profiled.key_averages(), cuda, times)


def _by_part(events: Iterable[Any], cuda: bool, times: int) -> dict[str, float]:
    """Add up the seconds a call of a profile's rows, by part.

    A row of an operation holds the time of the kernels that it launched; the kernels' own rows
    and the spans of what was named would count it again.
    """
    found = dict.fromkeys([*_PARTS, _REST], 0.0)
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue
        microseconds = event.self_device_time_total if cuda else event.self_cpu_time_total
        part = _PYTHON if event.key == _WHOLE and not cuda else _part(event.key)
        found[part] = found.get(part, 0.0) + microseconds / 1e6 / times
    return {name: seconds for name, seconds in found.items() if seconds > 0}


def _with_waiting(parts: dict[str, float], whole: float) -> dict[str, float]:
    """Add the time in which the card has nothing to do."""
    return parts | {_WAITING: max(0.0, whole - sum(parts.values()))}


@contextlib.contextmanager
def _named_operators() -> Iterator[None]:
    """Show our operators to the profiler also where they are plain functions: in inference.

    As operations, which ``record_function``'s spans are not: to them the profiler gives no kernels.
    """
    with contextlib.ExitStack() as stack:
        for name in ("selective_scan", "causal_conv1d"):
            stack.enter_context(patch.object(mamba, name, _named(name, getattr(mamba, name))))
        yield


def _named(name: str, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Tensor:
        with _RecordFunctionFast(name):
            return function(*args, **options)

    return call


def _part(operation: str) -> str:
    for part, pattern in _PARTS.items():
        if re.search(pattern, operation, re.IGNORECASE):
            return part
    return _REST
