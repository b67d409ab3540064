"""`espnet-bimamba params`: the numbers of stock and of our models, and bad files."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from espnet_bimamba import recipes, registry
from espnet_bimamba.cli import main, params
from espnet_bimamba.cli.conf.convert import convert

CONF = Path(__file__).resolve().parents[2] / "conf" / "mini_an4"
CONFORMER = """\
frontend_conf: {n_mels: 80}
encoder: conformer
encoder_conf:
    output_size: 16
    attention_heads: 2
    linear_units: 32
    num_blocks: 3
    input_layer: linear
    macaron_style: true
    pos_enc_layer_type: rel_pos
    selfattention_layer_type: rel_selfattn
    cnn_module_kernel: 7
decoder: transformer
decoder_conf: {attention_heads: 2, linear_units: 32, num_blocks: 1}
model_conf: {ctc_weight: 0.3}
normalize: global_mvn
"""
# Counted by hand, with d = 16 channels, f = 32 feed-forward units, k = 7 taps, V tokens.
MIXER = 5 * (16 * 16) + 4 * 16 + 2 * 16  # four biased projections, linear_pos, two position biases
FEED_FORWARD = 2 * (16 * 32 + 32 + 32 * 16 + 16)
CONV = (16 * 32 + 32) + (16 * 7 + 16) + 2 * 16 + (16 * 16 + 16)  # in, depthwise, batch norm, out
NORMS = 5 * 2 * 16
EMBED = (80 * 16 + 16) + 2 * 16
BLOCK = MIXER + FEED_FORWARD + CONV + NORMS


@pytest.fixture
def table(tmp_path, capsys):
    """Run `params` on a text; return the rows of its table, label -> numbers."""

    def run(text: str, *arguments: str) -> dict[str, list[str]]:
        path = tmp_path / "train.yaml"
        path.write_text(text)
        assert main(["params", str(path), *arguments]) == 0
        task, *lines = capsys.readouterr().out.splitlines()
        assert re.fullmatch(r"task asr, [\d,]+ tokens.*", task)
        assert lines[0].split() == ["part", "parameters", "share", "per", "block"]
        assert len({line.find("%") for line in lines[2:]}) == 1, "the columns are aligned"
        return {line[:24].rstrip(): line[24:].split() for line in lines[2:]}

    return run


@pytest.fixture
def failure(tmp_path, capsys):
    """Run `params` on a text that it refuses; return what it says."""

    def run(text: str, *arguments: str) -> str:
        path = tmp_path / "train.yaml"
        path.write_text(text)
        assert main(["params", str(path), *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == ""
        return err

    return run


def test_a_stock_conformer_by_part(table):
    rows = table(CONFORMER, "--vocab-size", "50")
    counts = {part: int(row[0].replace(",", "")) for part, row in rows.items()}
    decoder_block = 8 * (16 * 16 + 16) + 3 * 2 * 16 + (16 * 32 + 32 + 32 * 16 + 16)
    decoder = 50 * 16 + decoder_block + 2 * 16 + (16 * 50 + 50)
    assert counts == {
        "encoder": EMBED + 3 * BLOCK + 2 * 16,
        "  embed": EMBED,
        "  blocks (3)": 3 * BLOCK,
        "    mixer": 3 * MIXER,
        "    feed-forward": 3 * FEED_FORWARD,
        "    conv": 3 * CONV,
        "    norms": 3 * NORMS,
        "  after_norm": 2 * 16,
        "decoder": decoder,
        "ctc": 16 * 50 + 50,
        "total": EMBED + 3 * BLOCK + 2 * 16 + decoder + 16 * 50 + 50,
    }
    assert rows["    mixer"][2] == f"{MIXER:,}"
    assert rows["total"][1] == "100.0%"


def test_as_json_the_numbers_are_the_same(table, tmp_path, capsys):
    rows = table(CONFORMER, "--vocab-size", "50")
    assert main(["params", str(tmp_path / "train.yaml"), "--vocab-size", "50", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["task"], found["tokens"]) == ("asr", 50)
    assert [f"{part['count']:,}" for part in found["parts"]] == [row[0] for row in rows.values()]
    assert found["parts"][2] == {"part": "blocks", "depth": 1, "count": 3 * BLOCK, "blocks": 3}


def test_of_ours_only_the_mixer_differs_from_stock(table):
    stock = table(CONFORMER, "--vocab-size", "50")
    converted = convert(CONFORMER, Path("stock.yaml")).text
    ours = table(converted, "--vocab-size", "50")
    changed = {part for part in stock if stock[part][0] != ours[part][0]}
    assert changed == {"encoder", "  blocks (3)", "    mixer", "total"}
    # Two Mambas of width e = 32, 16 states, rank 1: in, conv, x, dt, A, D, out.
    mamba = 16 * 64 + (4 * 32 + 32) + 32 * 33 + (32 + 32) + 32 * 16 + 32 + 32 * 16
    assert ours["    mixer"] == [f"{3 * 2 * mamba:,}", ours["    mixer"][1], f"{2 * mamba:,}"]


def test_vocabulary_and_input_size(table):
    def count(*arguments: str, text: str = CONFORMER) -> dict[str, int]:
        rows = table(text, *arguments)
        return {part: int(rows[part][0].replace(",", "")) for part in ("ctc", "  embed")}

    assert count() == {"ctc": 17 * 5000, "  embed": EMBED}
    assert count("--input-size", "40") == {"ctc": 17 * 5000, "  embed": EMBED - 40 * 16}
    listed = "token_list: [<blank>, a, b, <sos/eos>]\n" + CONFORMER
    assert count(text=listed)["ctc"] == 17 * 4
    assert count("--vocab-size", "9", text=listed)["ctc"] == 17 * 9


def test_the_config_of_a_training_is_read_too(table):
    rows = table(f"version: '202611'\ndistributed: false\n{CONFORMER}", "--vocab-size", "50")
    assert rows["ctc"][0] == "850"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encoder: [", "is not valid YAML"),
        ("[]", "holds a list, not a mapping"),
        ("# nothing\n", "train.yaml: holds no options: a training YAML is a mapping of options\n$"),
        ("encoder: conbimamba\nencoder_conf: 3\n", "yaml: encoder_conf is 3, not a mapping of op"),
        ("encoder: conbimamba\nencoder_conf: [a]\n", r"encoder_conf is \['a'\], not a mapping"),
        (
            "separator: rnn\nno_such_option: 1\n",
            "no training YAML of any ESPnet task: .*, the nearest, has no option no_such_option$",
        ),
        (CONFORMER.replace("r: conformer", "r: conmamba"), "ValueError: --encoder must be one of"),
        (
            CONFORMER.replace("macaron_style", "macaroni"),
            r"cannot be built as asr: TypeError: .*unexpected keyword argument 'macaroni'\n$",
        ),
        (
            CONFORMER.replace("r: conformer", "r: conbimamba"),
            r"cannot be built as asr: conbimamba has no option attention_heads \(given: 2\): "
            r"[^;]*; remove the line\n$",
        ),
        (
            "encoder: conbimamba\nencoder_conf: {fusoin: add}\n",
            r"cannot be built as asr: encoder_conf='fusoin' is not possible: allowed is an option "
            r"of conbimamba\. Did you mean fusion\?\n$",
        ),
    ],
)
def test_bad_files_are_named(failure, text, message):
    err = failure(text)
    assert "train.yaml: " in err
    assert re.search(message, err)


@pytest.mark.parametrize(
    ("text", "arguments", "told"),
    [
        (CONFORMER, [], "5,000 tokens, assumed: --vocab-size N takes another number"),
        (CONFORMER, ["--vocab-size", "30"], "30 tokens"),
        (f"token_list: [<blank>, a, <sos/eos>]\n{CONFORMER}", [], "3 tokens"),
        (
            f"# Parameters: 40.79 M with 5,626 tokens, paper 41.59 M\n{CONFORMER}",
            [],
            "5,626 tokens, as the YAML's first lines say",
        ),
        (f"# Parameters: 1.00 M, 30 tokens\n{CONFORMER}", ["--vocab-size", "9"], "9 tokens"),
    ],
)
def test_the_number_of_tokens_and_where_it_is_from_are_told(
    tmp_path, capsys, text, arguments, told
):
    path = tmp_path / "train.yaml"
    path.write_text(text)
    assert main(["params", str(path), *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"task asr, {told}"
    tokens = int(told.partition(" ")[0].replace(",", ""))
    (ctc,) = [line.split()[1] for line in lines if line.startswith("ctc")]
    assert ctc == f"{17 * tokens:,}"


def test_a_model_without_vocabulary_has_no_tokens(capsys):
    assert main(["params", "mini_an4/mamba"]) == 0
    assert capsys.readouterr().out.startswith("task enh\n")


def test_a_name_of_ours_stands_for_its_file(capsys):
    assert main(["params", "mini_an4/conbimamba", "--vocab-size", "30"]) == 0
    by_name = capsys.readouterr().out
    assert main(["params", str(CONF / "train_asr_conbimamba.yaml"), "--vocab-size", "30"]) == 0
    assert by_name == capsys.readouterr().out


def test_a_name_is_a_file_where_there_is_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini_an4").mkdir()
    (tmp_path / "mini_an4" / "conbimamba").write_text(CONFORMER)
    assert main(["params", "mini_an4/conbimamba", "--vocab-size", "50"]) == 0
    (mixer,) = re.findall(r"(?m)^    mixer +(\S+)", capsys.readouterr().out)
    assert mixer == f"{3 * MIXER:,}"


@pytest.mark.parametrize("name", ["mini_an4/conbimanba", "exp/config"])
def test_what_is_neither_a_name_nor_a_file_is_refused(name, capsys):
    assert main(["params", name]) == 2
    assert capsys.readouterr().err.startswith(
        f"espnet-bimamba: NAME={name!r} is not possible: allowed is a file, or a name that "
        "`espnet-bimamba conf list` prints."
    )


def test_a_yaml_that_is_not_there_is_no_name(capsys):
    assert main(["params", "mini_an4/conbimamba.yaml"]) == 2
    assert capsys.readouterr().err == (
        "espnet-bimamba: mini_an4/conbimamba.yaml: cannot be read: No such file or directory\n"
    )


def test_a_transducer_without_its_loss_is_told_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "warprnnt_pytorch", None)
    assert main(["params", "librispeech_100/conextbimamba_transducer"]) == 2
    err = capsys.readouterr().err
    assert "cannot be built as asr: ModuleNotFoundError: " in err
    assert "; the transducer's loss is no package of pip's: bash installers/" in err


STOCK = Path(__file__).resolve().parents[2] / ".cache" / f"espnet-{recipes.installed_version()}"


@pytest.mark.slow  # the stock recipes are there only then, and tasks take seconds to import
@pytest.mark.parametrize(
    ("yaml", "task"),
    [
        ("egs2/mini_an4/asr1/conf/train_asr_transformer.yaml", "asr"),
        ("egs2/mini_an4/s2t1/conf/train_transformer.yaml", "s2t"),
        ("egs2/mini_an4/st1/conf/train_st_debug.yaml", "st"),
        ("egs2/mini_an4/asr2/conf/train_asr_transformer_debug.yaml", "mt"),
        ("egs2/mini_an4/enh1/conf/train_debug.yaml", "enh"),
        ("egs2/mini_an4/asr1/conf/train_lm_rnn_debug.yaml", "lm"),
        ("egs2/espnet_tutorial/asvspoof1/conf/checkpoint1_dummy.yaml", "asvspoof"),
        ("egs2/ljspeech/tts1/conf/train.yaml", "tts"),
    ],
)
def test_stock_yamls_of_other_tasks_find_theirs(capsys, yaml, task):
    assert main(["params", str(STOCK / yaml)]) == 0
    assert re.match(rf"task {task}(, |\n)", capsys.readouterr().out)


def test_an_espnet3_yaml_has_the_parameters_of_its_espnet2_form(capsys):
    assert main(["params", str(CONF / "espnet3" / "training_conbimamba.yaml")]) == 0
    third = capsys.readouterr().out
    assert main(["params", str(CONF / "train_asr_conbimamba.yaml"), "--vocab-size", "30"]) == 0
    assert third == capsys.readouterr().out


def test_an_espnet3_tokenizer_by_its_name_alone_has_no_size(table):
    model = "".join(f"    {line}\n" for line in CONFORMER.splitlines())
    rows = table(f"model:\n{model}tokenizer: bpe\n")
    assert rows["ctc"][0] == f"{17 * 5000:,}"


def test_an_encoder_that_is_no_stack_of_blocks_is_one_row():
    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoders = torch.nn.Linear(3, 4)

    assert list(params._count_encoder(Encoder())) == [params.Row("encoders", 1, 16)]


def test_a_task_can_be_named(failure):
    assert "cannot be built as st: TypeError" in failure(CONFORMER, "--task", "st")


def test_a_task_that_is_none_lists_those_that_are(failure):
    message = failure(CONFORMER, "--task", "asrr")
    assert "--task='asrr' is not possible: allowed is one of aqa, asr, asr_transducer" in message


def test_every_task_that_knows_us_is_tried():
    hosts = {name.removeprefix("espnet2.tasks.") for name in registry.HOSTS}
    assert hosts - set(params._names(None)) == {"espnet3.systems.esp2_asr.task"}
    assert params._names(None)[0] == "asr"


def test_reasons_of_several_tasks_are_told_apart():
    same = [ValueError("no decoder"), ValueError("no decoder"), TypeError("no speakers")]
    failures = dict(zip(("asr", "st", "spk"), same, strict=True))
    assert (
        params._reasons(failures)
        == "asr, st: ValueError: no decoder; as spk: TypeError: no speakers"
    )


@pytest.mark.parametrize("option", ["--vocab-size", "--input-size"])
@pytest.mark.parametrize("value", ["x", "1", "-3", "2.5", ""])
def test_a_size_is_an_integer_of_at_least_two(option, value, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["params", "x.yaml", f"{option}={value}"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith(
        f"argument {option}: {value!r} is not possible: allowed is an integer of at least 2\n"
    )
