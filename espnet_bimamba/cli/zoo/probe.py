"""What a user of a packed model does: load it with ESPnet, transcribe.

``zoo check`` has a fresh interpreter run this file as a script, so that nothing of this package
is imported but what ESPnet itself finds: ``python -I probe.py MODEL.zip SPEECH.wav REPORT.json``.
ESPnet finds no more either than it would in a new environment, see :mod:`fresh`, beside this file.
"""

import contextlib
import json
import runpy
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Report:
    """What was seen, as far as it went.

    Attributes:
        step: What was being done, at the end or when it failed: import, load or transcribe.
        error: Why it failed.
        espnet: Version of ESPnet.
        encoder: Module and class of the encoder.
        parameters: How many tensors the model holds.
        missing: Tensors of the model that the weights lack. ESPnet leaves them as initialised.
        unexpected: Tensors of the weights that the model has no place for. ESPnet drops them.
        weights_only: Whether every ``torch.load`` was asked to read nothing but weights.
        text: The best hypothesis.
    """

    step: str = "import"
    error: str | None = None
    espnet: str = ""
    encoder: str = ""
    parameters: int = 0
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    weights_only: bool | None = None
    text: str | None = None


def probe(model: Path, wav: Path) -> Report:
    """Load a packed model as its users do, and transcribe a file.

    Args:
        model: The archive.
        wav: Speech in one channel, at the model's sampling rate.
    """
    report = Report()
    try:
        _probe(model, wav, report)
    except Exception as error:
        report.error = f"{type(error).__name__}: {error}"
    return report


def _probe(model: Path, wav: Path, report: Report) -> None:
    import espnet2
    import soundfile
    from espnet2.bin.asr_inference import Speech2Text

    report.espnet, report.step = str(espnet2.__version__), "load"
    with _watched_loads() as loads:
        speech2text = Speech2Text.from_pretrained(str(model))
    encoder = type(speech2text.asr_model.encoder)
    report.encoder = f"{encoder.__module__}.{encoder.__qualname__}"
    report.weights_only = all(asked for asked, _ in loads)
    expected = set(speech2text.asr_model.state_dict())
    # A language model and some frontends have weights of their own.
    found = max((_names(loaded) for _, loaded in loads), key=lambda names: len(names & expected))
    report.parameters = len(expected)
    report.missing, report.unexpected = sorted(expected - found), sorted(found - expected)

    report.step = "transcribe"
    speech, _ = soundfile.read(wav)
    results = speech2text(speech)
    # With intermediate CTC, their hypotheses come beside the n best.
    best = results[0] if isinstance(results, tuple) else results
    report.text = (best[0][0] or "") if best else ""


@contextlib.contextmanager
def _watched_loads() -> Iterator[list[tuple[bool, Any]]]:
    """Note of each ``torch.load`` whether it asked for weights only, and what it read.

    Whatever it asked for, nothing but weights is read: to check a model must run none of its code.
    """
    import torch

    load, loads = torch.load, list[tuple[bool, Any]]()

    def watched(*args: Any, weights_only: bool | None = None, **kwargs: Any) -> Any:
        # None is torch's own default, which is True.
        asked = weights_only is not False
        loads.append((asked, load(*args, weights_only=True, **kwargs)))
        return loads[-1][1]

    torch.load = watched
    try:
        yield loads
    finally:
        torch.load = load


def _names(loaded: Any) -> set[str]:
    """Return the names in what ESPnet takes for a state dict: DeepSpeed and Lightning wrap it."""
    for wrapper in ("module", "state_dict"):
        loaded = loaded.get(wrapper, loaded)
    return set(loaded)


if __name__ == "__main__":
    archive, speech, out = map(Path, sys.argv[1:])
    # By its path: `python -I` does not look for modules here, and imports none of this package.
    runpy.run_path(str(Path(__file__).with_name("fresh.py")))["hide_others"]()
    out.write_text(json.dumps(asdict(probe(archive, speech))))
