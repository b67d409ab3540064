"""Small classifiers of points, made of the layers of the independent BiMamba encoder."""

from dataclasses import dataclass
from typing import cast

import torch
from boundaries import Points
from espnet2.legacy.nets.pytorch_backend.transformer.attention import MultiHeadedAttention
from espnet2.legacy.nets.pytorch_backend.transformer.layer_norm import LayerNorm
from espnet2.legacy.nets.pytorch_backend.transformer.positionwise_feed_forward import (
    PositionwiseFeedForward,
)
from torch import Tensor, nn

from espnet_bimamba.encoders.bimamba import BiMambaLayer
from espnet_bimamba.layers import MixerAttention, build_mixer

#: The feed-forward network is this much wider than the model, as in the paper's Transformers.
FFN_FACTOR = 4
ATTENTION_HEADS = 4


@dataclass(frozen=True)
class Design:
    """What a classifier is made of.

    Attributes:
        mixer: ``extbimamba``, ``innbimamba`` or, to compare with, ``attention``.
        ffn: Whether each layer ends with a feed-forward network (ReLU).
        residual: Whether each layer adds its input to the mixer's output.
        layers: How many there are; with none the point is embedded, normalised and read off.
        width: The model's width.
        frames: 1: a point is a sequence of one frame. 2: a frame is one of its coordinates.
    """

    mixer: str = "extbimamba"
    ffn: bool = False
    residual: bool = True
    layers: int = 1
    width: int = 16
    frames: int = 1


@dataclass(frozen=True)
class Training:
    """Settings, the same for all classifiers."""

    points: int = 1000
    batch: int = 100
    updates: int = 400
    learning_rate: float = 0.01


class Classifier(nn.Module):
    """Embedding, layers, a last norm, the mean over the frames, one logit.

    The norms are where the independent encoder has them: before each mixer and feed-forward
    network and at the end.
    """

    def __init__(self, design: Design) -> None:
        super().__init__()
        self.frames = design.frames
        self.embedding = nn.Linear(2 // design.frames, design.width)
        self.layers = nn.ModuleList(_layer(design) for _ in range(design.layers))
        self.norm = LayerNorm(design.width)
        self.output = nn.Linear(design.width, 1)

    def forward(self, xy: Tensor) -> Tensor:
        """Return the logits ``(points,)`` of the points ``xy`` (points, 2)."""
        x = self.embedding(xy.unflatten(1, (self.frames, -1)))
        for layer in self.layers:
            x, _ = layer(x, None)
        return self.output(self.norm(x).mean(dim=1)).squeeze(-1)


def _layer(design: Design) -> nn.Module:
    width = design.width
    if design.mixer == "attention":
        mixer: nn.Module = MultiHeadedAttention(ATTENTION_HEADS, width, 0.0)
    else:
        mixer = MixerAttention(build_mixer(design.mixer, width))
    ffn = PositionwiseFeedForward(width, FFN_FACTOR * width, 0.0) if design.ffn else None
    return BiMambaLayer(width, mixer, ffn, dropout_rate=0.0, residual=design.residual)


def parameters(design: Design) -> int:
    """Count a classifier's parameters."""
    with torch.device("meta"):
        return sum(p.numel() for p in Classifier(design).parameters())


def trained(design: Design, points: Points, training: Training, seed: int) -> Classifier:
    """Train a classifier by Adam on random batches, its rate falling linearly to zero.

    Args:
        design: What it is made of.
        points: What it learns.
        training: Settings.
        seed: Of its initialisation and its batches.
    """
    torch.manual_seed(seed)
    model = Classifier(design)
    optimizer = torch.optim.Adam(model.parameters(), lr=training.learning_rate, fused=True)
    rate = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, training.updates)
    for _ in range(training.updates):
        batch = torch.randint(len(points.xy), (training.batch,))
        optimizer.zero_grad()
        logits = model(points.xy[batch])
        nn.functional.binary_cross_entropy_with_logits(logits, points.labels[batch]).backward()
        optimizer.step()
        rate.step()
    return model.eval()


@torch.inference_mode()
def accuracy(model: Classifier, points: Points) -> float:
    """Return the share of the points that are on their side of the boundary."""
    right = (model(points.xy) > 0) == (points.labels > 0.5)
    return cast(float, right.double().mean().item())
