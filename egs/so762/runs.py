"""Reads what ESPnet's ``asr.sh`` leaves of a training: its log, and what the model heard."""

import argparse
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from espnet_bimamba.errors import BiMambaError

#: The sets that are decoded.
SETS = ("dev", "test")

_FOLDER = re.compile(r"[a-z]+_(?P<model>.+)_seed(?P<seed>\d+)")
_EPOCH = re.compile(r"(\d+)epoch results: \[train\] (.*), \[valid\] (.*?)(?:, \[att_plot\] .*)?$")
_PARAMETERS = re.compile(r"Total Number of model parameters: ([\d.]+ [KMB]?)")
# Not `iter_time=0.1` and so on: those have no unit.
_SPAN = re.compile(r"time=((?:[\d.]+ (?:day|hour|minute|second)s?(?:, | and )?)+)")
_PART = re.compile(r"([\d.]+) (day|hour|minute|second)")
_SECONDS = {"day": 86400, "hour": 3600, "minute": 60, "second": 1}


class ResultsError(BiMambaError):
    """An experiment folder does not hold what it should; the message names the file."""


@dataclass(frozen=True)
class Epoch:
    """An epoch as the training log reports it.

    Attributes:
        number: From 1 on.
        train_loss: Mean over the epoch's updates, with dropout and masks.
        dev_loss: On the dev set, without.
        dev_cer: Of the greedy CTC output on the dev set without spaces, a share; the log has three
            decimals.
        seconds: Of training and validation together.
    """

    number: int
    train_loss: float
    dev_loss: float
    dev_cer: float
    seconds: float


@dataclass(frozen=True)
class Text:
    """What was said and what was heard, utterance by utterance.

    Attributes:
        speakers: Who spoke.
        references: What was said.
        hypotheses: What the model heard; may be empty.
    """

    speakers: list[str]
    references: list[str]
    hypotheses: list[str]


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        model: Its name, as in ``--model``.
        seed: Its seed, as in ``--seed``.
        parameters: Their number as the log gives it, for example "2.05 M".
        epochs: Those that were finished, in order.
        best: The epoch with the lowest error rate on the dev set, None if its model is not kept.
        texts: By the set's name; a set that was not decoded is missing.
    """

    model: str
    seed: int
    parameters: str
    epochs: list[Epoch]
    best: int | None
    texts: dict[str, Text]


def add_recipe(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the argument that names the working copy whose trainings are read."""
    parser.add_argument(
        "recipe",
        type=Path,
        nargs="?",
        default=Path(default),
        help="the working copy that run.sh made; default: %(default)s",
    )


def positive(text: str) -> int:
    """Read an option's number, which is 1 or more.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, not {text!r}")
    return int(text)


def trainings(recipe: Path, task: str) -> list[tuple[str, int, Path]]:
    """Find a recipe's trainings: model, seed and folder, ordered by model and seed.

    Args:
        recipe: The folder that holds ``exp``.
        task: ``asr`` or ``enh``, how their folders begin.

    Raises:
        ResultsError: There is none.
    """
    found = [
        (match["model"], int(match["seed"]), folder)
        for folder in recipe.glob(f"exp/{task}_*_seed*")
        if (match := _FOLDER.fullmatch(folder.name)) and (folder / "train.log").is_file()
    ]
    if not found:
        raise ResultsError(f"{recipe}/exp holds no {task}_MODEL_seedN with a train.log")
    return sorted(found)


def read_all(recipe: Path) -> list[Run]:
    """Read all of a recipe's trainings, ordered by model and seed.

    Args:
        recipe: The folder that holds ``exp`` and ``dump``.

    Raises:
        ResultsError: There is none, or one of them is damaged.
    """
    return [read(folder, model, seed, recipe) for model, seed, folder in trainings(recipe, "asr")]


def read(folder: Path, model: str, seed: int, recipe: Path) -> Run:
    """Read one training and, where it was decoded, its transcripts."""
    parameters, lines = training_log(folder)
    texts = {name: _text(folder, name, recipe) for name in SETS}
    decoded = {name: text for name, text in texts.items() if text is not None}
    best = best_epoch(folder, criterion="valid.cer_ctc")
    return Run(model, seed, parameters, epochs(lines), best, decoded)


def best_epoch(folder: Path, criterion: str) -> int | None:
    """Return the epoch that ESPnet took for the best, by the checkpoint that it links.

    Its log, of three digits, does not tell which of two close values is the lower.

    Args:
        folder: Of the training.
        criterion: As ESPnet names its links, for example ``valid.loss``.

    Returns:
        The epoch; None if no checkpoint is kept.
    """
    link = folder / f"{criterion}.best.pth"
    name = link.readlink().name if link.is_symlink() else ""
    match = re.fullmatch(r"(\d+)epoch\.pth", name)
    return int(match[1]) if match else None


def training_log(folder: Path) -> tuple[str, list[str]]:
    """Return the number of parameters and the lines of a training's log.

    Those of the runs that it continued, ``train.N.log``, come before, the oldest first.

    Raises:
        ResultsError: There is no number of parameters in it.
    """
    older = [path for path in folder.glob("train.*.log") if path.suffixes[0][1:].isdigit()]
    older.sort(key=lambda path: int(path.suffixes[0][1:]), reverse=True)
    paths = [*older, folder / "train.log"]
    log = "\n".join(path.read_text(errors="replace") for path in paths)
    counted = _PARAMETERS.search(log)
    if counted is None:
        raise ResultsError(f"{folder}/train.log says no number of parameters: did it start?")
    return counted[1].strip(), log.splitlines()


def epochs(lines: Iterable[str]) -> list[Epoch]:
    """Read a training log's epochs; of one that was trained twice, the later.

    Raises:
        ResultsError: An epoch's line lacks a loss, the error rate or the time.
    """
    lines = list(lines)
    errors = epoch_lines(lines, valid="cer_ctc")
    losses = epoch_lines(lines, train="loss", valid="loss")
    return [Epoch(number, *losses[number][:2], *errors[number]) for number in sorted(errors)]


def epoch_lines(lines: Iterable[str], **measures: str) -> dict[int, tuple[float, ...]]:
    """Read what a training log says of each epoch; of one that was trained twice, the later.

    Args:
        lines: Of the log.
        **measures: What is read of ``train`` and of ``valid``, for example ``valid="loss"``.

    Returns:
        Of each epoch the measures, in their order, and the seconds of both.

    Raises:
        ResultsError: A measure or the time is missing.
    """
    found = {}
    for line in lines:
        if match := _EPOCH.search(line):
            said = {"train": match[2], "valid": match[3]}
            values = [
                re.search(rf"(?<!\w){measure}=([\d.e+-]+)", said[part])
                for part, measure in measures.items()
            ]
            spans = [_SPAN.search(part) for part in said.values()]
            if None in (*values, *spans):
                names = " or ".join(measures.values())
                raise ResultsError(f"no {names} or no time in the training log's line: {line}")
            spent = sum(seconds(span[1]) for span in spans if span)
            found[int(match[1])] = (*(float(value[1]) for value in values if value), spent)
    return found


def seconds(span: str) -> float:
    """Read a duration as ESPnet writes it: ``1 minute and 12.5 seconds``."""
    return sum(float(count) * _SECONDS[unit] for count, unit in _PART.findall(span))


def _text(folder: Path, name: str, recipe: Path) -> Text | None:
    # asr.sh keeps a validation set, when it is decoded, under its name before long utterances
    # were removed: org/dev.
    places = [
        place for place in (name, f"org/{name}") if any(folder.glob(f"decode_*/{place}/text"))
    ]
    heard = [path for place in places for path in sorted(folder.glob(f"decode_*/{place}/text"))]
    if not heard:
        return None
    if len(heard) > 1:
        raise ResultsError(
            f"{folder} was decoded more than once: {', '.join(map(str, heard))}; leave one"
        )
    said = recipe / "dump" / "raw" / places[0]
    return text(said / "text", heard[0], said / "utt2spk")


def text(said: Path, heard: Path, utt2spk: Path) -> Text:
    """Read the references and hypotheses of a set.

    Raises:
        ResultsError: They are not about the same utterances.
    """
    references, hypotheses, speakers = table(said), table(heard), table(utt2spk)
    for other, path in ((hypotheses, heard), (speakers, utt2spk)):
        if odd := sorted(references.keys() ^ other.keys()):
            raise ResultsError(
                f"{said} and {path} differ in {len(odd)} utterances, {odd[0]} the first"
            )
    names = sorted(references)
    return Text(*([t[name] for name in names] for t in (speakers, references, hypotheses)))


def table(path: Path) -> dict[str, str]:
    """Read lines of a name and, may be, a text.

    Raises:
        ResultsError: The file is missing.
    """
    if not path.is_file():
        raise ResultsError(f"{path} is missing")
    lines = [line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line[0]: " ".join(line[1:]).strip() for line in lines if line}


def units(kind: str, sentence: str) -> Sequence[str]:
    """Split a sentence into what ``kind`` counts: the spaces are characters, as ESPnet has it.

    Args:
        kind: ``CER`` or ``WER``.
        sentence: The text.
    """
    return sentence.split() if kind == "WER" else list(" ".join(sentence.split()))
