"""Tables and learning curves of the so762 trainings, from what ESPnet left in their folders.

Errors are counted with editdistance, not by sclite, so that they are known for each utterance and
the test set can be resampled.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bootstrap import DRAWS, Array, Resampling, interval
from document import markdown, put
from runs import SETS, ResultsError, Run, Text, add_recipe, read_all, units

from espnet_bimamba.errors import BiMambaError
from espnet_bimamba.files import save_figure

RATES = ("CER", "WER")
PROGRAM = "egs/so762/results.py"


@dataclass(frozen=True)
class Scored:
    """A model's errors on a set.

    Attributes:
        errors: ``(seeds, utterances)``.
        lengths: ``(utterances,)``, of the references.
    """

    errors: Array
    lengths: Array

    @property
    def of_seeds(self) -> list[float]:
        """The error rate of each seed."""
        return [float(errors.sum() / self.lengths.sum()) for errors in self.errors]

    @property
    def rate(self) -> float:
        """The mean of the seeds' error rates."""
        return statistics.mean(self.of_seeds)

    def drawn(self, resampling: Resampling) -> Array:
        """Return the mean of the seeds' error rates on each draw, of utterances and of seeds."""
        return resampling.rates_of_seeds(self.errors, self.lengths)


def scored(texts: Sequence[Text], kind: str) -> Scored:
    """Count the errors of several trainings of one model.

    Args:
        texts: The set, as each training heard it.
        kind: ``CER`` or ``WER``.

    Raises:
        ResultsError: The trainings' references differ.
    """
    if any(text.references != texts[0].references for text in texts):
        raise ResultsError("trainings of one model were scored on different references")
    lengths = [len(units(kind, said)) for said in texts[0].references]
    errors = [
        [distance(kind, *pair) for pair in zip(text.references, text.hypotheses, strict=True)]
        for text in texts
    ]
    return Scored(np.array(errors, dtype=np.float64), np.array(lengths, dtype=np.float64))


def distance(kind: str, said: str, heard: str) -> int:
    """Return the fewest insertions, deletions and substitutions between two sentences."""
    import editdistance

    return editdistance.eval(units(kind, said), units(kind, heard))


class Results:
    """All trainings, grouped by model, the one that others are compared with first.

    Args:
        runs: The trainings.
        baseline: The model that others are compared with.
        by: What is resampled: ``speaker`` or ``utterance``.

    Raises:
        ResultsError: The baseline was not trained.
    """

    def __init__(self, runs: list[Run], baseline: str, by: str = "speaker") -> None:
        self.models: dict[str, list[Run]] = {}
        for run in sorted(runs, key=lambda run: (run.model != baseline, run.model, run.seed)):
            self.models.setdefault(run.model, []).append(run)
        if baseline not in self.models:
            raise ResultsError(f"no training of {baseline}; there are {', '.join(self.models)}")
        self.baseline = baseline
        self.by = by

    def scored(self, model: str, name: str, kind: str) -> Scored | None:
        """Return a model's errors on a set, over the seeds that were decoded."""
        texts = [run.texts[name] for run in self.models[model] if name in run.texts]
        return scored(texts, kind) if texts else None

    def resampling(self, name: str) -> Resampling | None:
        """Return the draws of a set, the same for all models; None if nobody decoded it.

        Raises:
            ResultsError: Two trainings have other references.
        """
        texts = [
            run.texts[name] for runs in self.models.values() for run in runs if name in run.texts
        ]
        if not texts:
            return None
        if any(text.references != texts[0].references for text in texts):
            raise ResultsError(f"the trainings were scored on different references of {name}")
        count = len(texts[0].references)
        return Resampling(
            texts[0].speakers if self.by == "speaker" else list(map(str, range(count)))
        )


def error_rates(results: Results) -> str:
    """Return the table of error rates in per cent, with 95 % confidence intervals."""
    columns = [(name, kind) for name in SETS for kind in RATES]
    rows = []
    for model, runs in results.models.items():
        cells = [_with_interval(results, model, name, kind) for name, kind in columns]
        rows.append([model, str(len(runs)), *cells])
    return markdown(["model", "seeds", *(f"{name} {kind}" for name, kind in columns)], rows)


def _with_interval(results: Results, model: str, name: str, kind: str) -> str:
    found, resampling = results.scored(model, name, kind), results.resampling(name)
    if found is None or resampling is None:
        return "-"
    count, trained = len(found.errors), len(results.models[model])
    note = f", {count} of {trained} seeds" if count < trained else ""
    return f"{100 * found.rate:.1f} {_range(interval(found.drawn(resampling)))}{note}"


def _range(limits: tuple[float, float], sign: str = "") -> str:
    low, high = (f"{100 * limit:{sign}.1f}" for limit in limits)
    return f"({low} to {high})"


def differences(results: Results) -> str:
    """Return the table of differences to the baseline in points, paired, with intervals."""
    columns = [(name, kind) for name in SETS for kind in RATES]
    rows = [
        [model, *(_difference(results, model, name, kind) for name, kind in columns)]
        for model in results.models
        if model != results.baseline
    ]
    return markdown(["model", *(f"{name} {kind}" for name, kind in columns)], rows)


def _difference(results: Results, model: str, name: str, kind: str) -> str:
    ours, theirs = (results.scored(m, name, kind) for m in (model, results.baseline))
    resampling = results.resampling(name)
    if ours is None or theirs is None or resampling is None:
        return "-"
    drawn = ours.drawn(resampling) - theirs.drawn(resampling)
    return f"{100 * (ours.rate - theirs.rate):+.1f} {_range(interval(drawn), '+')}"


def trainings(results: Results) -> str:
    """Return the table of trainings: size, time, losses, the best epoch, errors on test."""
    head = ["model", "seed", "parameters", "epochs", "seconds an epoch"]
    head += ["last training loss", "last dev loss", "lowest", "in epoch"]
    head += ["best dev CER", "in epoch"]
    runs = [run for found in results.models.values() for run in found]
    rows = [
        [run.model, str(run.seed), run.parameters, *_course(run), *_on_test(run)] for run in runs
    ]
    return markdown([*head, *(f"test {kind}" for kind in RATES)], rows)


def _course(run: Run) -> list[str]:
    if not run.epochs:
        return ["0", *["-"] * 7]
    spent = statistics.median(epoch.seconds for epoch in run.epochs)
    last, lowest = run.epochs[-1], min(run.epochs, key=lambda epoch: epoch.dev_loss)
    losses = [f"{loss:.1f}" for loss in (last.train_loss, last.dev_loss, lowest.dev_loss)]
    rates = {epoch.number: f"{100 * epoch.dev_cer:.1f}" for epoch in run.epochs}
    best = [rates[run.best], str(run.best)] if run.best in rates else ["-", "-"]
    return [str(len(run.epochs)), f"{spent:.0f}", *losses, str(lowest.number), *best]


def _on_test(run: Run) -> list[str]:
    text = run.texts.get("test")
    if text is None:
        return ["-" for _ in RATES]
    return [f"{100 * scored([text], kind).rate:.1f}" for kind in RATES]


def seeds(results: Results) -> str:
    """Return mean and standard deviation over a model's seeds, where there are several."""
    rows = []
    for model in results.models:
        for name in SETS:
            found = [results.scored(model, name, kind) for kind in RATES]
            rates = [s.of_seeds for s in found if s and len(s.of_seeds) > 1]
            if rates:
                rows.append([model, name, str(len(rates[0])), *map(_spread, rates)])
    return markdown(["model", "set", "seeds", *RATES], rows)


def _spread(rates: list[float]) -> str:
    return f"{100 * statistics.mean(rates):.1f} ± {100 * statistics.stdev(rates):.1f}"


def report(results: Results) -> str:
    """Return all tables under their headings."""
    drawn = f"95 % bootstrap intervals, {DRAWS} draws of {results.by}s and of the model's seeds"
    parts = {
        f"Error rates in per cent, mean over the seeds ({drawn})": error_rates(results),
        f"Difference to {results.baseline} in points, paired ({drawn})": differences(results),
        "Error rates in per cent, mean and standard deviation over the seeds": seeds(results),
        "Each training": trainings(results),
    }
    return "\n\n".join(f"{heading}:\n\n{table}" for heading, table in parts.items())


def draw(results: Results, stem: Path) -> list[Path]:
    """Draw CER and loss on dev by epoch, one line a training, as PNG and SVG; return the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for index, (model, runs) in enumerate(results.models.items()):
        for run in runs:
            numbers = [epoch.number for epoch in run.epochs]
            rates = [100 * epoch.dev_cer for epoch in run.epochs]
            losses = [epoch.dev_loss for epoch in run.epochs]
            for axes, course in zip(panels, (rates, losses), strict=True):
                axes.plot(
                    numbers,
                    course,
                    label=model if run is runs[0] else None,
                    color=plt.get_cmap("tab10")(index % 10),
                    linestyle="--" if model == results.baseline else "-",
                    linewidth=1.2,
                )
    for axes, label in zip(panels, ("dev CER in %, greedy CTC", "dev loss"), strict=True):
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
    panels[1].legend(fontsize=8)
    figure.suptitle("so762, each training")
    return save_figure(figure, stem, dpi=100)


def main(argv: list[str] | None = None) -> int:
    """Read the trainings, write tables and curves; return the exit code."""
    args = _parse(argv)
    try:
        results = Results(read_all(args.recipe), args.baseline, args.by)
        text = report(results)
        if args.into:
            put(text, args.into, PROGRAM)
        print(text)
        if args.plot:
            print("", *draw(results, args.plot), sep="\n")
    except (BiMambaError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0] if __doc__ else "",
        epilog="example: python egs/so762/results.py --into docs/results.md "
        "--plot docs/plots/so762-curves",
    )
    add_recipe(parser, default="exp/so762/egs2/so762/asr1")
    parser.add_argument("--baseline", default="conformer", help="default: %(default)s")
    parser.add_argument("--by", choices=["speaker", "utterance"], default="speaker")
    parser.add_argument("--into", type=Path, help="a Markdown file, between its markers")
    parser.add_argument("--plot", type=Path, help="draw the curves: a path without its suffix")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
