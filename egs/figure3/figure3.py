"""The paper's Figure 3: decision boundaries of BiMamba without and with a feed-forward network.

The paper shows a picture and gives neither data nor sizes, so both are chosen here, and controls
added: see docs/figure3.md.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from boundaries import BOUNDARIES, HALF_WIDTH, Points
from classifiers import Classifier, Design, Training, accuracy, parameters, trained

from espnet_bimamba.files import save_figure, write_whole

TEST_POINTS = 4000
SEEDS = 3

#: Seeds of the data lie apart from those of the models.
DATA_SEED = 1000

#: The seed and the rows whose boundaries are drawn.
DRAWN_SEED = 0
DRAWN = ("no layer", "BiMamba", "BiMamba + FFN", "BiMamba, as large", "2 BiMamba, as large")
DRAWN_POINTS = 500

#: What is compared seed by seed.
WITH_FFN = "BiMamba + FFN"
WITHOUT_FFN = ("BiMamba", "BiMamba, as large", "2 BiMamba, as large")

#: Of the points with label 0 and 1, and of the plane from the one to the other.
COLORS = ("#1b3a93", "#93101f")
SHADES = ("#a9bfe8", "#c6d3ee", "#e3e8f4", "#f6e3de", "#efc5bb", "#e6a698")
PIXELS = 120
EDGE = 1.25 * HALF_WIDTH

#: Row, its design, boundary, seed.
type Job = tuple[str, Design, str, int]
type Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Outcome:
    """How one classifier did."""

    row: str
    boundary: str
    seed: int
    train_accuracy: float
    test_accuracy: float


def rows(variations: bool = False) -> dict[str, Design]:
    """Return what is compared, by the name of its row.

    Four designs belong together: a layer, the same with a feed-forward network, and without one
    but with as many parameters, in one wider layer or in two.

    Args:
        variations: Whether to vary what the paper leaves open, too.
    """
    main = {
        "no layer": Design(layers=0),
        "attention": Design("attention"),
        "attention + FFN": Design("attention", ffn=True),
        **_family("BiMamba", Design(), wider=19, two=12),
    }
    if not variations:
        return main
    return {
        **main,
        **_family("BiMamba of width 6", Design(width=6), wider=7, two=4),
        **_family("BiMamba, no residual", Design(residual=False), wider=19, two=12),
        **_family("InnBiMamba", Design("innbimamba"), wider=20, two=12),
        **_family("BiMamba, 2 frames", Design(frames=2), wider=19, two=12),
    }


def _family(name: str, design: Design, wider: int, two: int) -> dict[str, Design]:
    """Return four designs; ``wider`` and ``two`` are the widths that match the second's count."""
    return {
        name: design,
        f"{name} + FFN": replace(design, ffn=True),
        f"{name}, as large": replace(design, width=wider),
        f"2 {name}, as large": replace(design, width=two, layers=2),
    }


def data(boundary: str, seed: int, training: Training) -> tuple[Points, Points]:
    """Draw the training and the test points, the same for every classifier of a seed."""
    generator = torch.Generator().manual_seed(DATA_SEED + seed)
    draw = BOUNDARIES[boundary]
    return draw(training.points, generator), draw(TEST_POINTS, generator)


def outcome(job: Job, training: Training) -> tuple[Outcome, Array | None]:
    """Train and test one classifier; return what it takes for which label, too, if it is drawn."""
    row, design, boundary, seed = job
    train, test = data(boundary, seed, training)
    model = trained(design, train, training, seed)
    done = Outcome(row, boundary, seed, accuracy(model, train), accuracy(model, test))
    return done, shares(model) if seed == DRAWN_SEED and row in DRAWN else None


@torch.inference_mode()
def shares(model: Classifier) -> Array:
    """Return the probability of label 1, ``(y, x)``, on a grid over the picture."""
    ticks = torch.linspace(-EDGE, EDGE, PIXELS)
    y, x = torch.meshgrid(ticks, ticks, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten()], dim=-1)
    return torch.sigmoid(model(points)).view(PIXELS, PIXELS).numpy()


def table(outcomes: list[Outcome], designs: dict[str, Design]) -> str:
    """Return test accuracies in per cent, mean and standard deviation over the seeds."""
    lines = [
        f"| | width | parameters | {' | '.join(BOUNDARIES)} |",
        f"|---|---|---|{'---|' * len(BOUNDARIES)}",
    ]
    for row, design in designs.items():
        cells = [_cell(outcomes, row, boundary) for boundary in BOUNDARIES]
        counted = f"{design.width} | {parameters(design):,}"
        lines.append(f"| {row} | {counted} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(outcomes: list[Outcome], row: str, boundary: str) -> str:
    found = [100 * o.test_accuracy for o in outcomes if (o.row, o.boundary) == (row, boundary)]
    spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.1f}{spread}"


def gains(outcomes: list[Outcome]) -> str:
    """Return what the feed-forward network adds to BiMamba, in points of test accuracy by seed."""
    reached = {(o.row, o.boundary, o.seed): 100 * o.test_accuracy for o in outcomes}
    seeds = sorted({o.seed for o in outcomes})
    lines = [
        f"| {WITH_FFN} against | {' | '.join(BOUNDARIES)} |",
        f"|---|{'---|' * len(BOUNDARIES)}",
    ]
    for row in WITHOUT_FFN:
        cells = []
        for boundary in BOUNDARIES:
            found = [reached[WITH_FFN, boundary, s] - reached[row, boundary, s] for s in seeds]
            each = ", ".join(_signed(points) for points in found)
            cells.append(f"{each} (mean {_signed(statistics.mean(found))})")
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _signed(points: float) -> str:
    rounded = f"{points:+.1f}"
    return "0.0" if float(rounded) == 0 else rounded


def record(outcomes: list[Outcome], training: Training) -> str:
    """Return settings and outcomes as JSON, an outcome a line."""
    lines = ",\n".join(json.dumps(asdict(outcome)) for outcome in outcomes)
    return f'{{"training": {json.dumps(asdict(training))}, "outcomes": [\n{lines}\n]}}\n'


def draw(
    outcomes: list[Outcome],
    grids: dict[tuple[str, str], Array],
    training: Training,
    stem: Path,
) -> list[Path]:
    """Draw the boundaries of :data:`DRAWN` over their training points, as PNG and SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    size = (2.1 * len(DRAWN), 2.3 * len(BOUNDARIES))
    figure, panels = plt.subplots(len(BOUNDARIES), len(DRAWN), figsize=size, layout="constrained")
    reached = {(o.row, o.boundary): o.test_accuracy for o in outcomes if o.seed == DRAWN_SEED}
    for line, boundary in zip(panels, BOUNDARIES, strict=True):
        train, _ = data(boundary, DRAWN_SEED, training)
        for axes, row in zip(line, DRAWN, strict=True):
            _panel(axes, train, grids[row, boundary])
            axes.set_title(f"{row}\n{boundary}, {reached[row, boundary]:.1%}", fontsize=8)
    return save_figure(figure, stem, dpi=80)


def _panel(axes: Any, points: Points, grid: Array) -> None:
    from matplotlib.colors import ListedColormap

    area = (-EDGE, EDGE, -EDGE, EDGE)
    # In few shades, with few of the points, and those as pixels: files stay small.
    shades = ListedColormap(SHADES)
    axes.imshow(grid, shades, vmin=0, vmax=1, extent=area, origin="lower", interpolation="nearest")
    axes.contour(grid, [0.5], extent=area, origin="lower", colors="black", linewidths=0.8)
    xy, labels = points.xy[:DRAWN_POINTS].numpy(), points.labels[:DRAWN_POINTS].numpy()
    for label, color in enumerate(COLORS):
        axes.plot(*xy[labels == label].T, ".", color=color, ms=3, mew=0, rasterized=True)
    axes.set(xlim=(-EDGE, EDGE), ylim=(-EDGE, EDGE), xticks=[], yticks=[])


def main(argv: list[str] | None = None) -> int:
    """Run the experiment; return the exit code."""
    args = _parse(argv)
    start = time.perf_counter()
    training = Training(updates=args.updates)
    designs = rows(args.variations)
    jobs = [
        (row, design, boundary, seed)
        for row, design in designs.items()
        for boundary in BOUNDARIES
        for seed in range(args.seeds)
    ]
    done = list(_run(jobs, training, args.processes))
    outcomes = [result for result, _ in done]
    args.out.mkdir(parents=True, exist_ok=True)
    text = f"{table(outcomes, designs)}\n\n{gains(outcomes)}"
    write_whole(args.out / "table.md", text + "\n")
    write_whole(args.out / "figure3.json", record(outcomes, training))
    grids = {(o.row, o.boundary): grid for o, grid in done if grid is not None}
    files = draw(outcomes, grids, training, args.out / "figure3")
    used = f"{time.perf_counter() - start:.0f} s, {_cpu_seconds():.0f} s of CPU time"
    print(text, "", *files, used, sep="\n")
    return 0


def _cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0] if __doc__ else "",
        epilog="Takes two minutes of CPU time with three seeds and without variations.",
    )
    parser.add_argument("--out", type=Path, default=Path("exp/figure3"), help="exp/figure3")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many; {SEEDS}")
    parser.add_argument("--updates", type=int, default=Training.updates, help="of each classifier")
    parser.add_argument("--variations", action="store_true", help="more rows, four times the time")
    parser.add_argument("--processes", type=int, default=2, help="2, each with one thread")
    args = parser.parse_args(argv)
    for option in ("seeds", "updates", "processes"):
        if getattr(args, option) < 1:
            parser.error(f"--{option} must be at least 1, not {getattr(args, option)}")
    return args


def _run(
    jobs: list[Job], training: Training, processes: int
) -> Iterable[tuple[Outcome, Array | None]]:
    # The operations are so small that a second thread within one brings nothing.
    torch.set_num_threads(1)
    run = partial(outcome, training=training)
    if processes == 1:
        yield from map(run, jobs)
        return
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        yield from pool.map(run, jobs)


if __name__ == "__main__":
    sys.exit(main())
