"""docs/paper.md has every YAML, with the counts that it states and a command that names it."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from tests.conf import arithmetic
from tests.conf.yamls import FILES, TOKENS, TRAININGS

DOC = Path(__file__).parents[2] / "docs" / "paper.md"
COMMAND = re.compile(r"`egs/(\w+)/asr1/(?:run\.sh --model|seeds\.sh --models) (\w+)`")
CELLS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in DOC.read_text().splitlines()
    if line.startswith("| ")
]
#: Rows of the paper: paper, YAML, ours, paper's, result, command, here.
ROWS = [cells for cells in CELLS if len(cells) == 7 and COMMAND.fullmatch(cells[5])]
STOCK = [cells for cells in ROWS if cells[1].startswith("stock ")]
OURS = [cells for cells in ROWS if cells not in STOCK]
#: Of what is not in the paper: YAML, ours, what.
BESIDE = [cells for cells in CELLS if len(cells) == 3 and cells[0].strip("`") in FILES]


def of_the_paper(name):
    return not FILES[name].paper.startswith("not in the paper")


def test_every_yaml_is_in_the_document():
    assert {cells[1].strip("`") for cells in OURS} == set(filter(of_the_paper, TRAININGS))
    beside = [name for name in TRAININGS if not of_the_paper(name)]
    assert sorted(cells[0].strip("`") for cells in BESIDE) == sorted(beside)


@pytest.mark.parametrize("cells", OURS, ids=lambda cells: f"{cells[0]}-{cells[1]}")
def test_a_row_has_the_counts_and_the_command_of_its_yaml(cells):
    _, name, ours, papers, _, command, here = cells
    file = FILES[name.strip("`")]
    assert ours == f"{file.parameters:.2f}"
    assert papers == (f"{file.paper_parameters:.2f}" if file.paper_parameters else "-")
    assert "/".join(COMMAND.fullmatch(command).groups()) == file.name
    assert here == "not run"


@pytest.mark.parametrize("cells", BESIDE, ids=lambda cells: cells[0])
def test_what_is_not_in_the_paper_has_its_count(cells):
    assert cells[1] == f"{FILES[cells[0].strip('`')].parameters:.2f}"


@pytest.mark.parametrize("cells", STOCK, ids=lambda cells: f"{cells[0]}-{cells[1]}")
def test_a_stock_row_names_a_file_of_that_size(cells, tree):
    _, path, ours, papers, _, command, _ = cells
    corpus = COMMAND.fullmatch(command)[1]
    file = tree / "egs2" / corpus / "asr1" / path.removeprefix("stock ").strip("`")
    count = arithmetic.parameters(yaml.safe_load(file.read_text()), TOKENS[corpus])
    assert ours == f"{count / 1e6:.2f}"
    assert papers in (ours, "-")


@pytest.mark.parametrize("cells", ROWS, ids=lambda cells: f"{cells[0]}-{cells[1]}")
def test_a_command_gives_what_its_row_prints(cells):
    """A mean and a variance are of several seeds."""
    program = cells[5].partition(" ")[0].rpartition("/")[2]
    assert program == ("seeds.sh" if "T21" in cells[0] else "run.sh")
    assert (DOC.parents[1] / cells[5].strip("`").partition(" ")[0]).is_file()


def test_of_every_recipe_the_document_says_where_its_corpus_is_named():
    [header] = [n for n, cells in enumerate(CELLS) if cells == ["recipe", "`--corpus`"]]
    told = {name for cells in CELLS[header + 1 : header + 5] for name in cells[0].split(", ")}
    assert told == {f"`{COMMAND.fullmatch(cells[5])[1]}`" for cells in ROWS}


def test_every_table_of_recognition_is_there():
    tables = {int(number) for cells in ROWS for number in re.findall(r"\bT(\d+)", cells[0])}
    assert tables == {7, 8, 15, 16, 17, 18, 19, 20, 21}


@pytest.mark.parametrize("cells", OURS, ids=lambda cells: f"{cells[0]}-{cells[1]}")
def test_a_row_is_of_tables_that_its_yaml_names(cells):
    named = set(re.findall(r"\b\d+\b", FILES[cells[1].strip("`")].paper))
    assert set(re.findall(r"\bT(\d+)", cells[0])) - {"18"} <= named


PAGES = sorted({*DOC.parent.glob("*.md"), *DOC.parents[1].glob("*.md")})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_table_ends_with_a_blank_line(page):
    """Text on the next line would be shown as one more row."""
    lines = page.read_text().splitlines()
    after = [line for row, line in pairwise(lines) if row.startswith("|")]
    assert [line for line in after if line.strip() and not line.startswith("|")] == []
