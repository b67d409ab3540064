"""`espnet-bimamba conf list | show | diff | copy`: what is printed, written and refused."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from espnet_bimamba import recipes
from espnet_bimamba.cli import main
from espnet_bimamba.cli.conf import shipped

CONF = Path(__file__).resolve().parents[3] / "conf"
OURS = CONF / "librispeech_100" / "train_asr_conextbimamba.yaml"

STOCK = """\
# Trained with a large machine.
encoder: conformer
encoder_conf:
    output_size: 256
    attention_heads: 4    # of attention
    num_blocks: 12

max_epoch: 70
"""
OTHER = "encoder: transformer\nencoder_conf:\n    output_size: 8\n\nmax_epoch: 3\n"
FOLLOWING = """\
# Paper: Table 8, a row
# Stock: corpus/asr1/conf/train.yaml
# Parameters: 1.50 M, paper 1.49 M
encoder: conbimamba
encoder_conf:
    output_size: 256
    num_blocks: 12

max_epoch: 70
"""


@pytest.fixture
def cli(capsys):
    """Run the command line; return the exit status, stdout and stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main(["conf", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def conf(tmp_path, monkeypatch):
    """A folder of YAMLs in place of the package's."""
    root = tmp_path / "conf"
    (root / "corpus").mkdir(parents=True)
    (root / "corpus" / "train_asr_model.yaml").write_text(FOLLOWING)
    (root / "corpus" / "train_asr_free.yaml").write_text("encoder: bimamba\n")
    (root / "corpus" / "decode_asr.yaml").write_text("# Paper: all of it\nbeam_size: 3\n")
    monkeypatch.setattr(shipped, "folder", lambda: root)
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache that holds a recipe tree of two YAMLs."""
    tree = tmp_path / "cache" / f"espnet-{recipes.installed_version()}"
    stock = tree / "egs2" / "corpus" / "asr1" / "conf"
    stock.mkdir(parents=True)
    (stock / "train.yaml").write_text(STOCK)
    (stock / "other.yaml").write_text(OTHER)
    return tree.parent


def test_list_names_every_yaml_of_the_package(cli):
    status, out, _ = cli("list", "--json")
    assert status == 0
    listed = {Path(file["path"]) for file in json.loads(out)}
    assert listed == set(CONF.rglob("*.yaml"))


def test_list_prints_what_a_yaml_says_of_itself(cli, conf):
    assert cli("list")[1].splitlines() == [
        "name               encoder     ours, M  paper, M  in the paper",
        "--------------------------------------------------------------",
        "corpus/free        bimamba           -         -  -",
        "corpus/model       conbimamba     1.50      1.49  Table 8, a row",
        "corpus/decode_asr  -                 -         -  all of it",
    ]


def test_of_enhancement_the_separator_is_listed(conf):
    (conf / "se").mkdir()
    path = conf / "se" / "train_enh_mamba4.yaml"
    path.write_text(
        "# Paper: Table 3\n# Follows: appendix C.1\nencoder: stft\nseparator: bimamba\n"
    )
    file = shipped.find("se/mamba4")
    assert (file.path, file.encoder, file.paper, file.stock) == (path, "bimamba", "Table 3", None)


def test_espnet3_yamls_have_names_of_their_own(cli):
    names = [line.split()[0] for line in cli("list", "librispeech_100")[1].splitlines()[2:]]
    assert names[-3:] == [
        "librispeech_100/decode_asr_transducer",
        "librispeech_100/espnet3/conextbimamba",
        "librispeech_100/espnet3/coninnbimamba",
    ]
    file = shipped.find("librispeech_100/espnet3/conextbimamba")
    assert file.path == CONF / "librispeech_100" / "espnet3" / "training_conextbimamba.yaml"
    assert (file.encoder, file.parameters, file.paper_parameters) == ("conbimamba", 40.79, 41.59)


@pytest.fixture
def in_espnet3(conf, cache):
    """A YAML of ESPnet3 that follows one of ESPnet's."""
    ours = conf / "corpus" / "espnet3" / "training_model.yaml"
    stock = cache / f"espnet-{recipes.installed_version()}" / "egs3" / "corpus" / "training.yaml"
    for path, encoder in ((ours, "conbimamba"), (stock, "conformer")):
        path.parent.mkdir(parents=True)
        path.write_text(f"# Stock: egs3/corpus/training.yaml\nmodel:\n  encoder: {encoder}\n")
    return ours


def test_diff_of_an_espnet3_yaml(cli, cache, in_espnet3):
    status, out, err = cli("diff", "corpus/espnet3/model", "--cache", cache)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "--- egs3/corpus/training.yaml",
        f"+++ {in_espnet3}",
        "@@ -1,2 +1,2 @@",
        " model:",
        "-  encoder: conformer",
        "+  encoder: conbimamba",
    ]


def test_copy_of_an_espnet3_yaml_keeps_espnets_kind_of_name(cli, tmp_path, in_espnet3):
    assert cli("copy", "corpus/espnet3/model", tmp_path)[0] == 0
    assert (tmp_path / "training_model.yaml").read_bytes() == in_espnet3.read_bytes()


def test_list_prints_json(cli, conf):
    _, model, _ = json.loads(cli("list", "corpus", "--json")[1])
    assert model == {
        "name": "corpus/model",
        "path": str(conf / "corpus" / "train_asr_model.yaml"),
        "encoder": "conbimamba",
        "paper": "Table 8, a row",
        "stock": "corpus/asr1/conf/train.yaml",
        "stock_encoder": None,
        "parameters": 1.5,
        "paper_parameters": 1.49,
    }


def test_list_of_one_recipe(cli):
    names = [line.split()[0] for line in cli("list", "an4")[1].splitlines()[2:]]
    assert names
    assert all(name.startswith("an4/") for name in names)


def test_list_of_an_unknown_recipe_is_refused(cli, conf):
    status, out, err = cli("list", "librispeach")
    assert (status, out) == (2, "")
    assert err == (
        "espnet-bimamba: RECIPE='librispeach' is not possible: allowed is one of corpus.\n"
    )


def test_show_prints_the_file(cli):
    status, out, err = cli("show", "librispeech_100/conextbimamba")
    assert (status, err) == (0, "")
    assert out == OURS.read_text()


@pytest.mark.parametrize("action", [["show"], ["diff"], ["copy"]], ids=lambda words: words[0])
def test_an_unknown_name_is_refused_with_the_nearest(cli, tmp_path, action):
    more = [tmp_path] if action == ["copy"] else []
    status, out, err = cli(*action, "librispeech_100/conextbimama", *more)
    assert (status, out) == (2, "")
    assert err.startswith("espnet-bimamba: NAME='librispeech_100/conextbimama' is not possible:")
    assert "`espnet-bimamba conf list`" in err
    assert "Did you mean librispeech_100/conextbimamba" in err


def test_a_copy_may_end_as_espnets_do_or_in_yml(cli, tmp_path):
    status, out, _ = cli("copy", "seame/conextbimamba", tmp_path / "x.yml")
    assert (status, out) == (0, f"{tmp_path}/x.yml\n")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("seame/nosuch", ""),
        ("librispeech_100/nosuch", ""),
        (
            "seme/conextbimamba",
            r" Did you mean seame/conextbimamba or [a-z_0-9/]+/conextbimamba or .*",
        ),
        ("conextbimamba", r" Did you mean( \w+/conextbimamba( or|\?)){3}"),
    ],
)
def test_only_what_is_near_is_suggested_and_the_model_counts_most(cli, name, hint):
    err = cli("show", name)[2]
    assert re.search(rf"`espnet-bimamba conf list` prints\.{hint}\n$", err), err


def test_diff_shows_settings_and_no_comments(cli, conf, cache):
    status, out, err = cli("diff", "corpus/model", "--cache", cache)
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "--- egs2/corpus/asr1/conf/train.yaml",
        f"+++ {conf / 'corpus' / 'train_asr_model.yaml'}",
        "@@ -1,7 +1,6 @@",
        "-encoder: conformer",
        "+encoder: conbimamba",
        " encoder_conf:",
        "     output_size: 256",
        "-    attention_heads: 4",
        "     num_blocks: 12",
        " ",
        " max_epoch: 70",
    ]


def test_diff_takes_the_encoder_from_where_the_yaml_says(cli, conf, cache):
    text = FOLLOWING.replace("train.yaml", "train.yaml; encoder: corpus/asr1/conf/other.yaml")
    (conf / "corpus" / "train_asr_model.yaml").write_text(text)
    lines = cli("diff", "corpus/model", "--cache", cache)[1].splitlines()
    assert lines[0] == (
        "--- egs2/corpus/asr1/conf/train.yaml with the encoder of egs2/corpus/asr1/conf/other.yaml"
    )
    assert [line for line in lines[3:] if line[0] in "+-"] == [
        "-encoder: transformer",
        "+encoder: conbimamba",
        "-    output_size: 8",
        "+    output_size: 256",
        "+    num_blocks: 12",
    ]
    assert " max_epoch: 70" in lines


def test_diff_of_a_yaml_that_equals_its_stock_one_says_so(cli, conf, cache):
    header = "# Stock: corpus/asr1/conf/train.yaml\n"
    (conf / "corpus" / "train_asr_model.yaml").write_text(header + STOCK)
    status, out, err = cli("diff", "corpus/model", "--cache", cache)
    assert (status, out) == (0, "")
    assert (
        err == "corpus/model has every setting of egs2/corpus/asr1/conf/train.yaml, and no other\n"
    )


def test_diff_of_a_yaml_that_follows_none_is_refused(cli, conf, cache):
    status, out, err = cli("diff", "corpus/free", "--cache", cache)
    assert (status, out) == (2, "")
    assert "train_asr_free.yaml: follows no stock YAML" in err


def test_diff_without_the_tree_says_how_to_get_it(cli, conf, tmp_path, monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "ERROR: no network\n")
    monkeypatch.setattr(recipes.subprocess, "run", lambda *_, **__: failed)
    status, out, err = cli("diff", "corpus/model", "--cache", tmp_path / "empty")
    assert (status, out) == (2, "")
    version = recipes.installed_version()
    assert err.startswith("fetching and unpacking ESPnet's stock recipes (36 MB)\n")
    assert "ERROR: no network" in err
    assert "check the network and pip's configuration" in err
    assert f"or put espnet-{version}.tar.gz into {tmp_path / 'empty'}" in err


@pytest.mark.parametrize("place", ["/dev/null", "/proc/nope"])
def test_diff_with_a_cache_that_cannot_be_written_to_is_refused(cli, conf, place):
    status, out, err = cli("diff", "corpus/model", "--cache", place)
    assert (status, out) == (2, "")
    assert f"espnet-bimamba: {place} cannot be written: " in err


def test_diff_with_a_stock_file_that_is_gone_names_it(cli, conf, cache):
    (conf / "corpus" / "train_asr_model.yaml").write_text(FOLLOWING.replace("train.yaml", "a.yaml"))
    status, _, err = cli("diff", "corpus/model", "--cache", cache)
    assert status == 2
    assert "egs2/corpus/asr1/conf/a.yaml: cannot be read: No such file or directory" in err


def test_copy_into_a_folder_keeps_the_name(cli, tmp_path):
    status, out, err = cli("copy", "librispeech_100/conextbimamba", tmp_path)
    target = tmp_path / OURS.name
    assert (status, out, err) == (0, f"{target}\n", "")
    assert target.read_bytes() == OURS.read_bytes()


def test_copy_to_a_file(cli, tmp_path):
    assert cli("copy", "librispeech_100/conextbimamba", tmp_path / "mine.yaml")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]
    assert (tmp_path / "mine.yaml").read_bytes() == OURS.read_bytes()


def test_copy_to_a_name_that_is_no_yaml_s_is_refused(cli, tmp_path):
    status, out, err = cli("copy", "librispeech_100/conextbimamba", tmp_path / "tuning")
    assert (status, out) == (2, "")
    assert err == (
        f"espnet-bimamba: DEST='{tmp_path}/tuning' is not possible: allowed is a folder that is "
        "there, one that shall be made, with a slash at its end, or a file with .yaml or .yml at "
        "its end.\n"
    )
    assert not (tmp_path / "tuning").exists()


def test_copy_makes_the_folder_that_a_slash_names(cli, tmp_path):
    target = tmp_path / "conf" / "tuning" / OURS.name
    assert cli("copy", "librispeech_100/conextbimamba", f"{tmp_path}/conf/tuning/") == (
        0,
        f"{target}\n",
        "",
    )
    assert target.read_bytes() == OURS.read_bytes()
    (tmp_path / "file").write_text("precious\n")
    status, _, err = cli("copy", "librispeech_100/conextbimamba", f"{tmp_path}/file/")
    assert status == 2
    assert f"{tmp_path}/file: is no folder: File exists" in err
    assert (tmp_path / "file").read_text() == "precious\n"


def test_copy_replaces_a_file_only_when_told(cli, tmp_path):
    target = tmp_path / "mine.yaml"
    target.write_text("precious\n")
    status, out, err = cli("copy", "librispeech_100/conextbimamba", target)
    assert (status, out) == (2, "")
    assert "mine.yaml: is there already: give --force to replace it" in err
    assert target.read_text() == "precious\n"
    assert cli("copy", "librispeech_100/conextbimamba", target, "--force")[0] == 0
    assert target.read_bytes() == OURS.read_bytes()


def test_copy_into_a_folder_that_is_not_there_is_refused(cli, tmp_path):
    status, _, err = cli("copy", "librispeech_100/conextbimamba", tmp_path / "no" / "mine.yaml")
    assert status == 2
    assert "mine.yaml: cannot be written: No such file or directory" in err


def test_the_yamls_are_found_in_the_package_and_beside_it(tmp_path, monkeypatch):
    module = tmp_path / "espnet_bimamba" / "cli" / "conf" / "shipped.py"
    monkeypatch.setattr(shipped, "__file__", str(module))
    with pytest.raises(shipped.ConfigError, match="conf: is missing: install espnet-bimamba again"):
        shipped.folder()
    (tmp_path / "conf").mkdir()
    assert shipped.folder() == tmp_path / "conf"
    (tmp_path / "espnet_bimamba" / "conf").mkdir(parents=True)
    assert shipped.folder() == tmp_path / "espnet_bimamba" / "conf"


@pytest.mark.parametrize("action", ["list", "show", "diff", "copy", "convert"])
def test_help_has_examples(action, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["conf", action, "--help"])
    assert stopped.value.code == 0
    assert f"examples:\n  espnet-bimamba conf {action}" in capsys.readouterr().out
