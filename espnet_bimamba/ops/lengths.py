"""Per-sequence lengths and directions: checking them, masking and reversing by them.

Shapes: ``B`` batch, ``L`` frames of the padded batch.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from espnet_bimamba.errors import LengthsError, ShapeError

_INTEGER_DTYPES = (torch.int16, torch.int32, torch.int64)


class Lengths(NamedTuple):
    """Lengths that are known to fit a batch, so that nobody checks them again.

    On a CUDA device a check is six kernel launches, as many as all else of a short operator.

    Attributes:
        frames: ``(B,)``, int64, from 0 to ``length``.
        length: ``L`` of the batch.
    """

    frames: Tensor
    length: int

    @classmethod
    def of(cls, mask: Tensor) -> "Lengths":
        """Count the frames of ``mask`` (B, L), true on the frames that are no padding."""
        return cls(mask.sum(-1), mask.shape[-1])


def fitting(
    lengths: "Tensor | Lengths | None", batch: int, length: int, device: torch.device
) -> Lengths | None:
    """Return ``lengths`` as what is known to fit: see :func:`check_lengths`."""
    if lengths is None:
        return None
    return Lengths(check_lengths(lengths, batch, length, device), length)


def check_lengths(
    lengths: Tensor | Lengths, batch: int, length: int, device: torch.device
) -> Tensor:
    """Return ``lengths`` as int64 on ``device`` after checking it against the batch.

    On a CUDA device the values are checked asynchronously, so that no kernel launch waits for
    the check: a bad value then surfaces as a device-side assertion. A traced graph checks the
    values when it runs and raises RuntimeError.

    Args:
        lengths: ``(B,)``, integer. Of :class:`Lengths` no value is looked at.
        batch: ``B`` of the tensor that ``lengths`` describes.
        length: ``L`` of that tensor.
        device: Device of that tensor.

    Returns:
        ``(B,)``, int64, on ``device``.

    Raises:
        LengthsError: ``lengths`` is no tensor, has another shape than ``(B,)``, is not of an
            integer dtype, or holds a value outside ``0 .. L``.
    """
    if isinstance(lengths, Lengths):
        return _those_of(lengths, batch, length, device)
    check_lengths_kind("lengths", lengths, batch)
    lengths = lengths.to(device=device, dtype=torch.int64)
    if torch.compiler.is_compiling():
        # Tracing cannot branch on values, nor write one it does not know into a message.
        in_range = ((lengths >= 0) & (lengths <= length)).all()
        torch._assert_async(in_range, "lengths must lie between 0 and the length of the tensor")
    elif lengths.is_cuda:
        in_range = ((lengths >= 0) & (lengths <= length)).all()
        torch._assert_async(in_range, f"lengths must lie between 0 and {length}")
    elif batch and not 0 <= min(values := lengths.tolist()) <= max(values) <= length:
        raise LengthsError(
            f"lengths must lie between 0 and {length}, the length of the tensor, got {values}"
        )
    return lengths


def _those_of(known: Lengths, batch: int, length: int, device: torch.device) -> Tensor:
    frames = known.frames
    if (*frames.shape, known.length) != (batch, length):
        raise LengthsError(
            f"lengths are those of {(*frames.shape, known.length)} (batch, length), "
            f"the tensor is {(batch, length)}"
        )
    # A kernel reads them where they are.
    if frames.dtype != torch.int64 or frames.device != device:
        raise LengthsError(
            f"known lengths must be int64 on {device}, where the tensor is, "
            f"got {frames.dtype} on {frames.device}"
        )
    return frames


def check_lengths_kind(name: str, lengths: Tensor, batch: int) -> None:
    """Check what of ``lengths`` needs no look at its values.

    Args:
        name: What the caller knows them as.
        lengths: ``(B,)``, integer.
        batch: ``B`` of the tensor that ``lengths`` describes.

    Raises:
        LengthsError: ``lengths`` is no tensor, has another shape than ``(B,)``, or is not of an
            integer dtype.
    """
    if not isinstance(lengths, Tensor):
        raise LengthsError(f"{name} must be a tensor of integers, got {type(lengths).__name__}")
    if lengths.dtype not in _INTEGER_DTYPES:
        raise LengthsError(f"{name} must be int16, int32 or int64, got {lengths.dtype}")
    if lengths.shape != (batch,):
        raise LengthsError(
            f"{name} must have shape ({batch},), one for each sequence of the batch, "
            f"got {tuple(lengths.shape)}"
        )


def check_halves(name: str, x: Tensor, bidirectional: bool) -> None:
    """Refuse an odd number of channels where either half of them has a direction of its own.

    Args:
        name: What the caller knows ``x`` as.
        x: ``(B, channels, L)``.
        bidirectional: Whether there are two directions.

    Raises:
        ShapeError: The channels have no halves.
    """
    if bidirectional and x.shape[1] % 2:
        raise ShapeError(
            f"with bidirectional=True {name} must have an even number of channels, a half for "
            f"each direction, got {x.shape[1]}"
        )


def padding_mask(lengths: Tensor, length: int) -> Tensor:
    """Return a ``(B, L)`` bool tensor that is True past each sequence's end."""
    return torch.arange(length, device=lengths.device) >= lengths[:, None]


def is_full(lengths: Lengths) -> bool:
    """Whether it is known at little cost that no sequence has padding: on the CPU alone."""
    if lengths.frames.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return all(own == lengths.length for own in lengths.frames.tolist())


def zero_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Zero ``x`` (B, ..., L) past each sequence's end, whatever it holds there.

    A fill and not a product: NaN times zero is NaN. The gradient past the end is zero, too.
    """
    if lengths is None:
        return x
    mask = padding_mask(lengths, x.shape[-1])
    return x.masked_fill(_over_middle(mask, x), 0)


def reverse_by_length(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse ``x`` (B, ..., L) along its last dimension, each sequence within its own length.

    Frames past a sequence's end keep their place, so the function is its own inverse.
    """
    if lengths is None:
        return x.flip(-1)
    frames = torch.arange(x.shape[-1], device=x.device)
    mirrored = lengths[:, None] - 1 - frames
    source = torch.where(mirrored >= 0, mirrored, frames)
    return x.gather(-1, _over_middle(source, x).expand(x.shape))


def turn(x: Tensor, lengths: Tensor | None, reverse: bool, bidirectional: bool) -> Tensor:
    """Reverse those channels of ``x`` (B, channels, ..., L) that run backwards, within each length.

    With ``bidirectional`` the second half of them runs against the first, else all run alike. The
    function is its own inverse.
    """
    if bidirectional:
        first, second = x.tensor_split(2, dim=1)
        turned = turn(first, lengths, reverse, False), turn(second, lengths, not reverse, False)
        return torch.cat(turned, dim=1)
    return reverse_by_length(x, lengths) if reverse else x


def halves(**tensors: tuple[Tensor | None, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split tensors in two, each along its axis of channels; an absent one is absent in both."""
    split = {
        name: (None, None) if x is None else x.tensor_split(2, axis)
        for name, (x, axis) in tensors.items()
    }
    first, second = ({name: pair[half] for name, pair in split.items()} for half in (0, 1))
    return first, second


def _over_middle(frames: Tensor, x: Tensor) -> Tensor:
    """Give ``frames`` (B, L) an axis of size one for each of ``x``'s (B, ..., L) between."""
    batch, length = frames.shape
    return frames.reshape(batch, *[1] * (x.dim() - 2), length)
