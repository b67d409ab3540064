"""The paper's separators: its Tables 2, 4, 6 and 14 ask for a training step and for inference.

Causal ones of Mamba are streamed as well, frame by frame as sound comes.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import yaml
from espnet2.legacy.nets.pytorch_backend.transformer.attention import MultiHeadedAttention
from torch import Tensor

from benchmarks.layers import parts
from benchmarks.results import Bar, Measurement, Results, ratio_bar
from benchmarks.timing import ROOT, Settings, interleaved
from espnet_bimamba.separators.bimamba import BiMambaSeparator
from espnet_bimamba.separators.loss import CompressedMagnitudeMSE
from espnet_bimamba.separators.stft import SqrtHannDecoder, SqrtHannEncoder

RATE = 16000
WINDOW, HOP = 512, 256
STFT: dict[str, Any] = {"n_fft": WINDOW, "win_length": WINDOW, "hop_length": HOP}
TRANSFORMS: tuple[Any, Any] = (SqrtHannEncoder, SqrtHannDecoder)
BINS = WINDOW // 2 + 1
FRAMES_A_SECOND = RATE / HOP

#: Ours -> the paper's peer of it: with attention, of a like size or with one mixer for the other.
PEERS = {
    "extbimamba3": "transformer4",
    "extbimamba4": "transformer4",
    "extbimamba5": "transformer6",
    "extbimamba6": "transformer6",
    "extbimamba7": "conformer4",
    "extbimamba10": "conformer6",
    "transinnbimamba6": "transformer6",
    "transextbimamba6": "transformer6",
    "coninnbimamba6": "conformer6",
    "conextbimamba6": "conformer6",
    # Causal, which the paper compares in scores only.
    "mamba7": "transformer4_causal",
    "mamba13": "conformer4_causal",
    "transmamba4": "transformer4_causal",
    "conmamba4": "conformer4_causal",
}
#: Table 2's, beside the paper's peer of it: both directions in one mixer, or two mixers.
DIRECTIONS = {"innbimamba9": "extbimamba5", "innbimamba13": "extbimamba7"}

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
        streams: Those that are streamed, on the CPU.
        streamed: Seconds of the mixture that they get.
    """

    subjects: tuple[str, ...]
    durations: tuple[float, ...] = (10, 60)
    batch: int = 4
    trained: float = 5
    seconds: float = 20.0
    streams: tuple[str, ...] = ("mamba4",)
    streamed: float = 30


SIZES = {
    "full": Sizes(tuple(dict.fromkeys([*PEERS, *DIRECTIONS, *PEERS.values()]))),
    "quick": Sizes(("extbimamba3", "transformer4"), (10,), batch=1, seconds=3, streamed=10),
    "tiny": Sizes(("extbimamba3", "transformer4"), (0.5, 1), 2, trained=0.5, streamed=0.5),
}


def run(settings: Settings) -> list[Measurement]:
    """Measure inference over length, its parts, streaming, and a training step."""
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
    if settings.device == "cpu":
        size = {"seconds": sizes.streamed, "batch": 1, "threads": 1}
        results += [
            Measurement("enhancement", "frame", s, "s", streaming(s, settings, sizes), size)
            for s in sizes.streams
        ]
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
    model = BiMambaSeparator(BINS, **conf).to(settings.device).eval()
    _forget_matrices(model)
    return model


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


def _forget_matrices(model: BiMambaSeparator) -> None:
    """Let ESPnet's attention drop the matrix that it keeps for plots.

    At a minute it is half a gigabyte a layer, and all subjects together would not find room.
    """
    for module in model.modules():
        if isinstance(module, MultiHeadedAttention):
            module.register_forward_hook(lambda attention, *_: setattr(attention, "attn", None))


class Stream:
    """Sound in, enhanced sound out, a hop at a time: transform, separator, transform back.

    Args:
        model: A causal separator of Mamba.
    """

    def __init__(self, model: BiMambaSeparator) -> None:
        self.encoder, self.decoder = (make(**STFT) for make in TRANSFORMS)
        self.model = model
        self.states: Any = None
        self.heard = torch.zeros(1, WINDOW)
        self.begun = torch.zeros(1, HOP)

    def enhance(self, hop: Tensor) -> Tensor:
        """Take the next ``(1, hop)`` samples; return those enhanced that came a hop before."""
        self.heard = torch.cat([self.heard[:, HOP:], hop], dim=1)
        frame = self.encoder.forward_streaming(self.heard)
        (frame, *_), self.states, _ = self.model.forward_streaming(frame, self.states)
        wave = self.decoder.forward_streaming(frame)
        # The squares of both windows add up to one.
        done, self.begun = self.begun + wave[:, :HOP], wave[:, HOP:]
        return done


def streaming(subject: str, settings: Settings, sizes: Sizes) -> list[float]:
    """Return the seconds that each frame of a stream takes, in one thread."""
    stream = Stream(separator(subject, settings))
    hops = torch.randn(1, int(sizes.streamed * FRAMES_A_SECOND) * HOP).split(HOP, dim=1)
    samples = []
    with _one_thread(), torch.inference_mode():
        stream.enhance(hops[0])
        for hop in hops:
            start = time.perf_counter()
            stream.enhance(hop)
            samples.append(time.perf_counter() - start)
    return samples


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
