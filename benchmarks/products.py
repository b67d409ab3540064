"""The matrix products of a model alone: the floor under its time."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

_PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "baddbmm", "linear", "matmul", "_addmm_activation")


class _Recorder(TorchDispatchMode):
    """Notes every matrix product, by the shapes that enter it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict]] = []
        self._tensors: dict[tuple, Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if _is_product(func, args):
            # Not the tensors themselves: those of all layers together would fill the memory.
            twins = tuple(self._twin(x) if isinstance(x, Tensor) else x for x in args)
            self.calls.append((func, twins, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _twin(self, x: Tensor) -> Tensor:
        # A broadcast tensor shares its memory among rows and could not be filled.
        strides = None if 0 in x.stride() else x.stride()
        key = (tuple(x.shape), strides, x.dtype)
        if key not in self._tensors:
            plain = torch.empty(x.shape, dtype=x.dtype, device=x.device)
            twin = (
                plain
                if strides is None
                else torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device)
            )
            self._tensors[key] = twin.normal_()
        return self._tensors[key]


def _is_product(func: Any, args: tuple) -> bool:
    name = func.overloadpacket.__name__ if hasattr(func, "overloadpacket") else ""
    if name in _PRODUCTS:
        return True
    # A convolution over the features and its neighbours is a product, too; a depthwise one, in as
    # many groups as channels, is not.
    return name == "convolution" and args[8] == 1


def operations_of(call: Callable[[], object]) -> int:
    """Count the multiplications and additions in the matrix products of a call."""
    # PyTorch's counter does not know these two forms of a product.
    forms = (torch.ops.aten.addmm_, torch.ops.aten._addmm_activation)
    with FlopCounterMode(
        display=False, custom_mapping=dict.fromkeys(forms, _operations)
    ) as counter:
        call()
    return counter.get_total_flops()


def _operations(added: Any, rows: Any, columns: Any, **_: Any) -> int:
    """Count those of ``addmm``, given shapes."""
    return 2 * math.prod(rows) * int(columns[1])


def products_of(call: Callable[[], object]) -> Callable[[], None]:
    """Run ``call`` once; return what runs its matrix products and nothing else.

    Weights, activations and results have the shapes, layouts and dtypes of the original ones;
    activations of the same shape share memory, which makes the floor rather too low than too high.
    """
    with torch.inference_mode():
        recorder = _Recorder()
        with recorder:
            call()
    calls = recorder.calls

    def run() -> None:
        with torch.inference_mode():
            for func, args, kwargs in calls:
                func(*args, **kwargs)

    return run
