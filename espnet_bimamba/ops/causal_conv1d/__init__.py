"""The causal depthwise convolution of Mamba, with a choice of backends."""

from typing import NamedTuple

from torch import Tensor

from espnet_bimamba.errors import OptionError, ShapeError
from espnet_bimamba.ops.backends import Call, resolve
from espnet_bimamba.ops.lengths import Lengths, check_halves, check_lengths
from espnet_bimamba.ops.library import custom_operator, empty

__all__ = ["causal_conv1d"]

ACTIVATIONS = (None, "silu", "swish")


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    activation: str | None = None,
    reverse: bool = False,
    bidirectional: bool = False,
    lengths: Tensor | Lengths | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Convolve each channel with its own kernel; the formula stands in ``reference.py``.

    Names and shapes are those of causal-conv1d's ``causal_conv1d_fn``; ``reverse``,
    ``bidirectional``, ``lengths`` and ``backend`` are this package's. Any real floating dtype up
    to float64; computed in float32 at least, and the output has ``x``'s dtype.

    Args:
        x: ``(batch, dim, length)``, the input.
        weight: ``(dim, width)``; ``weight[:, -1]`` meets the current frame.
        bias: ``(dim,)``.
        initial_states: ``(batch, dim, width - 1)``, the frames before the first.
        return_final_states: Whether the last ``width - 1`` inputs of each sequence are returned
            as well, to be the ``initial_states`` of what follows.
        activation: None, ``"silu"`` or ``"swish"`` (the same function).
        reverse: Whether time runs backwards: the first step is each sequence's last frame.
        bidirectional: Whether the second half of the channels runs against the direction of the
            first, which ``reverse`` names. The number of channels is even then.
        lengths: ``(batch,)``, integer. Each sequence is its own: outputs and gradients past its
            end are exactly zero, and what the padding holds, NaN included, reaches nothing.
            :class:`~espnet_bimamba.ops.lengths.Lengths` are known to fit and not checked again.
        backend: Name of the backend; None chooses.

    Returns:
        ``(batch, dim, length)`` in ``x``'s dtype and, with ``return_final_states``,
        ``(batch, dim, width - 1)``.

    Raises:
        OptionError: ``activation`` or the name of the backend is unknown.
        ShapeError: A shape, dtype or device does not fit, or an odd number of channels shall have
            two directions.
        LengthsError: ``lengths`` does not describe the batch.
        BackendError: The backend asked for by name cannot serve the call.
    """
    args = _Arguments(
        x,
        weight,
        bias,
        initial_states,
        return_final_states,
        activation,
        reverse,
        bidirectional,
        lengths,
        backend,
    )
    return _convolve(_checked(args))


class _Arguments(NamedTuple):
    """What the convolution is called with, in the order of the custom operator's schema."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    initial_states: Tensor | None
    return_final_states: bool
    activation: str | None
    reverse: bool
    bidirectional: bool
    lengths: Tensor | Lengths | None
    backend: str | None


def _checked(args: _Arguments) -> _Arguments:
    """Return ``args`` after checking that they fit together."""
    if args.activation not in ACTIVATIONS:
        raise OptionError("activation", args.activation, "one of None, 'silu', 'swish'")
    _check_tensors(args)
    check_halves("x", args.x, args.bidirectional)
    if args.lengths is None:
        return args
    batch, _, length = args.x.shape
    lengths = check_lengths(args.lengths, batch, length, args.x.device)
    return args if lengths is args.lengths else args._replace(lengths=lengths)


def _serve(args: _Arguments) -> Tensor | tuple[Tensor, Tensor]:
    call = Call(
        operator="causal_conv1d",
        device=args.x.device.type,
        dtype=args.x.dtype,
        d_conv=args.weight.shape[1],
        initial_state=args.initial_states is not None,
        final_state=args.return_final_states,
        lengths=args.lengths is not None,
        turned=args.reverse or args.bidirectional,
    )
    return resolve(call, args.backend)(
        args.x,
        args.weight,
        args.bias,
        initial_states=args.initial_states,
        return_final_states=args.return_final_states,
        activation=args.activation,
        reverse=args.reverse,
        bidirectional=args.bidirectional,
        lengths=args.lengths,
    )


def _shapes(args: _Arguments) -> list[Tensor]:
    """Return what the convolution returns, not computed."""
    x = args.x
    results = [empty(x.shape, x, sequence=True)]
    if args.return_final_states:
        results.append(empty((*x.shape[:2], args.weight.shape[1] - 1), x, sequence=False))
    return results


_convolve = custom_operator(
    "causal_conv1d", _Arguments, _serve, _checked, _shapes, sequences=("x",)
)


def _check_tensors(args: _Arguments) -> None:
    x, weight, bias, initial_states, *_ = args
    if x.dim() != 3:
        raise ShapeError(f"x must be (batch, dim, length), got shape {tuple(x.shape)}")
    batch, dim, _ = x.shape
    if weight.dim() != 2 or weight.shape[0] != dim or weight.shape[1] < 1:
        raise ShapeError(f"weight must be (dim={dim}, width), got shape {tuple(weight.shape)}")
    if bias is not None and bias.shape != (dim,):
        raise ShapeError(f"bias must have shape ({dim},), got {tuple(bias.shape)}")
    states = (batch, dim, weight.shape[1] - 1)
    if initial_states is not None and initial_states.shape != states:
        raise ShapeError(
            f"initial_states must have shape {states}, got {tuple(initial_states.shape)}"
        )
    tensors = {"x": x, "weight": weight, "bias": bias, "initial_states": initial_states}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise ShapeError(f"{name} must have a real floating dtype, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ShapeError(f"{name} is on {tensor.device}, x is on {x.device}: they must agree")
