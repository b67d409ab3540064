"""A whole training step: recognition model with CTC and attention decoder, batch 8, Adam."""

import argparse
import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from benchmarks.layers import parts
from benchmarks.models import (
    ATTENTIONS,
    ENCODERS,
    FEATURES,
    FRAMES_A_SECOND,
    encoder,
    fastest_attention,
)
from benchmarks.results import Bar, Measurement, Results, ratio_bar
from benchmarks.timing import Settings, apart, interleaved, peak_memory, precision

TOKENS_A_SECOND = 4
# Of three rounds of seconds each the median is still that of chance.
ROUNDS = 5


@dataclass(frozen=True)
class Sizes:
    """Who trains on what.

    Attributes:
        subjects: Rows of :data:`benchmarks.models.ENCODERS`.
        cases: Utterances of a batch, and the seconds of each of them.
        tokens: Size of the vocabulary.
        seconds: Time for the rounds of one case.
        memory: Whether memory is measured.
    """

    subjects: tuple[str, ...] = ("conbimamba-ext", "conbimamba-inn", "conformer")
    cases: tuple[tuple[int, float], ...] = ((8, 12),)
    # LibriSpeech-100's stock configuration
    tokens: int = 5000
    seconds: float = 20.0
    memory: bool = True


STOCK_DECODER = {"attention_heads": 4, "linear_units": 2048, "num_blocks": 6}
TINY_DECODER = {"attention_heads": 1, "linear_units": 8, "num_blocks": 1}
SIZES = {
    "full": Sizes(),
    "quick": Sizes(("conbimamba-ext", "conformer"), ((2, 10),), seconds=5, memory=False),
    "tiny": Sizes(cases=((2, 0.5), (2, 1)), tokens=10),
}
_ON_CUDA = replace(
    SIZES["full"],
    subjects=(*SIZES["full"].subjects, "e_branchbimamba", "e_branchformer"),
    # So few utterances do not fill a card.
    cases=((8, 10), (8, 15), (32, 15)),
)


def _sizes(settings: Settings) -> Sizes:
    on_card = settings.device == "cuda" and settings.scale == "full"
    return _ON_CUDA if on_card else SIZES[settings.scale]


def run(settings: Settings) -> list[Measurement]:
    """Measure time and memory of training steps."""
    sizes = _sizes(settings)
    results: list[Measurement] = []
    for kind in settings.precisions:
        options, choices = _fastest_settings(settings, sizes, kind)
        results += choices
        for batch, seconds in sizes.cases:
            size = _size(batch, seconds, kind)
            calls = {
                s: training_step(s, settings, batch, seconds, kind, options.get(s, {}))
                for s in sizes.subjects
            }
            steps = [
                Measurement("training", "step", subject, "s", samples, size)
                for subject, samples in interleaved(
                    calls, settings, sizes.seconds, least=ROUNDS
                ).items()
            ]
            results += steps
            if (batch, seconds) == sizes.cases[0] and kind == "float32":
                results += [
                    Measurement("training parts", part, step.subject, "s", [taken], size)
                    for step in steps
                    for part, taken in parts(
                        calls[step.subject], settings, step.median, times=1, profiles=2
                    ).items()
                ]
            del calls
        if sizes.memory:
            for subject in sizes.subjects:
                results += _memory(settings, subject, kind)
    return results


def _memory(settings: Settings, subject: str, kind: str) -> list[Measurement]:
    """Measure the peaks, of a peer with the leaner attention, be it the faster or not."""
    if ENCODERS[subject].ours:
        return _peaks(settings, subject, kind, {})
    found = {name: _peaks(settings, subject, kind, options) for name, options in ATTENTIONS.items()}
    leanest = [
        min((m for m in of if m.samples), key=lambda m: m.median, default=of[0])
        for of in zip(*found.values(), strict=True)
    ]
    return leanest + [
        replace(m, benchmark="attention in training", case=name)
        for name, peaks in found.items()
        for m in peaks
    ]


def _peaks(
    settings: Settings, subject: str, kind: str, options: dict[str, Any]
) -> list[Measurement]:
    order = {"subject": subject, "kind": kind, "options": options}
    told = apart("benchmarks.training:memory", settings, **order)
    cases, note = _sizes(settings).cases, told.get("failed", "")
    peaks = [[peak] for peak in told["peaks"]] if not note else [[] for _ in cases]
    return [
        Measurement("training", "step", subject, "bytes", peak, _size(*case, kind), note)
        for case, peak in zip(cases, peaks, strict=True)
    ]


def bars(results: Results) -> list[Bar]:
    """Hold what was measured to the bars."""
    found = []
    for peer in results.select("training", "step", "conformer"):
        batch, seconds, kind = (peer.size[k] for k in ("batch", "seconds", "precision"))
        what = {"s": "", "bytes": "peak memory, "}[peer.unit]
        # Of what runs in float32 alone, as on a CPU, nothing need say so.
        half = "" if kind == "float32" else f"-{kind}"
        quantity = "time" if peer.unit == "s" else "memory"
        for subject in ("conbimamba-ext", "conbimamba-inn"):
            ours = results.select("training", "step", subject, peer.unit, **peer.size)
            if ours:
                found.append(
                    ratio_bar(
                        f"training-{quantity}-{subject}-{batch}x{seconds}{half}",
                        f"training step{half.replace('-', ', ')}, {what}{batch} x {seconds} s: "
                        f"{subject} / conformer",
                        ours[0] if ours[0].samples else None,
                        peer if peer.samples else None,
                        most=1.15 if peer.unit == "s" else 1.0,
                    )
                )
    return found


def _size(batch: int, seconds: float, kind: str) -> dict[str, Any]:
    return {"batch": batch, "seconds": seconds, "precision": kind}


def _fastest_settings(
    settings: Settings, sizes: Sizes, kind: str
) -> tuple[dict[str, dict[str, Any]], list[Measurement]]:
    """Choose for each peer the attention that trains fastest, on two utterances."""
    chosen, results = {}, []
    seconds = sizes.cases[0][1]
    for subject in (s for s in sizes.subjects if not ENCODERS[s].ours):
        step = functools.partial(training_step, subject, settings, 2, seconds, kind)
        name, samples = fastest_attention(step, settings)
        chosen[subject] = ATTENTIONS[name]
        size = _size(2, seconds, kind)
        results += [
            Measurement("attention in training", a, subject, "s", taken, size)
            for a, taken in samples.items()
        ]
    return chosen, results


@functools.cache
def _parsed(name: str) -> argparse.Namespace:
    from espnet2.tasks.asr import ASRTask

    import espnet_bimamba  # noqa: F401  (registers the encoders)

    return ASRTask.get_parser().parse_args(["--encoder", name])


def model_options(subject: str, settings: Settings, tokens: int, **more: Any) -> argparse.Namespace:
    """Return the options of a training, as ESPnet parses them."""
    row = encoder(subject, settings)
    args = copy.deepcopy(_parsed(row.name))
    words = [f"w{n}" for n in range(tokens - 3)]
    tiny = settings.scale == "tiny"
    values = {
        "input_size": FEATURES,
        "encoder_conf": copy.deepcopy(row.conf),
        "decoder": "transformer",
        "decoder_conf": dict(TINY_DECODER if tiny else STOCK_DECODER),
        "token_list": ["<blank>", "<unk>", *words, "<sos/eos>"],
        "normalize": None,
        "model_conf": {
            "ctc_weight": 0.3,
            "lsm_weight": 0.1,
            "report_cer": False,
            "report_wer": False,
        },
        **more,
    }
    for option, value in values.items():
        setattr(args, option, value)
    return args


def build_model(subject: str, settings: Settings, options: dict[str, Any]) -> nn.Module:
    """Build a recognition model through ESPnet's task."""
    from espnet2.tasks.asr import ASRTask

    args = model_options(subject, settings, SIZES[settings.scale].tokens)
    args.encoder_conf |= options
    return ASRTask.build_model(args)


def training_step(
    subject: str,
    settings: Settings,
    batch: int,
    seconds: float,
    kind: str,
    options: dict[str, Any],
) -> Callable[[], None]:
    """Return a call that does forward, backward and Adam's step on one batch."""
    torch.manual_seed(0)
    device = settings.device
    model = build_model(subject, settings, options).to(device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    data = _batch(batch, seconds, settings)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with precision(kind, device):
            loss = model(**data)[0]
        loss.backward()
        optimizer.step()

    return step


def _batch(batch: int, seconds: float, settings: Settings) -> dict[str, torch.Tensor]:
    frames, tokens = int(seconds * FRAMES_A_SECOND), max(1, int(seconds * TOKENS_A_SECOND))
    vocabulary = SIZES[settings.scale].tokens
    data = {
        "speech": torch.randn(batch, frames, FEATURES),
        "speech_lengths": torch.full((batch,), frames),
        "text": torch.randint(2, vocabulary - 1, (batch, tokens)),
        "text_lengths": torch.full((batch,), tokens),
    }
    return {name: x.to(settings.device) for name, x in data.items()}


def memory(
    settings: Settings, subject: str, kind: str, options: dict[str, Any]
) -> dict[str, list[int]]:
    """Measure in this process the peak of a first step for each of the cases.

    Activations, gradients and Adam's state count; parameters and the process itself do not.
    """
    cases = _sizes(settings).cases
    # Compiles kernels and starts threads.
    training_step(subject, settings, 1, cases[0][1], kind, options)()
    peaks = []
    for batch, seconds in cases:
        step = training_step(subject, settings, batch, seconds, kind, options)
        peaks.append(peak_memory(step, settings.device).above)
        # Before the next model is built: it would find the memory of this one.
        del step
    return {"peaks": peaks}
