"""Refuses the models that a recipe lacks, before hours go into the others.

python3 egs/models.py RECIPE MODEL ...
"""

import argparse
import sys
from collections.abc import Sequence

from run_stock import training_yaml

from espnet_bimamba.errors import OptionError


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 2 for a model that is neither ours nor a baseline of ESPnet's."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("recipe", metavar="RECIPE", help="of egs/RECIPE/asr1")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="as for its run.sh --model")
    args = parser.parse_args(argv)
    try:
        for model in args.models:
            training_yaml(args.recipe, model)
    except OptionError as error:
        print(f"{args.recipe}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
