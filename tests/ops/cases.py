"""Inputs for the operators: hostile shapes, every option, readable ids."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor


@dataclass(frozen=True)
class ScanCase:
    """One call of the scan; tensors are drawn in float64 from a fixed seed."""

    batch: int = 2
    dim: int = 17
    length: int = 63
    state: int = 16
    options: tuple[str, ...] = ()
    lengths: tuple[int, ...] | None = None
    reverse: bool = False
    bidirectional: bool = False
    B: str = "time"
    C: str = "time"
    groups: int = 1
    layout: str = "time last"

    @property
    def id(self) -> str:
        words = [f"B{self.batch}-D{self.dim}-T{self.length}-N{self.state}", *self.options]
        words += [f"B_{self.B}"] * (self.B != "time") + [f"C_{self.C}"] * (self.C != "time")
        words += ["lengths"] * (self.lengths is not None) + ["reverse"] * self.reverse
        words += ["bidirectional"] * self.bidirectional
        words += [f"groups{self.groups}"] * (self.groups > 1)
        words += [self.layout.replace(" ", "_")] * (self.layout != "time last")
        return "-".join(words)

    def tensors(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1234)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def sequence() -> Tensor:
            return normal(self.batch, self.dim, self.length)

        def matrix(kind: str) -> Tensor:
            if kind == "constant":
                return normal(self.dim, self.state)
            if kind == "grouped" or self.groups > 1:
                return normal(self.batch, self.groups, self.state, self.length)
            return normal(self.batch, self.state, self.length)

        tensors = {
            "u": sequence(),
            "delta": sequence() if "softplus" in self.options else sequence().abs() * 0.3,
            "A": -3 * torch.rand(self.dim, self.state, generator=generator, dtype=torch.float64),
            "B": matrix(self.B),
            "C": matrix(self.C),
        }
        extra = {
            "D": lambda: normal(self.dim),
            "z": sequence,
            "delta_bias": lambda: (
                normal(self.dim) * 0.3
                if "softplus" in self.options
                else normal(self.dim).abs() * 0.1
            ),
            "initial_state": lambda: normal(self.batch, self.dim, self.state),
        }
        return tensors | {name: make() for name, make in extra.items() if name in self.options}

    def keywords(self) -> dict[str, object]:
        lengths = None if self.lengths is None else torch.tensor(self.lengths)
        return {
            "delta_softplus": "softplus" in self.options,
            "reverse": self.reverse,
            "bidirectional": self.bidirectional,
            "lengths": lengths,
        }


ALL = ("D", "z", "delta_bias", "softplus", "initial_state")

SCAN_CASES = [
    ScanCase(),
    ScanCase(options=ALL),
    ScanCase(options=ALL, reverse=True),
    ScanCase(options=ALL, lengths=(63, 40)),
    ScanCase(options=ALL, lengths=(0, 63), reverse=True),
    *(ScanCase(options=(name,)) for name in ALL),
    *(ScanCase(length=length, options=ALL) for length in (1, 2, 3, 64, 65, 129, 151)),
    ScanCase(length=151, options=ALL, lengths=(129, 65), reverse=True),
    *(ScanCase(dim=dim, length=9, options=ALL) for dim in (1, 3, 16, 33, 130)),
    *(ScanCase(state=state, length=9, options=ALL) for state in (1, 2, 5, 32, 256)),
    ScanCase(dim=12, groups=3, options=ALL, reverse=True),
    ScanCase(dim=12, B="grouped", options=("z",)),
    ScanCase(dim=260, length=5, groups=2, options=ALL),
    ScanCase(B="constant", options=ALL),
    ScanCase(C="constant", options=ALL, lengths=(10, 63)),
    ScanCase(dim=12, B="constant", groups=2, reverse=True),
    ScanCase(B="constant", C="constant", options=ALL, reverse=True, lengths=(63, 1)),
    ScanCase(options=ALL, layout="channels last"),
    ScanCase(options=ALL, layout="sliced", reverse=True, lengths=(63, 7)),
    ScanCase(options=ALL, layout="one row"),
    ScanCase(options=ALL, layout="held", lengths=(63, 7)),
    ScanCase(dim=12, groups=3, options=ALL, layout="sliced"),
    ScanCase(dim=12, groups=3, options=ALL, layout="held", reverse=True),
    ScanCase(dim=18, options=ALL, bidirectional=True),
    ScanCase(dim=18, length=151, options=ALL, bidirectional=True, lengths=(129, 65)),
    ScanCase(dim=18, options=ALL, bidirectional=True, reverse=True, lengths=(0, 63)),
    *(ScanCase(dim=dim, length=9, options=ALL, bidirectional=True) for dim in (2, 130)),
    ScanCase(dim=260, length=5, groups=2, options=ALL, bidirectional=True),
    # The middle one of three groups has channels of both directions.
    ScanCase(dim=12, groups=3, options=ALL, bidirectional=True, lengths=(63, 40)),
    ScanCase(dim=12, groups=4, B="constant", options=ALL, bidirectional=True),
    ScanCase(dim=12, C="constant", options=("z",), bidirectional=True, reverse=True),
    ScanCase(dim=12, groups=2, options=ALL, bidirectional=True, layout="sliced", lengths=(63, 7)),
]


@dataclass(frozen=True)
class ConvCase:
    """One call of the convolution; tensors are drawn in float64 from a fixed seed."""

    batch: int = 2
    dim: int = 17
    length: int = 63
    width: int = 4
    options: tuple[str, ...] = ()
    lengths: tuple[int, ...] | None = None
    reverse: bool = False
    bidirectional: bool = False
    activation: str | None = None
    layout: str = "time last"

    @property
    def id(self) -> str:
        words = [f"B{self.batch}-D{self.dim}-T{self.length}-W{self.width}", *self.options]
        words += ["lengths"] * (self.lengths is not None) + ["reverse"] * self.reverse
        words += ["bidirectional"] * self.bidirectional
        words += [str(self.activation)] * (self.activation is not None)
        words += [self.layout.replace(" ", "_")] * (self.layout != "time last")
        return "-".join(words)

    def tensors(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(1234)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        x = normal(self.batch, self.dim, self.length)
        tensors = {"x": x, "weight": normal(self.dim, self.width)}
        extra = {
            "bias": lambda: normal(self.dim),
            "initial_states": lambda: normal(self.batch, self.dim, self.width - 1),
        }
        return tensors | {name: make() for name, make in extra.items() if name in self.options}

    def keywords(self) -> dict[str, object]:
        lengths = None if self.lengths is None else torch.tensor(self.lengths)
        return {
            "activation": self.activation,
            "reverse": self.reverse,
            "bidirectional": self.bidirectional,
            "lengths": lengths,
        }


BOTH = ("bias", "initial_states")

CONV_CASES = [
    ConvCase(),
    ConvCase(options=("bias",), activation="silu"),
    ConvCase(options=("initial_states",)),
    ConvCase(options=BOTH, activation="swish"),
    ConvCase(options=BOTH, activation="silu", reverse=True),
    ConvCase(options=BOTH, activation="silu", lengths=(63, 40)),
    ConvCase(options=BOTH, activation="silu", lengths=(1, 2), reverse=True),
    ConvCase(options=BOTH, lengths=(0, 63), reverse=True),
    *(ConvCase(length=length, options=BOTH, activation="silu") for length in (1, 2, 3, 4, 129)),
    *(ConvCase(dim=dim, length=9, options=BOTH, activation="silu") for dim in (1, 64, 65, 130)),
    *(ConvCase(width=width, length=9, options=BOTH, activation="silu") for width in (1, 2, 3, 11)),
    ConvCase(options=BOTH, activation="silu", layout="channels last"),
    ConvCase(options=BOTH, activation="silu", layout="sliced", reverse=True, lengths=(63, 7)),
    ConvCase(options=BOTH, activation="silu", layout="one row"),
    ConvCase(options=BOTH, activation="silu", layout="held"),
    ConvCase(dim=18, options=BOTH, activation="silu", bidirectional=True),
    ConvCase(dim=18, options=BOTH, bidirectional=True, lengths=(63, 40)),
    ConvCase(dim=18, options=("bias",), bidirectional=True, reverse=True, lengths=(0, 2)),
    *(
        ConvCase(dim=dim, length=9, options=BOTH, activation="silu", bidirectional=True)
        for dim in (2, 130, 256)
    ),
    ConvCase(dim=18, width=1, length=9, options=BOTH, bidirectional=True),
    ConvCase(
        dim=18,
        options=BOTH,
        activation="silu",
        bidirectional=True,
        layout="sliced",
        lengths=(63, 7),
    ),
]


def laid_out(tensors: dict[str, Tensor], layout: str) -> dict[str, Tensor]:
    """Give every sequence among ``tensors`` other strides, by operations that autograd knows.

    Done to what an operator is called with, at last: a change of dtype makes strides plain.
    """
    sequences = ("u", "delta", "z", "B", "C", "x")
    return {
        name: _laid_out(x, layout) if name in sequences and x.dim() > 2 else x
        for name, x in tensors.items()
    }


def _laid_out(x: Tensor, layout: str) -> Tensor:
    """Return ``x`` (..., dim, length) with the strides that ``layout`` names."""
    if layout == "channels last":
        return x.transpose(-2, -1).contiguous().transpose(-2, -1)
    if layout == "sliced":
        rows, *groups, dim, length = x.shape
        wide = x.new_full((rows + 1, *groups, length, 3 * dim), 7.0)
        wide[1:, ..., dim : 2 * dim] = x.transpose(-2, -1)
        return wide[1:, ..., dim : 2 * dim].transpose(-2, -1)
    if layout == "one row":
        return x[:1].expand_as(x)
    if layout == "held":
        return x[..., :1].expand_as(x)
    return x


DIRECTIONS = {
    "forward": {},
    "reverse": {"reverse": True},
    "bidirectional": {"bidirectional": True, "dim": 18},
}
every_direction = pytest.mark.parametrize("direction", DIRECTIONS.values(), ids=DIRECTIONS)


def parametrize(cases: list) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])
