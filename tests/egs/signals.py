"""Signals that programs under egs/ take for speech."""

import numpy as np
import numpy.typing as npt

RATE = 16000


def voice(seconds: float = 3.0, seed: int = 0) -> npt.NDArray[np.float64]:
    """Return what PESQ takes for speech: syllables of a buzzing voice, and its breath."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 2 * np.pi * np.cumsum(120 + 20 * np.sin(2 * np.pi * 0.7 * time)) / RATE
    buzz = sum(np.sin(k * pitch + random.uniform(0, 6)) / k for k in range(1, 30))
    syllables = np.clip(np.sin(2 * np.pi * 2.5 * time), 0, None)
    return 0.1 * syllables * buzz + 0.001 * random.standard_normal(len(time))
