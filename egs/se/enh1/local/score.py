"""Stage 8: scores each utterance of a set, noisy and enhanced, by the paper's measures.

Writes one file a measure, as ESPnet's ``enh_scoring`` does, into ``dump/raw/SET/scoring`` (noisy)
and ``EXPERIMENT/enhanced_SET/scoring``, and the means into ``EXPERIMENT/RESULTS.md``, which is
packed with the model; of another set than ``test`` into ``RESULTS_SET.md``.
"""

import argparse
import contextlib
import functools
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from pathlib import Path

from mixing import put, read

from espnet_bimamba.errors import BiMambaError

sys.path.append(str(Path(__file__).resolve().parents[2]))
from measures import MEASURES, MeasureError, measures

type Scores = dict[str, dict[str, float]]


def main(argv: Sequence[str] | None = None) -> int:
    """Score a set; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", type=Path, required=True, help="exp/enh_TAG")
    parser.add_argument("--set", default="test")
    parser.add_argument("--dump", type=Path, default=Path("dump/raw"))
    parser.add_argument("--nj", type=int, default=1, help="processes")
    args = parser.parse_args(argv)
    observed = args.dump / args.set
    enhanced = args.experiment / f"enhanced_{args.set}"
    try:
        clean = _table(observed / "spk1.scp")
        found = {
            "noisy": _scored(clean, observed / "wav.scp", observed / "scoring", args.nj),
            "enhanced": _scored(clean, enhanced / "spk1.scp", enhanced / "scoring", args.nj),
        }
    except BiMambaError as error:
        print(error, file=sys.stderr)
        return 2
    lines = ["# RESULTS", "", f"{args.set}, {len(clean)} utterances, means:", "", *_means(found)]
    name = "RESULTS.md" if args.set == "test" else f"RESULTS_{args.set}.md"
    put(args.experiment / name, lines)
    print("\n".join(lines))
    return 0


def _scored(clean: dict[str, Path], scp: Path, folder: Path, nj: int) -> Scores:
    """Score what ``scp`` lists; or read what was scored after it was written, if it is all."""
    files = [folder / f"{file}_spk1" for file in MEASURES.values()]
    if all(f.is_file() and f.stat().st_mtime > scp.stat().st_mtime for f in files):
        scored = {
            measure: {name: float(value) for name, value in _rows(file)}
            for measure, file in zip(MEASURES, files, strict=True)
        }
        if all(scores.keys() == clean.keys() for scores in scored.values()):
            return scored
    other = _table(scp)
    if odd := sorted(clean.keys() ^ other.keys()):
        raise MeasureError(f"{scp} and its references differ, {odd[0]} the first")
    names = sorted(clean)
    print(f"scoring {len(names)} utterances of {scp}", flush=True)
    pairs = ([paths[name] for name in names] for paths in (clean, other))
    with ProcessPoolExecutor(nj) if nj > 1 else contextlib.nullcontext() as pool:
        compare = functools.partial(pool.map, chunksize=8) if pool else map
        rows = list(compare(_compared, *pairs, repeat(scp)))
    found = {m: {n: row[m] for n, row in zip(names, rows, strict=True)} for m in MEASURES}
    for measure, file in zip(MEASURES, files, strict=True):
        put(file, [f"{name} {value}" for name, value in found[measure].items()])
    return found


def _compared(clean: Path, other: Path, scp: Path) -> dict[str, float]:
    try:
        return measures(read(clean), read(other))
    except MeasureError as error:
        raise MeasureError(f"{other} of {scp}: {error}") from error


def _table(scp: Path) -> dict[str, Path]:
    if not scp.is_file():
        raise MeasureError(f"{scp} is missing: run the stages before 8 first")
    return {name: Path(path) for name, path in _rows(scp)}


def _rows(file: Path) -> list[tuple[str, str]]:
    rows = (line.partition(" ") for line in file.read_text(encoding="utf-8").splitlines())
    return [(name, value.strip()) for name, _, value in rows]


def _means(found: dict[str, Scores]) -> list[str]:
    rows = [["", *MEASURES], ["---"] * (len(MEASURES) + 1)]
    for kind, scores in found.items():
        means = [f"{statistics.mean(scores[measure].values()):.2f}" for measure in MEASURES]
        rows.append([kind, *means])
    return [f"| {' | '.join(row)} |" for row in rows]


if __name__ == "__main__":
    sys.exit(main())
