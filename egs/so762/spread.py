"""What is left of the speech in an encoder's layers, and what of the gradient on its way back.

A stack in which the output's variation over time dies out hears the noise of its own dropout
instead: its loss is then lower with dropout, as in training, than without. Where the gradient dies
out the first layers learn nothing any more.
"""

import argparse
import contextlib
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile
import torch
from document import markdown, publish
from runs import ResultsError, add_recipe, positive, table, trainings

PROGRAM = "egs/so762/spread.py"
AVERAGED = "valid.cer_ctc.ave.pth"


@dataclass(frozen=True)
class Clip:
    """An utterance: its ``(1, samples)`` and the ``(1, tokens)`` that were said."""

    speech: torch.Tensor
    tokens: torch.Tensor


@dataclass(frozen=True)
class Heard:
    """What a model makes of some clips.

    Attributes:
        loss: The CTC loss of a clip, mean over the clips.
        spread: Of each layer's output, :func:`spread_over_time`, mean over the clips.
    """

    loss: float
    spread: list[float]


def spread_over_time(frames: torch.Tensor) -> float:
    """Return the share of the deviation that is left when each channel's mean is taken away.

    Args:
        frames: ``(length, dim)``.

    Returns:
        1 where the channels' means over time are equal, 0 where no frame differs from another.
    """
    total = (frames - frames.mean()).square().mean().sqrt()
    over_time = (frames - frames.mean(dim=0)).square().mean().sqrt()
    return float(over_time / total) if total else 0.0


@torch.inference_mode()
def listen(model: torch.nn.Module, clips: Sequence[Clip], dropout: bool) -> Heard:
    """Let a model in evaluation mode hear clips one by one, with its dropout at work or without.

    Args:
        model: An ``ESPnetASRModel`` whose ``encoder`` has ``encoders``, its layers.
        clips: What is heard.
        dropout: Whether dropout is as in training; all else is as in evaluation.
    """
    model.eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train(dropout)
    torch.manual_seed(0)
    losses, spreads = [], []
    for clip in clips:
        with _outputs(model.get_submodule("encoder.encoders")) as outputs:
            losses.append(float(_loss(model, clip)))
        spreads.append([spread_over_time(output) for output in outputs])
    by_layer = zip(*spreads, strict=True)
    return Heard(statistics.mean(losses), [statistics.mean(layer) for layer in by_layer])


def gradients(model: torch.nn.Module, clips: Sequence[Clip]) -> list[float]:
    """Return the norm of the loss's gradient in each layer's parameters, without dropout.

    Args:
        model: As in :func:`listen`.
        clips: The gradient is that of the loss's mean over them.

    Returns:
        Each layer's, as a share of the largest.
    """
    model.eval()
    model.zero_grad()
    for clip in clips:
        _loss(model, clip).backward()
    layers = model.get_submodule("encoder.encoders").children()
    norms = [
        math.hypot(*(float(x.grad.norm()) for x in layer.parameters() if x.grad is not None))
        for layer in layers
    ]
    return [norm / max(norms) for norm in norms]


def _loss(model: torch.nn.Module, clip: Clip) -> torch.Tensor:
    lengths = [torch.tensor([part.shape[1]]) for part in (clip.speech, clip.tokens)]
    loss, _, _ = model(
        speech=clip.speech, speech_lengths=lengths[0], text=clip.tokens, text_lengths=lengths[1]
    )
    return torch.as_tensor(loss)


@contextlib.contextmanager
def _outputs(layers: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """Give a list that fills with each layer's ``(length, dim)`` as the layers are called."""
    outputs: list[torch.Tensor] = []

    def keep(layer: torch.nn.Module, given: Any, output: Any) -> None:
        while isinstance(output, tuple):  # the mask, and the embedding of positions
            output = output[0]
        outputs.append(output[0])

    handles = [layer.register_forward_hook(keep) for layer in layers.children()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def load(folder: Path) -> tuple[torch.nn.Module, list[str]]:
    """Return a training's averaged model and its tokens.

    Args:
        folder: Of the training, in the ``exp`` of its recipe.

    Raises:
        ResultsError: The training has not ended.
    """
    if not (folder / AVERAGED).exists():
        raise ResultsError(f"{folder} holds no {AVERAGED}: the training has not ended")
    return _build(folder, folder / AVERAGED)


def untrained(folder: Path, seed: int) -> torch.nn.Module:
    """Return a training's model as it may have begun: initialised anew."""
    torch.manual_seed(seed)
    model, _ = _build(folder)
    return model


def _build(folder: Path, weights: Path | None = None) -> tuple[torch.nn.Module, list[str]]:
    from espnet2.tasks.asr import ASRTask

    # The configuration names its statistics from the recipe's folder.
    with contextlib.chdir(folder.parents[1]):
        model, args = ASRTask.build_model_from_file(folder / "config.yaml", weights, "cpu")
    return model, args.token_list


def clips(recipe: Path, tokens: list[str], count: int) -> list[Clip]:
    """Return the first utterances of the dev set.

    Args:
        recipe: The folder that holds ``dump``.
        tokens: The vocabulary.
        count: How many there are at the most.

    Raises:
        ResultsError: A file is missing.
    """
    from espnet2.text.build_tokenizer import build_tokenizer
    from espnet2.text.token_id_converter import TokenIDConverter

    dev = recipe / "dump/raw/dev"
    sounds, texts = table(dev / "wav.scp"), table(dev / "text")
    split, numbers = build_tokenizer("char").text2tokens, TokenIDConverter(tokens).tokens2ids
    found = []
    for name in sorted(texts)[:count]:
        samples, _ = soundfile.read(recipe / sounds[name], dtype="float32")
        said = numbers(split(texts[name]))
        found.append(Clip(torch.from_numpy(samples)[None], torch.tensor([said])))
    return found


def report(recipe: Path, count: int) -> str:
    """Return the tables of all trainings that have ended."""
    spreads, slopes = [], []
    for name, seed, folder in trainings(recipe, "asr"):
        if (folder / AVERAGED).exists():
            model, tokens = load(folder.absolute())
            fresh = untrained(folder.absolute(), seed)
            heard = clips(recipe, tokens, count)
            quiet, noisy = (listen(model, heard, dropout) for dropout in (False, True))
            losses = [f"{value:.1f}" for value in (quiet.loss, noisy.loss)]
            shares = [quiet.spread, noisy.spread, listen(fresh, heard, dropout=False).spread]
            spreads.append([name, str(seed), *losses, *map(_percent, shares)])
            ways = [gradients(each, heard) for each in (model, fresh)]
            slopes.append([name, str(seed), *map(_percent, ways)])
    head = ["loss", "with dropout", "variation by layer, %", "with dropout", "untrained"]
    parts = {
        "Loss, and variation over time": markdown(["model", "seed", *head], spreads),
        "Gradients": markdown(["model", "seed", "gradient by layer, %", "untrained"], slopes),
    }
    return "\n\n".join(f"{heading}:\n\n{table}" for heading, table in parts.items())


def _percent(shares: Sequence[float]) -> str:
    return " ".join(f"{100 * x:.0f}" if x >= 0.01 else f"{100 * x:.1g}" for x in shares)


def main(argv: list[str] | None = None) -> int:
    """Write the table; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0] if __doc__ else "",
        epilog="example: python egs/so762/spread.py --into docs/results.md",
    )
    add_recipe(parser, default="exp/so762/egs2/so762/asr1")
    parser.add_argument("--clips", type=positive, default=100, help="of dev; default: %(default)s")
    parser.add_argument("--into", type=Path, help="a Markdown file, between its markers")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    return publish(lambda: report(args.recipe, args.clips), args.into, PROGRAM)


if __name__ == "__main__":
    sys.exit(main())
