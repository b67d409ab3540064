"""The help texts: they are narrow, and their examples are commands that run."""

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from espnet_bimamba import recipes
from espnet_bimamba.cli import build_parser, main
from espnet_bimamba.cli.conf import shipped
from tests.cli.test_params import CONFORMER
from tests.test_recipes import FILES, VERSION, write_sdist

WIDEST = 100

#: Commands whose examples are not run: `doctor` imports all of ESPnet, `zoo` unpacks a model.
SLOW = ("doctor", "zoo")

STOCK = "encoder: conformer\nencoder_conf:\n    num_blocks: 1\n"
RECIPES = {
    **{
        shipped.in_the_tree(stock): STOCK
        for file in shipped.shipped()
        for stock in (file.stock, file.stock_encoder)
        if stock
    },
    "egs2/librispeech_100/asr1/run.sh": "",
    "egs2/an4/asr1/run.sh": "",
    "egs3/librispeech_100/esp2_asr/run.py": "",
}


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


def examples(text: str) -> list[str]:
    """Return the arguments of each call in a help text, without what the shell does with them."""
    calls = re.findall(r"(?m)^  .*?espnet-bimamba (.*)", text.partition("examples:\n")[2])
    return [re.split(r"  +|\)\"| > ", call)[0] for call in calls]


PARSERS = {parser.prog: parser for parser in parsers(build_parser())}
EXAMPLES = sorted({call for parser in PARSERS.values() for call in examples(parser.format_help())})


def test_every_command_is_looked_at():
    assert len(PARSERS) == 15
    assert len(EXAMPLES) > 25


@pytest.mark.parametrize("prog", PARSERS)
def test_a_help_text_is_narrow_and_says_what_the_command_does(prog, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = PARSERS[prog].format_help()
    told, _, shown = text.partition("examples:\n")
    told += "".join(line for line in shown.splitlines(keepends=True) if line[:2] != "  ")
    assert [line for line in told.splitlines() if len(line) > WIDEST] == []
    assert PARSERS[prog].description


@pytest.mark.parametrize("prog", PARSERS)
def test_examples_in_the_help_are_of_the_command(prog):
    calls = examples(PARSERS[prog].format_help())
    assert len(calls) >= 2
    for call in calls:
        assert call.startswith(prog.removeprefix("espnet-bimamba").strip())
        assert callable(build_parser().parse_args(shlex.split(call)).run)


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user's home and working directory, with the files that examples speak of."""
    for cache in ("cache/espnet-bimamba", "espnet-recipes"):
        write_sdist(tmp_path / cache / f"espnet-{VERSION}.tar.gz", FILES | RECIPES)
    monkeypatch.setattr(recipes, "installed_version", lambda: VERSION)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = {
        "conf/train_asr_conformer.yaml": CONFORMER,
        "conf/train_asr_transformer.yaml": "encoder: transformer\n",
        "exp/asr_conbimamba/config.yaml": shipped.find("mini_an4/conbimamba").path.read_text(),
        "egs/new/asr1/run.sh": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("call", [call for call in EXAMPLES if not call.startswith(SLOW)])
def test_every_example_that_is_quick_runs(call, home, capsys):
    words = [str(Path(word).expanduser()) if word[0] == "~" else word for word in shlex.split(call)]
    assert main(words) == 0, capsys.readouterr().err
