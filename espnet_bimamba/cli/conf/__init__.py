"""``espnet-bimamba conf``: the training YAMLs that the package ships, and stock ones made ours."""

import argparse

from espnet_bimamba.cli.conf import actions, convert


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``conf`` and its actions to the command line."""
    parser = subparsers.add_parser(
        "conf",
        help="list, show, compare, copy and convert training YAMLs",
        description="The training and decoding YAMLs of the package, and stock ones made ours.",
        epilog=(
            "examples:\n"
            "  espnet-bimamba conf list seame\n"
            "  espnet-bimamba conf diff librispeech_100/conextbimamba\n"
            "  espnet-bimamba conf convert conf/train_asr_conformer.yaml -o conf/ours.yaml"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(metavar="ACTION", required=True)
    actions.add_parsers(subparsers)
    convert.add_parser(subparsers)
