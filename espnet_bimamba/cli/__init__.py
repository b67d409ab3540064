"""The command ``espnet-bimamba``: one module for each subcommand."""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence

from espnet_bimamba import __version__
from espnet_bimamba.cli import conf, doctor, params, recipes, zoo
from espnet_bimamba.errors import BiMambaError

SUBCOMMANDS = (doctor, params, conf, recipes, zoo)

#: What the system says where there is no place for what is printed.
NO_PLACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

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
        The exit status: 0 for success, 1 for a check that says no, 2 for bad input and for what
        cannot be printed, 141 where nobody reads what is printed, as after ``| head``.
    """
    parser = build_parser()
    try:
        try:
            args = parser.parse_args(argv)
            return int(args.run(args))
        finally:
            # What goes wrong here can still be told; Python flushes once more at its end.
            sys.stdout.flush()
    except BrokenPipeError:
        _print_no_more()
        return 128 + signal.SIGPIPE
    except BiMambaError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        if error.filename is not None or error.errno not in NO_PLACE:
            raise
        _print_no_more()
        print(f"{parser.prog}: stdout cannot be written: {error.strerror}", file=sys.stderr)
        return 2


class Parser(argparse.ArgumentParser):
    """Refuses an unknown option itself, with its own usage, not that of the whole command line."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Return the options and no others."""
        options, others = super().parse_known_args(args, namespace)
        if others:
            self.error(f"unrecognized arguments: {' '.join(others)}")
        return options, others


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = Parser(
        prog="espnet-bimamba",
        description="Bidirectional Mamba encoders for ESPnet.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for subcommand in SUBCOMMANDS:
        subcommand.add_parser(subparsers)
    return parser


def _print_no_more() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
