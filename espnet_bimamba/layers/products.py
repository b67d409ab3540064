"""Products with the weights of several projections at once, as ``bimamba.py`` shares them."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad


def product_with_each(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return the products of ``x`` with every weight, side by side.

    Args:
        x: ``(..., in)``.
        weights: ``(out, in)`` each.

    Returns:
        ``(..., sum of out)``.
    """
    if not _in_pieces(x):
        return F.linear(x, torch.cat(list(weights)))
    rows = x.flatten(0, -2)
    sizes = [len(weight) for weight in weights]
    result = x.new_empty(len(rows), sum(sizes))
    for part, weight in zip(result.split(sizes, dim=-1), weights, strict=True):
        torch.mm(rows, weight.t(), out=part)
    return result.unflatten(0, x.shape[:-1])


def sum_of_products(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Return the sum of the products of each part of ``x`` with its weight.

    Args:
        x: ``(..., sum of in)``.
        weights: ``(out, in)`` each.

    Returns:
        ``(..., out)``.
    """
    if not _in_pieces(x):
        return F.linear(x, torch.cat(list(weights), dim=1))
    parts = x.flatten(0, -2).split([weight.shape[1] for weight in weights], dim=-1)
    result = torch.mm(parts[0], weights[0].t())
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        result.addmm_(part, weight.t())
    return result.unflatten(0, x.shape[:-1])


def products_of_pairs(xs: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """Return the product of each ``x`` with the weight at its place.

    Args:
        xs: ``(batch, length, in)`` each.
        weights: ``(out, in)`` each.

    Returns:
        ``(batch, pairs, length, out)``.
    """
    if not _in_pieces(xs[0]):
        pairs = zip(xs, weights, strict=True)
        return torch.stack([F.linear(x, weight) for x, weight in pairs], dim=1)
    batch, length, _ = xs[0].shape
    result = xs[0].new_empty(len(xs), batch * length, len(weights[0]))
    for part, x, weight in zip(result, xs, weights, strict=True):
        torch.mm(x.flatten(0, 1), weight.t(), out=part)
    return result.unflatten(1, (batch, length)).transpose(0, 1)


def _in_pieces(x: Tensor) -> bool:
    """Whether one product for each weight, written where it belongs, is better than one for all.

    It is on the CPU: weights side by side are a copy of them in every call, and above all memory
    taken from the system afresh. It cannot be where nothing may be written, or autocast shall
    choose the precision.
    """
    return x.device.type == "cpu" and may_write() and not torch.is_autocast_enabled("cpu")


def may_write() -> bool:
    """Whether a product may be written where it belongs.

    Not where autograd records, of either mode, or a tracer or a transform of torch.func looks on.
    """
    return (
        not torch.is_grad_enabled()
        and forward_ad._current_level < 0
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )
