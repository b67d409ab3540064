"""What each Triton kernel takes of a card's multiprocessor, found without a card.

    python benchmarks/triton_registers.py

compiles the kernels for compute capability 9.0 (H100, H200) as a call would, down to machine
code, and reads registers, stack and shared memory off it. The kernels have no arrays of their
own, so a stack is what did not fit into 255 registers and went to memory. Needs a torch with its
Triton; no CUDA device, no nvcc.
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

CUOBJDUMP = "backends/nvidia/bin/cuobjdump"
HOPPER = 90
REGISTERS = 64 * 1024  # of a multiprocessor
MOST_WARPS = 64
DTYPES = (torch.float32, torch.bfloat16)
STATES = (16, 64, 256)


class Kernel(NamedTuple):
    """What one compiled kernel takes; a thread's registers and stack, a program's bytes."""

    call: str
    name: str
    registers: int
    stack: int
    shared: int
    warps: int

    @property
    def resident_warps(self) -> int:
        """Warps that a multiprocessor's registers hold at a time."""
        of_a_warp = -(-self.registers * 32 // 256) * 256
        return min(REGISTERS // of_a_warp, MOST_WARPS) // self.warps * self.warps


class Compiler:
    """Stands where Triton expects the driver of a card: compiles for it and runs nothing."""

    def __init__(self) -> None:
        self.kernels: list[Kernel] = []
        self.call = ""
        self.utils = self
        self._warps = 0

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", HOPPER, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 * 1024}

    def launcher_cls(self, source: Any, metadata: Any) -> Callable[..., None]:
        self._warps = metadata.num_warps
        return lambda *args, **options: None

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple:
        import triton

        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(binary)
            file.flush()
            tool = str(Path(triton.__file__).parent / CUOBJDUMP)
            command = [tool, "--dump-resource-usage", file.name]
            usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        registers, stack = (
            int(re.findall(rf"{what}:(\d+)", usage)[-1]) for what in ("REG", "STACK")
        )
        self.kernels.append(Kernel(self.call, name, registers, stack, shared, self._warps))
        return None, None, registers, 0, 1024

    def unload_module(self, module: None) -> None:
        pass


def compiled(states: tuple[int, ...] = STATES) -> Iterator[Kernel]:
    """Compile every kernel for the typical calls and tell what each takes."""
    from triton.runtime import driver

    from espnet_bimamba.ops.causal_conv1d.triton import causal_conv1d
    from espnet_bimamba.ops.selective_scan import triton as scan

    compiler = Compiler()
    driver.set_active(compiler)
    for dtype in DTYPES:
        for state in states:
            compiler.call = f"scan, state {state}, {str(dtype).removeprefix('torch.')}"
            # So many that one recording is cut into segments: the kernels of both passes.
            setattr(scan, "multiprocessors", lambda device: 10_000)  # noqa: B010 - not exported
            _scan(scan.selective_scan, dtype, state)
        compiler.call = f"convolution, width 4, {str(dtype).removeprefix('torch.')}"
        x = torch.empty(1, 512, 512, dtype=dtype).transpose(1, 2).requires_grad_()
        weight = torch.empty(512, 4, dtype=dtype)
        y = causal_conv1d(x, weight, weight[:, 0], activation="silu")
        assert isinstance(y, torch.Tensor)
        y.sum().backward()
    yield from compiler.kernels


def _scan(selective_scan: Callable, dtype: torch.dtype, state: int) -> None:
    """Call the scan, forward and backward, as a layer under autocast does."""
    u, z = (torch.empty(1, 512, 512, dtype=dtype).transpose(1, 2) for _ in range(2))
    B, C = torch.empty(1, 512, 2 * state, dtype=dtype).transpose(1, 2).split(state, 1)
    delta = torch.empty(1, 512, 512).transpose(1, 2)
    A, D = torch.empty(512, state), torch.empty(512)
    y = selective_scan(u.requires_grad_(), delta, A, B, C, D, z, delta_softplus=True)
    y.sum().backward()


def main() -> None:
    """Print one row a kernel."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--state", type=int, nargs="+", default=STATES, help="states a channel")
    parser.add_argument("--json", action="store_true", help="one JSON list instead of a table")
    args = parser.parse_args()
    # Code that an earlier run compiled would not be handed over again.
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        kernels = list(compiled(tuple(args.state)))
    if args.json:
        print(json.dumps([kernel._asdict() for kernel in kernels]))
        return
    print(f"{'call':<30} {'kernel':<26} registers  stack  shared  warps  resident warps of 64")
    for kernel in kernels:
        print(
            f"{kernel.call:<30} {kernel.name:<26} {kernel.registers:>9} {kernel.stack:>6} "
            f"{kernel.shared:>7} {kernel.warps:>6} {kernel.resident_warps:>6}"
        )


if __name__ == "__main__":
    main()
