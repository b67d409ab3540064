"""Twenty minutes of speech through blocks of the paper's size on a CPU: memory grows linearly."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from espnet_bimamba.encoders.conbimamba import ConBiMambaEncoder
from espnet_bimamba.ops.backends import ENVIRONMENT_VARIABLE


def peak_bytes(call):
    """Return the most that PyTorch's allocator held for ``call`` at any time.

    Not the process's resident memory, which the system shrinks as it likes.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@pytest.mark.slow
@torch.inference_mode()
def test_memory_grows_linearly_with_the_length(several_threads, monkeypatch):
    # The reference would take hours.
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "cpu")
    torch.manual_seed(0)
    encoder = ConBiMambaEncoder(
        80, output_size=256, linear_units=1024, num_blocks=3, macaron_style=True
    ).eval()

    def encode(frames):
        out, _, _ = encoder(torch.randn(1, frames, 80), torch.tensor([frames]))
        assert out.isfinite().all()

    encode(200)
    ten, twenty = (peak_bytes(lambda f=f: encode(f)) for f in (60_000, 120_000))
    print(f"10 minutes of speech: {ten / 1e6:.0f} MB at the most, beside the model")
    # Anything of size length by length, even one bit mask, would add a seventh.
    assert twenty <= 2.001 * ten
    assert ten < 500e6
