"""The stack of encoder layers with what ESPnet's offers but does not honour."""

import contextlib
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from espnet2.legacy.nets.pytorch_backend.conformer.convolution import mask_padded_frames
from espnet2.legacy.nets.pytorch_backend.transformer.repeat import MultiSequential
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from espnet_bimamba.convolution import ChannelsLastBatchNorm1d

# Modules that ESPnet calls without the mask look here for that of the layer they run in. A
# context variable, since several threads may run one model.
_real_frames: ContextVar[Tensor | None] = ContextVar("real_frames", default=None)
_encoding: ContextVar[bool] = ContextVar("encoding", default=False)


class LayerStack(MultiSequential):
    """ESPnet's ``MultiSequential``, iterated over by its encoders' ``forward``.

    There, in :func:`encoding`, it yields the layers wrapped in what was asked for: layer dropping,
    gradient checkpointing, and the mask for feed-forward convolutions and batch norm. Elsewhere it
    yields the layers themselves.

    Args:
        *layers: The layers; state-dict names are those of ``MultiSequential``.
        layer_drop_rate: Probability with which a layer is skipped in training.
        checkpointed: Indices of layers, from 0 on, whose activations are recomputed.
        announce_frames: Whether a module in the layers asks which frames are real. Only then are
            they told: torch.compile breaks its graph there.
    """

    def __init__(
        self,
        *layers: Any,
        layer_drop_rate: float = 0.0,
        checkpointed: Collection[int] = (),
        announce_frames: bool = False,
    ) -> None:
        super().__init__(*layers, layer_drop_rate=layer_drop_rate)
        self.checkpointed = checkpointed
        self.announce_frames = announce_frames

    def __iter__(self) -> Iterator[Callable[..., Any]]:
        if not (self.wraps_layers() and _encoding.get()):
            return super().__iter__()
        return self._wrapped()

    def wraps_layers(self) -> bool:
        """Whether something was asked for that takes more than calling the layers."""
        dropping = self.training and self.layer_drop_rate > 0
        return dropping or bool(self.checkpointed) or self.announce_frames

    def _wrapped(self) -> Iterator[Callable[..., Any]]:
        for index, layer in enumerate(self._modules.values()):
            assert layer is not None
            if self._drops():
                yield _skip
            elif index in self.checkpointed and torch.is_grad_enabled():
                yield partial(_run_checkpointed, layer)
            elif self.announce_frames:
                yield partial(_run, layer)
            else:
                yield layer

    def _drops(self) -> bool:
        # No number is drawn where none is needed: the random stream stays that of stock.
        active = self.training and self.layer_drop_rate > 0
        return active and torch.rand(()).item() < self.layer_drop_rate


@contextlib.contextmanager
def encoding() -> Iterator[None]:
    """Mark the body as an encoder's ``forward``: there stacks yield their layers wrapped."""
    token = _encoding.set(True)
    try:
        yield
    finally:
        _encoding.reset(token)


def _skip(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    return x, mask


def _run(layer: nn.Module, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    with _frames(mask):
        return layer(x, mask)


def _run_checkpointed(layer: nn.Module, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    runs = 0

    def run(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal runs
        runs += 1
        if runs == 1:
            return _run(layer, x, mask)
        with _running_statistics_kept(layer):
            return _run(layer, x, mask)

    return checkpoint(run, x, mask, use_reentrant=False)


@contextlib.contextmanager
def _running_statistics_kept(layer: nn.Module) -> Iterator[None]:
    """Keep a recomputation from counting its batch a second time in batch norm."""
    buffers = [(buffer, buffer.clone()) for buffer in layer.buffers()]
    try:
        yield
    finally:
        for buffer, value in buffers:
            buffer.copy_(value)


@contextlib.contextmanager
def _frames(mask: Tensor) -> Iterator[None]:
    token = _real_frames.set(mask)
    try:
        yield
    finally:
        _real_frames.reset(token)


class CheckpointedSequential(nn.Sequential):
    """``nn.Sequential`` whose activations are recomputed in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        """Run the modules one after another."""
        if not torch.is_grad_enabled():
            return super().forward(x)
        return checkpoint(super().forward, x, use_reentrant=False)


class RealFramesBatchNorm1d(ChannelsLastBatchNorm1d):
    """Batch norm whose statistics count real frames only; padded ones come out as zero.

    ``SyncBatchNorm.convert_sync_batchnorm`` would put a plain one in its place: the encoder looks.

    Stock batch norm counts padded frames in training, so that what an utterance gives depends on
    how much padding its batch mates ask for.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` (batch, channels, length)."""
        mask = _real_frames.get()
        if not self.training or mask is None:
            return super().forward(x)
        real = mask.squeeze(1).bool()
        frames = x.transpose(1, 2)
        return (
            torch.zeros_like(frames)
            .masked_scatter(real[..., None], super().forward(frames[real]))
            .transpose(1, 2)
        )


def mask_convolutions(feed_forward: nn.Module) -> bool:
    """Let every convolution over time in ``feed_forward`` read zeros past each sequence's end.

    ESPnet's ``positionwise_layer_type: conv1d`` and ``conv1d-linear`` read the padding, into
    which the norm before them has put its bias.

    Returns:
        Whether there is such a convolution.
    """
    convolutions = [m for m in feed_forward.modules() if isinstance(m, nn.Conv1d)]
    for convolution in convolutions:
        convolution.register_forward_pre_hook(_zero_padded_frames)
    return bool(convolutions)


def _zero_padded_frames(_: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
    return mask_padded_frames(inputs[0], _real_frames.get())
