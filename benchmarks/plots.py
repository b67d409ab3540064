"""Plots of a run, each as PNG and SVG."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.encoders import FLOOR
from benchmarks.results import Measurement, Results, ratio
from espnet_bimamba.files import save_figure

#: Ours are drawn solid, peers dashed, floors dotted.
_COLORS = {
    "conbimamba-ext": "#1f5fa8",
    "conbimamba-inn": "#4aa3df",
    "transbimamba": "#2a9d8f",
    "e_branchbimamba": "#7b5ea7",
    "bimamba": "#57a639",
    "conformer": "#c0392b",
    "e_branchformer": "#e67e22",
    "transformer": "#b8860b",
    "ours": "#1f5fa8",
    "loop": "#c0392b",
    "mambapy": "#e67e22",
}
_SPEEDUPS = ("loop", "mambapy")


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw what the results have; return the files."""
    import matplotlib

    matplotlib.use("Agg")
    folder.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    rows = results.select("encoder", "forward", batch=1, precision="float32")
    encoder = [m for m in rows if m.samples]
    if times := [m for m in encoder if m.unit == "s"]:
        title = "An encoder's forward pass, 12 blocks of 256"
        files += _lines(folder / "encoder-time", times, "seconds", title, "seconds of computing")
    if peaks := [m for m in encoder if m.unit == "bytes"]:
        title = "Memory that an encoder's forward pass takes"
        files += _lines(folder / "encoder-memory", peaks, "seconds", title, "GB", 1e-9)
    scans = results.select("scan", "forward", unit="s", batch=1, dtype="float32")
    if times := [m for m in scans if m.samples]:
        title = "The selective scan forward, 512 channels, 16 states"
        files += _lines(folder / "scan-time", times, "length", title, "milliseconds", 1e3)
    enhancement = results.select("enhancement", "forward", unit="s")
    if times := [m for m in enhancement if m.samples]:
        title = "A separator's forward pass"
        files += _lines(
            folder / "enhancement-time", times, "seconds", title, "seconds of computing"
        )
    if speedups := _speedups(results):
        files += _bars(folder / "speed-up", speedups)
    return files


def _style(subject: str) -> dict[str, Any]:
    if subject in (FLOOR, "c++"):
        return {"color": "black", "linestyle": ":", "marker": "."}
    ours = subject.startswith("ours") or "mamba" in subject
    line = "-" if ours else "--"
    return {"color": _COLORS.get(subject), "linestyle": line, "marker": "o", "markersize": 4}


def _lines(
    stem: Path, rows: Iterable[Measurement], axis: str, title: str, unit: str, scale: float = 1.0
) -> list[Path]:
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")
    points: dict[str, dict[float, Measurement]] = {}
    for m in rows:
        points.setdefault(m.subject, {}).setdefault(m.size[axis], m)
    for subject, found in points.items():
        lengths = sorted(found)
        middle = [found[n].median * scale for n in lengths]
        axes.plot(lengths, middle, label=subject, **_style(subject))
        low, high = ([f(found[n].samples) * scale for n in lengths] for f in (min, max))
        axes.fill_between(lengths, low, high, alpha=0.15, color=_style(subject)["color"], lw=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({length for found in points.values() for length in found})
    axes.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xlabel("seconds of speech" if axis == "seconds" else "frames")
    axes.set_ylabel(unit)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    return save_figure(figure, stem, dpi=150)


def _speedups(results: Results) -> dict[str, float]:
    """Return how many times faster ours is than each peer, by a name of the comparison."""
    found: dict[str, float] = {}
    for m in results.select("scan", unit="s", dtype="float32"):
        ours = results.find("scan", m.case, "ours", **m.size)
        if m.subject in _SPEEDUPS and m.samples and ours:
            name = f"scan, {m.case}, {m.size['batch']} x {m.size['length']}: {m.subject}"
            found[name] = ratio(m, ours)
    peers = results.select("encoder", "forward", "conformer", "s", batch=1, precision="float32")
    for subject in ("conbimamba-ext", "conbimamba-inn"):
        for m in sorted(peers, key=lambda m: m.size["seconds"]):
            ours = results.find("encoder", "forward", subject, **m.size)
            if m.samples and ours:
                found[f"{subject}, {m.size['seconds']:g} s: conformer"] = ratio(m, ours)
        for m in results.select("training", "step", "conformer", "s", precision="float32"):
            ours = results.find("training", "step", subject, **m.size)
            if m.samples and ours:
                size = f"{m.size['batch']} x {m.size['seconds']:g} s"
                found[f"{subject}, training, {size}: conformer"] = ratio(m, ours)
    return found


def _bars(stem: Path, speedups: dict[str, float]) -> list[Path]:
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FuncFormatter

    figure, axes = plt.subplots(figsize=(8, 1 + 0.35 * len(speedups)), layout="constrained")
    names = list(reversed(speedups))
    bars = axes.barh(names, [speedups[name] for name in names], color=_COLORS["ours"])
    axes.axvline(1, color="black", lw=1, zorder=0)
    for bar, name in zip(bars, names, strict=True):
        # Right of the line at 1 also where ours is slower.
        end, middle = max(bar.get_width(), 1), bar.get_y() + bar.get_height() / 2
        axes.annotate(
            f"{speedups[name]:.3g}x", (end, middle), (3, 0), textcoords="offset points", va="center"
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.margins(x=0.15)
    axes.set_title("How many times faster than its peer")
    return save_figure(figure, stem, dpi=150)
