"""Recognition with ESPnet's beam search: how much of it is the encoder. For information only.

The models are not trained, so hypotheses are made as long as usual ones by force.
"""

import functools
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.results import Measurement
from benchmarks.timing import Settings, interleaved
from benchmarks.training import model_options

SUBJECTS = ("conbimamba-ext", "conbimamba-inn", "conformer")
SECONDS = {"full": (10.0,), "tiny": (0.5,)}
SAMPLE_RATE = 16000
TOKENS = 100
# Tokens a frame of the encoder: 40 for ten seconds.
TOKENS_A_FRAME = 0.16


def run(settings: Settings) -> list[Measurement]:
    """Measure recognition and the encoder's part of it; not part of a quick run."""
    # Says after each call that no hypothesis ended by itself, as is meant here.
    logging.getLogger("espnet2.legacy.nets.batch_beam_search").setLevel(logging.ERROR)
    results: list[Measurement] = []
    for seconds in SECONDS.get(settings.scale, ()):
        speech = torch.randn(int(seconds * SAMPLE_RATE)).mul_(0.1).numpy()
        encoding: dict[str, list[float]] = {}
        calls: dict[str, Callable[[], object]] = {}
        for subject in SUBJECTS:
            recognizer = _recognizer(subject, settings)
            encoding[subject] = _clock(recognizer.asr_model.encoder, settings.device)
            calls[subject] = functools.partial(recognizer, speech)
        size = {"seconds": seconds, "beam": 10, "ctc_weight": 0.3}
        for subject, samples in interleaved(calls, settings, seconds=15, least=4).items():
            encoder = encoding[subject][-len(samples) :]
            results += [
                Measurement("decoding", "all", subject, "s", samples, size),
                Measurement("decoding", "encoder", subject, "s", encoder, size),
            ]
    return results


def _clock(module: torch.nn.Module, device: str) -> list[float]:
    """Return a list to which each call of ``module`` adds its seconds."""
    durations: list[float] = []

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    started: list[float] = []
    module.register_forward_pre_hook(lambda *_: started.append(now()))
    module.register_forward_hook(lambda *_: durations.append(now() - started.pop()))
    return durations


def _recognizer(subject: str, settings: Settings) -> Any:
    from espnet2.bin.asr_inference import Speech2Text

    torch.manual_seed(0)
    frontend = {"fs": SAMPLE_RATE, "n_fft": 512, "win_length": 400, "hop_length": 160}
    args = model_options(
        subject, settings, TOKENS, input_size=None, frontend_conf=frontend, token_type="char"
    )
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump(vars(args)))
        return Speech2Text(
            config,
            None,
            device=settings.device,
            beam_size=10,
            ctc_weight=0.3,
            lm_weight=0.0,
            maxlenratio=TOKENS_A_FRAME,
            minlenratio=TOKENS_A_FRAME,
        )
