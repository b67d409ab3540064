"""The command line as a whole."""

import pytest

from espnet_bimamba import __version__
from espnet_bimamba.cli import main


@pytest.mark.parametrize("arguments", [[], ["conf"], ["dance"]], ids=str)
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
    for command in ("doctor", "params", "conf"):
        assert f"\n    {command} " in out
