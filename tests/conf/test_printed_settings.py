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
#: How the document calls the corpora, and the kinds of encoders.
CALLED = {
    "librispeech_100": "LibriSpeech-100",
    "librispeech": "LibriSpeech-960",
    "asru": "ASRU",
    "seame": "SEAME",
}
KINDS = {
    "transformer": "Transformers",
    "transbimamba": "Transformers",
    "bimamba": "independent stacks",
    "conformer": "Conformers",
    "conbimamba": "Conformers",
    "branchformer": "Branchformers",
    "e_branchformer": "E-Branchformers",
    "e_branchbimamba": "E-Branchformers",
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
        line.strip("| ").split(" | ")
        for line in CONTRADICTIONS.splitlines()
        if re.search(rf"Tables? [\d, and]*\b{table}\b", line)
    ]


def all_configs(tree):
    """Corpus and training YAML: ours of the paper, and the stock files that we name."""
    configs = [(recipe(name), load(name)) for name in OF_A_CORPUS]
    for _, path, *_, command, _ in STOCK:
        corpus = COMMAND.fullmatch(command)[1]
        file = tree / "egs2" / corpus / "asr1" / path.removeprefix("stock ").strip("`")
        configs.append((corpus, yaml.safe_load(file.read_text())))
    return [(corpus, config) for corpus, config in configs if corpus in CORPORA]


def all_differences(tree):
    """Table, setting, corpus, what is printed there and what a YAML has."""
    return {
        (table, setting, corpus, *values)
        for corpus, config in all_configs(tree)
        for table, settings in [differences(config, corpus)]
        for setting, values in settings.items()
        # The stacks' depth, which no table prints, has a row of its own.
        if (config["encoder"], setting) != ("bimamba", "layers")
    }


def test_the_document_says_where_yamls_are_not_what_the_paper_prints(tree):
    found = {
        difference
        for difference in all_differences(tree)
        if difference[:2] not in {(10, "dropout"), (10, "layers")}
    }
    assert {difference[:2] for difference in found} == {
        *((9, setting) for setting in ("window", "time masks", "units", "layers", "weight decay")),
        *((10, setting) for setting in ("window", "hop", "time masks", "kernel", "epochs")),
        (10, "weight decay"),
        *((11, setting) for setting in ("window", "time masks", "units")),
    }
    for table, setting, corpus, printed, ours in found:
        papers, here = as_written(printed), as_written(ours)
        assert any(
            setting in f"{what} {paper}"
            and re.search(rf"\b{papers}\b", paper)
            and re.search(rf"\b{here}\b", said)
            and CALLED[corpus] in f"{what} {paper} {said}"
            for what, paper, said in rows_of(table)
        ), (table, setting, corpus, printed, ours)


def as_written(value):
    return {1e-6: "1e-6", 0.0: "none"}.get(value, value)


def time_masks(corpus, tree):
    """Kind of encoder -> its time masks, of everything that is trained as stock's hybrids are."""
    beside = [(recipe(name), load(name)) for name in TRAININGS if name not in OF_A_CORPUS]
    found = {
        (KINDS[config["encoder"]], config["specaug_conf"]["num_time_mask"])
        for place, config in [*all_configs(tree), *beside]
        if place == corpus
    }
    assert len(found) == len(dict(found)), "one kind has several"
    return dict(found)


def told_time_masks():
    """Corpus -> how many masks the document says, of all and of the kinds that it excepts."""
    [here] = [said for what, _, said in rows_of(9) if what.startswith("time masks")]
    told = {}
    for clause in here.removeprefix("stock's: ").split("; "):
        rule, _, exception = clause.partition(" but ")
        usual, corpora = re.match(r"(\d+) on ([^,]+)", rule).groups()
        number, _, kinds = exception.partition(" for ")
        excepted = {kind: int(number) for kind in kinds.split(" and ") if kind}
        told |= {corpus: (int(usual), excepted) for corpus in corpora.split(" and ")}
    return told


def test_the_document_says_how_many_time_masks_each_kind_of_encoder_has(tree):
    told = told_time_masks()
    assert set(told) == set(CALLED.values())
    for corpus, called in CALLED.items():
        usual, excepted = told[called]
        masks = time_masks(corpus, tree)
        assert set(excepted) < set(masks)
        assert {kind: excepted.get(kind, usual) for kind in masks} == masks
