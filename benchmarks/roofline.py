"""The least time that a card could take for each operator: bytes to move, exponentials to compute.

    python benchmarks/roofline.py

prints the tables of docs/roofline.md. Nothing is measured: the figures of the cards are the
vendor's, and everything else is counted from the operators' definitions.
"""

from typing import NamedTuple

DIM, STATE, WIDTH = 512, 16, 4
BATCHES = (1, 8, 32)
LENGTHS = (250, 1000, 4000, 60_000)
DTYPES = {"float32": 4, "bfloat16": 2}
# What a layer passes under autocast: step sizes stay in float32 beside bfloat16 sequences.
STEP_SIZE_BYTES = 4


class Card(NamedTuple):
    """A card by its data sheet."""

    name: str
    bytes_per_second: float
    clock: float
    multiprocessors: int = 132
    exponentials: int = 16  # of one multiprocessor in one clock, by its special function units


CARDS = (Card("H100 SXM", 3.35e12, 1.98e9), Card("H200", 4.8e12, 1.98e9))


class Work(NamedTuple):
    """What one call must do at least."""

    bytes: int
    exponentials: int

    def microseconds(self, card: Card) -> tuple[float, float]:
        """Return the floors by memory and by exponentials."""
        per_second = card.clock * card.multiprocessors * card.exponentials
        return self.bytes / card.bytes_per_second * 1e6, self.exponentials / per_second * 1e6


def scan(batch: int, length: int, element: int) -> tuple[Work, Work]:
    """Count a gated scan with softplus, forward and backward.

    Forward reads u, delta, z, B and C and writes the output; one exponential a step, channel and
    state, and three a step and channel: softplus (with its logarithm) and the gate. Backward
    reads all of it again and the output's gradient, and writes one gradient for each input.
    """
    channels, states = batch * length * DIM, batch * length * STATE
    inputs = channels * (2 * element + STEP_SIZE_BYTES) + 2 * states * element
    exponentials = channels * (STATE + 3)
    forward = Work(inputs + channels * element, exponentials)
    backward = Work(2 * inputs + channels * element, exponentials)
    return forward, backward


def convolution(batch: int, length: int, element: int) -> tuple[Work, Work]:
    """Count a convolution with SiLU: x in, y out; backward x and dy in, dx out."""
    channels = batch * length * DIM
    return Work(2 * channels * element, channels), Work(3 * channels * element, channels)


def scan_as_written(batch: int, length: int, element: int) -> tuple[Work, Work]:
    """Count what the Triton kernels do in one pass, beyond what any kernel must.

    Forward keeps a state each 32 steps. Backward computes the decay twice, reads the kept states
    and writes and sums what each block of 32 channels gives to the gradients of B and C; its
    scratch is not counted: where it fits into the card's cache it costs no memory traffic.
    """
    forward, backward = scan(batch, length, element)
    kept = batch * -(-length // 32) * DIM * STATE * 4
    sums = 2 * 2 * batch * length * STATE * (DIM // 32) * 4
    return (
        Work(forward.bytes + kept, forward.exponentials),
        Work(
            backward.bytes + kept + sums,
            backward.exponentials + batch * length * DIM * (STATE + 2),
        ),
    )


OPERATORS = {
    "scan": scan,
    "scan, as these kernels do it": scan_as_written,
    "convolution": convolution,
}


def three_digits(value: float) -> str:
    """Write ``value`` with three digits and no exponent."""
    return f"{float(f'{value:.3g}'):.10g}"


def main() -> None:
    """Print one table an operator and dtype, in Markdown."""
    for operator, count in OPERATORS.items():
        for dtype, element in DTYPES.items():
            print(f"\n### {operator}, {dtype}\n")
            heads = [f"{card.name} {way}" for card in CARDS for way in ("fwd", "bwd")]
            print("| batch | length | MB fwd | MB bwd | " + " | ".join(heads) + " |")
            print("|--:|--:|--:|--:|" + "--:|" * len(heads))
            for batch in BATCHES:
                for length in LENGTHS:
                    ways = count(batch, length, element)
                    cells = [
                        " / ".join(map(three_digits, way.microseconds(card)))
                        for card in CARDS
                        for way in ways
                    ]
                    sizes = [three_digits(way.bytes / 1e6) for way in ways]
                    print(f"| {batch} | {length} | " + " | ".join(sizes + cells) + " |")


if __name__ == "__main__":
    main()
