"""What docs/paper.md and the YAMLs quote from the paper is what the paper prints."""

import re

import pytest

from tests.conf.printed_rates import ESPNETS, PRINTED, millions, rates
from tests.conf.test_paper_doc import CELLS, COMMAND, ROWS
from tests.conf.test_printed_settings import CONTRADICTIONS
from tests.conf.yamls import FILES

by_row = pytest.mark.parametrize("cells", ROWS, ids=lambda cells: f"{cells[0]}-{cells[1]}")

#: Every contradiction that the document has to state, and what its row names.
STATED = {
    "fusion of ExtBiMamba": "adds; `add`; `concat`; SEAME; ASRU",
    "LibriSpeech-100, Conformer with InnBiMamba, ExtBiMamba": "36.89; 41.59; 36.07; 40.79; 66,048",
    "LibriSpeech-960 with InnBiMamba, ExtBiMamba": (
        "2.66; 7.36; 3.99; 10.68; 256; 512; 6.03; 24.91; 13.79; 42.10"
    ),
    "positions": 'Table 20\'s; "+ Positional Encoding"; `conextbimamba_abs_pos`',
    "residual of the independent stack": (
        "Algorithm 2; 38.5 / 37.7; 42.1 / 41.7; `extbimamba_residual`"
    ),
    'Table 16, "+ FFN"': "`extbimamba_residual_ffn`; `extbimamba_ffn`",
    'Table 16, Transformer "- Residual", "- FFN"': "`mamba_type: attention`",
    "depth of the independent stacks": "18; 12; 20.42; 20.41; 25.79; 25.67",
    '"Large" of Tables 8 and 15': "17; 20; 50.00; 49.90; 40; 32.69; 32.52; 21; 30; 28.78",
    "Table 15, SEAME column": (
        "29.38; 20.41; 25.79; 33.52; 29.86; 20.90; 27.73; 36.80; 5626; `concat`"
    ),
    "Table 9, SEAME's Transformer": "24 layers; 2048 units; 18; 1024",
    "Table 9, kernel of the depth-wise convolution": "31; none",
    "Table 16, whose model": "ConExtBiMamba; ExtBiMamba; 38.5 / 37.7",
    "ConExtBiMamba against Branchformer": "16.6 / 23.4; 16.3 / 23.2",
    "which models have that noise": "Table 19; `A_init: s4d_real`",
    "Table 10, SEAME's and ASRU's Conformer": "kernel 31; 15",
    "epochs, Table 10": "120; 70",
    "window and hop, Tables 9, 10 and 11": "400; 160; 512; 128",
    "time masks, Tables 9, 10 and 11": "2; 5; 10",
    "weight decay, Tables 9 and 10": "1e-6; none",
    "Branchformer, Table 11": "2048; 3072",
    "SEAME's and ASRU's Transformer and Branchformer": "LibriSpeech-100's",
    "ASRU's vocabulary": "6921; 6920; 6922",
    "AN4": "SEAME's",
    "AN4's Conformer, mean WER": "10.2; 10.02",
    "ConExtBiMamba, test-other": "17.2; Table 8; 17.3; Tables 19 and 20",
    "LibriSpeech-960, ConInnBiMamba, test": "2.3; Table 7; 2.4; Table 8",
    'Table 20, "- Swish", "- Dropout"': "ReLU",
    "the noise in the A matrix": "Gaussian; `A_init: s4d_real_noise`",
    "data": "test-clean-100",
    "language model": "`--use_lm false`",
}


def system_of(cells):
    return COMMAND.fullmatch(cells[5]).groups()


def tables_of(cells):
    return [int(table) for table in re.findall(r"\bT(\d+)", cells[0])]


@by_row
def test_a_row_quotes_the_paper(cells):
    system, quoted = system_of(cells), cells[4]
    printed = PRINTED[system]
    if tables_of(cells) == [18]:
        assert quoted == f"{printed[18]['minutes']}; {printed[18]['RTF']}"
    elif tables_of(cells) == [21]:
        *seeds, mean, variance = printed[21].values()
        assert quoted == f"{mean} ({variance}): {', '.join(seeds)}"
    else:
        assert quoted == rates(system)


@by_row
def test_a_row_has_the_papers_count(cells):
    assert cells[3] == (millions(system_of(cells)) or "-")


@pytest.mark.parametrize("name", FILES)
def test_a_yaml_has_the_papers_count(name):
    printed = millions(tuple(name.split("/")))
    assert FILES[name].paper_parameters == (printed and float(printed))


def test_every_printed_row_is_in_the_document_with_all_of_its_tables():
    found = sorted((system_of(cells), table) for cells in ROWS for table in tables_of(cells))
    assert found == sorted(
        (system, table) for system, tables in PRINTED.items() for table in tables
    )


@pytest.mark.parametrize("encoder", ESPNETS)
def test_what_the_paper_quotes_from_espnet_is_quoted(encoder):
    assert [f"T7, ESPnet, {encoder}", *ESPNETS[encoder]] in CELLS


#: What, the paper, here.
ROWS_OF_CONTRADICTIONS = {
    what: f"{papers} | {ours}"
    for line in CONTRADICTIONS.splitlines()
    if line.startswith("| ") and not line.startswith("| what |")
    for what, papers, ours in [line.strip("| ").split(" | ")]
}


def test_every_contradiction_is_stated_and_no_other():
    recognition = {what for what in ROWS_OF_CONTRADICTIONS if not what.startswith("enhancement, ")}
    assert recognition == set(STATED)


@pytest.mark.parametrize("what", STATED)
def test_a_contradiction_is_stated_with_its_numbers(what):
    row = ROWS_OF_CONTRADICTIONS[what]
    missing = [
        words
        for words in STATED[what].split("; ")
        if not re.search(rf"(?<![\w.]){re.escape(words)}(?!\w|\.\d)", row)
    ]
    assert missing == []
