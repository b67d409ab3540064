"""What both ways of running the recipe hand to the closing report."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Utterance:
    """One utterance of the corpus: its name, its audio file, what is said in it."""

    name: str
    audio: Path
    text: str


@dataclass(frozen=True)
class Trained:
    """A trained and packed model, with the utterances to try it on.

    Args:
        model: Arguments of ``espnet2.bin.asr_inference.Speech2Text``, from the packed model.
        folder: Where relative paths in the model's configuration start from.
        training: The utterances it was trained on.
        test: Utterances it has not seen.
        files: What to print under which heading: log, packed model, curves.
        scored_by: Program that filled the recipe's table of results.
    """

    model: dict[str, Any]
    folder: Path
    training: list[Utterance]
    test: list[Utterance]
    files: dict[str, Path]
    scored_by: str
