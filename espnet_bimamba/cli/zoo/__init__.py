"""``espnet-bimamba zoo``: packed models, for those who publish them and those who load them."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from espnet_bimamba.cli.zoo import archive, card
from espnet_bimamba.cli.zoo.check import TIMEOUT, checks
from espnet_bimamba.files import STDOUT

WORDS = {True: "ok", False: "FAILED", None: "-"}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add ``zoo`` and its actions to the command line."""
    parser = subparsers.add_parser(
        "zoo",
        help="check a packed model, write its card",
        description="What ESPnet's stage 14 packed: the card that it lacks, and whether it loads.",
        epilog=(
            "examples:\n"
            "  espnet-bimamba zoo card model.zip --source git+https://example.org/espnet-bimamba\n"
            "  espnet-bimamba zoo check model.zip --wav speech.wav"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    check_parser = actions.add_parser(
        "check",
        help="see whether others can load a packed model",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Looks at what ESPnet's stage 14 packed, then loads it in two fresh processes, one\n"
            "with this package and one without, and transcribes. Of the weights no code is run.\n"
            "Takes about a minute.\n"
            "Exit status 0: all is in order. 1: a check failed. 2: there is nothing to check."
        ),
        epilog=(
            "examples:\n"
            "  espnet-bimamba zoo check exp/asr_train_asr_conbimamba/asr_train_asr_conbimamba.zip\n"
            "  espnet-bimamba zoo check model.zip --wav speech.wav --json"
        ),
    )
    check_parser.add_argument("model", type=Path, metavar="MODEL.zip")
    check_parser.add_argument(
        "--wav", type=Path, metavar="FILE", help="transcribe this (default: a second of noise)"
    )
    check_parser.add_argument(
        "--timeout",
        type=_seconds,
        default=TIMEOUT,
        metavar="SECONDS",
        help="what takes longer fails: of either process (default: %(default)s)",
    )
    check_parser.add_argument("--json", action="store_true", help="print the list as JSON")
    check_parser.set_defaults(run=run_check)

    card_parser = actions.add_parser(
        "card",
        help="write the README.md that stage 14 does not pack",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Writes a card in the form of ESPnet's template, with what the model needs and how it\n"
            "is used, and puts it into the archive in place of the one that is there."
        ),
        epilog=(
            "examples:\n"
            "  espnet-bimamba zoo card model.zip --source git+https://example.org/espnet-bimamba\n"
            "  espnet-bimamba zoo card model.zip --repo me/conbimamba --corpus librispeech_100\n"
            "  espnet-bimamba zoo card model.zip --repo me/conbimamba -o exp/hf_repo/README.md"
        ),
    )
    card_parser.add_argument("model", type=Path, metavar="MODEL.zip")
    card_parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="OUT",
        help="write here, not into the archive; - is stdout",
    )
    card_parser.add_argument("--repo", metavar="OWNER/NAME", help="where on the Hub it will be")
    card_parser.add_argument(
        "--corpus", metavar="NAME", help="trained on this (default: the recipe it lies in)"
    )
    card_parser.add_argument(
        "--language",
        metavar="CODE[,CODE...]",
        help="of the speech, as the Hub knows it: en, or zh,en (default: the recipe's --lang)",
    )
    card_parser.add_argument(
        "--license", default=card.LICENSE, help="of the weights (default: %(default)s, ESPnet's)"
    )
    card_parser.add_argument(
        "--source",
        metavar="URL",
        help="what others give pip to install this package; without it the card says: from a "
        "clone, which `zoo check` takes for not enough",
    )
    card_parser.set_defaults(run=run_card)


def _seconds(text: str) -> int:
    if text.isdecimal() and int(text) >= 1:
        return int(text)
    raise argparse.ArgumentTypeError(
        f"{text!r} is not possible: allowed is a whole number of seconds, from 1 on"
    )


def run_check(args: argparse.Namespace) -> int:
    """Check one model; see :func:`espnet_bimamba.cli.zoo.check.checks`."""
    found = []
    for check in checks(args.model, args.wav, args.timeout):
        found.append(check)
        if not args.json:
            # Of what an archive says, nothing may pass for a line of the list.
            detail = archive.one_line(check.detail)
            print(f"{WORDS[check.passed]:<8}{check.name:<15}{detail}", flush=True)
    passed = all(check.passed for check in found)
    if args.json:
        report = {"model": str(args.model), "passed": passed}
        print(json.dumps({**report, "checks": [asdict(check) for check in found]}, indent=2))
    else:
        print("\nIn order." if passed else "\nNot in order.")
    return 0 if passed else 1


def run_card(args: argparse.Namespace) -> int:
    """Write one card; see :func:`espnet_bimamba.cli.zoo.card.render`."""
    model = archive.read(archive.existing(args.model))
    labels = card.Labels(
        repo=args.repo,
        corpus=args.corpus or card.guessed_corpus(args.model),
        language=args.language or card.guessed_language(model),
        license=args.license,
        source=args.source,
    )
    text = card.render(model, labels)
    if args.output is None:
        card.add(args.model, text)
    elif args.output == STDOUT:
        sys.stdout.write(text)
    else:
        card.write(args.output, text)
    if args.output != STDOUT:
        print(f"{archive.README} is in {args.output or args.model}", file=sys.stderr)
    for option in ("repo", "corpus", "language"):
        if getattr(labels, option) is None:
            print(f"note: it does not name the {option}: --{option} does", file=sys.stderr)
    if labels.source is None:
        what = "from where pip installs espnet-bimamba: --source does, and `zoo check` wants it"
        print(f"note: it does not say {what}", file=sys.stderr)
    return 0
