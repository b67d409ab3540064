"""The command ``espnet-bimamba``: one module for each subcommand."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from espnet_bimamba import __version__
from espnet_bimamba.cli import conf, doctor, params, recipes, zoo
from espnet_bimamba.errors import BiMambaError

SUBCOMMANDS = (doctor, params, conf, recipes, zoo)

EXAMPLES = """\
examples:
  espnet-bimamba doctor
  espnet-bimamba conf list librispeech_100
  espnet-bimamba recipes get librispeech_100

`espnet-bimamba COMMAND --help` says more, with examples.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments without the program's name; None takes those of the process.

    Returns:
        The exit status: 0 for success, 1 for a check that says no, 2 for bad input, 141 where
        nobody reads what is printed, as after ``| head``.
    """
    parser = argparse.ArgumentParser(
        prog="espnet-bimamba",
        description="Bidirectional Mamba encoders for ESPnet.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for subcommand in SUBCOMMANDS:
        subcommand.add_parser(subparsers)
    args = parser.parse_args(argv)
    try:
        status = int(args.run(args))
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except BiMambaError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return status
