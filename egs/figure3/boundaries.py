"""Labelled points in the plane: one boundary that a line finds, and two that bend many times."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

#: All points lie about in the square from -HALF_WIDTH to HALF_WIDTH.
HALF_WIDTH = 2.0

#: The blobs stand at (1, 1) and (-1, -1); the best rule, x + y > 0, is right on 97.8 % of them.
BLOB_DEVIATION = 0.7

#: Each arm turns twice; the arms' middles are half a unit apart.
SPIRAL_END = 4 * math.pi
SPIRAL_START = math.pi / 2
SPIRAL_NOISE = 0.06


@dataclass(frozen=True)
class Points:
    """Points of a plane with their labels.

    Attributes:
        xy: ``(points, 2)``, float32.
        labels: ``(points,)``, float32, 0 or 1.
    """

    xy: Tensor
    labels: Tensor


def blobs(count: int, generator: Generator) -> Points:
    """Two Gaussian clouds of equal size; the best boundary is a line."""
    labels = _halves(count)
    centres = (2 * labels - 1)[:, None].expand(-1, 2)
    noise = torch.randn(count, 2, generator=generator)
    return Points(centres + BLOB_DEVIATION * noise, labels)


def spirals(count: int, generator: Generator) -> Points:
    """Two Archimedean spirals around each other, equally dense along their arms, with noise."""
    labels = _halves(count)
    share = torch.rand(count, generator=generator)
    angle = torch.sqrt(SPIRAL_START**2 + share * (SPIRAL_END**2 - SPIRAL_START**2))
    radius = HALF_WIDTH * angle / SPIRAL_END
    turned = angle + math.pi * labels
    arms = torch.stack([radius * turned.cos(), radius * turned.sin()], dim=-1)
    return Points(arms + SPIRAL_NOISE * torch.randn(count, 2, generator=generator), labels)


def checkerboard(count: int, generator: Generator) -> Points:
    """Uniform points on a board of four by four fields, labelled by the field's colour."""
    xy = HALF_WIDTH * (2 * torch.rand(count, 2, generator=generator) - 1)
    return Points(xy, xy.floor().sum(dim=-1).remainder(2))


BOUNDARIES: dict[str, Callable[[int, Generator], Points]] = {
    "blobs": blobs,
    "spirals": spirals,
    "checkerboard": checkerboard,
}


def _halves(count: int) -> Tensor:
    return torch.arange(count).remainder(2).float()
