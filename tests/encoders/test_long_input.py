"""Ten minutes of speech through the paper's encoder on a CPU: memory grows with the length."""

import json
import subprocess
import sys

import pytest

# One process a length: what a process has used at its peak cannot be reset.
PROGRAM = """
import json, resource, sys, time
import torch
from espnet_bimamba.encoders.conbimamba import ConBiMambaEncoder

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.manual_seed(0)
encoder = ConBiMambaEncoder(
    80, output_size=256, linear_units=1024, num_blocks=12, macaron_style=True
).eval()
with torch.inference_mode():
    encoder(torch.randn(1, 200, 80), torch.tensor([200]))
    before = peak()
    frames = int(sys.argv[1])
    x = torch.randn(1, frames, 80)
    start = time.perf_counter()
    out, _, _ = encoder(x, torch.tensor([frames]))
    seconds = time.perf_counter() - start
assert out.isfinite().all()
print(json.dumps({"seconds": seconds, "bytes": peak() - before, "total": peak()}))
"""


@pytest.mark.recipe
def test_memory_grows_linearly_with_the_length():
    measured = {}
    for minutes in (2.5, 5, 10):
        frames = str(int(minutes * 6000))
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, frames], check=True, capture_output=True, text=True
        )
        measured[minutes] = json.loads(run.stdout.splitlines()[-1])
        print(f"{minutes} min: {measured[minutes]}")
    # Every further minute takes as much as those before. Differences, since a process at its peak
    # already holds some memory that the encoder uses first. Anything of size length by length,
    # even one bit mask, would make the second step take four times as much as the first.
    first, second = (
        measured[longer]["bytes"] - measured[shorter]["bytes"]
        for shorter, longer in ((2.5, 5), (5, 10))
    )
    assert 1.8 < second / first < 2.2
    assert measured[10]["total"] < 4e9
