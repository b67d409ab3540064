"""Confidence intervals of error rates by resampling the test set."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

type Array = npt.NDArray[np.float64]

DRAWS = 10_000


class Resampling:
    """Test sets drawn from a test set, with replacement.

    Every system is scored on the same draws, so the difference of two systems' rates is paired.

    Args:
        groups: For each utterance, what is drawn as a whole: itself, or its speaker.
        draws: How many test sets.
        seed: Of the drawing.
    """

    def __init__(self, groups: Sequence[str], draws: int = DRAWS, seed: int = 0) -> None:
        names, group_of = np.unique(np.asarray(groups), return_inverse=True)
        drawn = np.random.default_rng(seed).multinomial(
            len(names), np.full(len(names), 1 / len(names)), size=draws
        )
        # How often each utterance is in each draw.
        self.weights = drawn[:, group_of].astype(np.float64)

    def rates(self, errors: Array, lengths: Array) -> Array:
        """Return the error rate on each draw, all errors over all lengths.

        Args:
            errors: ``(utterances,)``; over several seeds, their mean.
            lengths: ``(utterances,)``, of the references.

        Returns:
            ``(draws,)``.
        """
        return (self.weights @ errors) / (self.weights @ lengths)


def interval(values: Array) -> tuple[float, float]:
    """Return the 2.5 and 97.5 percentiles."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
