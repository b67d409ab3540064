"""ESPnet's subsampling convolutions, in inference one piece of the time after the other."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Frames that leave the convolutions at a time: many more than the few read twice at each edge,
# few enough for what is between two convolutions (20 MB at 256 channels) to stay near the cores.
PIECE = 256


class SubsamplingConvolutions(nn.Sequential):
    """What stands in ``conv`` of ESPnet's ``Conv2dSubsampling`` and its kin.

    Where no gradient is recorded, time is cut into pieces that overlap by what the convolutions see
    beside a frame: the numbers are the same, on Intel's processors to the bit, on others but for
    last digits where a product of another size is added up in another order. The activations
    between the convolutions (for an hour of speech 256 channels, 180,000 frames and 39 features of
    float32, 7.2 GB) never exist at once. On the CPU pieces are laid out with neighbouring channels
    side by side, which oneDNN convolves a third faster; it adds up in another order than in
    training.

    Args:
        *modules: Convolutions over time, whose axis is the third, and functions of one element;
            state-dict names are those of ``nn.Sequential``.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        #: Whether activations are recomputed in the backward pass.
        self.checkpointed = False
        #: Whether all modules are known to see a few frames only. An ESPnet to come may have
        #: others, which then run as they are.
        self.can_be_cut = all(map(_is_local, modules))
        #: Inputs between those of two neighbouring outputs, and inputs that one output sees: the
        #: output ``n`` sees those from ``n * stride`` to ``n * stride + field - 1``.
        self.stride, self.field = _stride_and_field(modules)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``x`` (batch, channels, length[, features])."""
        if torch.is_grad_enabled():
            if self.checkpointed:
                return checkpoint(super().forward, x, use_reentrant=False)
            return super().forward(x)
        # A traced graph has one piece: how many there are would be frozen into it.
        if torch.compiler.is_compiling() or not self.can_be_cut:
            return super().forward(x)
        x = _channels_side_by_side(x)
        return super().forward(x) if self.frames(x.shape[2]) <= _piece(x) else self._in_pieces(x)

    def frames(self, length: int) -> int:
        """Return how many outputs ``length`` inputs suffice for."""
        return max(0, (length - self.field) // self.stride + 1)

    def _in_pieces(self, x: Tensor) -> Tensor:
        frames = self.frames(x.shape[2])
        # Even pieces: of a few frames oneDNN would take another kernel, with other roundings.
        pieces = -(-frames // _piece(x))
        whole: Tensor | None = None
        for index in range(pieces):
            begin, end = (frames * i // pieces for i in (index, index + 1))
            seen = x[:, :, begin * self.stride : (end - 1) * self.stride + self.field]
            piece = super().forward(seen).transpose(1, 2)
            if whole is None:
                # Time before channels: so the linear layer behind wants it, and copies nothing.
                whole = piece.new_empty(piece.shape[0], frames, *piece.shape[2:])
            whole[:, begin:end] = piece
        assert whole is not None
        return whole.transpose(1, 2)


def _piece(x: Tensor) -> int:
    """Return the most frames of a piece: on a card enough of them to keep it busy."""
    return PIECE if x.device.type == "cpu" else 16 * PIECE


def _channels_side_by_side(x: Tensor) -> Tensor:
    """Lay ``x`` out so that oneDNN's convolutions, all that follow, keep to it."""
    if x.device.type != "cpu" or x.dim() != 4 or x.dtype == torch.float64:
        return x
    if x.shape[1] > 1:
        return x.contiguous(memory_format=torch.channels_last)
    # One channel lies either way: torch tells by the step alone which of the two is meant.
    batch, _, length, features = x.stride()
    return x.as_strided(x.shape, (batch, 1, length, features))


def subsample_in_pieces(embed: nn.Module | None) -> None:
    """Put :class:`SubsamplingConvolutions` where ``embed`` has its convolutions."""
    modules = getattr(embed, "conv", None)
    if isinstance(modules, nn.Sequential):
        embed.conv = SubsamplingConvolutions(*modules)  # type: ignore[union-attr]


def _is_local(module: nn.Module) -> bool:
    """Whether a frame that leaves ``module`` sees the same frames wherever it stands."""
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return (module.padding[0], module.dilation[0]) == (0, 1)
    return isinstance(module, nn.ReLU)


def _stride_and_field(modules: tuple[nn.Module, ...]) -> tuple[int, int]:
    """Return how many frames apart two outputs read, and how many frames one of them sees."""
    total_stride, field = 1, 1
    for module in modules:
        if isinstance(module, nn.Conv1d | nn.Conv2d):
            field += (module.kernel_size[0] - 1) * total_stride
            total_stride *= module.stride[0]
    return total_stride, field
