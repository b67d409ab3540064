"""``espnet-bimamba conf convert``: a stock training YAML becomes one that names our encoder."""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from espnet_bimamba.cli.conf.files import add_force, difference, items, parse, read, write_whole
from espnet_bimamba.encoders.options import FEED_FORWARD, REFUSED
from espnet_bimamba.errors import ConfigError
from espnet_bimamba.files import STDOUT
from espnet_bimamba.registry import ENCODERS

EXAMPLES = """\
examples:
  espnet-bimamba conf convert conf/train_asr_conformer.yaml
  espnet-bimamba conf convert conf/train_asr_transformer.yaml --encoder bimamba -o conf/ours.yaml
"""
# Stock encoder -> those of ours that take its place, the usual one first.
COUNTERPARTS = {
    "conformer": ("conbimamba",),
    "transformer": ("transbimamba", "bimamba"),
    "e_branchformer": ("e_branchbimamba",),
}
# What `pos_enc_layer_type` is in a stock encoder where the YAML does not say.
DEFAULT_POSITIONS = {
    "conformer": "rel_pos",
    "transformer": "abs_pos",
    "e_branchformer": "rel_pos",
}
REFUSED_STOCK = {
    "branchformer": "e_branchbimamba, the closest of ours, takes the place of e_branchformer",
}


@dataclass(frozen=True)
class Conversion:
    """A converted YAML.

    Attributes:
        text: The YAML that names our encoder.
        stock: The encoder that it named before.
        removed: The deleted ``encoder_conf`` keys with the values they had.
    """

    text: str
    stock: str
    removed: dict[str, Any]


def add_parser(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``convert`` to the actions of ``conf``."""
    parser = actions.add_parser(
        "convert",
        help="turn a stock training YAML into one that names our encoder",
        description=(
            "Changes the line `encoder:` and deletes the attention-only lines of encoder_conf;\n"
            "every other line stays as it is. The difference goes to stderr."
        ),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("yaml", type=Path, metavar="STOCK.yaml")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=STDOUT,
        metavar="OUT",
        help="write here (default: %(default)s, stdout)",
    )
    add_force(parser)
    parser.add_argument("--encoder", choices=sorted(ENCODERS), help="which of ours to name")
    parser.set_defaults(run=run_convert)


def run_convert(args: argparse.Namespace) -> int:
    """Convert one file; see :func:`convert`."""
    stock = read(args.yaml)
    conversion = convert(stock, args.yaml, args.encoder)
    if args.output == STDOUT:
        sys.stdout.write(conversion.text)
    else:
        write_whole(args.output, conversion.text, force=args.force)
    name = "<stdout>" if args.output == STDOUT else str(args.output)
    sys.stderr.writelines(difference(stock, conversion.text, str(args.yaml), name))
    position = conversion.removed.get("pos_enc_layer_type", DEFAULT_POSITIONS[conversion.stock])
    if position != "rel_pos":
        print(
            f"note: pos_enc_layer_type: {position} is gone, since the paper's models have no "
            "positional encoding; write it to have it back",
            file=sys.stderr,
        )
    return 0


def convert(text: str, path: Path, encoder: str | None = None) -> Conversion:
    """Make a stock training YAML name our encoder.

    Comments, order and formatting of all lines but the changed one stay. The result is parsed
    again and must differ from the stock file in nothing else.

    Args:
        text: The stock YAML, of ESPnet2 or ESPnet3.
        path: Its file, for messages.
        encoder: Which of ours to name; None takes the counterpart of the stock encoder.

    Raises:
        ConfigError: The file is not valid, names no encoder or one without counterpart, or is
            written in a way that cannot be edited line by line.
    """
    config = parse(text, path)
    options = _encoder_options(config, path)
    target = _target(options["encoder"], path, encoder)
    conf = options.get("encoder_conf") or {}
    refused = {"pos_enc_layer_type", *REFUSED[target]}
    if target == "bimamba":
        refused |= set(FEED_FORWARD)
    removed = {key: value for key, value in conf.items() if key in refused}

    stock = str(options["encoder"])
    edited = _edit(text, nested=options is not config, target=target, keys=set(removed))
    options["encoder"] = target
    for key in removed:
        del conf[key]
    if removed and not conf:
        del options["encoder_conf"]
    if parse(edited, path) != config:
        raise ConfigError(
            path,
            "cannot be edited line by line (anchors, merged keys or {...} in encoder_conf?): "
            f"write `encoder: {target}` by hand and delete {', '.join(removed) or 'nothing'}",
        )
    return Conversion(edited, stock, removed)


def _encoder_options(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The mapping that holds ``encoder:``, which in an ESPnet3 YAML is ``model:``."""
    model = config.get("model")
    for options in (config, model):
        if isinstance(options, dict) and options.get("encoder") is not None:
            conf = options.get("encoder_conf")
            if not isinstance(conf, dict | None):
                raise ConfigError(path, f"encoder_conf is {conf!r}, not a mapping")
            return options
    raise ConfigError(path, "names no encoder: there is no line `encoder:` to convert")


def _target(stock: object, path: Path, encoder: str | None) -> str:
    # Lists, since a YAML may name what cannot be a key.
    if stock in list(ENCODERS):
        raise ConfigError(path, f"encoder: {stock} is ours already; there is nothing to convert")
    if stock not in list(COUNTERPARTS):
        hint = REFUSED_STOCK.get(str(stock), f"known are {', '.join(COUNTERPARTS)}")
        raise ConfigError(path, f"encoder: {stock} has no counterpart among ours; {hint}")
    counterparts = COUNTERPARTS[str(stock)]
    if encoder is None:
        return counterparts[0]
    if encoder not in counterparts:
        raise ConfigError(
            path,
            f"encoder: {stock} becomes {' or '.join(counterparts)}; "
            f"its encoder_conf does not fit {encoder}",
        )
    return encoder


def _edit(text: str, *, nested: bool, target: str, keys: set[str]) -> str:
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    options = items(root, "model")[-1][1] if nested else root
    _, name = items(options, "encoder")[-1]
    text = text[: name.start_mark.index] + target + text[name.end_mark.index :]
    lines = text.splitlines(keepends=True)
    for header, conf in items(options, "encoder_conf"):
        doomed = [item for item in items(conf) if item[0].value in keys]
        if doomed and len(doomed) == len(items(conf)):
            lines[header.start_mark.line] = ""
        for key, value in doomed:
            for number in range(key.start_mark.line, value.end_mark.line + 1):
                lines[number] = ""
    return "".join(lines)
