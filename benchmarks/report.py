"""``docs/benchmarks.md``, written from the JSON file of a run.

No figure is typed by hand, but in the reasons why bars are not met.
"""

import os
import statistics
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.encoders import BESIDE, FLOOR, PAIRS, crossover
from benchmarks.enhancement import FRAMES_A_SECOND
from benchmarks.layers import SQUARE
from benchmarks.models import ENCODERS
from benchmarks.results import Bar, Measurement, Results
from benchmarks.roofline import three_digits

#: Load from which on ratios suffer.
BUSY = 0.5
EXPLANATIONS = Path(__file__).with_name("explanations.toml")


def explanations(device: str) -> dict[str, str]:
    """Return why bars are not met on ``device``, by their id."""
    return tomllib.loads(EXPLANATIONS.read_text())[device]


def report(run: dict[str, Any], results: Results, bars: list[Bar], plots: list[str]) -> str:
    """Write a run as Markdown.

    Args:
        run: The JSON file's other entries.
        results: Its measurements.
        bars: What they are held to.
        plots: SVG files to show, relative to the document.
    """
    sections = [
        _head(run),
        _bars(bars, explanations(run["settings"]["device"])),
        _scan(results),
        _layers(results),
        _encoders(results),
        _training(results),
        _decoding(results),
        _enhancement(results),
        _left_out(results),
        "\n\n".join(f"![{Path(plot).stem}]({plot})" for plot in plots),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def unexplained(bars: Iterable[Bar], device: str) -> list[str]:
    """Return the ids of unmet bars that :data:`EXPLANATIONS` does not explain."""
    known = explanations(device)
    return [bar.id for bar in bars if bar.met is False and bar.id not in known]


def _head(run: dict[str, Any]) -> str:
    machine, settings = run["machine"], run["settings"]
    device = machine.get("gpu") or machine["cpu"]
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    remarks = "".join(f" {remark}" for remark in run.get("remarks", []))
    if machine["load_before"] > BUSY:
        remarks += (
            " The machine had just had other work: read the spreads, compare only within a table."
        )
    parts = ", ".join(run["minutes_of"])
    if missing := run.get("parts_missing"):
        parts += f" (not in this run: {', '.join(missing)})"
    of = " of speech enhancement" if list(run["minutes_of"]) == ["enhancement"] else ""
    return f"""# Benchmarks{of} on {"a GPU" if settings["device"] == "cuda" else "a CPU"}

Written by `python -m benchmarks report` from the file that this command made on {run["date"]}:

    {run["command"]}

{device}, {machine["cores"]} cores ({machine["vectors"]}), {settings["threads"]} threads,
{machine["memory_bytes"] / 1e9:.0f} GB of memory; load before and after: \
{machine["load_before"]:.1f}, {machine["load_after"]:.1f}; {run["minutes"]:.0f} minutes in all.
{versions}.
Parts: {parts}.{remarks}

Times are medians over alternating rounds; what is in brackets is the smallest and the largest.
[How to read and repeat them](../benchmarks/README.md)."""


def _bars(bars: list[Bar], reasons: dict[str, str]) -> str:
    rows = [
        (
            bar.what,
            bar.show(bar.value),
            " to ".join(map(bar.show, bar.spread)) + f" ({bar.rounds})" if bar.spread else "",
            bar.limit,
            bar.status,
        )
        for bar in bars
    ]
    text = "## Bars\n\n" + _table(("what", "median", "single rounds (how many)", "bar", ""), rows)
    unmet = [bar for bar in bars if bar.met is False]
    if unmet:
        text += "\n\nNot met:\n\n" + "\n".join(
            f"- {bar.what} (`{bar.id}`): {bar.show(bar.value)} where the bar is {bar.limit}. "
            + reasons.get(bar.id, "").strip()
            for bar in unmet
        )
    return text


def _scan(results: Results) -> str:
    rows = [m for m in results.select("scan", unit="s") if m.samples and "threads" not in m.size]
    if not rows:
        return ""
    subjects = list(dict.fromkeys(m.subject for m in rows))
    cases = list(
        dict.fromkeys((m.case, *(m.size[k] for k in ("batch", "length", "dtype"))) for m in rows)
    )
    lines = []
    for case, batch, length, dtype in cases:
        cells = [
            results.find("scan", case, s, batch=batch, length=length, dtype=dtype) for s in subjects
        ]
        lines.append((f"{case}, {batch} x {length}, {dtype}", *map(_time, cells)))
    text = "## Selective scan\n\n512 channels, 16 states; D, z and softplus included.\n\n"
    text += _table(("", *subjects), lines)
    if peaks := [m for m in results.select("scan", unit="bytes") if m.samples]:
        text += "\n\n" + _table(
            ("peak memory, forward and backward", "MB", "of inputs, output, gradients"),
            [
                (m.subject, f"{m.median / 1e6:.0f}", f"{m.median / m.size['tensors']:.2f}x")
                for m in peaks
            ],
        )
    return text


def _layers(results: Results) -> str:
    blocks = []
    for whole in results.select("layer", "whole"):
        found = results.select("layer parts", None, whole.subject, **whole.size)
        total = sum(m.median for m in found)
        rows = [
            (m.case, _time(m), f"{100 * m.median / total:.0f}%")
            for m in sorted(found, key=lambda m: -m.median)
        ]
        rows.append(("together", f"{1e3 * total:.3g} ms", ""))
        products, square = (
            results.find("layer", case, whole.subject, **whole.size)
            for case in ("products", SQUARE)
        )
        profile = _table(("part, under the profiler", "time", "share"), rows)
        blocks.append(
            f"### {whole.subject}, {whole.size['length']} frames\n\n"
            f"Whole: {_time(whole)}; its matrix products alone: {_time(products)}"
            f"{_speed(products)}{_speed(square, ' where a large square product runs at')}."
            + (f"\n\n{profile}" if found else "")
        )
    return "\n\n".join(["## Where the time goes, in inference", *blocks]) if blocks else ""


def _encoders(results: Results) -> str:
    rows = results.select("encoder", "forward")
    if not rows:
        return ""
    text = "## Encoders\n\n12 blocks of 256, feed-forward 1024, convolution kernel 31, masking "
    text += "included.\n\n" + _table(
        ("ours", "stock", "ours is"),
        [
            (ours, stock, _in_words(crossover(results, ours, stock)))
            for ours, stock in PAIRS.items()
        ],
    )
    kinds = dict.fromkeys((m.size["precision"], m.size["batch"]) for m in rows)
    for kind, batch in kinds:
        for unit, name in (("s", "time"), ("bytes", "memory above the model's")):
            size = {"precision": kind, "batch": batch}
            found = results.select("encoder", "forward", unit=unit, **size)
            if found:
                text += f"\n\n### {name}, {kind}, batch {batch}\n\n"
                text += _by_length(results, found)
    text += _listed(
        "A minute in the processes of the longer ones, which these are held against",
        [
            f"{m.subject} {_time(m)} ({m.size['precision']})"
            for m in results.select("encoder", BESIDE, unit="s")
        ],
    )
    text += _attentions(results.select("attention"))
    text += _subsampling(results.select("encoder", "subsampling"))
    if hour := results.select("encoder", "hour", unit="s"):
        rows_of_hour = [
            (m.subject, f"{m.size['seconds']:g} s", _time(m), _amount_of(results, m)) for m in hour
        ]
        header = ("", "speech", "time", "peak memory in all")
        text += "\n\n### One hour\n\n" + _table(header, rows_of_hour)
    return text


def _subsampling(rows: list[Measurement]) -> str:
    what = "Of that, subsampling by four and the linear layer behind it"
    return _listed(what, [f"{m.subject} {_time(m)} ({_speech(m)})" for m in rows])


def _attentions(chosen: list[Measurement]) -> str:
    what = "Peers run with the faster of ESPnet's attentions"
    return _listed(what, [f"{m.subject} {m.case} {_time(m)} ({_speech(m)})" for m in chosen])


def _leaner(peaks: list[Measurement]) -> str:
    return _listed(
        "Their memory is that of the leaner one",
        [
            f"{m.subject} {m.case} {_gigabytes(m)} ({m.size['batch']} x {_speech(m)})"
            for m in peaks
            if m.samples
        ],
    )


def _speech(m: Measurement) -> str:
    return f"{m.size['seconds']:g} s, {m.size['precision']}"


def _listed(what: str, cells: list[str]) -> str:
    """Return a paragraph that lists what was measured, none if that is nothing."""
    return f"\n\n{what}: {'; '.join(cells)}." if cells else ""


def _amount_of(results: Results, m: Measurement) -> str:
    memory = results.find("encoder", "hour", m.subject, "total bytes", **m.size)
    return _gigabytes(memory) if memory else "-"


def _in_words(found: tuple[float, bool] | None) -> str:
    if found is None:
        return "not measured"
    seconds, faster = found
    seconds = float(f"{seconds:.2g}")
    return f"faster from {seconds:g} s on" if faster else f"slower up to {seconds:g} s"


def _by_length(results: Results, found: list[Measurement]) -> str:
    lengths = sorted({m.size["seconds"] for m in found})
    known = [*ENCODERS, FLOOR]
    subjects = sorted({m.subject for m in found}, key=known.index)
    size = {k: found[0].size[k] for k in ("batch", "precision")}
    lines = []
    for subject in subjects:
        cells = []
        for seconds in lengths:
            where = {"seconds": seconds, **size}
            m = results.find("encoder", "forward", subject, found[0].unit, **where)
            cells.append(_amount(m) if m else "")
        lines.append((subject, *cells))
    return _table(("", *(f"{seconds:g} s" for seconds in lengths)), lines)


def _training(results: Results) -> str:
    rows = results.select("training", "step")
    if not rows:
        return ""
    cases = dict.fromkeys((m.subject, *m.size.values()) for m in rows)
    lines = []
    for subject, batch, seconds, kind in cases:
        size = {"batch": batch, "seconds": seconds, "precision": kind}
        taken = results.find("training", "step", subject, "s", **size)
        peak = results.find("training", "step", subject, "bytes", **size)
        what = f"{batch} x {seconds:g} s, {kind}"
        lines.append((subject, what, _time(taken), _gigabytes(peak) if peak else "-"))
    return (
        "## Training step\n\nForward, backward and Adam of a recognition model: the encoder above, "
        "an attention decoder of 6 blocks, CTC. On a CPU, where a step takes seconds, the "
        "Conformer is the only peer.\n\n"
        + _table(("encoder", "batch", "time", "peak memory"), lines)
        + _attentions(results.select("attention in training", unit="s"))
        + _leaner(results.select("attention in training", unit="bytes"))
        + _training_parts(results)
    )


def _training_parts(results: Results) -> str:
    rows = results.select("training parts", precision="float32")
    return _parts(rows, "one step profiled")


def _parts(rows: list[Measurement], what: str) -> str:
    if not rows:
        return ""
    subjects = list(dict.fromkeys(m.subject for m in rows))
    size = rows[0].size
    by_part: dict[str, dict[str, Measurement]] = {}
    for m in rows:
        by_part.setdefault(m.case, {})[m.subject] = m
    lines = [(part, *(_time(found.get(s)) for s in subjects)) for part, found in by_part.items()]
    title = f"### Where the time goes, {size['batch']} x {size['seconds']:g} s, {what}"
    return f"\n\n{title}\n\n" + _table(("part", *subjects), lines)


def _decoding(results: Results) -> str:
    rows = results.select("decoding", "all")
    lines = []
    for m in rows:
        encoder = results.find("decoding", "encoder", m.subject, **m.size)
        if m.samples and encoder:
            share = f"{100 * encoder.median / m.median:.0f}%"
            lines.append((m.subject, _time(m), _time(encoder), share))
    if not lines:
        return ""
    size = rows[0].size
    text = f"## Recognition\n\n`Speech2Text`, {size['seconds']:g} s of audio, beam {size['beam']}, "
    text += f"CTC weight {size['ctc_weight']}, models not trained, hypotheses of a forced length."
    header = ("encoder", "recognition", "encoder's part", "share")
    return text + "\n\n" + _table(header, lines)


def _enhancement(results: Results) -> str:
    rows = results.select("enhancement", "forward", unit="s")
    if not rows:
        return ""
    lengths = sorted({m.size["seconds"] for m in rows})
    lines = []
    for subject in dict.fromkeys(m.subject for m in rows):
        cells = []
        for seconds in lengths:
            m = results.find("enhancement", "forward", subject, seconds=seconds)
            cells.append(f"{m.median / seconds:.2g}" if m else "")
        step = next((m for m in results.select("enhancement", "step", subject) if m.samples), None)
        lines.append((subject, *cells, _time(step) if step else ""))
    step = next(iter(results.select("enhancement", "step")), None)
    batch = f"{step.size['batch']} x {step.size['seconds']:g} s" if step else ""
    header = ("", *(f"RTF, {seconds:g} s" for seconds in lengths), f"training step, {batch}")
    return (
        (
            "## Speech enhancement\n\nThe separators of `conf/se`, on spectra: what the paper's "
            "Tables 2, 4, 6 and 14 ask.\n\n" + _table(header, lines)
        )
        + "".join(
            _parts(results.select("enhancement parts", seconds=seconds), "one call profiled")
            for seconds in lengths
        )
        + _streaming(results)
    )


def _streaming(results: Results) -> str:
    rows = results.select("enhancement", "frame")
    if not rows:
        return ""
    lines = []
    for m in rows:
        rtf = sum(m.samples) / len(m.samples) * FRAMES_A_SECOND
        late = statistics.quantiles(m.samples, n=100, method="inclusive")[98]
        lines.append((m.subject, f"{rtf:.2g}", f"{1e3 * m.median:.3g}", f"{1e3 * late:.3g}"))
    text = f"\n\n### Streaming, {rows[0].size['seconds']:g} s, one thread\n\n"
    text += f"Frame by frame, {1e3 / FRAMES_A_SECOND:g} ms each, with `stft_sqrt_hann` there and "
    text += "back; sound comes out 32 ms after it came in, and what a frame takes.\n\n"
    return text + _table(("", "RTF", "ms a frame, median", "99th percentile"), lines)


def _left_out(results: Results) -> str:
    lines = dict.fromkeys(
        f"- {m.benchmark}, {m.case}, {m.subject}, {_circumstances(m)}: {m.note}"
        for m in results
        if m.note and not m.samples and m.unit != "total bytes"
    )
    return "\n".join(["## Left out", "", *lines]) if lines else ""


def _circumstances(m: Measurement) -> str:
    return ", ".join(f"{k} {v}" for k, v in m.size.items() if v is not None)


def _amount(m: Measurement) -> str:
    return _time(m) if m.unit == "s" else _gigabytes(m)


def _time(m: Measurement | None) -> str:
    if m is None or not m.samples:
        return "-"
    scale, unit = (1, "s") if m.median >= 1 else (1e3, "ms")
    text = f"{m.median * scale:.3g} {unit}"
    if len(m.samples) > 1:
        text += f" ({min(m.samples) * scale:.3g}-{max(m.samples) * scale:.3g})"
    return text


def _speed(m: Measurement | None, words: str = ", at") -> str:
    if m is None or not m.size.get("operations"):
        return ""
    return f"{words} {three_digits(m.size['operations'] / m.median / 1e9)} GFLOP/s"


def _gigabytes(m: Measurement) -> str:
    return f"{m.median / 1e9:.3g} GB" if m.samples else "-"


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def relative(file: Path, folder: Path) -> str:
    """Return the path of ``file`` as seen from ``folder``."""
    return Path(os.path.relpath(file, folder)).as_posix()
