"""Whole encoders over length, masking included, against ESPnet's own."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import (
    ATTENTIONS,
    ENCODERS,
    FEATURES,
    FRAMES_A_SECOND,
    encoder,
    fastest_attention,
)
from benchmarks.products import products_of
from benchmarks.results import Bar, Measurement, Results, ratio, ratio_bar
from benchmarks.timing import (
    Settings,
    apart,
    available_memory,
    first_sentence,
    interleaved,
    peak_memory,
    precision,
)

# A peer that would take longer for one call is left out.
PATIENCE = 60.0
# The part of the free memory that a call may be expected to take: the guess may be too low by half.
MEMORY = 0.5
FLOOR = "projections alone"
_FLOOR_OF = "conbimamba-ext"


@dataclass(frozen=True)
class Sizes:
    """Seconds of speech, and for whom.

    Attributes:
        subjects: Rows of :data:`benchmarks.models.ENCODERS`.
        repeated: Lengths measured in alternating rounds.
        longer: Those measured in the process that measures memory: once, and by those that are held
            to be linear several times, each time beside the longest of ``repeated``.
        longest: What only those and the peers are asked for, once.
        seconds: Time for the rounds of one length.
        chosen_at: Length at which the peers' attention is chosen.
        hour: What :func:`run_hour` measures, in this order.
    """

    subjects: tuple[str, ...]
    repeated: tuple[float, ...]
    longer: tuple[float, ...] = ()
    longest: float = math.inf
    seconds: float = 15.0
    chosen_at: float = 30
    hour: tuple[float, ...] = (60, 3600, 60)


_MAIN = ("conbimamba-ext", "conbimamba-inn", "conformer")
SIZES = {
    "full": Sizes(tuple(ENCODERS), (5, 10, 30, 60), (300, 1800), longest=1800),
    "quick": Sizes(_MAIN, (10, 60), seconds=3, chosen_at=10),
    "tiny": Sizes(("conbimamba-ext", "conformer"), (0.5, 1), (2,), chosen_at=0.5, hour=(0.5, 1)),
}
_LINEAR_SUBJECTS = ("conbimamba-ext", "conbimamba-inn")
_TIMES = 2
# The case of the shorter length that longer ones of the same process are held against.
BESIDE = "beside longer ones"


def run(settings: Settings) -> list[Measurement]:
    """Measure time and memory of all encoders over length."""
    sizes = SIZES[settings.scale]
    results: list[Measurement] = []
    for kind in settings.precisions:
        options, choices = _fastest_settings(settings, sizes, kind)
        results += choices
        walks = Results()
        if sizes.longer:
            for subject in sizes.subjects:
                walks += _walk(settings, sizes, subject, kind, options.get(subject, {}))
        results += walks
        models = {
            subject: encoder(subject, settings, **options.get(subject, {})).build()
            for subject in sizes.subjects
        }
        for batch in _batches(settings):
            for duration in sizes.repeated:
                taking_part = {
                    subject: model.to(settings.device)
                    for subject, model in models.items()
                    if not _left_out(walks, subject, duration)
                }
                results += _rounds(settings, sizes, taking_part, duration, batch, kind)
        if settings.scale != "quick":
            results += _subsampling(settings, sizes, models, kind)
    return results


def _subsampling(
    settings: Settings, sizes: Sizes, models: dict[str, nn.Module], kind: str
) -> list[Measurement]:
    """Measure what is before the blocks, whose only difference is how it is computed."""
    results = []
    for seconds in sizes.repeated[1:]:
        x, _ = features(seconds, 1, settings.device)
        mask = torch.ones(1, 1, x.size(1), dtype=torch.bool, device=settings.device)
        calls = {
            name: forward(models[name].get_submodule("embed"), (x, mask), kind, settings.device)
            for name in (_FLOOR_OF, "conformer")
            if name in models
        }
        size = _size(seconds, 1, kind)
        results += [
            Measurement("encoder", "subsampling", subject, "s", samples, size)
            for subject, samples in interleaved(calls, settings, seconds=2).items()
        ]
    return results


def run_hour(settings: Settings) -> list[Measurement]:
    """Measure an hour of speech, in inference."""
    results: list[Measurement] = []
    lengths = SIZES[settings.scale].hour
    for subject in _LINEAR_SUBJECTS:
        results += _walk_over(settings, lengths, subject, "float32", {}, case="hour")
    return results


def bars(results: Results, device: str) -> list[Bar]:
    """Hold what was measured on ``device`` to the bars."""

    def time(subject: str, seconds: float, case: str = "forward") -> Measurement | None:
        return results.find("encoder", case, subject, **_size(seconds, 1, "float32"))

    def against(subject: str, seconds: float, most: float, peer: str = "conformer") -> Bar:
        return ratio_bar(
            f"encoder-{subject}-{peer}-{seconds}",
            f"encoder, {seconds} s: {subject} / {peer}",
            time(subject, seconds),
            time(peer, seconds),
            most=most,
        )

    ext, inn = "conbimamba-ext", "conbimamba-inn"
    # As far from linear as the scan alone may be. A card that short input leaves idle takes less
    # for each second of long ones.
    linear = functools.partial(_linear, least=0.875 if device == "cpu" else None)
    found = []
    if results.select("encoder", "forward"):
        found = [against(subject, 10, 1.0) for subject in (ext, inn)]
        found += [against(ext, 60, 0.5), against(inn, 60, 0.5), against(inn, 60, 1.0, ext)]
        found += [_crossover_bar(results, subject) for subject in (ext, inn)]
    found += [
        linear(subject, long, time(subject, long), 60, time(subject, 60, BESIDE))
        for subject in (ext, inn)
        for long in (300, 1800)
        if results.select("encoder", "forward", seconds=long)
    ]
    for m in results.select("encoder", "hour", unit="total bytes", seconds=3600):
        limit = Measurement("encoder", "hour", "limit", "total bytes", [1e9])
        what = f"encoder, 1 hour: peak memory in all, {m.subject}"
        memory = m if m.samples else None
        found.append(
            ratio_bar(
                f"encoder-hour-memory-{m.subject}",
                what,
                memory,
                limit,
                most=6,
                unit=" GB",
                paired=False,
            )
        )
        long, short = (time(m.subject, seconds, "hour") for seconds in (3600, 60))
        found.append(linear(m.subject, 3600, long, 60, short))
    return found


#: Ours -> the stock encoder that it takes the place of.
PAIRS = {
    "conbimamba-ext": "conformer",
    "conbimamba-inn": "conformer",
    "e_branchbimamba": "e_branchformer",
    "transbimamba": "transformer",
}


def crossover(results: Results, subject: str, peer: str) -> tuple[float, bool] | None:
    """Find the length from which on ``subject`` is faster than ``peer``.

    Returns:
        Seconds of speech, and whether ``subject`` gets faster there: if not, it is slower up to
        there, the longest length measured. The shortest length measured if it is faster at every
        one; None if nothing was measured.
    """
    found = {}
    for m in results.select("encoder", "forward", subject, "s", batch=1, precision="float32"):
        other = results.find("encoder", "forward", peer, **m.size)
        if m.samples and other:
            found[m.size["seconds"]] = ratio(m, other)
    if not found:
        return None
    lengths = sorted(found)
    slower = [seconds for seconds in lengths if found[seconds] > 1]
    if not slower:
        return lengths[0], True
    if slower[-1] == lengths[-1]:
        return lengths[-1], False
    before, after = slower[-1], lengths[lengths.index(slower[-1]) + 1]
    share = math.log(found[before]) / math.log(found[before] / found[after])
    return before * (after / before) ** share, True


def _crossover_bar(results: Results, subject: str) -> Bar:
    found = crossover(results, subject, "conformer")
    return Bar(
        f"encoder-crossover-{subject}",
        f"encoder: {subject} is faster than the conformer from",
        # Where it never gets faster, the longest length measured: far more than the bar. Between
        # two lengths it is a guess, of two digits at the best.
        found and float(f"{found[0]:.2g}"),
        most=10,
        unit=" s",
    )


def _linear(
    subject: str,
    long: float,
    time_long: Measurement | None,
    short: float,
    time_short: Measurement | None,
    least: float | None,
) -> Bar:
    return ratio_bar(
        f"encoder-linear-{subject}-{long:g}",
        f"encoder, {subject}: time a second of speech, {long:g} s / {short:g} s (1 is linear)",
        time_long,
        time_short,
        scale=short / long,
        paired=False,
        least=least,
        most=1.125,
    )


def _batches(settings: Settings) -> tuple[int, ...]:
    # One short utterance does not fill a card.
    return (1, 16) if settings.device == "cuda" and settings.scale != "tiny" else (1,)


def features(seconds: float, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Draw the features of ``batch`` utterances and their lengths."""
    frames = int(seconds * FRAMES_A_SECOND)
    lengths = torch.full((batch,), frames, device=device)
    return torch.randn(batch, frames, FEATURES, device=device), lengths


def forward(
    model: nn.Module, inputs: tuple[Tensor, Tensor], kind: str, device: str
) -> Callable[[], object]:
    """Return a call that encodes, in inference mode."""

    def call() -> object:
        with torch.inference_mode(), precision(kind, device):
            return model(*inputs)[0]

    return call


def _size(seconds: float, batch: int, kind: str) -> dict[str, Any]:
    return {"seconds": seconds, "batch": batch, "precision": kind}


def _fastest_settings(
    settings: Settings, sizes: Sizes, kind: str
) -> tuple[dict[str, dict[str, Any]], list[Measurement]]:
    """Choose for each peer the attention that is fastest on this device."""
    seconds = sizes.chosen_at
    inputs = features(seconds, 1, settings.device)
    chosen, results = {}, []
    for subject in (s for s in sizes.subjects if not ENCODERS[s].ours):

        def call(options: dict[str, Any], subject: str = subject) -> Callable[[], object]:
            model = encoder(subject, settings, **options).build().to(settings.device)
            return forward(model, inputs, kind, settings.device)

        name, samples = fastest_attention(call, settings)
        chosen[subject] = ATTENTIONS[name]
        results += [
            Measurement("attention", a, subject, "s", taken, _size(seconds, 1, kind))
            for a, taken in samples.items()
        ]
    return chosen, results


def _rounds(
    settings: Settings,
    sizes: Sizes,
    models: dict[str, nn.Module],
    seconds: float,
    batch: int,
    kind: str,
) -> list[Measurement]:
    inputs = features(seconds, batch, settings.device)
    calls: dict[str, Callable[[], object]] = {
        subject: forward(model, inputs, kind, settings.device) for subject, model in models.items()
    }
    if _FLOOR_OF in calls and settings.scale != "quick":
        calls[FLOOR] = products_of(calls[_FLOOR_OF])
    samples = interleaved(calls, settings, sizes.seconds)
    size = _size(seconds, batch, kind)
    return [Measurement("encoder", "forward", s, "s", taken, size) for s, taken in samples.items()]


def _left_out(walks: Results, subject: str, seconds: float) -> bool:
    walked = walks.select("encoder", None, subject, "bytes", seconds=seconds)
    return any(not m.samples for m in walked)


def _walk(
    settings: Settings, sizes: Sizes, subject: str, kind: str, options: dict[str, Any]
) -> list[Measurement]:
    short, beside = sizes.repeated[1:-1], sizes.repeated[-1]
    longer: tuple[float, ...] = sizes.longer
    times = _TIMES if subject in _LINEAR_SUBJECTS else 1
    if ENCODERS[subject].ours and times == 1:
        # No bar asks for it, and half an hour of speech takes half a minute.
        longer = tuple(seconds for seconds in longer if seconds < sizes.longest)
    again = tuple(seconds for seconds in longer if seconds < sizes.longest) * (times - 1)
    compared = [x for seconds in (*longer, *again) for x in (beside, seconds)]
    found = _walk_over(settings, (*short, *compared), subject, kind, options)
    # Of the lengths that are measured in rounds, time counts only beside that of longer ones.
    return [
        replace(m, case=BESIDE) if m.unit == "s" and m.size["seconds"] == beside else m
        for m in found
        if m.unit != "s" or m.size["seconds"] >= beside
    ]


def _walk_over(
    settings: Settings,
    lengths: tuple[float, ...],
    subject: str,
    kind: str,
    options: dict[str, Any],
    case: str = "forward",
) -> list[Measurement]:
    """Measure memory and time apart, length after length; some may come again.

    If a process dies of it, which it most likely does of the longest length, another one goes
    through all others.
    """
    order = {"subject": subject, "lengths": lengths, "kind": kind, "options": options}
    told = apart("benchmarks.encoders:walk", settings, **order)
    units = {"s": "seconds", "bytes": "above", "total bytes": "total"}
    longest = max(lengths)
    if failed := told.get("failed", ""):
        shorter = tuple(seconds for seconds in lengths if seconds < longest)
        found = _walk_over(settings, shorter, subject, kind, options, case) if shorter else []
        size = _size(longest, 1, kind)
        return found + [
            Measurement("encoder", case, subject, unit, [], size, failed) for unit in units
        ]
    results = []
    for seconds in dict.fromkeys(lengths):
        pairs = zip(lengths, told["steps"], strict=True)
        steps = [step for length, step in pairs if length == seconds]
        note = next((step["note"] for step in steps if "note" in step), "")
        for unit, name in units.items():
            samples = [step[name] for step in steps if name in step]
            size = _size(seconds, 1, kind)
            results.append(Measurement("encoder", case, subject, unit, samples, size, note))
    return results


def walk(
    settings: Settings, subject: str, lengths: list[float], kind: str, options: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Encode speech of one length after the other, as far as time and memory allow.

    What a length will take is guessed from the two before it, by a power of the length.
    """
    device = settings.device
    model = encoder(subject, settings, **options).build().to(device)
    # Compiles kernels, and starts threads.
    forward(model, features(lengths[0], 1, device), kind, device)()
    patience = math.inf if ENCODERS[subject].ours else PATIENCE
    known: dict[float, tuple[float, int]] = {}
    steps: list[dict[str, Any]] = []
    for seconds in lengths:
        before = [(length, *known[length]) for length in sorted(known) if length < seconds]
        time_ahead = _guess(seconds, [(length, time) for length, time, _ in before])
        memory_ahead = _guess(seconds, [(length, memory) for length, _, memory in before])
        if time_ahead > patience:
            steps.append({"note": f"left out: would take about {time_ahead:.0f} s"})
            continue
        if memory_ahead > MEMORY * available_memory(device):
            steps.append({"note": f"left out: would need about {memory_ahead / 1e9:.0f} GB"})
            continue
        try:
            inputs = features(seconds, 1, device)
            peak = peak_memory(forward(model, inputs, kind, device), device)
        except RuntimeError as error:  # torch.OutOfMemoryError is one
            steps.append({"note": f"failed: {first_sentence(error)}"})
            continue
        known[seconds] = peak.seconds, peak.above
        steps.append({"seconds": peak.seconds, "above": peak.above, "total": peak.total})
    return {"steps": steps}


def _guess(length: float, known: list[tuple[float, float]]) -> float:
    """Go on from the last two points by a power of the length, at least 1 and at most 2."""
    if not known:
        return 0.0
    last, value = known[-1]
    power = 2.0
    if len(known) > 1 and min(value, known[-2][1]) > 0:
        before, less = known[-2]
        power = min(2.0, max(1.0, math.log(value / less) / math.log(last / before)))
    elif len(known) == 1:
        power = 1.0
    return value * (length / last) ** power
