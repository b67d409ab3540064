"""The selective scan alone, against a PyTorch loop, mambapy's parallel scan and a C++ scan."""

import functools
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.results import Bar, Measurement, Results, ratio_bar
from benchmarks.timing import (
    Settings,
    apart,
    first_sentence,
    in_fresh_process,
    interleaved,
    peak_memory,
)
from espnet_bimamba.ops import selective_scan
from espnet_bimamba.ops.backends import BACKENDS, ENVIRONMENT_VARIABLE, Call, choose
from espnet_bimamba.ops.lengths import Lengths

# Largest error over the largest reference value that a scan may have to be timed at all.
GATE = {"float32": 1e-5, "bfloat16": 2e-2}

Scan = Callable[..., Tensor]


@dataclass(frozen=True)
class Shape:
    """Sizes of a scan."""

    batch: int
    length: int
    dim: int = 512
    state: int = 16

    def size(self, dtype: str, **more: Any) -> dict[str, Any]:
        """Return what a measurement holds of it."""
        return {"batch": self.batch, "length": self.length, "dtype": dtype, **more}


@dataclass(frozen=True)
class Sizes:
    """What is measured: shapes forward, forward and backward, and with one and two threads.

    One shape is also measured where glibc does with freed memory what it does by default.
    """

    forward: tuple[Shape, ...]
    backward: tuple[Shape, ...]
    threads: tuple[Shape, ...]
    default_malloc: Shape | None = None
    memory: bool = True
    seconds: float = 8.0


_FORWARD = (Shape(1, 250), Shape(1, 1000), Shape(1, 4000))
SIZES = {
    "full": Sizes(_FORWARD, (Shape(8, 500),), (Shape(1, 1000),), Shape(1, 1000)),
    "quick": Sizes(
        (Shape(1, 1000), Shape(1, 4000)),
        (Shape(8, 500),),
        (Shape(1, 1000),),
        memory=False,
        seconds=2,
    ),
    "tiny": Sizes(
        (Shape(1, 5, 32), Shape(1, 20, 32)),
        (Shape(2, 5, 32),),
        (Shape(1, 20, 32),),
        Shape(1, 20, 32),
    ),
}
_MORE_ON_CUDA = (Shape(16, 1000),)


def run(settings: Settings) -> list[Measurement]:
    """Measure the scan."""
    sizes = SIZES[settings.scale]
    many = _MORE_ON_CUDA if settings.device == "cuda" and settings.scale != "tiny" else ()
    results: list[Measurement] = []
    for dtype in settings.precisions:
        for shape in (*sizes.forward, *many):
            results += _compare(shape, settings, dtype, sizes.seconds, backward=False)
        for shape in (*sizes.backward, *many):
            results += _compare(shape, settings, dtype, sizes.seconds, backward=True)
    if settings.device == "cpu":
        for shape in sizes.threads:
            results += _threads(shape, settings, sizes.seconds / 4)
        if sizes.default_malloc:
            results += _with_default_malloc(sizes.default_malloc, settings)
    if sizes.memory:
        for shape in sizes.backward:
            results += _memory(shape, settings)
    return results


def bars(results: Results) -> list[Bar]:
    """Hold what was measured to the bars."""

    def time(case: str, subject: str, batch: int, length: int, **more: Any) -> Measurement | None:
        size = {"batch": batch, "length": length, "dtype": "float32", **more}
        return results.find("scan", case, subject, **size)

    both = "forward+backward"
    found = [
        ratio_bar(
            f"scan-{id}-{peer}",
            f"scan, {case}, batch {batch} L={length}: {peer} / ours",
            time(case, peer, batch, length),
            time(case, "ours", batch, length),
            least=least,
        )
        for id, case, batch, length, limits in (
            ("forward", "forward", 1, 1000, {"loop": 15.0, "mambapy": 30.0}),
            ("backward", both, 8, 500, {"loop": 10.0, "mambapy": 20.0}),
        )
        for peer, least in limits.items()
    ]
    lengths = sorted({m.size["length"] for m in results.select("scan", "forward", "c++")})
    found += [
        ratio_bar(
            f"scan-forward-c++-{length}",
            f"scan, forward, L={length}: ours / C++",
            time("forward", "ours", 1, length),
            time("forward", "c++", 1, length),
            most=1.3,
        )
        for length in lengths
    ]
    for case, batch, length in (("forward", 1, 1000), (both, 8, 500)):
        if results.select("scan", f"{case} by threads"):
            one, two = (
                time(f"{case} by threads", "ours", batch, length, threads=n) for n in (1, 2)
            )
            found.append(
                ratio_bar(
                    f"scan-threads-{case}",
                    f"scan, {case}, batch {batch} L={length}: 1 thread / 2 threads",
                    one,
                    two,
                    least=1.7,
                )
            )
    found.append(
        ratio_bar(
            "scan-linear",
            "scan, forward: L=4000 / L=1000 (4 is linear)",
            time("forward", "ours", 1, 4000),
            time("forward", "ours", 1, 1000),
            least=3.5,
            most=4.5,
            paired=False,
        )
    )
    for m in results.select("scan", both, "ours", "bytes"):
        must = Measurement("scan", both, "must", "bytes", [m.size["tensors"]])
        what = "scan, forward+backward: peak memory / inputs, output and gradients"
        found.append(
            ratio_bar("scan-memory", what, m if m.samples else None, must, most=3.0, paired=False)
        )
    return found


def scan_inputs(shape: Shape, device: str, dtype: str = "float32") -> dict[str, Tensor]:
    """Draw the arguments of a scan as a layer would give them, neighbouring channels adjacent.

    In half precision the step sizes stay float32, as they do in the layers.
    """
    generator = torch.Generator(device).manual_seed(shape.length)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device=device)

    def over_time(channels: int, kind: str = dtype) -> Tensor:
        x = normal(shape.batch, shape.length, channels)
        return x.to(getattr(torch, kind)).transpose(1, 2)

    return {
        "u": over_time(shape.dim),
        # softplus of it is about 0.01 to 0.1: memories of tens to hundreds of frames
        "delta": over_time(shape.dim, "float32").sub_(3.5),
        "A": -torch.arange(1.0, shape.state + 1, device=device) - normal(shape.dim, 1).abs(),
        "B": over_time(shape.state),
        "C": over_time(shape.state),
        "D": normal(shape.dim),
        "z": over_time(shape.dim),
    }


@functools.cache
def full_lengths(batch: int, length: int, device: torch.device) -> Lengths:
    """Return the lengths of sequences without padding; a check of them is six launches."""
    return Lengths(torch.full((batch,), length, device=device), length)


def ours(backend: str | None = None) -> Scan:
    """Return our scan as an encoder calls it: with lengths, which are known to fit.

    Args:
        backend: None is the one that it chooses itself.
    """

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, **rest: Any) -> Tensor:
        rest = {"lengths": full_lengths(u.size(0), u.size(2), u.device)} | rest
        y = selective_scan(u, delta, A, B, C, delta_softplus=True, backend=backend, **rest)
        return cast(Tensor, y)

    return scan


def scans(settings: Settings, dtype: str, backward: bool) -> tuple[dict[str, Scan], dict[str, str]]:
    """Return the scans to compare by name, and why others are left out.

    "ours" is the backend that an encoder gets, others of ours are named.
    """
    call = Call("selective_scan", settings.device, getattr(torch, dtype), d_state=16, lengths=True)
    chosen = os.environ.get(ENVIRONMENT_VARIABLE) or choose(call).backend.name
    found: dict[str, Scan] = {"ours": ours(chosen)}
    for name, backend in BACKENDS.items():
        if name not in (chosen, "reference") and not backend.rejects(call):
            found[f"ours ({name})"] = ours(name)
    missing: dict[str, str] = {}
    found["loop"] = peers.loop_scan
    if reason := peers.mambapy_missing():
        missing["mambapy"] = reason
    else:
        found["mambapy"] = peers.mambapy_scan
    if settings.device == "cpu" and not backward:
        try:
            found["c++"] = peers.CppScan()
        except RuntimeError as error:
            missing["c++"] = str(error)
    return found, missing


def _compare(
    shape: Shape, settings: Settings, dtype: str, seconds: float, backward: bool
) -> list[Measurement]:
    case = "forward+backward" if backward else "forward"
    size = shape.size(dtype)
    found, missing = scans(settings, dtype, backward)
    results = [Measurement("scan", case, name, "s", [], size, why) for name, why in missing.items()]
    inputs = scan_inputs(shape, settings.device, dtype)
    exact = _outputs(_definition, {k: x.double() for k, x in inputs.items()}, backward)
    calls: dict[str, Callable[[], object]] = {}
    for name, scan in found.items():
        try:
            error = _error(_outputs(scan, inputs, backward), exact)
        except RuntimeError as reason:
            why = first_sentence(reason)
            results.append(Measurement("scan", case, name, "s", [], size, why))
            continue
        results.append(Measurement("scan", case, name, "error", [error], size))
        if not error <= GATE[dtype]:
            why = f"wrong: differs from the float64 reference by {error:.1e}"
            results.append(Measurement("scan", case, name, "s", [], size, why))
            continue
        calls[name] = _caller(scan, inputs, backward)
    del exact
    for name, samples in interleaved(calls, settings, seconds).items():
        results.append(Measurement("scan", case, name, "s", samples, size))
    return results


def _definition(**inputs: Tensor) -> Tensor:
    return ours("reference")(**inputs)


def _leaves(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach().requires_grad_() for name, x in inputs.items()}


def _caller(scan: Scan, inputs: dict[str, Tensor], backward: bool) -> Callable[[], object]:
    if not backward:

        def forward() -> Tensor:
            with torch.inference_mode():
                return scan(**inputs)

        return forward

    leaves = _leaves(inputs)
    d_out = torch.ones_like(inputs["u"])

    def forward_and_backward() -> tuple[Tensor, ...]:
        return torch.autograd.grad(scan(**leaves), list(leaves.values()), d_out)

    return forward_and_backward


def _outputs(scan: Scan, inputs: dict[str, Tensor], backward: bool) -> list[Tensor]:
    """Return the output and, with ``backward``, all gradients of a weighted sum of it."""
    if not backward:
        with torch.no_grad():
            return [scan(**inputs)]
    leaves = _leaves(inputs)
    out = scan(**leaves)
    weights = torch.linspace(-1, 1, out.shape[2], device=out.device, dtype=out.dtype)
    return [out.detach(), *torch.autograd.grad((out * weights).sum(), list(leaves.values()))]


def _error(actual: list[Tensor], exact: list[Tensor]) -> float:
    errors = [
        ((a.double() - e).abs().max() / e.abs().max()).item()
        for a, e in zip(actual, exact, strict=True)
    ]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _threads(shape: Shape, settings: Settings, seconds: float) -> list[Measurement]:
    """Time ours with one and with two threads."""
    results = []
    backward_shapes = SIZES[settings.scale].backward
    for case, sized in (("forward", shape), ("forward+backward", backward_shapes[0])):
        call = _caller(ours(), scan_inputs(sized, settings.device), case != "forward")

        def with_threads(threads: int, call: Callable[[], object] = call) -> None:
            torch.set_num_threads(threads)
            call()

        calls = {str(n): functools.partial(with_threads, n) for n in (1, 2)}
        for threads, samples in interleaved(calls, settings, seconds, least=5).items():
            size = sized.size("float32", threads=int(threads))
            results.append(Measurement("scan", f"{case} by threads", "ours", "s", samples, size))
        settings.apply()
    return results


def _with_default_malloc(shape: Shape, settings: Settings) -> list[Measurement]:
    """Measure again in a process whose freed memory glibc may give back after each call."""
    order = {"batch": shape.batch, "length": shape.length, "dim": shape.dim}
    told = in_fresh_process("benchmarks.ops:times", replace(settings, malloc="default"), **order)
    case, size = "forward, malloc default", shape.size("float32")
    if why := told.get("failed", ""):
        return [Measurement("scan", case, "ours", "s", [], size, why)]
    return [Measurement("scan", case, name, "s", samples, size) for name, samples in told.items()]


def times(settings: Settings, batch: int, length: int, dim: int) -> dict[str, list[float]]:
    """Time the forward pass of what needs no compiler, in this process."""
    inputs = scan_inputs(Shape(batch, length, dim), settings.device)
    scans = {"ours": ours(), "loop": peers.loop_scan}
    if not peers.mambapy_missing():
        scans["mambapy"] = peers.mambapy_scan
    calls = {name: _caller(scan, inputs, backward=False) for name, scan in scans.items()}
    return interleaved(calls, settings, seconds=2)


def _memory(shape: Shape, settings: Settings) -> list[Measurement]:
    results = []
    found, _ = scans(settings, "float32", backward=True)
    for name in found:
        order = {"subject": name, "batch": shape.batch, "length": shape.length, "dim": shape.dim}
        told = apart("benchmarks.ops:memory", settings, **order)
        size = shape.size("float32", tensors=told.get("tensors"))
        samples = [told["peak"]] if "peak" in told else []
        note = told.get("failed", "")
        results.append(Measurement("scan", "forward+backward", name, "bytes", samples, size, note))
    return results


def memory(settings: Settings, subject: str, batch: int, length: int, dim: int) -> dict[str, float]:
    """Measure the peak of making the inputs and running forward and backward, in this process."""
    found, _ = scans(settings, "float32", backward=True)
    scan = found[subject]
    warm = scan_inputs(Shape(1, 8, dim), settings.device)
    _caller(scan, warm, backward=True)()
    shape, kept = Shape(batch, length, dim), []

    def call() -> None:
        inputs = _leaves(scan_inputs(shape, settings.device))
        out = scan(**inputs)
        d_out = torch.ones_like(out)
        gradients = torch.autograd.grad(out, list(inputs.values()), d_out)
        kept.extend([*inputs.values(), out.detach(), d_out, *gradients])

    peak = peak_memory(call, settings.device).above
    return {"peak": peak, "tensors": sum(x.numel() * x.element_size() for x in kept)}
