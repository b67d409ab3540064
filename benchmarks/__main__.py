"""``python -m benchmarks``: run, report, plot."""

import argparse
import datetime
import functools
import json
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

# PyTorch's profiler says a lot that has nothing to do with us; it listens at its import.
os.environ.setdefault("KINETO_LOG_LEVEL", "5")

from benchmarks import decoding, encoders, enhancement, layers, ops, plots, training
from benchmarks.report import BUSY, relative, report, unexplained
from benchmarks.results import Bar, Measurement, Results, table
from benchmarks.timing import Settings, machine, obey, versions

FORMAT = 1
PARTS = {
    "ops": ops.run,
    "layers": layers.run,
    "encoders": encoders.run,
    # Before training, after which this process keeps several GB that an hour needs.
    "hour": encoders.run_hour,
    "training": training.run,
    "decoding": decoding.run,
    "enhancement": enhancement.run,
}
#: Parts of a full run; what is not among them is measured when it is asked for.
USUAL = tuple(part for part in PARTS if part != "enhancement")


def main(argv: list[str] | None = None) -> int:
    """Do what the command line asks for."""
    args = _parser().parse_args(argv)
    return args.do(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    run_ = commands.add_parser("run", help="measure, print the table, write JSON and plots")
    run_.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    run_.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    run_.add_argument("--scale", default="full", choices=["full", "quick", "tiny"])
    run_.add_argument("--only", nargs="+", choices=PARTS, help="parts of a full run")
    run_.add_argument(
        "--malloc",
        default="keep",
        choices=["keep", "default"],
        help="what is done with freed memory",
    )
    run_.add_argument("--out", type=Path, default=Path("exp/bench"), help="folder of the results")
    run_.add_argument("--command", default="", help="what the report says was typed")
    run_.set_defaults(do=_run)
    for name, do, text in (
        ("table", _table, "print the bars of a run"),
        ("report", _report, "write a run as Markdown to stdout"),
        ("plot", _plot, "draw a run again"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("json", type=Path)
        command.set_defaults(do=do)
        if name == "report":
            command.add_argument(
                "--remark", action="append", default=[], help="what a reader must know of the run"
            )
            command.add_argument(
                "--plots", type=Path, help="folder of plots to show, below docs; drawn anew"
            )
        if name == "plot":
            command.add_argument("--out", type=Path, required=True)
    fresh = commands.add_parser("fresh", help="used by the benchmarks themselves")
    fresh.add_argument("order")
    fresh.set_defaults(do=_fresh)
    return parser


def _run(args: argparse.Namespace) -> int:
    settings = Settings(args.device, args.threads, args.scale, args.malloc)
    settings.apply()
    start = time.perf_counter()
    parts = args.only or [name for name in USUAL if args.scale != "quick" or name != "hour"]
    run: dict[str, Any] = {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        "command": args.command or shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]]),
        "settings": asdict(settings),
        "machine": machine(settings),
        "versions": versions(),
        "minutes_of": {},
    }
    if run["machine"]["load_before"] > BUSY:
        _say(f"the machine is busy (load {run['machine']['load_before']:.1f}): ratios will suffer")
    # A run of some parts does not take the place of one of all.
    name = "-".join([f"{args.scale}-{args.device}", *(args.only or [])])
    file = args.out / f"{name}.json"
    results = Results()
    for part in parts:
        _say(f"{part} ...")
        part_start = time.perf_counter()
        results += PARTS[part](settings)
        run["minutes_of"][part] = (time.perf_counter() - part_start) / 60
        run["minutes"] = (time.perf_counter() - start) / 60
        run["machine"]["load_after"] = os.getloadavg()[0]
        bars = all_bars(results, settings.device)
        _write(file, run | {"bars": [b.as_dict() for b in bars]}, results)
    print(table(bars))
    print(f"\n{file}, {run['minutes']:.1f} minutes")
    if args.scale != "quick":
        drawn = plots.draw(results, args.out / f"plots-{args.device}")
        print(*(f"{plot}" for plot in drawn), sep="\n")
    return 0


def _write(file: Path, run: dict[str, Any], results: Results) -> None:
    """Write what was measured so far: a part that fails takes none of the others with it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(run | {"measurements": [asdict(m) for m in results]}, indent=1))


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def all_bars(results: Results, device: str) -> list[Bar]:
    """Return every bar that the measured parts are held to on ``device``."""
    known = {m.benchmark for m in results}
    rooms: dict[str, Callable[[Results], list[Bar]]] = {
        "encoder": functools.partial(encoders.bars, device=device),
        "training": training.bars,
        "enhancement": enhancement.bars,
    }
    if device == "cpu":
        # Theirs are the bars of the CPU's kernels.
        rooms = {"scan": ops.bars, "layer": layers.bars} | rooms
    return [bar for name, bars in rooms.items() if name in known for bar in bars(results)]


def load(file: Path) -> tuple[dict[str, Any], Results]:
    """Read a run.

    Raises:
        ValueError: It was written in another format.
    """
    run = json.loads(file.read_text())
    if run.get("format") != FORMAT:
        raise ValueError(f"{file} has format {run.get('format')}, this reads {FORMAT}")
    return run, Results(Measurement(**m) for m in run.pop("measurements"))


def _table(args: argparse.Namespace) -> int:
    run, results = load(args.json)
    print(table(all_bars(results, run["settings"]["device"])))
    return 0


def _report(args: argparse.Namespace) -> int:
    run, results = load(args.json)
    bars = all_bars(results, run["settings"]["device"])
    run["parts_missing"] = [part for part in USUAL if part not in run["minutes_of"]]
    run["remarks"] = args.remark
    shown: list[str] = []
    if args.plots:
        drawn = plots.draw(results, args.plots)
        shown = [relative(file, Path("docs")) for file in drawn if file.suffix == ".svg"]
    print(report(run, results, bars, shown), end="")
    if missing := unexplained(bars, run["settings"]["device"]):
        _say(f"not met and not explained in benchmarks/explanations.toml: {', '.join(missing)}")
    return 0


def _plot(args: argparse.Namespace) -> int:
    print(*plots.draw(load(args.json)[1], args.out), sep="\n")
    return 0


def _fresh(args: argparse.Namespace) -> int:
    print(obey(args.order))
    return 0


if __name__ == "__main__":
    sys.exit(main())
