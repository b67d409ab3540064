"""The Triton kernels compile for an H100 without one, and keep what they hold in registers."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

COMMAND = Path(__file__).parents[2] / "benchmarks" / "triton_registers.py"
SCAN = {
    "_forward_kernel",
    "_backward_kernel",
    "_segment_state_kernel",
    "_segment_gradient_kernel",
    "_chain_kernel",
}


@pytest.mark.slow
def test_at_sixteen_states_nothing_spills():
    triton = find_spec("triton")
    tools = Path(triton.origin).parent / "backends/nvidia/bin" if triton else Path("triton")
    for tool in ("ptxas", "cuobjdump"):
        if not (tools / tool).exists():
            pytest.skip(f"no {tools / tool}: this torch brings no Triton for CUDA")
    command = [sys.executable, COMMAND, "--json", "--state", "16"]
    # Under the interpreter nothing is compiled.
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    kernels = json.loads(run.stdout)
    for dtype in ("float32", "bfloat16"):
        scan = {k["name"] for k in kernels if k["call"] == f"scan, state 16, {dtype}"}
        # What does not depend on the dtype is compiled once.
        assert scan | {"_chain_kernel"} == SCAN, dtype
        conv = {k["name"] for k in kernels if k["call"] == f"convolution, width 4, {dtype}"}
        assert conv == {"_forward_kernel", "_backward_kernel"}, dtype
    assert {f"{k['call']}: {k['name']}": k["stack"] for k in kernels if k["stack"]} == {}
