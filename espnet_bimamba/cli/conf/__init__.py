"""``espnet-bimamba conf``: work on training YAMLs."""

import argparse

from espnet_bimamba.cli.conf import convert


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``conf`` and its actions to the command line."""
    parser = subparsers.add_parser("conf", help="work on training YAMLs")
    convert.add_parser(parser.add_subparsers(metavar="ACTION", required=True))
