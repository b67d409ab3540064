"""By Table 16, Tables 7 and 15 have independent stacks without residual: so do their YAMLs."""

import pytest
import torch
from espnet2.tasks.asr import ASRTask

from espnet_bimamba.cli.conf import shipped
from tests.conf.test_paper_doc import OURS
from tests.conf.yamls import FILES, load

#: YAML and its row of the paper.
STACKS = [
    (name, cells[0])
    for cells in OURS
    if FILES[name := cells[1].strip("`")].encoder == "bimamba" and "Transformer" not in cells[0]
]
#: Rows of Table 16 that have the residual.
WITH = {"T16, ExtBiMamba + Residual", "T16, ExtBiMamba + FFN, with the residual"}
SWITCH = ["--encoder_conf", "residual=false"]


@pytest.mark.parametrize(("name", "row"), STACKS)
def test_of_the_independent_stacks_two_rows_of_table_16_have_the_residual(name, row):
    assert load(name)["encoder_conf"]["residual"] == (row in WITH)


def test_every_independent_stack_is_looked_at():
    assert len(STACKS) == 19
    assert {row for _, row in STACKS} > WITH


@pytest.mark.parametrize("name", [name for name, _ in STACKS])
def test_a_yaml_says_why_it_has_the_residual_or_has_it_not(name):
    value = str(load(name)["encoder_conf"]["residual"]).lower()
    assert f"\n# residual {value}" in FILES[name].path.read_text()


def test_the_residual_is_all_that_differs_in_the_yamls_of_table_16():
    def without(name):
        config = load(f"librispeech_100/{name}")
        return config["encoder_conf"].pop("residual"), config

    for suffix in ("", "_ffn"):
        none, plain = without(f"extbimamba{suffix}")
        some, other = without(f"extbimamba_residual{suffix}")
        assert (none, some) == (False, True)
        assert plain == other


@pytest.mark.parametrize("switch", [[], SWITCH], ids=["residual", "none"])
def test_without_the_residual_silent_mixers_leave_nothing(switch):
    path = shipped.find("mini_an4/bimamba").path
    args = ASRTask.get_parser().parse_args(["--config", str(path), *switch])
    args.token_list, args.normalize = ["<blank>", "<unk>", "a", "<sos/eos>"], None
    encoder = ASRTask.build_model(args).encoder.eval()
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "out_proj" in name:
                parameter.zero_()
        encoded, *_ = encoder(torch.randn(1, 40, 80), torch.tensor([40]))
    # The last norm makes its bias, zero, of nothing.
    assert encoded.any() == (not switch)
