"""The operators as custom operators of torch: what ``torch.compile`` and ``torch.export`` see.

A traced graph holds one opaque node ``espnet_bimamba::<operator>`` a call. Which backend serves it
is decided when the node runs, so that a graph exported on one machine runs with what another has.
Its gradient is a second node, ``espnet_bimamba::<operator>_backward``, which runs the operator
again and differentiates that: all it needs of a backend is that autograd can.
"""

import itertools
import math
from collections.abc import Callable, Collection, Sequence
from types import NoneType
from typing import Any, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad

from espnet_bimamba.ops.lengths import Lengths

NAMESPACE = "espnet_bimamba"

_library = torch.library.Library(NAMESPACE, "FRAGMENT")

_TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    # Known lengths are the tensor in them once they have been seen to fit.
    Tensor | Lengths | None: "Tensor?",
    bool: "bool",
    str | None: "str?",
}

Result = Tensor | tuple[Tensor, Tensor]


def custom_operator[Arguments: tuple](
    name: str,
    kind: type[Arguments],
    run: Callable[[Arguments], Result],
    check: Callable[[Arguments], Arguments],
    fake: Callable[[Arguments], list[Tensor]],
    sequences: Collection[str],
) -> Callable[[Arguments], Result]:
    """Register ``run`` as ``espnet_bimamba::<name>`` and return a function that calls either.

    The custom operator returns a list, since a schema has one kind of result only. What it returns
    has one layout whatever the backend: of a sequence, neighbouring channels lie side by side, as
    projections write and the backends of ours read them; all else is contiguous.

    Args:
        name: Name of the operator.
        kind: Named tuple of the arguments: tensors, bools and strings by its annotations.
        run: Returns a tensor or a tuple of them, the first of which is a sequence.
        check: Called before the custom operator runs, which anybody may call with anything;
            returns the arguments for ``run``. What is returned here does not check.
        fake: Returns tensors of the shapes and dtypes of ``run``'s results, made by :func:`empty`.
        sequences: Names of the arguments that are sequences: (batch, channels, length).

    Returns:
        A function with ``run``'s argument and result: ``run`` itself, or the custom operator
        while torch traces, transforms, or has tensors without memory.
    """
    fields = get_type_hints(kind)
    arguments = ", ".join(f"{_TYPES[type_]} {field}" for field, type_ in fields.items())
    is_sequence = [field in sequences for field in fields]

    def forward(*args: Any) -> list[Tensor]:
        results = _listed(run(check(kind(*map(_detached, args)))))
        return _own(results, [True, False], args)

    def backward(gradients: list[Tensor], needed: list[bool], *args: Any) -> list[Tensor]:
        inputs = [
            _detached(arg).requires_grad_() if need else _detached(arg)
            for arg, need in zip(args, needed, strict=True)
        ]
        with torch.enable_grad():
            results = _listed(run(kind(*inputs)))
        # A backend may give its last state no gradient.
        pairs = [(y, dy) for y, dy in zip(results, gradients, strict=True) if y.requires_grad]
        found = torch.autograd.grad(
            [y for y, _ in pairs],
            list(itertools.compress(inputs, needed)),
            [dy for _, dy in pairs],
            allow_unused=True,
            materialize_grads=True,
        )
        return _own(found, list(itertools.compress(is_sequence, needed)), [*gradients, *args])

    def fake_backward(gradients: list[Tensor], needed: list[bool], *args: Any) -> list[Tensor]:
        return [
            empty(arg.shape, arg, sequence)
            for arg, need, sequence in zip(args, needed, is_sequence, strict=True)
            if need
        ]

    _define(name, f"({arguments}) -> Tensor[]", forward, lambda *args: fake(kind(*args)))
    _define(
        f"{name}_backward",
        f"(Tensor[] gradients, bool[] needed, {arguments}) -> Tensor[]",
        backward,
        fake_backward,
    )
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default
    gradient = getattr(getattr(torch.ops, NAMESPACE), f"{name}_backward").default

    def save(ctx: Any, inputs: tuple, output: list[Tensor]) -> None:
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))
        ctx.others = [None if isinstance(x, Tensor) else (x,) for x in inputs]

    def differentiate(ctx: Any, gradients: list[Tensor]) -> tuple[Tensor | None, ...]:
        saved = iter(ctx.saved_tensors)
        args = [next(saved) if other is None else other[0] for other in ctx.others]
        needed = list(ctx.needs_input_grad)
        found = iter(gradient(gradients, needed, *args))
        return tuple(next(found) if need else None for need in needed)

    torch.library.register_autograd(
        f"{NAMESPACE}::{name}", differentiate, setup_context=save, lib=_library
    )

    def call(args: Arguments) -> Result:
        if _is_watched(args):
            results = operator(*args)
            return results[0] if len(results) == 1 else tuple(results)
        if not torch.is_grad_enabled():
            # A function of autograd sees that a parameter requires a gradient even where none is
            # recorded, and would keep what a backward pass needs. Each `detach` takes a
            # microsecond.
            args = kind(
                *[x.detach() if isinstance(x, Tensor) and x.requires_grad else x for x in args]
            )
        return run(args)

    return call


def records_gradients() -> bool:
    """Whether a function of autograd must be called: also to refuse forward-mode gradients."""
    return torch.is_grad_enabled() or forward_ad._current_level >= 0


def _define(name: str, schema: str, run: Callable, fake: Callable) -> None:
    # Not by `torch.library.custom_op`: it runs functions where autograd records nothing, even
    # under `enable_grad`, and the backward operator differentiates.
    _library.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    _library.impl(name, run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_library)


def empty(
    shape: Sequence[int], like: Tensor, sequence: bool, dtype: torch.dtype | None = None
) -> Tensor:
    """Return a tensor, not initialised, in the layout that custom operators return.

    Args:
        shape: Its shape.
        like: Has its device, and its dtype unless ``dtype`` is given.
        sequence: Whether it is a sequence: (batch, channels, length).
        dtype: Its dtype.
    """
    strides = _strides(shape, sequence)
    return torch.empty_strided(shape, strides, dtype=dtype or like.dtype, device=like.device)


def _strides(shape: Sequence[int], sequence: bool) -> tuple[int, ...]:
    if sequence:
        _, channels, length = shape
        return channels * length, 1, channels
    return tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))


def _own(results: Sequence[Tensor], is_sequence: list[bool], inputs: Sequence) -> list[Tensor]:
    """Return ``results`` in their layout, none sharing memory with an input or another one.

    What a backend of ours returns is so already and not copied.
    """
    memory = {_memory(x) for x in inputs if isinstance(x, Tensor)}
    owned = []
    for result, sequence in zip(results, is_sequence, strict=False):
        result = result.detach()
        if _memory(result) in memory or not _has_strides(result, _strides(result.shape, sequence)):
            result = empty(result.shape, result, sequence).copy_(result)
        memory.add(_memory(result))
        owned.append(result)
    return owned


def _has_strides(x: Tensor, strides: Sequence[int]) -> bool:
    steps = zip(x.shape, x.stride(), strides, strict=True)
    return x.numel() == 0 or all(size == 1 or has == want for size, has, want in steps)


def _memory(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _is_watched(args: Sequence) -> bool:
    """Whether someone else than autograd must see the call: who traces, transforms, or pretends."""
    return (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._is_tracing()
        or not _ORDINARY.issuperset(map(type, args))
    )


#: Types of arguments that nobody has made to pretend something.
_ORDINARY = {Tensor, torch.nn.Parameter, NoneType, bool, str}


def _detached(x: Any) -> Any:
    return x.detach() if isinstance(x, Tensor) else x


def _listed(result: Result) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]
