"""Scores a decoded experiment with jiwer, where there is no sclite for ESPnet's stage 13.

    python3 results.py EXP DUMP

writes ``EXP/RESULTS.md``, from the hypotheses below ``EXP`` and the references in the recipe's
``dump/raw``.
"""

import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import jiwer

from espnet_bimamba import recipes
from espnet_bimamba.files import write_whole

BY_JIWER = "- scored by: `jiwer`"


def write_results(exp: Path, dump: Path) -> None:
    """Writes what stage 13 writes with sclite: ``RESULTS.md``, which stage 14 packs.

    Args:
        exp: The experiment, with the hypotheses of stage 12 below it.
        dump: The recipe's ``dump/raw``, with the references.
    """
    lines = ["# RESULTS", f"- date: `{datetime.now().astimezone():%a %b %d %H:%M:%S %Z %Y}`"]
    lines += [f"- espnet version: `{recipes.installed_version()}`", BY_JIWER, ""]
    for title, measure in (("WER", jiwer.process_words), ("CER", jiwer.process_characters)):
        lines += [f"## {title}", "", "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for hypotheses in sorted(exp.glob("*/**/text")):
            dataset = hypotheses.parent
            if not (dataset / "logdir").is_dir():
                continue
            inside = dataset.relative_to(exp)
            references = kaldi_table(dump.joinpath(*inside.parts[1:]) / "text")
            lines.append(_row(str(inside), references, kaldi_table(hypotheses), measure))
        lines.append("")
    write_whole(exp / "RESULTS.md", "\n".join(lines))


def kaldi_table(file: Path) -> dict[str, str]:
    """What a file of lines ``name value`` holds."""
    rows = (line.partition(" ") for line in file.read_text().splitlines())
    return {name: value.strip() for name, _, value in rows}


def _row(dataset: str, ref: dict[str, str], hyp: dict[str, str], measure: Any) -> str:
    names = sorted(ref)
    # A recogniser that hears nothing leaves the utterance out of its list.
    out = measure([ref[n] for n in names], [hyp.get(n, "") for n in names])
    total = out.hits + out.substitutions + out.deletions
    errors = out.substitutions + out.deletions + out.insertions
    wrong = sum(ref[n] != hyp.get(n, "") for n in names)
    counts = (out.hits, out.substitutions, out.deletions, out.insertions, errors)
    percent = [100 * count / total for count in counts] + [100 * wrong / len(names)]
    cells = [dataset, str(len(names)), str(total), *(f"{value:.1f}" for value in percent)]
    return "|" + "|".join(cells) + "|"


if __name__ == "__main__":
    write_results(Path(sys.argv[1]), Path(sys.argv[2]))
