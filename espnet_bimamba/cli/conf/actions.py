"""``espnet-bimamba conf list | show | diff | copy``: the YAMLs that the package ships."""

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path

from espnet_bimamba import recipes
from espnet_bimamba.cli.conf.files import add_force, difference, read, write_whole
from espnet_bimamba.cli.conf.shipped import (
    Shipped,
    find,
    in_the_tree,
    settings,
    shipped,
    stock_text,
)
from espnet_bimamba.errors import ConfigError, OptionError
from espnet_bimamba.files import user_cache

NAME_HELP = "as `conf list` prints it"
LIST = """\
examples:
  espnet-bimamba conf list
  espnet-bimamba conf list seame
  espnet-bimamba conf list --json
"""
SHOW = """\
examples:
  espnet-bimamba conf show librispeech_100/conextbimamba
  espnet-bimamba conf show librispeech/decode_asr
  espnet-bimamba conf show librispeech_100/espnet3/conextbimamba
"""
DIFF = """\
examples:
  espnet-bimamba conf diff librispeech_100/conextbimamba
  espnet-bimamba conf diff an4/conformer --cache ~/espnet-recipes
"""
COPY = """\
examples:
  espnet-bimamba conf copy seame/conextbimamba conf/tuning/
  espnet-bimamba conf copy seame/conextbimamba conf/train_asr.yaml --force
"""


def add_parsers(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the four actions to those of ``conf``."""
    parser = actions.add_parser(
        "list",
        help="list the YAMLs that the package ships",
        description=(
            "Lists the YAMLs that the package ships, with the encoder, the model's parameters,\n"
            "those that the paper prints, and the paper's table and row."
        ),
        epilog=LIST,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="of this recipe only")
    parser.add_argument("--json", action="store_true", help="print a JSON array for programs")
    parser.set_defaults(run=run_list)

    parser = actions.add_parser(
        "show",
        help="print one of them",
        description=(
            "Prints a YAML as it is. Its first lines name the paper's table and row, the stock\n"
            "YAML that it follows, and the model's parameters, where that means something."
        ),
        epilog=SHOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help=NAME_HELP)
    parser.set_defaults(run=run_show)

    parser = actions.add_parser(
        "diff",
        help="compare one of them with the stock YAML that it follows",
        description=(
            "Prints what changes from the stock YAML of the installed ESPnet to ours; comments\n"
            "are left out. Stock recipes that are not in the cache yet are fetched (36 MB)."
        ),
        epilog=DIFF,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help=NAME_HELP)
    parser.add_argument(
        "--cache",
        type=Path,
        default=user_cache(),
        metavar="FOLDER",
        help="where ESPnet's stock recipes lie or go (default: %(default)s)",
    )
    parser.set_defaults(run=run_diff)

    parser = actions.add_parser(
        "copy",
        help="copy one of them, to change it",
        description=(
            "Copies a YAML to a file, or into a folder under its own name, and prints its path."
        ),
        epilog=COPY,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help=NAME_HELP)
    parser.add_argument(
        "destination",
        metavar="DEST",
        help="a .yaml or .yml file, or a folder; with a slash at its end it is made if need be",
    )
    add_force(parser)
    parser.set_defaults(run=run_copy)


def run_list(args: argparse.Namespace) -> int:
    """Print the table of all YAMLs, or of those of one recipe.

    Raises:
        OptionError: There is no such recipe.
    """
    files = shipped()
    if args.recipe is not None:
        names = sorted({_recipe(file) for file in files})
        if args.recipe not in names:
            raise OptionError("RECIPE", args.recipe, f"one of {', '.join(names)}")
        files = [file for file in files if _recipe(file) == args.recipe]
    print(_json(files) if args.json else _table(files))
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Print a YAML as it is."""
    sys.stdout.write(read(find(args.name).path))
    return 0


def run_diff(args: argparse.Namespace) -> int:
    """Print the difference between a YAML and the stock one that it follows.

    Raises:
        ConfigError: It follows none.
        RecipeError: The stock recipes are not there and cannot be fetched.
    """
    file = find(args.name)
    if file.stock is None:
        raise ConfigError(file.path, "follows no stock YAML: there is nothing to compare it with")
    tree = recipes.prepare(args.cache)
    stock = settings(stock_text(tree, file.stock, file.stock_encoder))
    name = in_the_tree(file.stock)
    if file.stock_encoder is not None:
        name += f" with the encoder of {in_the_tree(file.stock_encoder)}"
    lines = difference(stock, settings(read(file.path)), name, str(file.path))
    sys.stdout.writelines(lines)
    if not lines:
        print(f"{file.name} has every setting of {name}, and no other", file=sys.stderr)
    return 0


def run_copy(args: argparse.Namespace) -> int:
    """Copy a YAML to a file, or into a folder under its own name.

    Raises:
        ConfigError: The file is there already, or cannot be written.
        OptionError: The destination is neither.
    """
    file = find(args.name)
    target = _target(args.destination, file.path.name)
    write_whole(target, read(file.path), force=args.force)
    print(target)
    return 0


def _target(destination: str, name: str) -> Path:
    path = Path(destination)
    if destination.endswith(("/", os.sep)):
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(path, f"is no folder: {error.strerror}") from error
    if path.is_dir():
        return path / name
    if path.suffix not in (".yaml", ".yml"):
        raise OptionError(
            "DEST",
            destination,
            "a folder that is there, one that shall be made, with a slash at its end, or a file "
            "with .yaml or .yml at its end",
        )
    return path


def _recipe(file: Shipped) -> str:
    return file.name.partition("/")[0]


def _json(files: list[Shipped]) -> str:
    return json.dumps(
        [dataclasses.asdict(file) | {"path": str(file.path)} for file in files], indent=2
    )


def _table(files: list[Shipped]) -> str:
    rows = [["name", "encoder", "ours, M", "paper, M", "in the paper"]]
    for file in files:
        counts = [_millions(file.parameters), _millions(file.paper_parameters)]
        rows.append([file.name, file.encoder or "-", *counts, file.paper or "-"])
    name, encoder, ours, paper = (max(len(row[column]) for row in rows) for column in range(4))
    lines = [
        f"{row[0]:<{name}}  {row[1]:<{encoder}}  {row[2]:>{ours}}  {row[3]:>{paper}}  {row[4]}"
        for row in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _millions(count: float | None) -> str:
    return "-" if count is None else f"{count:.2f}"
