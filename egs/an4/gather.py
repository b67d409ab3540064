"""Gathers the word error rates of a model trained with several seeds: Table 21.

    python3 egs/an4/gather.py EXP [--models M ...] [--seeds S ...] [--set test]

reads ``EXP/asr_MODEL_seedSEED/RESULTS.md``, which ESPnet's stage 13 writes, and prints a table
with the mean and both variances: the paper's divides by the number of seeds (its 77.71 and 1.11
come out so); the one that estimates what other seeds would give divides by one less. A seed that
is named must have a result, and one program must have scored them all. The table and a plot are
written into EXP, too: ``seeds.md`` and ``seeds.png``.
"""

import argparse
import re
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from espnet_bimamba.errors import BiMambaError, OptionError, RecipeError
from espnet_bimamba.files import draft_of, write_whole

HEADING = re.compile(r"#+ (WER|CER|TER)")
NAME = re.compile(r"asr_(?P<model>.+)_seed(?P<seed>\d+)")
COLUMNS = 9

#: What ``egs/mini_an4/results.py`` writes, and ESPnet does not.
BY_JIWER = "- scored by: `jiwer`"

#: Model -> seed -> its RESULTS.md.
type Files = dict[str, dict[int, Path]]


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table, and writes it and the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("exp", type=Path, metavar="EXP", help="the recipe's folder exp")
    parser.add_argument("--models", nargs="+", metavar="MODEL", help="which, and in which order")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="likewise")
    parser.add_argument("--set", default="test", help="name of the test set (default: test)")
    args = parser.parse_args(argv)
    try:
        _refuse_twice("--models", args.models or ())
        _refuse_twice("--seeds", args.seeds or ())
        files = found(args.exp)
        models = args.models or sorted(files)
        files = {model: _picked(files, model, args.seeds, args.exp) for model in models}
        seeds = args.seeds or sorted({seed for row in files.values() for seed in row})
        _refuse_two_programs(file for row in files.values() for file in row.values())
        rates = {
            model: {seed: word_error_rate(file, args.set) for seed, file in row.items()}
            for model, row in files.items()
        }
    except BiMambaError as error:
        print(error, file=sys.stderr)
        return 2
    for model, row in rates.items():
        for seed in seeds:
            if seed not in row:
                what = f"no result of {model} with seed {seed}: its mean is over the others"
                print(f"warning: {what}", file=sys.stderr)
    lines = table(rates, seeds)
    print(lines, end="")
    try:
        write_whole(args.exp / "seeds.md", lines)
        draw(rates, args.exp / "seeds.png", args.set)
    except OSError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _refuse_twice(option: str, values: Sequence[object]) -> None:
    # One training counted twice would move the mean and shrink the variance.
    twice = [value for value, times in Counter(values).items() if times > 1]
    if twice:
        given = " ".join(map(str, values))
        raise OptionError(option, given, f"each but once, unlike {' '.join(map(str, twice))}")


def found(exp: Path) -> Files:
    """Every experiment that has results.

    Raises:
        RecipeError: There are none.
    """
    files: Files = {}
    for file in sorted(exp.glob("asr_*_seed*/RESULTS.md")):
        if match := NAME.fullmatch(file.parent.name):
            files.setdefault(match["model"], {})[int(match["seed"])] = file
    if not files:
        raise RecipeError(f"{exp} holds no asr_MODEL_seedSEED/RESULTS.md", "run stages 11 to 13")
    return files


def _picked(files: Files, model: str, seeds: Sequence[int] | None, exp: Path) -> dict[int, Path]:
    """The results of a model, all those that were asked for."""
    row = files.get(model, {})
    if not row:
        raise RecipeError(f"{exp} holds no results of {model}", f"there are {', '.join(files)}")
    if seeds is None:
        return row
    if missing := sorted(set(seeds) - set(row)):
        raise RecipeError(
            f"{exp} holds no results of {model} with seed {', '.join(map(str, missing))}",
            "run their stages 11 to 13, or leave them out of --seeds",
        )
    return {seed: row[seed] for seed in seeds}


def _refuse_two_programs(files: Iterable[Path]) -> None:
    # sclite and jiwer read words differently.
    scored: dict[bool, list[Path]] = {True: [], False: []}
    for file in files:
        scored[BY_JIWER in file.read_text()].append(file)
    jiwer, sclite = scored[True], scored[False]
    if jiwer and sclite:
        raise RecipeError(
            f"two programs scored the seeds: jiwer scored {len(jiwer)} of them "
            f"({jiwer[0].parent.name} the first), sclite {len(sclite)}",
            "delete the RESULTS.md of one kind and score those again",
        )


def word_error_rate(file: Path, test_set: str) -> float:
    """The rate in percent that a RESULTS.md, of sclite or jiwer, gives for a test set.

    Raises:
        RecipeError: It gives none, or different ones for several ways of decoding, or no number.
    """
    given: dict[str, str] = {}
    sets: list[str] = []
    heading = ""
    for line in file.read_text().splitlines():
        if match := HEADING.fullmatch(line.strip()):
            heading = match[1]
        cells = line.strip().strip("|").split("|")
        if heading != "WER" or len(cells) != COLUMNS or "/" not in cells[0]:
            continue
        sets.append(cells[0].rpartition("/")[2])
        if sets[-1] == test_set:
            given[cells[0]] = cells[7]
    if sets and not given:
        raise RecipeError(
            f"{file} gives no word error rate for {test_set}",
            f"name another set, --set {' or '.join(sorted(set(sets)))}",
        )
    if len(given) != 1:
        what = f"{len(given)} word error rates for {test_set}: {', '.join(given) or 'none'}"
        raise RecipeError(f"{file} gives {what}", "score it again, with one way of decoding")
    rate = given.popitem()[1]
    try:
        return float(rate)
    except ValueError:
        raise RecipeError(
            f"{file} gives {rate!r} where a rate should be", "delete it and score again"
        ) from None


def table(rates: Mapping[str, Mapping[int, float]], seeds: Sequence[int]) -> str:
    """The rates as a table in Markdown; a dash stands where a seed has no result."""
    head = ["model", *map(str, seeds), "mean", "variance (n)", "variance (n - 1)"]
    lines = ["|" + "|".join(head) + "|", "|" + "---|" * len(head)]
    for model, row in rates.items():
        values = list(row.values())
        cells = [model, *(f"{row[seed]:.1f}" if seed in row else "-" for seed in seeds)]
        cells += [f"{statistics.fmean(values):.2f}", f"{statistics.pvariance(values):.2f}"]
        cells += [f"{statistics.variance(values):.2f}" if len(values) > 1 else "-"]
        lines.append("|" + "|".join(cells) + "|")
    return "\n".join(lines) + "\n"


def draw(rates: Mapping[str, Mapping[int, float]], file: Path, test_set: str) -> None:
    """Draws a dot for each seed and a bar at each model's mean."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(1.5 + 1.5 * len(rates), 4), layout="constrained")
    for place, row in enumerate(rates.values()):
        values = list(row.values())
        axes.plot([place] * len(values), values, "o", color=f"C{place}", alpha=0.6)
        axes.hlines(statistics.fmean(values), place - 0.2, place + 0.2, color=f"C{place}")
    axes.set_xticks(range(len(rates)), list(rates))
    axes.set_xlim(-0.5, len(rates) - 0.5)
    axes.set_ylim(0, 1.05 * max(rate for row in rates.values() for rate in row.values()) or 1)
    axes.set_ylabel(f"word error rate on {test_set} (%)")
    axes.set_title("a dot a seed, a bar the mean")
    with draft_of(file) as draft:
        figure.savefig(draft, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
