"""The initialisation of the state matrix A: the choices of the paper's appendix E.1."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Noise closer to zero than this would make a state that never forgets and log(A) huge.
_SMALLEST_NOISE = 1e-3


def _s4d_real(d_inner: int, d_state: int) -> Tensor:
    return torch.arange(1, d_state + 1, dtype=torch.float32).log().repeat(d_inner, 1)


def _random(d_inner: int, d_state: int) -> Tensor:
    return torch.randn(d_inner, d_state)


def _s4d_real_noise(d_inner: int, d_state: int) -> Tensor:
    noise = torch.randn(d_inner, d_state).abs().clamp_min(_SMALLEST_NOISE)
    return _s4d_real(d_inner, d_state) + noise.log()


A_INITS: dict[str, Callable[[int, int], Tensor]] = {
    "s4d_real": _s4d_real,
    "random": _random,
    "s4d_real_noise": _s4d_real_noise,
}


def initial_A_log(A_init: str, d_inner: int, d_state: int) -> Tensor:
    """Draw ``A_log``; the scan uses ``A = -exp(A_log)``, negative and finite in every case.

    - ``s4d_real``: ``A[d, n] = -(n + 1)``, Mamba's default ("default A matrix" in Table 19).
    - ``random``: ``A[d, n] = -exp(g)``, g standard normal; "Random Noise A matrix" in Table 19,
      with the law of the Mamba paper's random initialisation.
    - ``s4d_real_noise``: ``A[d, n] = -(n + 1) * max(|g|, 0.001)``, g standard normal. The paper's
      best ("with Gaussian Noise" in Table 19). It says "multiplying each element with noise
      generated from a Gaussian distribution" and no more; neither the law's parameters nor code
      for it were published. The absolute value keeps A negative, the floor keeps log(A) finite.

    Args:
        A_init: One of the above.
        d_inner: Channels.
        d_state: States a channel.

    Returns:
        ``(d_inner, d_state)``, float32, drawn with torch's global generator.
    """
    return A_INITS[A_init](d_inner, d_state)


def initial_dt_bias(d_inner: int, dt_min: float, dt_max: float, dt_init_floor: float) -> Tensor:
    """Draw a bias whose softplus is log-uniform between ``dt_min`` and ``dt_max``, as in Mamba.

    Returns:
        ``(d_inner,)``, float32; its softplus is at least ``dt_init_floor``.
    """
    low, high = math.log(dt_min), math.log(dt_max)
    dt = torch.exp(torch.rand(d_inner) * (high - low) + low).clamp(min=dt_init_floor)
    return dt + torch.log(-torch.expm1(-dt))
