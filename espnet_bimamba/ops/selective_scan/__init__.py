"""The selective scan of Mamba, with a choice of backends."""

from typing import Any

import torch
from torch import Tensor

from espnet_bimamba.errors import ShapeError
from espnet_bimamba.ops.backends import Call, resolve
from espnet_bimamba.ops.lengths import check_halves, check_lengths
from espnet_bimamba.ops.library import custom_operator, empty

__all__ = ["selective_scan"]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    bidirectional: bool = False,
    lengths: Tensor | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Scan ``u`` with input-dependent step sizes; the recurrence stands in ``reference.py``.

    Names, shapes and order are those of mamba-ssm's ``selective_scan_fn``; the keyword-only
    arguments are this package's. Any real floating dtype up to float64; state, ``A``, ``D`` and
    step sizes are computed in float32 at least, and the output has ``u``'s dtype.

    Args:
        u: ``(batch, dim, length)``, the input.
        delta: ``(batch, dim, length)``, the step sizes.
        A: ``(dim, state)``, real; negative for a stable scan.
        B: ``(dim, state)``, ``(batch, state, length)`` or ``(batch, group, state, length)``.
        C: Like ``B``.
        D: ``(dim,)``, the weight of the skip connection.
        z: ``(batch, dim, length)``, the output is multiplied by ``silu(z)``.
        delta_bias: ``(dim,)``, added to ``delta``.
        delta_softplus: Whether ``softplus`` is applied to the (biased) step sizes.
        return_last_state: Whether the state after the last step is returned as well.
        initial_state: ``(batch, dim, state)``, the state before the first step.
        reverse: Whether time runs backwards: the first step is each sequence's last frame.
        bidirectional: Whether the second half of the channels runs against the direction of the
            first, which ``reverse`` names. The number of channels is even then.
        lengths: ``(batch,)``, integer. Each sequence is its own: outputs and gradients past its
            end are exactly zero, and what the padding holds, NaN included, reaches nothing.
        backend: Name of the backend; None chooses.

    Returns:
        ``(batch, dim, length)`` in ``u``'s dtype and, with ``return_last_state``, the state
        ``(batch, dim, state)`` in float32 (float64 for float64 input).

    Raises:
        ShapeError: A shape, dtype or device does not fit, a tensor is complex, or an odd number of
            channels shall have two directions.
        LengthsError: ``lengths`` does not describe the batch.
        OptionError: The name of the backend is unknown.
        BackendError: The backend asked for by name cannot serve the call.
    """
    args = _checked(
        u,
        delta,
        A,
        B,
        C,
        D,
        z,
        delta_bias,
        delta_softplus,
        return_last_state,
        initial_state,
        reverse,
        bidirectional,
        lengths,
        backend,
    )
    return _scan(*args)


def _checked(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_last_state: bool,
    initial_state: Tensor | None,
    reverse: bool,
    bidirectional: bool,
    lengths: Tensor | None,
    backend: str | None,
) -> tuple:
    """Return the arguments of :func:`_serve` after checking that they fit together."""
    _check_tensors(u, delta, A, B, C, D, z, delta_bias, initial_state)
    check_halves("u", u, bidirectional)
    if lengths is not None:
        lengths = check_lengths(lengths, u.shape[0], u.shape[2], u.device)
    tensors, options = (u, delta, A, B, C, D, z, delta_bias), (delta_softplus, return_last_state)
    return *tensors, *options, initial_state, reverse, bidirectional, lengths, backend


def _serve(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    return_last_state: bool,
    initial_state: Tensor | None,
    reverse: bool,
    bidirectional: bool,
    lengths: Tensor | None,
    backend: str | None,
) -> Tensor | tuple[Tensor, Tensor]:
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    call = Call(
        operator="selective_scan",
        device=u.device.type,
        dtype=u.dtype,
        d_state=A.shape[1],
        initial_state=initial_state is not None,
        final_state=return_last_state,
        gradient=torch.is_grad_enabled()
        and any(x is not None and x.requires_grad for x in tensors),
    )
    return resolve(call, backend)(
        u,
        delta,
        A,
        B,
        C,
        D,
        z,
        delta_bias,
        delta_softplus,
        return_last_state,
        initial_state=initial_state,
        reverse=reverse,
        bidirectional=bidirectional,
        lengths=lengths,
    )


def _shapes(u: Tensor, *args: Any) -> list[Tensor]:
    """Return what the scan returns, not computed."""
    _, A, _, _, _, _, _, _, return_last_state, *_ = args
    results = [empty(u.shape, u, sequence=True)]
    if return_last_state:
        dtype = torch.promote_types(u.dtype, torch.float32)
        results.append(empty((*u.shape[:2], A.shape[1]), u, sequence=False, dtype=dtype))
    return results


_scan = custom_operator("selective_scan", _serve, _checked, _shapes, sequences=("u", "delta", "z"))


def _check_tensors(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    if u.dim() != 3:
        raise ShapeError(f"u must be (batch, dim, length), got shape {tuple(u.shape)}")
    batch, dim, length = u.shape
    if A.dim() != 2 or A.shape[0] != dim or A.shape[1] < 1:
        raise ShapeError(f"A must be (dim={dim}, state), got shape {tuple(A.shape)}")
    state = A.shape[1]
    expected = {
        "delta": (delta, (batch, dim, length)),
        "z": (z, (batch, dim, length)),
        "D": (D, (dim,)),
        "delta_bias": (delta_bias, (dim,)),
        "initial_state": (initial_state, (batch, dim, state)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tensor.shape != shape:
            raise ShapeError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    for name, matrix in {"B": B, "C": C}.items():
        _check_matrix(name, matrix, batch, dim, state, length)
    tensors = {name: tensor for name, (tensor, _) in expected.items()}
    for name, tensor in (tensors | {"u": u, "A": A, "B": B, "C": C}).items():
        _check_kind(name, tensor, u.device)


def _check_matrix(name: str, matrix: Tensor, batch: int, dim: int, state: int, length: int) -> None:
    shape = tuple(matrix.shape)
    # By the number of axes first: comparing `batch` to `dim` would keep a traced graph from
    # serving a batch of that size.
    if matrix.dim() == 2 and shape == (dim, state):
        return
    if matrix.dim() == 3 and shape == (batch, state, length):
        return
    grouped = matrix.dim() == 4 and shape[1] > 0 and dim % shape[1] == 0
    if grouped and (shape[0], *shape[2:]) == (batch, state, length):
        return
    raise ShapeError(
        f"{name} must have shape ({dim}, {state}), ({batch}, {state}, {length}) or "
        f"({batch}, group, {state}, {length}) with dim={dim} a multiple of group, got {shape}"
    )


def _check_kind(name: str, tensor: Tensor | None, device: torch.device) -> None:
    if tensor is None:
        return
    if tensor.is_complex():
        raise ShapeError(f"{name} is {tensor.dtype}: only real tensors are served, A included")
    if not tensor.is_floating_point():
        raise ShapeError(f"{name} must have a floating dtype, got {tensor.dtype}")
    if tensor.device != device:
        raise ShapeError(f"{name} is on {tensor.device}, u is on {device}: they must agree")
