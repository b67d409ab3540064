"""What kernels take of a card, without the time that Python takes to launch them.

    python -m benchmarks.cuda_kernels scan

prints one row a shape: microseconds of each backend for a scan with lengths, as an encoder calls
it, in one direction and in both, forward and with its gradients. A CUDA graph of each call is
replayed. The last column is the floor (benchmarks/roofline.py) of an H100 SXM.

    python -m benchmarks.cuda_kernels models

prints milliseconds that the card computes, and how many kernels that is, for encoders and training
steps (benchmarks/encoders.py, benchmarks/training.py): the sum over PyTorch's profile of one call.

    python -m benchmarks.cuda_kernels memory

prints the peak of a scan with gradients, as a multiple of its inputs, its output and gradients.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import encoders, models, training
from benchmarks.ops import Shape, ours, scan_inputs
from benchmarks.roofline import CARDS, DIM, DTYPES, scan
from benchmarks.timing import Settings, peak_memory
from espnet_bimamba.ops.backends import BACKENDS, Call

SUBJECTS: dict[str, tuple[str, dict[str, Any]]] = {
    "conbimamba-ext": ("conbimamba-ext", {}),
    "conbimamba-inn": ("conbimamba-inn", {}),
    "conformer": ("conformer", models.ATTENTIONS["plain"]),
    "conformer, SDPA": ("conformer", models.ATTENTIONS["sdpa"]),
}
# Utterances and seconds of each.
SPEECH = ((1, 10), (1, 60), (16, 10), (16, 30), (16, 60))
TRAINING = ((8, 15), (32, 15))
DIRECTIONS = {False: "one direction", True: "both directions"}
SHAPES = ((1, 250), (1, 1000), (8, 500), (16, 1000), (32, 375), (32, 1000))


def inputs(batch: int, length: int, dtype: str, both: bool, device: str) -> dict[str, Tensor]:
    """Draw a scan's arguments; for both directions twice as many channels, in two groups."""
    x = scan_inputs(Shape(batch, length, (2 if both else 1) * DIM), device, dtype)
    if both:
        x |= {name: torch.stack([x[name], x[name].flip(-1)], dim=1) for name in "BC"}
    return x


def calls(backend: str, x: dict[str, Tensor], both: bool) -> dict[str, Callable[[], object]]:
    """Return the forward pass, and the forward pass with all gradients."""
    options = {"bidirectional": both}
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in x.items()}
    d_out = torch.randn_like(x["u"])

    def forward() -> Tensor:
        with torch.inference_mode():
            return ours(backend)(**x, **options)

    def forward_and_backward() -> tuple[Tensor, ...]:
        out = ours(backend)(**leaves, **options)
        return torch.autograd.grad(out, list(leaves.values()), d_out)

    return {"forward": forward, "forward+backward": forward_and_backward}


def microseconds(call: Callable[[], object]) -> float:
    """Return the median of replays."""
    from triton.testing import do_bench_cudagraph

    call()
    with torch.cuda.stream(torch.cuda.Stream()):
        return 1000 * do_bench_cudagraph(call, rep=10, return_mode="median")


def computed(call: Callable[[], object], times: int = 2) -> tuple[float, int]:
    """Return milliseconds that the card computes for one call, and its kernels."""
    call()
    call()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(times):
            call()
        torch.cuda.synchronize()
    kernels = [e for e in profiled.events() or () if e.device_type == DeviceType.CUDA]
    return sum(e.device_time for e in kernels) / 1000 / times, len(kernels) // times


def print_models() -> None:
    """Print what encoders and training steps let the card compute."""
    settings = Settings(device="cuda")
    settings.apply()
    print("| model | " + " | ".join(SUBJECTS) + " |")
    print("|---|" + "--:|" * len(SUBJECTS))
    for kind in settings.precisions:
        for batch, seconds in SPEECH:
            speech = encoders.features(seconds, batch, "cuda")
            cells = []
            for name, options in SUBJECTS.values():
                model = models.encoder(name, settings, **options).build().cuda()
                cells.append(_cell(encoders.forward(model, speech, kind, "cuda")))
            print(f"| inference, {kind}, {batch} x {seconds} s | " + " | ".join(cells) + " |")
        for batch, seconds in TRAINING:
            cells = [
                _cell(training.training_step(name, settings, batch, seconds, kind, options))
                for name, options in SUBJECTS.values()
            ]
            print(f"| training step, {kind}, {batch} x {seconds} s | " + " | ".join(cells) + " |")


def _cell(call: Callable[[], object]) -> str:
    milliseconds, kernels = computed(call)
    return f"{milliseconds:.3g} ({kernels})"


def backends_here() -> list[str]:
    """Return the backends that serve a scan with lengths on the card."""
    call = Call("selective_scan", "cuda", d_state=16, lengths=True)
    return [
        name
        for name, backend in BACKENDS.items()
        if name != "reference" and not backend.rejects(call)
    ]


def print_memory() -> None:
    """Print the peak of each backend, forward and backward, over what must exist."""
    backends = backends_here()
    print("| scan, forward and backward | must exist, MB | " + " | ".join(backends) + " |")
    print("|---|--:|" + "--:|" * len(backends))
    for both in (False, True):
        for batch, length in SHAPES:
            x = inputs(batch, length, "float32", both, "cuda")
            # Each input has a gradient, and so has the output, which is as large as u.
            must = 2 * sum(t.nbytes for t in x.values()) + 2 * x["u"].nbytes
            cells = [f"{peak(backend, x, both) / must:.2f}x" for backend in backends]
            row = f"{DIRECTIONS[both]}, {batch} x {length}"
            print(f"| {row} | {must / 1e6:.0f} | " + " | ".join(cells) + " |")


def peak(backend: str, x: dict[str, Tensor], both: bool) -> int:
    """Return the most bytes that a scan with gradients takes, what it is given included."""
    call = calls(backend, x, both)["forward+backward"]
    given = sum(t.nbytes for t in x.values()) + x["u"].nbytes
    call()
    return given + peak_memory(call, "cuda").above


def print_scans() -> None:
    """Print what scans take, of each backend."""
    backends = backends_here()
    print("| scan | " + " | ".join(backends) + " | floor |")
    print("|---|" + "--:|" * (len(backends) + 1))
    for dtype, element in DTYPES.items():
        for both in (False, True):
            for batch, length in SHAPES:
                x = inputs(batch, length, dtype, both, "cuda")
                timed = [calls(backend, x, both) for backend in backends]
                forward, backward = (
                    (2 if both else 1) * max(work.microseconds(CARDS[0]))
                    for work in scan(batch, length, element)
                )
                floors = {"forward": forward, "forward+backward": forward + backward}
                for what, floor in floors.items():
                    times = [f"{microseconds(backend[what]):.0f}" for backend in timed]
                    row = f"{dtype}, {DIRECTIONS[both]}, {batch} x {length}, {what}"
                    print(f"| {row} | " + " | ".join([*times, f"{floor:.0f}"]) + " |")


def main(argv: Sequence[str] | None = None) -> int:
    """Print one of the tables."""
    tables = {"scan": print_scans, "memory": print_memory, "models": print_models}
    parser = argparse.ArgumentParser(description="What kernels take of a card.")
    parser.add_argument("what", choices=tables)
    what = parser.parse_args(argv).what
    if not torch.cuda.is_available():
        print("torch sees no CUDA device", file=sys.stderr)
        return 2
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    tables[what]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
