"""By Table 16, Tables 7 and 15 have independent stacks without residual: so say the commands."""

import pytest
import torch
from espnet2.tasks.asr import ASRTask

from espnet_bimamba.cli.conf import shipped
from tests.conf.test_paper_doc import COMMAND, OURS
from tests.conf.yamls import FILES, load

#: YAML, tables, command and whether it switches the residual off.
STACKS = [
    (cells[1].strip("`"), cells[0], bool(COMMAND.fullmatch(cells[5])[3]))
    for cells in OURS
    if FILES[cells[1].strip("`")].encoder == "bimamba" and "Transformer" not in cells[0]
]
#: Rows of Table 16 that have the residual.
WITH = {"T16, ExtBiMamba + Residual", "T16, ExtBiMamba + FFN, with the residual"}
SWITCH = ["--encoder_conf", "residual=false"]


@pytest.fixture(scope="module")
def parser():
    return ASRTask.get_parser()


@pytest.mark.parametrize(("name", "row", "switched"), STACKS)
def test_a_row_of_tables_7_and_15_is_without_the_residual(name, row, switched):
    residual = load(name)["encoder_conf"]["residual"] and not switched
    assert residual == (row in WITH)


def test_every_independent_stack_is_looked_at():
    assert len(STACKS) == 19
    assert sum(switched for *_, switched in STACKS) == 15


@pytest.mark.parametrize("name", [name for name, _, switched in STACKS if switched])
def test_the_switch_changes_the_residual_and_nothing_else(name, parser):
    config = ["--config", str(FILES[name].path)]
    with_it, without = vars(parser.parse_args(config)), vars(parser.parse_args([*config, *SWITCH]))
    assert with_it["encoder_conf"] == load(name)["encoder_conf"]
    assert without == with_it | {"encoder_conf": with_it["encoder_conf"] | {"residual": False}}


@pytest.mark.parametrize("switch", [[], SWITCH], ids=["residual", "none"])
def test_without_the_residual_silent_mixers_leave_nothing(switch, parser):
    path = shipped.find("mini_an4/bimamba").path
    args = parser.parse_args(["--config", str(path), *switch])
    args.token_list, args.normalize = ["<blank>", "<unk>", "a", "<sos/eos>"], None
    encoder = ASRTask.build_model(args).encoder.eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "out_proj" in name:
                parameter.zero_()
        encoded, *_ = encoder(torch.randn(1, 40, 80), torch.tensor([40]))
    # The last norm makes its bias, zero, of nothing.
    assert encoded.any() == (not switch)
