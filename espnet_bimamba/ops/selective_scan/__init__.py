"""The selective scan of Mamba, with a choice of backends."""

from typing import NamedTuple

import torch
from torch import Tensor

from espnet_bimamba.errors import ShapeError
from espnet_bimamba.ops.backends import Call, resolve
from espnet_bimamba.ops.lengths import Lengths, check_halves, check_lengths
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
    lengths: Tensor | Lengths | None = None,
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
            :class:`~espnet_bimamba.ops.lengths.Lengths` are known to fit and not checked again.
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
    args = _Arguments(
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
    return _scan(_checked(args))


class _Arguments(NamedTuple):
    """What the scan is called with, in the order of the custom operator's schema."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    return_last_state: bool
    initial_state: Tensor | None
    reverse: bool
    bidirectional: bool
    lengths: Tensor | Lengths | None
    backend: str | None


def _checked(args: _Arguments) -> _Arguments:
    """Return ``args`` after checking that they fit together."""
    _check_tensors(args)
    check_halves("u", args.u, args.bidirectional)
    if args.lengths is None:
        return args
    batch, _, length = args.u.shape
    lengths = check_lengths(args.lengths, batch, length, args.u.device)
    return args if lengths is args.lengths else args._replace(lengths=lengths)


def _serve(args: _Arguments) -> Tensor | tuple[Tensor, Tensor]:
    tensors = (*args[:8], args.initial_state)
    call = Call(
        operator="selective_scan",
        device=args.u.device.type,
        dtype=args.u.dtype,
        d_state=args.A.shape[1],
        initial_state=args.initial_state is not None,
        final_state=args.return_last_state,
        gradient=torch.is_grad_enabled()
        and any(x is not None and x.requires_grad for x in tensors),
        lengths=args.lengths is not None,
        turned=args.reverse or args.bidirectional,
    )
    return resolve(call, args.backend)(
        *args[:10],
        initial_state=args.initial_state,
        reverse=args.reverse,
        bidirectional=args.bidirectional,
        lengths=args.lengths,
    )


def _shapes(args: _Arguments) -> list[Tensor]:
    """Return what the scan returns, not computed."""
    u = args.u
    results = [empty(u.shape, u, sequence=True)]
    if args.return_last_state:
        dtype = torch.promote_types(u.dtype, torch.float32)
        results.append(empty((*u.shape[:2], args.A.shape[1]), u, sequence=False, dtype=dtype))
    return results


_scan = custom_operator(
    "selective_scan", _Arguments, _serve, _checked, _shapes, sequences=("u", "delta", "z")
)


def _check_tensors(args: _Arguments) -> None:
    u, delta, A, B, C, D, z, delta_bias, _, _, initial_state, *_ = args
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
