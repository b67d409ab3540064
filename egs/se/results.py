"""What the trainings of egs/se have brought: gains over the noisy speech, curves, spectrograms.

Gains are those of each utterance, whose means have 95 % confidence intervals: speakers are drawn
anew, each with all mixtures of all clips. Noises and trainings are not drawn: the intervals are for
those that there are. A model of which the gain in one measure may be nothing has failed.
"""

import argparse
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from measures import MEASURES
from pictures import draw_spectrograms

from espnet_bimamba.errors import BiMambaError
from espnet_bimamba.files import save_figure

# Resampling, tables and the reading of ESPnet's logs are those of so762.
sys.path.append(str(Path(__file__).resolve().parents[1] / "so762"))
from bootstrap import DRAWS, Array, Resampling, interval
from document import markdown, put
from runs import ResultsError, add_recipe, best_epoch, epoch_lines, training_log, trainings

PROGRAM = "egs/se/results.py"

type Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Mixture:
    """What a mixture is made of: a clip, a kind of noise, the ratio of both in dB."""

    clip: str
    noise: str
    snr: int


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        model: Its name, as in ``--model``.
        seed: Its seed.
        folder: Its experiment.
        parameters: Their number as the log gives it.
        epochs: Loss of training, loss of validation, seconds, by the epoch.
        best: The epoch whose model was scored, None if none is kept.
        scores: By measure and utterance; empty if it was not scored.
    """

    model: str
    seed: int
    folder: Path
    parameters: str
    epochs: dict[int, tuple[float, ...]]
    best: int | None
    scores: Scores


@dataclass(frozen=True)
class Gain:
    """A mean gain over the noisy speech, and the ends of its interval.

    Attributes:
        score: The mean of the enhanced speech.
        mean: The mean gain.
        low: The interval's lower end.
        high: Its upper one.
    """

    score: float
    mean: float
    low: float
    high: float

    @property
    def certain(self) -> bool:
        """Whether it is a gain: the whole interval is above nothing."""
        return self.low > 0


class Results:
    """All trainings of a working copy, with the mixtures they were scored on.

    Args:
        recipe: The folder that holds ``data``, ``dump`` and ``exp``.
        part: The set: ``test``, which stage 8 scores, or another that ``local/score.py`` has.

    Raises:
        ResultsError: Nothing was trained or nothing was scored, or scores are missing.
    """

    def __init__(self, recipe: Path, part: str = "test") -> None:
        self.recipe = recipe
        self.part = part
        self.mixtures = read_mixtures(recipe / "data" / part / "mixtures.tsv")
        self.noisy = read_scores(recipe / "dump" / "raw" / part / "scoring", self.mixtures)
        if not self.noisy:
            how = "run.sh --stage 8" if part == "test" else f"local/score.py --set {part}"
            raise ResultsError(f"{recipe} has no scores of noisy speech of {part}: {how} first")
        self.models: dict[str, list[Run]] = {}
        for run in read_runs(recipe, part, self.mixtures):
            self.models.setdefault(run.model, []).append(run)
        self.speakers = read_speakers(recipe / "data" / part / "utt2spk", self.mixtures)
        self.resampling = Resampling([self.speakers[name] for name in self.mixtures])

    def gains(self, model: str, measure: str) -> Array | None:
        """Return the gain of each utterance, its mean over the seeds, or None without scores."""
        scores = [run.scores[measure] for run in self.models[model] if run.scores]
        if not scores:
            return None
        noisy = self.noisy[measure]
        return np.array(
            [statistics.mean(of[name] - noisy[name] for of in scores) for name in self.mixtures]
        )

    def gain(self, model: str, measure: str) -> Gain | None:
        """Return the mean gain of a model, None if it was not scored."""
        gains = self.gains(model, measure)
        if gains is None:
            return None
        low, high = interval(self.resampling.rates(gains, np.ones(len(gains))))
        noisy = statistics.mean(self.noisy[measure].values())
        return Gain(noisy + float(gains.mean()), float(gains.mean()), low, high)

    def failed(self, model: str) -> list[str]:
        """Return the measures in which a scored model may have gained nothing."""
        found = {measure: self.gain(model, measure) for measure in MEASURES}
        return [measure for measure, gain in found.items() if gain and not gain.certain]

    @property
    def scored(self) -> list[str]:
        """The models that were scored."""
        return [model for model, runs in self.models.items() if any(run.scores for run in runs)]


def read_mixtures(file: Path) -> dict[str, Mixture]:
    """Return the mixtures of a set by the names of their utterances.

    Raises:
        ResultsError: The table is missing.
    """
    if not file.is_file():
        raise ResultsError(f"{file} is missing: run.sh --stage 1 writes it")
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:]]
    return {name: Mixture(clip, noise, int(snr)) for name, clip, noise, snr in rows}


def read_speakers(file: Path, mixtures: dict[str, Mixture]) -> dict[str, str]:
    """Return who speaks in each mixture.

    Raises:
        ResultsError: The table is missing, or says it of other utterances.
    """
    if not file.is_file():
        raise ResultsError(f"{file} is missing: run.sh --stage 1 writes it")
    lines = file.read_text(encoding="utf-8").splitlines()
    speakers = dict(line.split(maxsplit=1) for line in lines)
    _check_names(file, speakers, mixtures)
    return speakers


def _check_names(file: Path, named: Iterable[str], mixtures: dict[str, Mixture]) -> None:
    if odd := sorted(set(named) ^ mixtures.keys()):
        raise ResultsError(
            f"{file} and the mixtures differ in {len(odd)} utterances, {odd[0]} the first"
        )


def read_scores(folder: Path, mixtures: dict[str, Mixture]) -> Scores:
    """Return scores by measure and utterance, none if nothing was scored.

    Raises:
        ResultsError: Only a part of the measures or of the utterances was scored.
    """
    files = {measure: folder / f"{file}_spk1" for measure, file in MEASURES.items()}
    if not any(file.is_file() for file in files.values()):
        return {}
    scores = {}
    for measure, file in files.items():
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        scores[measure] = {name: float(value) for name, value in map(str.split, lines)}
        _check_names(file, scores[measure], mixtures)
    return scores


def read_runs(recipe: Path, part: str, mixtures: dict[str, Mixture]) -> list[Run]:
    """Return all trainings, ordered by model and seed.

    Raises:
        ResultsError: There is none, or one of them is damaged.
    """
    runs = []
    for model, seed, folder in trainings(recipe, "enh"):
        parameters, lines = training_log(folder)
        epochs = epoch_lines(lines, train="loss", valid="loss")
        best = best_epoch(folder, criterion="valid.loss")
        scores = read_scores(folder / f"enhanced_{part}" / "scoring", mixtures)
        runs.append(Run(model, seed, folder, parameters, epochs, best, scores))
    return runs


def gains_table(results: Results) -> str:
    """Return the table of mean scores, with the gain over the noisy speech and its interval."""
    noisy = [f"{statistics.mean(results.noisy[measure].values()):.2f}" for measure in MEASURES]
    rows = [["noisy", *noisy, ""]]
    for model in results.scored:
        cells = [_cell(results.gain(model, measure)) for measure in MEASURES]
        failed = results.failed(model)
        rows.append([model, *cells, f"failed: {', '.join(failed)}" if failed else "improves all"])
    return markdown(["", *MEASURES, "verdict"], rows)


def _cell(gain: Gain | None) -> str:
    if gain is None:
        return "-"
    return f"{gain.score:.2f}, {gain.mean:+.2f} ({gain.low:+.2f} to {gain.high:+.2f})"


def conditions_table(results: Results, by: str) -> str:
    """Return the table of mean gains apart: ``by`` noise or ratio."""
    kinds = [str(getattr(mixture, by)) for mixture in results.mixtures.values()]
    names = sorted(set(kinds), key=lambda kind: (by == "snr" and int(kind), kind))
    rows = []
    for model in results.scored:
        for name in names:
            here = np.array([kind == name for kind in kinds])
            gains = [results.gains(model, measure) for measure in MEASURES]
            cells = [f"{of[here].mean():+.2f}" for of in gains if of is not None]
            rows.append([model, f"{name} dB" if by == "snr" else name, *cells])
    return markdown(["", by, *MEASURES], rows)


def trainings_table(results: Results) -> str:
    """Return the table of trainings: size, epochs, time, losses."""
    head = ["model", "seed", "parameters", "epochs", "minutes in all", "first", "best", "in epoch"]
    rows = []
    for runs in results.models.values():
        for run in runs:
            rows.append([run.model, str(run.seed), run.parameters, *_training(run)])
    return markdown(head, rows)


def _training(run: Run) -> list[str]:
    if not run.epochs:
        return ["0", "-", "-", "-", "-"]
    minutes = sum(seconds for _, _, seconds in run.epochs.values()) / 60
    first = f"{run.epochs[min(run.epochs)][1]:.3f}"
    best = f"{run.epochs[run.best][1]:.3f}" if run.best in run.epochs else "-"
    return [str(len(run.epochs)), f"{minutes:.0f}", first, best, str(run.best or "-")]


def report(results: Results) -> str:
    """Return all tables under their headings."""
    drawn = f"{DRAWS} bootstrap draws of the {len(set(results.speakers.values()))} speakers"
    noises = len({mixture.noise for mixture in results.mixtures.values()})
    trainings = max((len(runs) for runs in results.models.values()), default=0)
    held = f"these {noises} noises and {_trainings(trainings)}"
    parts = {
        f"Mean scores of {len(results.mixtures)} mixtures, and mean gain over the noisy speech "
        f"(95 % interval, {drawn}; it is for {held}, which are not drawn)": gains_table(results),
        "Mean gains by the kind of noise": conditions_table(results, "noise"),
        "Mean gains by the ratio of speech and noise": conditions_table(results, "snr"),
        "Each training, with its validation loss": trainings_table(results),
    }
    return "\n\n".join(f"{heading}:\n\n{table}" for heading, table in parts.items())


def _trainings(most: int) -> str:
    if most == 1:
        return "this one training of each model"
    return f"these trainings, {most} or fewer of each model, of which it takes the mean"


def draw_curves(results: Results, stem: Path) -> list[Path]:
    """Draw the losses by epoch, validation solid and training dotted; return the files."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for index, runs in enumerate(results.models.values()):
        for run in runs:
            color = plt.get_cmap("tab10")(index % 10)
            for part, style in ((1, "-"), (0, ":")):
                losses = [losses[part] for losses in run.epochs.values()]
                label = run.model if part and run is runs[0] else None
                axes.plot(list(run.epochs), losses, style, color=color, label=label)
    axes.set(xlabel="epoch", ylabel="loss: solid validation, dotted training")
    axes.set_title("Speech enhancement, each training")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return save_figure(figure, stem, dpi=100)


def draw_examples(results: Results, stem: Path, snr: int = 0) -> list[Path]:
    """Draw a mixture of each noise as it was, as each model left it, and clean; return the files.

    Which clip it is, the alphabet decides.
    """
    files = []
    for noise in sorted({mixture.noise for mixture in results.mixtures.values()}):
        name = min(
            name
            for name, mixture in results.mixtures.items()
            if (mixture.noise, mixture.snr) == (noise, snr)
        )
        observed = results.recipe / "dump" / "raw" / results.part
        signals = {f"noisy: {noise}, {snr} dB": _signal(results.recipe, observed / "wav.scp", name)}
        for model in results.scored:
            run = next(run for run in results.models[model] if run.scores)
            scp = run.folder / f"enhanced_{results.part}" / "spk1.scp"
            signals[model] = _signal(results.recipe, scp, name)
        signals["clean"] = _signal(results.recipe, observed / "spk1.scp", name)
        file = stem.with_name(f"{stem.name}-{noise}.png")
        files.append(draw_spectrograms(signals, file))
    return files


def _signal(recipe: Path, scp: Path, name: str) -> Array:
    rows = (line.split(maxsplit=1) for line in scp.read_text(encoding="utf-8").splitlines())
    return soundfile.read(recipe / dict(rows)[name].strip(), dtype="float64")[0]


def main(argv: Sequence[str] | None = None) -> int:
    """Read trainings and scores, write tables and pictures; return the exit code."""
    args = _parse(argv)
    try:
        results = Results(args.recipe, args.set)
        text = report(results)
        print(text)
        files = []
        if args.plots:
            files += draw_curves(results, args.plots.with_name(f"{args.plots.name}-curves"))
            files += draw_examples(results, args.plots)
            print("", *files, sep="\n")
        if args.into:
            put(text, args.into, PROGRAM)
    except (BiMambaError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0] if __doc__ else "",
        epilog="example: python egs/se/results.py exp/so762_se/egs2/se/enh1 --plots plots/se",
    )
    add_recipe(parser, default="exp/so762_se/egs2/se/enh1")
    parser.add_argument("--set", default="test", help="the set that was scored; %(default)s")
    parser.add_argument("--into", type=Path, help="a Markdown file, between its markers")
    parser.add_argument("--plots", type=Path, help="curves and spectrograms: how they begin")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
