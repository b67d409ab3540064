"""Where a YAML is not what Tables 9, 10 and 11 print, it says so, and docs/paper.md says it too."""

import re
from pathlib import Path

import pytest
import yaml

from tests.conf.printed import CORPORA, differences
from tests.conf.test_paper_doc import COMMAND, STOCK
from tests.conf.yamls import FILES, TRAININGS, load, recipe

DOC = Path(__file__).parents[2] / "docs" / "paper.md"
_, CONTRADICTIONS = DOC.read_text().split("## Where the paper contradicts ESPnet or itself")
OF_A_CORPUS = [
    name
    for name in TRAININGS
    if recipe(name) in CORPORA and not FILES[name].paper.startswith("not in the paper")
]
#: How the printed value is written, in comments and in the document.
WORDS = {
    "window": "window {}",
    "hop": "hop {}",
    "time masks": "{} time masks",
    "units": "{} units",
    "kernel": "kernel {}",
    "epochs": "{} epochs",
    "weight decay": "weight decay of 1e-6",
}
#: Of which settings a row of another table is the reason.
ABLATED = {"librispeech_100/conextbimamba_no_dropout": {"dropout"}}


def what_is_said(name):
    lines = FILES[name].path.read_text().splitlines()
    return "\n".join(line for line in lines if line.startswith("#"))


@pytest.mark.parametrize("name", OF_A_CORPUS)
def test_a_yaml_says_where_it_is_not_what_the_paper_prints(name):
    table, found = differences(load(name), recipe(name))
    said = what_is_said(name)
    for setting, (printed, ours) in found.items():
        if setting in ABLATED.get(name, ()):
            continue
        if setting == "layers":
            assert f"{ours} layers" in said
            continue
        words = re.escape(WORDS[setting].format(printed))
        assert re.search(rf"Table {table} prints [^:]*\b{words}", said), (setting, printed, ours)


def rows_of(table):
    return [
        line
        for line in CONTRADICTIONS.splitlines()
        if re.search(rf"Tables? [\d, and]*\b{table}\b", line)
    ]


def all_differences(tree):
    """Every table and setting in which a YAML of ours, or a stock file that we name, differs."""
    found = [differences(load(name), recipe(name)) for name in OF_A_CORPUS]
    for _, path, *_, command, _ in STOCK:
        corpus = COMMAND.fullmatch(command)[1]
        file = tree / "egs2" / corpus / "asr1" / path.removeprefix("stock ").strip("`")
        found.append(differences(yaml.safe_load(file.read_text()), corpus))
    return {(table, setting) for table, settings in found for setting in settings}


def test_the_document_says_where_yamls_are_not_what_the_paper_prints(tree):
    found = all_differences(tree) - {(10, "dropout"), (10, "layers")}
    assert found == {
        *((9, setting) for setting in ("window", "time masks", "units", "layers", "weight decay")),
        *((10, setting) for setting in ("window", "hop", "time masks", "kernel", "epochs")),
        (10, "weight decay"),
        *((11, setting) for setting in ("window", "time masks", "units")),
    }
    for table, setting in found:
        assert any(setting in line for line in rows_of(table)), (table, setting)
