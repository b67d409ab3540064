"""What the scan's kernels take of a card, without the time that Python takes to launch them.

    python -m benchmarks.cuda_kernels

prints one row a shape: microseconds of each backend for a scan with lengths, as an encoder calls
it, in one direction and in both, forward and with its gradients. A CUDA graph of each call is
replayed. The last column is the floor (benchmarks/roofline.py) of an H100 SXM.
"""

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.ops import Shape, ours, scan_inputs
from benchmarks.roofline import CARDS, DIM, DTYPES, scan
from espnet_bimamba.ops.backends import BACKENDS, Call
from espnet_bimamba.ops.lengths import Lengths

SHAPES = ((1, 250), (1, 1000), (8, 500), (16, 1000), (32, 375), (32, 1000))


def inputs(batch: int, length: int, dtype: str, both: bool, device: str) -> dict[str, Tensor]:
    """Draw a scan's arguments; for both directions twice as many channels, in two groups."""
    x = scan_inputs(Shape(batch, length, (2 if both else 1) * DIM), device, dtype)
    if both:
        x |= {name: torch.stack([x[name], x[name].flip(-1)], dim=1) for name in "BC"}
    return x


def calls(backend: str, x: dict[str, Tensor], both: bool) -> dict[str, Callable[[], object]]:
    """Return the forward pass, and the forward pass with all gradients."""
    batch, _, length = x["u"].shape
    # Known to fit, as an encoder's are: a check is six launches more.
    lengths = Lengths(torch.full((batch,), length, device=x["u"].device), length)
    options = {"lengths": lengths, "bidirectional": both}
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


def main() -> int:
    """Print the table."""
    if not torch.cuda.is_available():
        print("torch sees no CUDA device", file=sys.stderr)
        return 2
    call = Call("selective_scan", "cuda", d_state=16, lengths=True)
    backends = [
        name
        for name, backend in BACKENDS.items()
        if name != "reference" and not backend.rejects(call)
    ]
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
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
                    directions = "both directions" if both else "one direction"
                    row = f"{dtype}, {directions}, {batch} x {length}, {what}"
                    print(f"| {row} | " + " | ".join([*times, f"{floor:.0f}"]) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
