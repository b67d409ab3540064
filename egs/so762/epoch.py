"""What the so762 trainings had reached after one epoch: losses, error rate, seconds.

For comparing trainings that end early, of one working copy or of several, and epochs' times.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from document import markdown, publish
from runs import ResultsError, Run, positive, read_all

PROGRAM = "egs/so762/epoch.py"


def table(runs: Sequence[Run], number: int) -> str:
    """Return the table of those trainings that have finished an epoch, by model and seed.

    Args:
        runs: The trainings.
        number: The epoch's, from 1 on.

    Raises:
        ResultsError: None has.
    """
    rows = [
        [
            run.model,
            str(run.seed),
            f"{epoch.train_loss:.1f}",
            f"{epoch.dev_loss:.1f}",
            f"{100 * epoch.dev_cer:.1f}",
            f"{epoch.seconds:.0f}",
        ]
        for run in sorted(runs, key=lambda run: (run.model, run.seed))
        for epoch in run.epochs
        if epoch.number == number
    ]
    if not rows:
        raise ResultsError(f"no training has finished epoch {number}")
    return markdown(["model", "seed", "training loss", "dev loss", "dev CER", "seconds"], rows)


def main(argv: list[str] | None = None) -> int:
    """Write the table; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0] if __doc__ else "",
        epilog="example: python egs/so762/epoch.py 4 exp/so762/egs2/so762/asr1",
    )
    parser.add_argument("number", type=positive, help="the epoch, from 1 on")
    parser.add_argument(
        "recipe", type=Path, nargs="+", help="a working copy that run.sh made, or several"
    )
    parser.add_argument("--into", type=Path, help="a Markdown file, between its markers")
    args = parser.parse_args(argv)

    def make() -> str:
        return table([run for recipe in args.recipe for run in read_all(recipe)], args.number)

    return publish(make, args.into, f"{PROGRAM} {args.number}")


if __name__ == "__main__":
    sys.exit(main())
