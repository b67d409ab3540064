"""The paper's separators: its Tables 2, 4, 6 and 14 ask for a training step and for inference."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from torch import Tensor

from benchmarks.layers import parts
from benchmarks.results import Bar, Measurement, Results, ratio_bar
from benchmarks.timing import ROOT, Settings, interleaved
from espnet_bimamba.separators.bimamba import BiMambaSeparator
from espnet_bimamba.separators.loss import CompressedMagnitudeMSE

BINS = 257
#: 16 kHz at a hop of 256.
FRAMES_A_SECOND = 62.5

#: Ours -> the paper's peer of it: with attention, of a like size or with one mixer for the other.
PEERS = {
    "extbimamba3": "transformer4",
    "extbimamba5": "transformer6",
    "extbimamba7": "conformer4",
    "extbimamba10": "conformer6",
    "transinnbimamba6": "transformer6",
    "transextbimamba6": "transformer6",
    "coninnbimamba6": "conformer6",
    "conextbimamba6": "conformer6",
    "mamba7": "transformer4_causal",
}
#: Table 2's, beside the paper's peer of it: both directions in one mixer, or two mixers.
DIRECTIONS = {"innbimamba9": "extbimamba5"}

# What makes any of them tiny, for tests.
_TINY = {"adim": 16, "layers": 1, "linear_units": 16, "aheads": 2, "conformer_enc_kernel_size": 4}


@dataclass(frozen=True)
class Sizes:
    """Who enhances what.

    Attributes:
        subjects: Separators of ``conf/se``.
        durations: Seconds of a mixture, in inference.
        batch: Mixtures of a training step.
        trained: Seconds of each.
        seconds: Time for the rounds of one case.
    """

    subjects: tuple[str, ...]
    durations: tuple[float, ...] = (10, 60)
    batch: int = 4
    trained: float = 5
    seconds: float = 20.0


SIZES = {
    "full": Sizes(tuple(dict.fromkeys([*PEERS, *DIRECTIONS, *PEERS.values()]))),
    "quick": Sizes(("extbimamba3", "transformer4"), durations=(10,), batch=1, seconds=3),
    "tiny": Sizes(("extbimamba3", "transformer4"), (0.5, 1), batch=2, trained=0.5),
}


def run(settings: Settings) -> list[Measurement]:
    """Measure inference over length, its parts, and a training step."""
    sizes = SIZES[settings.scale]
    results: list[Measurement] = []
    for duration in sizes.durations:
        size = {"seconds": duration, "batch": 1}
        inputs = spectra(duration, 1, settings.device)
        calls = {s: enhance(separator(s, settings), inputs) for s in sizes.subjects}
        forward = [
            Measurement("enhancement", "forward", subject, "s", samples, size)
            for subject, samples in interleaved(calls, settings, sizes.seconds).items()
        ]
        results += forward
        if settings.scale != "quick":
            results += [
                Measurement("enhancement parts", part, m.subject, "s", [seconds], size)
                for m in forward
                for part, seconds in parts(
                    calls[m.subject], settings, m.median, times=1, profiles=2
                ).items()
            ]
        del calls
    size = {"seconds": sizes.trained, "batch": sizes.batch}
    steps = {s: training_step(s, settings, sizes) for s in sizes.subjects}
    results += [
        Measurement("enhancement", "step", subject, "s", samples, size)
        for subject, samples in interleaved(steps, settings, sizes.seconds).items()
    ]
    return results


def bars(results: Results) -> list[Bar]:
    """Hold what was measured to the bars: at the peers' time at 10 s, far below it at 60 s."""
    found = []
    for ours, peer in PEERS.items():
        for seconds, most in ((10, 1.0), (60, 0.5)):
            where: dict[str, Any] = {"seconds": seconds, "batch": 1}
            times = [results.find("enhancement", "forward", name, **where) for name in (ours, peer)]
            if results.select("enhancement", "forward", **where):
                what = f"enhancement, {seconds} s: {ours} / {peer}"
                found.append(
                    ratio_bar(f"enhancement-{ours}-{peer}-{seconds}", what, *times, most=most)
                )
    return found


def separator(subject: str, settings: Settings) -> BiMambaSeparator:
    """Build a separator of ``conf/se`` in the size of the run; in evaluation mode."""
    file = ROOT / "conf" / "se" / f"train_enh_{subject}.yaml"
    conf: dict[str, Any] = yaml.safe_load(file.read_text())["separator_conf"]
    if settings.scale == "tiny":
        conf |= {key: value for key, value in _TINY.items() if key in conf}
    torch.manual_seed(0)
    return BiMambaSeparator(BINS, **conf).to(settings.device).eval()


def spectra(seconds: float, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Draw the spectra of ``batch`` mixtures and their lengths in frames."""
    frames = int(seconds * FRAMES_A_SECOND)
    lengths = torch.full((batch,), frames, device=device)
    return torch.randn(batch, frames, BINS, dtype=torch.complex64, device=device), lengths


def enhance(model: BiMambaSeparator, inputs: tuple[Tensor, Tensor]) -> Callable[[], object]:
    """Return a call that estimates the speech, in inference mode."""

    def call() -> object:
        with torch.inference_mode():
            return model(*inputs)[0]

    return call


def training_step(subject: str, settings: Settings, sizes: Sizes) -> Callable[[], None]:
    """Return a call that does forward, backward and Adam's step on one batch."""
    model = separator(subject, settings).train()
    criterion = CompressedMagnitudeMSE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    noisy, lengths = spectra(sizes.trained, sizes.batch, settings.device)
    clean, _ = spectra(sizes.trained, sizes.batch, settings.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        _, _, others = model(noisy, lengths)
        (target,) = criterion.create_mask_label(noisy, [clean])
        criterion(target, others["mask_spk1"]).mean().backward()
        optimizer.step()

    return step
