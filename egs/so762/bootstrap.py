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
        self._of_seeds = np.random.default_rng(seed + 1)

    def rates(self, errors: Array, lengths: Array) -> Array:
        """Return the error rate on each draw, all errors over all lengths.

        Args:
            errors: ``(utterances,)``.
            lengths: ``(utterances,)``, of the references.

        Returns:
            ``(draws,)``.
        """
        return (self.weights @ errors) / (self.weights @ lengths)

    def rates_of_seeds(self, errors: Array, lengths: Array) -> Array:
        """Return a model's error rate on each draw, where its seeds are drawn, too.

        Each draw takes as many seeds as there are, with replacement, for each model anew: seeds of
        two models have nothing in common. Of one seed it is :meth:`rates`.

        Args:
            errors: ``(seeds, utterances)``.
            lengths: ``(utterances,)``, of the references.

        Returns:
            ``(draws,)``, the mean of the rates of the seeds drawn.
        """
        rates = np.stack([self.rates(of_seed, lengths) for of_seed in errors])
        drawn = self._of_seeds.integers(len(rates), size=rates.shape)
        return np.take_along_axis(rates, drawn, axis=0).mean(axis=0)


def interval(values: Array) -> tuple[float, float]:
    """Return the 2.5 and 97.5 percentiles."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
