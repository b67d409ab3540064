"""The mixers under test: how each is built, and the plain function that says what it computes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from espnet_bimamba.layers import ExtBiMamba, InnBiMamba, build_mixer
from espnet_bimamba.layers.mamba import Mamba
from tests.layers import plain
from tests.tolerances import assert_close


@dataclass(frozen=True)
class Case:
    """A mixer. To add one: one row in :data:`MIXERS`."""

    make: Callable[..., nn.Module]
    plain: Callable[..., Tensor]
    options: dict[str, Any]

    def build(self, d_model: int = 6, dtype: torch.dtype = torch.float64, **more: Any) -> nn.Module:
        """Build the mixer from a fixed seed, with no parameter at a round value.

        Step sizes are some twenty times larger than at the start of a training, so that what a
        state remembers makes up a good part of the output.
        """
        torch.manual_seed(3)
        mixer = self.make(d_model=d_model, **self.options, **more)
        with torch.no_grad():
            for name, parameter in mixer.named_parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
                if name.endswith("dt_proj.bias"):
                    parameter.add_(3)
        return mixer.to(dtype)

    def expected(self, mixer: nn.Module, x: Tensor, lengths: Tensor, **rounding: Any) -> Tensor:
        """Run the plain function on each sequence alone; zeros past its end."""
        weights = dict(mixer.named_parameters())
        out = torch.zeros_like(x)
        for row, n in enumerate(lengths.tolist()):
            if n > 0:
                out[row, :n] = self.plain(x[row, :n], weights, **rounding)
        return out


class SharingInnBiMamba(InnBiMamba):
    """Scans as it does on a card."""

    scan_apart = InnBiMamba.scan_together


class PlainExtBiMamba(ExtBiMamba):
    """Calls one Mamba after the other, as with projections that are no plain ``nn.Linear``."""

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.plain_forward(x, lengths)


MIXERS = {
    "mamba": Case(build_mixer, plain.mamba, {"mamba_type": "mamba"}),
    "mamba_reversed": Case(Mamba, plain.mamba_reversed, {"reverse": True}),
    "innbimamba": Case(build_mixer, plain.algorithm_1, {"mamba_type": "innbimamba"}),
    "extbimamba_add": Case(
        build_mixer, plain.algorithm_2, {"mamba_type": "extbimamba", "fusion": "add"}
    ),
    "innbimamba_sharing": Case(SharingInnBiMamba, plain.algorithm_1, {}),
    "extbimamba_plain": Case(PlainExtBiMamba, plain.algorithm_2_apart, {}),
    "extbimamba_concat": Case(
        build_mixer, plain.algorithm_2_concat, {"mamba_type": "extbimamba", "fusion": "concat"}
    ),
}
BIDIRECTIONAL = tuple(name for name in MIXERS if "bimamba" in name)

every_mixer = pytest.mark.parametrize("case", MIXERS.values(), ids=MIXERS)


def inputs(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def gradients(module: nn.Module, x: Tensor, *args: Any) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Return output, input gradient and parameter gradients of a weighted sum of the output."""
    x = x.detach().requires_grad_()
    out = module(x, *args)
    parameters = dict(module.named_parameters())
    weights = inputs(*out.shape, dtype=out.dtype, seed=9)
    dx, *d_parameters = torch.autograd.grad(
        (out * weights).sum(), [x, *parameters.values()], materialize_grads=True
    )
    return out.detach(), dx, dict(zip(parameters, d_parameters, strict=True))


def assert_same_gradients(
    actual: dict[str, Tensor], expected: dict[str, Tensor], dtype: torch.dtype
) -> None:
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_close(name, actual[name], expected[name], dtype, "weight_gradient")
