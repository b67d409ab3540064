"""The command line as a whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from espnet_bimamba import __version__, recipes
from espnet_bimamba.cli import main
from espnet_bimamba.cli.conf import actions, shipped
from tests.egs.programs import HOME
from tests.test_recipes import FILES, write_sdist


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


RUN = "import sys; from espnet_bimamba.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize("words", [["conf", "list"], ["conf", "show", "librispeech/decode_asr"]])
def test_a_reader_that_has_enough_is_no_error(words):
    reader, writer = os.pipe()
    os.close(reader)  # as `head` does once it has its lines
    with os.fdopen(writer) as out:
        done = subprocess.run(
            [sys.executable, "-c", RUN, *words], stdout=out, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.parametrize("words", [["--help"], ["conf", "list"], ["conf", "diff", "--help"]])
def test_a_full_disk_is_said_in_a_line(words, monkeypatch):
    # Without a buffer, argparse itself says nothing of what it cannot print.
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    with Path("/dev/full").open("w") as out:
        done = subprocess.run(
            [sys.executable, "-c", RUN, *words], stdout=out, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (
        2,
        "espnet-bimamba: stdout cannot be written: No space left on device\n",
    )


@pytest.mark.parametrize("error", [OSError(11, "of a process"), OSError(28, "no place", "a/file")])
def test_an_error_of_something_else_is_not_taken_for_that(error, monkeypatch):
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(actions, "_table", fail)
    with pytest.raises(OSError, match=error.strerror):
        main(["conf", "list"])


@pytest.mark.parametrize(
    "call",
    [
        "--help",
        "doctor --help",
        "params --help",
        "zoo check --help",
        "conf list",
        "conf list --json",
        "conf show librispeech_100/conextbimamba",
        "conf diff librispeech_100/conextbimamba --cache {folder}",
        "conf copy librispeech_100/conextbimamba {folder}/",
        "conf convert {folder}/train.yaml -o {folder}/ours.yaml",
        "recipes list --cache {folder}",
        "recipes get mini_an4 --cache {folder} --to {folder}",
    ],
)
def test_what_needs_neither_loads_neither_torch_nor_espnet(call, tmp_path):
    version, stock = recipes.installed_version(), "encoder: conformer\nencoder_conf:\n    a: 1\n"
    followed = shipped.in_the_tree(shipped.find("librispeech_100/conextbimamba").stock)
    sdist = FILES | {followed: stock, "version.txt": version}
    write_sdist(tmp_path / f"espnet-{version}.tar.gz", sdist, top=f"espnet-{version}")
    (tmp_path / "train.yaml").write_text(stock)
    code = (
        "import sys; from espnet_bimamba.cli import main\n"
        "try: status = main(sys.argv[1:])\n"
        "except SystemExit as stopped: status = stopped.code\n"
        "heavy = {'torch', 'numpy', 'numba', 'espnet2', 'espnet3'} & set(sys.modules)\n"
        "print('\\nstatus', status, 'loaded', *sorted(heavy))"
    )
    words = call.format(folder=tmp_path).split()
    done = subprocess.run(
        [sys.executable, "-c", code, *words], check=True, capture_output=True, text=True, cwd=HOME
    )
    assert done.stdout.splitlines()[-1] == "status 0 loaded", done.stderr


@pytest.mark.parametrize("command", ["conf list", "zoo check model.zip", "doctor"])
def test_an_unknown_option_is_told_with_the_usage_of_its_command(capsys, command):
    with pytest.raises(SystemExit) as raised:
        main([*command.split(), "--jsn"])
    assert raised.value.code == 2
    out, err = capsys.readouterr()
    name = f"espnet-bimamba {command.removesuffix(' model.zip')}"
    assert (out, err.splitlines()[0].startswith(f"usage: {name} [-h]")) == ("", True), err
    assert err.endswith(f"\n{name}: error: unrecognized arguments: --jsn\n")
