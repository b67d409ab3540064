"""The command line as a whole."""

import argparse
import os
import re
import shlex
import subprocess
import sys

import pytest

from espnet_bimamba import __version__
from espnet_bimamba.cli import SUBCOMMANDS, main


@pytest.mark.parametrize("arguments", [[], ["conf"], ["zoo"], ["dance"]], ids=str)
def test_a_command_is_needed(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "usage: espnet-bimamba" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"espnet-bimamba {__version__}\n"


def test_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    for command in ("doctor", "params", "conf", "recipes", "zoo"):
        assert f"\n    {command} " in out


@pytest.mark.parametrize(
    "command", ["", "doctor", "params", "conf", "recipes", "zoo", "zoo check", "zoo card"]
)
def test_examples_in_the_help_are_commands(command, capsys):
    parser = argparse.ArgumentParser()
    subparsers = parser.add_subparsers()
    for subcommand in SUBCOMMANDS:
        subcommand.add_parser(subparsers)
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    _, _, examples_in_it = capsys.readouterr().out.partition("examples:\n")
    examples = re.findall(r"(?m)^  .*espnet-bimamba (.*)", examples_in_it)
    assert len(examples) >= 2
    for example in examples:
        assert example.startswith(command)
        words = shlex.split(example.partition(" > ")[0], comments=True)
        assert callable(parser.parse_args(words).run)


@pytest.mark.parametrize("words", [["conf", "list"], ["conf", "show", "librispeech/decode_asr"]])
def test_a_reader_that_has_enough_is_no_error(words):
    code = "import sys; from espnet_bimamba.cli import main; sys.exit(main(sys.argv[1:]))"
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does once it has its lines
    with os.fdopen(writer) as out:
        done = subprocess.run(
            [sys.executable, "-c", code, *words], stdout=out, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (141, "")
