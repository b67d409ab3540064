"""`espnet-bimamba conf convert`: what changes, what stays, and what is refused."""

import inspect
import os
import stat

import pytest
import yaml
from espnet2.tasks.asr import encoder_choices

from espnet_bimamba.cli import main
from espnet_bimamba.cli.conf.convert import COUNTERPARTS, DEFAULT_POSITIONS
from espnet_bimamba.encoders.options import REFUSED

CONFORMER = """\
# network architecture
encoder:   conformer   # the paper's baseline
encoder_conf:
    output_size: 256    # dimension of attention
    attention_heads: 4
    # what follows is not attention
    linear_units: 2048
    attention_dropout_rate: 0.0
    input_layer: "conv2d"
    macaron_style: true
    pos_enc_layer_type: "rel_pos"
    selfattention_layer_type: 'rel_selfattn'   # with positions
    rel_pos_type: latest
    activation_type: swish

    cnn_module_kernel: 31

decoder: transformer
decoder_conf:
    attention_heads: 4

# one value a line
specaug_conf: {freq_mask_width_range: [0, 27]}
"""
CONBIMAMBA = """\
# network architecture
encoder:   conbimamba   # the paper's baseline
encoder_conf:
    output_size: 256    # dimension of attention
    # what follows is not attention
    linear_units: 2048
    input_layer: "conv2d"
    macaron_style: true
    activation_type: swish

    cnn_module_kernel: 31

decoder: transformer
decoder_conf:
    attention_heads: 4

# one value a line
specaug_conf: {freq_mask_width_range: [0, 27]}
"""
CHANGED = [
    "-encoder:   conformer   # the paper's baseline",
    "+encoder:   conbimamba   # the paper's baseline",
    "-    attention_heads: 4",
    "-    attention_dropout_rate: 0.0",
    '-    pos_enc_layer_type: "rel_pos"',
    "-    selfattention_layer_type: 'rel_selfattn'   # with positions",
    "-    rel_pos_type: latest",
]


@pytest.fixture
def convert(tmp_path, capsys):
    """Convert a text; return the exit status, stdout and stderr."""

    def run(text: str | bytes, *arguments: str) -> tuple[int, str, str]:
        stock = tmp_path / "stock.yaml"
        stock.write_bytes(text if isinstance(text, bytes) else text.encode())
        status = main(["conf", "convert", str(stock), *arguments])
        return status, *capsys.readouterr()

    return run


def test_one_line_changes_and_the_attention_lines_go(convert):
    status, out, err = convert(CONFORMER)
    assert status == 0
    assert out == CONBIMAMBA
    assert "\n+++ <stdout>\n" in err
    difference = [
        line
        for line in err.splitlines()
        if line.startswith(("+", "-")) and not line.startswith(("+++", "---"))
    ]
    assert difference == CHANGED


def test_a_dash_is_stdout(convert, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert convert(CONFORMER, "-o", "-") == convert(CONFORMER)
    assert [path.name for path in tmp_path.iterdir()] == ["stock.yaml"]


@pytest.mark.parametrize(
    ("stock", "ours", "arguments"),
    [
        ("conformer", "conbimamba", []),
        ("transformer", "transbimamba", []),
        ("e_branchformer", "e_branchbimamba", []),
        ("transformer", "bimamba", ["--encoder", "bimamba"]),
        ("conformer", "conbimamba", ["--encoder", "conbimamba"]),
    ],
)
def test_every_refused_key_goes_and_no_other(convert, stock, ours, arguments):
    kept = {"output_size": 8, "dropout_rate": 0.1, "input_layer": "conv2d"}
    conf = {**dict.fromkeys(REFUSED[ours], 1), "pos_enc_layer_type": "rel_pos", **kept}
    status, out, _ = convert(yaml.safe_dump({"encoder": stock, "encoder_conf": conf}), *arguments)
    assert status == 0
    assert yaml.safe_load(out) == {"encoder": ours, "encoder_conf": kept}


def test_bimamba_loses_the_feed_forward_keys(convert):
    text = "encoder: transformer\nencoder_conf:\n  linear_units: 2048\n  num_blocks: 6\n"
    assert convert(text, "--encoder", "bimamba")[1] == (
        "encoder: bimamba\nencoder_conf:\n  num_blocks: 6\n"
    )
    assert convert(text)[1] == text.replace("transformer", "transbimamba")


def test_an_espnet3_yaml_is_converted_in_its_model(convert):
    text = (
        "task: a.Task\nmodel:\n  token_list: ${data}/tokens\n  encoder: e_branchformer\n"
        "  encoder_conf:\n    attention_heads: 4\n    num_blocks: 12\n  decoder: transformer\n"
    )
    status, out, _ = convert(text)
    assert status == 0
    assert out == text.replace("e_branchformer", "e_branchbimamba").replace(
        "    attention_heads: 4\n", ""
    )


def test_an_encoder_conf_without_anything_left_goes(convert):
    text = "encoder: transformer\nencoder_conf:\n    attention_heads: 4\ndecoder: rnn\n"
    assert convert(text)[1] == "encoder: transbimamba\ndecoder: rnn\n"


def test_without_encoder_conf_one_line_changes(convert):
    assert convert("encoder: transformer\n")[1] == "encoder: transbimamba\n"


@pytest.mark.parametrize("position", ["abs_pos", "conv"])
def test_positions_that_go_are_mentioned(convert, position):
    text = f"encoder: transformer\nencoder_conf:\n  pos_enc_layer_type: {position}\n  a: 1\n"
    status, out, err = convert(text)
    assert status == 0
    assert yaml.safe_load(out) == {"encoder": "transbimamba", "encoder_conf": {"a": 1}}
    assert f"note: pos_enc_layer_type: {position} is gone" in err


def test_the_transformers_positions_are_mentioned_where_the_yaml_does_not_say_them(convert):
    text = "encoder: transformer\nencoder_conf:\n    attention_heads: 4\n"
    assert "note: pos_enc_layer_type: abs_pos is gone" in convert(text)[2]


@pytest.mark.parametrize("stock", COUNTERPARTS)
def test_default_positions_are_those_of_espnet(stock):
    cls = encoder_choices.get_class(stock)
    default = inspect.signature(cls).parameters["pos_enc_layer_type"].default
    assert default == DEFAULT_POSITIONS[stock]


def test_relative_positions_go_without_a_word(convert):
    assert "note:" not in convert(CONFORMER)[2]


def test_line_ends_and_a_missing_last_one_stay(convert):
    text = b"encoder: transformer\r\nencoder_conf:\r\n  attention_heads: 4\r\n  num_blocks: 6"
    status, out, _ = convert(text)
    assert status == 0
    assert out == "encoder: transbimamba\r\nencoder_conf:\r\n  num_blocks: 6"


def test_output_is_a_file_that_honours_the_umask(convert, tmp_path):
    out = tmp_path / "ours.yaml"
    status, printed, err = convert(CONFORMER, "-o", str(out))
    assert (status, printed) == (0, "")
    assert out.read_text() == CONBIMAMBA
    assert f"+++ {out}" in err
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(out.stat().st_mode) == 0o666 & ~mask
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.yaml", "stock.yaml"]


def test_the_output_may_be_the_input(convert, tmp_path):
    assert convert(CONFORMER, "-o", str(tmp_path / "stock.yaml"), "--force")[0] == 0
    assert (tmp_path / "stock.yaml").read_text() == CONBIMAMBA


def test_a_file_that_is_there_is_replaced_only_when_told(convert, tmp_path):
    out = tmp_path / "ours.yaml"
    out.write_text("precious\n")
    assert convert(CONFORMER, "-o", str(out)) == (
        2,
        "",
        f"espnet-bimamba: {out}: is there already: give --force to replace it\n",
    )
    assert out.read_text() == "precious\n"
    assert convert(CONFORMER, "-o", str(out), "--force")[0] == 0
    assert out.read_text() == CONBIMAMBA


def test_a_write_that_fails_leaves_no_half_file(convert, tmp_path, monkeypatch):
    out = tmp_path / "ours.yaml"
    out.write_text("precious\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    status, _, err = convert(CONFORMER, "-o", str(out), "--force")
    assert status == 2
    assert "cannot be written: No space left on device" in err
    assert out.read_text() == "precious\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours.yaml", "stock.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("encoder: conformer\n  broken: [\n", "is not valid YAML: mapping values"),
        ("- encoder\n", "holds a list, not a mapping of options"),
        ("", "holds no options: a training YAML is a mapping of options"),
        ("decoder: transformer\n", "names no encoder: there is no line `encoder:`"),
        ("encoder: null\n", "names no encoder"),
        ("encoder: conbimamba\n", "encoder: conbimamba is ours already"),
        ("encoder: [conformer]\n", "encoder: ['conformer'] has no counterpart among ours"),
        ("encoder: branchformer\n", "has no counterpart among ours; e_branchbimamba, the closest"),
        ("encoder: rnn\n", "known are conformer, transformer, e_branchformer"),
        ("encoder: conformer\nencoder_conf: 3\n", "encoder_conf is 3, not a mapping"),
        (
            "encoder: conformer\nencoder_conf: {attention_heads: 4, num_blocks: 2}\n",
            "write `encoder: conbimamba` by hand and delete attention_heads",
        ),
        (
            "base: &base\n  attention_heads: 4\nencoder: conformer\nencoder_conf:\n"
            "  <<: *base\n  num_blocks: 2\n",
            "cannot be edited line by line",
        ),
        (b"encoder: \xff\n", "is not UTF-8: invalid start byte at byte 9"),
    ],
)
def test_bad_input_is_named(convert, text, message):
    status, out, err = convert(text)
    assert status == 2
    assert out == ""
    assert err.startswith("espnet-bimamba: ")
    assert "stock.yaml: " in err
    assert message in err


def test_an_encoder_that_does_not_fit_is_refused(convert):
    status, _, err = convert(CONFORMER, "--encoder", "transbimamba")
    assert status == 2
    assert "encoder: conformer becomes conbimamba; its encoder_conf does not fit" in err


def test_a_file_that_is_not_there_is_named(tmp_path, capsys):
    assert main(["conf", "convert", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml: cannot be read: No such file or directory" in capsys.readouterr().err


def test_an_unknown_encoder_is_a_usage_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["conf", "convert", "x.yaml", "--encoder", "conmamba"])
    assert stopped.value.code == 2
    assert "invalid choice: 'conmamba'" in capsys.readouterr().err
