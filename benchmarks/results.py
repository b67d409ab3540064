"""What a run leaves behind: measurements with every sample, and the bars they are held to."""

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Measurement:
    """One quantity of one subject in one case.

    Attributes:
        benchmark: The part of the run: ``scan``, ``layer``, ``encoder``, ``training``, ...
        case: What was done: ``forward``, ``forward+backward``, ``step``, ...
        subject: Who did it: ``ours``, ``conformer``, ...
        unit: ``s``, ``bytes`` (beyond what was there), ``total bytes`` or ``error`` (relative).
        samples: Every sample in the order taken; samples of subjects that were measured in the
            same rounds belong together pairwise. Empty if the subject was left out.
        size: Sizes and other circumstances of the case.
        note: Why it was left out, or what else there is to know.
    """

    benchmark: str
    case: str
    subject: str
    unit: str
    samples: list[float] = field(default_factory=list)
    size: dict[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)


class Results(list[Measurement]):
    """The measurements of a run."""

    def find(
        self, benchmark: str, case: str, subject: str, unit: str = "s", **size: Any
    ) -> Measurement | None:
        """Return the first measurement that fits and has samples."""
        found = self.select(benchmark, case, subject, unit, **size)
        return next((m for m in found if m.samples), None)

    def select(
        self,
        benchmark: str,
        case: str | None = None,
        subject: str | None = None,
        unit: str | None = None,
        **size: Any,
    ) -> list[Measurement]:
        """Return the measurements that fit; None fits all."""
        wanted = {"benchmark": benchmark, "case": case, "subject": subject, "unit": unit}
        return [
            m
            for m in self
            if all(value in (None, getattr(m, name)) for name, value in wanted.items())
            and all(name in m.size and m.size[name] == value for name, value in size.items())
        ]


@dataclass(frozen=True)
class Bar:
    """A number that a run is held to.

    Attributes:
        id: A short name that does not change from run to run.
        what: The number in words.
        value: The number, None if it was not measured.
        least: It should be at least this.
        most: It should be at most this.
        spread: The smallest and the largest value of a single round.
        unit: What stands behind the number, ``x`` for ratios.
        rounds: How many rounds the spread is of.
    """

    id: str
    what: str
    value: float | None
    least: float | None = None
    most: float | None = None
    spread: tuple[float, float] | None = None
    unit: str = "x"
    rounds: int = 0

    @property
    def met(self) -> bool | None:
        """Whether the bar is met, None if it was not measured."""
        if self.value is None:
            return None
        above = self.least is None or self.value >= self.least
        return above and (self.most is None or self.value <= self.most)

    @property
    def limit(self) -> str:
        """The limit in words."""
        if self.least is not None and self.most is not None:
            return f"{self.show(self.least)} to {self.show(self.most)}"
        if self.least is not None:
            return f">= {self.show(self.least)}"
        return f"<= {self.show(self.most)}"

    @property
    def status(self) -> str:
        """``met``, ``NOT MET (1.4x of 1.3x)`` or ``not measured``."""
        if self.met is None:
            return "not measured"
        if self.met:
            return "met"
        limit = self.limit.removeprefix(">= ").removeprefix("<= ")
        return f"NOT MET ({self.show(self.value)} of {limit})"

    def show(self, value: float | None) -> str:
        """Write a number of this bar's kind."""
        if value is None:
            return "-"
        if self.unit == "%":
            return f"{100 * value:.0f}%"
        return f"{value:.3g}{self.unit}"

    def as_dict(self) -> dict[str, Any]:
        """Return what the JSON file holds of the bar."""
        return asdict(self) | {"met": self.met, "status": self.status}


def ratio_bar(
    id: str,
    what: str,
    numerator: Measurement | None,
    denominator: Measurement | None,
    *,
    least: float | None = None,
    most: float | None = None,
    scale: float = 1.0,
    unit: str = "x",
    paired: bool = True,
) -> Bar:
    """Hold a ratio to a limit.

    Args:
        id: See :class:`Bar`.
        what: See :class:`Bar`.
        numerator: None if it was not measured.
        denominator: Likewise.
        least: See :class:`Bar`.
        most: See :class:`Bar`.
        scale: The ratio is multiplied by it.
        unit: See :class:`Bar`.
        paired: Whether samples were taken in the same rounds. The value is the median of their
            ratios then, else the ratio of the medians, without spread.
    """
    if numerator is None or denominator is None:
        return Bar(id, what, None, least, most, unit=unit)
    if not paired or len(numerator.samples) == 1:
        value = scale * numerator.median / denominator.median
        return Bar(id, what, value, least, most, unit=unit)
    found = [scale * x for x in _ratios(numerator, denominator)]
    spread = min(found), max(found)
    return Bar(id, what, statistics.median(found), least, most, spread, unit, len(found))


def ratio(numerator: Measurement, denominator: Measurement) -> float:
    """Return the median of the rounds' ratios: within a round both meet the same machine.

    Where the numbers of samples say that there were no common rounds, the ratio of the medians.
    """
    if len(numerator.samples) != len(denominator.samples):
        return numerator.median / denominator.median
    return statistics.median(_ratios(numerator, denominator))


def _ratios(numerator: Measurement, denominator: Measurement) -> list[float]:
    return [a / b for a, b in zip(numerator.samples, denominator.samples, strict=True)]


def table(bars: Iterable[Bar]) -> str:
    """Lay out bars for a terminal; the last column says whether each is met."""
    rows = [("what", "value", "spread", "bar", "")]
    for bar in bars:
        spread = "-".join(map(bar.show, bar.spread)) if bar.spread else ""
        rows.append((bar.what, bar.show(bar.value), spread, bar.limit, bar.status))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
