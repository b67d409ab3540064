"""The one table of tolerances and the one comparison; nothing outside can loosen either."""

import torch
from torch import Tensor

# Largest error over the largest reference value, against float64 on the same rounded inputs.
# Half precision is lost where a result is stored in it: 2^-11 and 2^-8 a rounding, of which
# outputs and input gradients see one; states and weight gradients stay in float32.
TOLERANCES: dict[tuple[torch.dtype, str], float] = {
    (torch.float64, "output"): 1e-13,
    (torch.float64, "state"): 1e-13,
    (torch.float64, "gradient"): 1e-12,
    (torch.float64, "weight_gradient"): 1e-12,
    (torch.float32, "output"): 2e-6,
    (torch.float32, "state"): 2e-6,
    (torch.float32, "gradient"): 5e-6,
    (torch.float32, "weight_gradient"): 1e-5,
    # A card's exponential errs by 2^-22, and each error lasts as long as the state remembers:
    # thousands of steps, in one pass, by Triton's kernel. An H100 gave 3.4e-6, 6.8e-6, 1.4e-5.
    (torch.float32, "long output"): 1e-5,
    (torch.float32, "long state"): 1e-5,
    (torch.float32, "long weight_gradient"): 2e-5,
    (torch.float16, "output"): 6e-4,
    (torch.float16, "state"): 2e-6,
    (torch.float16, "gradient"): 6e-4,
    (torch.float16, "weight_gradient"): 6e-4,
    (torch.bfloat16, "output"): 5e-3,
    (torch.bfloat16, "state"): 2e-6,
    (torch.bfloat16, "gradient"): 5e-3,
    (torch.bfloat16, "weight_gradient"): 5e-3,
}


def assert_close(
    name: str, actual: Tensor, expected: Tensor, dtype: torch.dtype, quantity: str
) -> None:
    """Compare ``actual`` with the float64 result, in the precision that was asked of it."""
    assert actual.shape == expected.shape, f"{name}: {tuple(actual.shape)} {tuple(expected.shape)}"
    assert not expected.isnan().any(), f"{name}: the reference holds NaN"
    assert not actual.isnan().any(), f"{name}: NaN in {int(actual.isnan().sum())} places"
    if expected.numel() == 0:
        return
    scale = expected.abs().max().item()
    error = (actual.double() - expected.double()).abs().max().item()
    if scale == 0:
        assert error == 0, f"{name}: must be exactly zero, differs by {error:.2e}"
        return
    limit = TOLERANCES[dtype, quantity]
    print(f"{name}: relative error {error / scale:.2e} of {limit:.0e}")
    assert error / scale <= limit, f"{name}: relative error {error / scale:.2e}, limit {limit:.0e}"
