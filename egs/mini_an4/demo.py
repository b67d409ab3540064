"""`make demo`: trains one of our encoders on real speech in a stock recipe, and tries the model.

ESPnet's mini_an4 recipe runs unchanged from its first stage to the packed model; then the model
is unpacked and transcribes. Four training utterances are learnt by heart, which shows that every
part of the pipeline works together, and nothing else.
"""

import argparse
import contextlib
import io
import json
import signal
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import RecipeFailedError, say
from trained import Trained, Utterance

from espnet_bimamba.errors import BiMambaError
from espnet_bimamba.files import write_whole

HOME = Path(__file__).resolve().parents[2]
CONFIGS = HOME / "conf" / "mini_an4"

#: The demo fails when a training utterance is transcribed worse than this.
HIGHEST_CER = 0.20


@dataclass(frozen=True)
class Transcript:
    """What the model made of an utterance, and how long that took."""

    utterance: Utterance
    hypothesis: str
    audio_seconds: float
    decoding_seconds: float


def main(argv: list[str] | None = None) -> int:
    """Runs the demo; returns 0 if the model has learnt its four utterances."""
    args = _parse(argv)
    # Ended from outside, it ends what it has started, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.filterwarnings("ignore")
    say(f"{args.encoder}, ESPnet {args.espnet}; loading PyTorch and ESPnet")
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        trained = _train(args.espnet, args.encoder, args.work.absolute(), device)
        say("transcribing with the packed model")
        with contextlib.chdir(trained.folder):
            transcripts = _transcribe(trained, device)
    except RecipeFailedError as error:
        print(f"\nthe recipe failed with {error}", file=sys.stderr)
        return 1
    except BiMambaError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return _report(args.work, trained, *transcripts, device=device)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--encoder", default="conbimamba")
    parser.add_argument("--espnet", choices=["2", "3"], default="2")
    parser.add_argument("--work", type=Path, help="default: exp/mini_an4/ENCODER")
    args = parser.parse_args(argv)
    names = sorted(f.stem.removeprefix("train_asr_") for f in CONFIGS.glob("train_asr_*.yaml"))
    if args.encoder not in names:
        parser.error(f"no encoder {args.encoder!r} here; there are {', '.join(names)}")
    suffix = "" if args.espnet == "2" else "_espnet3"
    args.work = args.work or HOME / "exp" / "mini_an4" / f"{args.encoder}{suffix}"
    return args


def _train(espnet: str, encoder: str, work: Path, device: str) -> Trained:
    if espnet == "2":
        import with_espnet2

        return with_espnet2.train(encoder, work, device)
    import with_espnet3

    return with_espnet3.train(encoder, work)


def _transcribe(trained: Trained, device: str) -> tuple[list[Transcript], list[Transcript]]:
    import soundfile
    import torch
    import yaml

    with contextlib.redirect_stderr(io.StringIO()):  # which says that Flash Attention is absent
        from espnet2.bin.asr_inference import Speech2Text

    torch.set_num_threads(1)  # as the recipe decodes
    decoding = yaml.safe_load((CONFIGS / "decode_asr.yaml").read_text())
    model = Speech2Text(**trained.model, **decoding, device=device)

    def transcribe(utterance: Utterance) -> Transcript:
        speech, rate = soundfile.read(utterance.audio)
        start = time.perf_counter()
        hypothesis = model(speech)[0][0]
        return Transcript(utterance, hypothesis, len(speech) / rate, time.perf_counter() - start)

    # The training utterances come first: what is compiled or loaded on first use is then
    # behind us when the test utterances are timed.
    return [transcribe(u) for u in trained.training], [transcribe(u) for u in trained.test]


def _rates(transcripts: list[Transcript]) -> dict[str, float]:
    import jiwer

    references = [t.utterance.text for t in transcripts]
    hypotheses = [t.hypothesis for t in transcripts]
    return {"cer": jiwer.cer(references, hypotheses), "wer": jiwer.wer(references, hypotheses)}


def _report(
    work: Path,
    trained: Trained,
    training: list[Transcript],
    test: list[Transcript],
    device: str,
) -> int:
    from espnet_bimamba.ops import backends

    scan = backends.resolve(backends.Call("selective_scan", device, lengths=True))
    figures: dict[str, Any] = {
        "training": _rates(training),
        "test": _rates(test),
        "hypotheses": {t.utterance.name: t.hypothesis for t in training + test},
        "backend": scan.__module__.rpartition(".")[2],
        "device": device,
        "real_time_factor": sum(t.decoding_seconds for t in test)
        / sum(t.audio_seconds for t in test),
        "scored_by": trained.scored_by,
        "files": {heading: str(path) for heading, path in trained.files.items()},
    }
    write_whole(work / "report.json", json.dumps(figures, indent=2) + "\n")
    print()
    for heading, transcripts in (("Training", training), ("Test", test)):
        print(f"{heading} utterances")
        for t in transcripts:
            print(f"    {t.utterance.name:14} reference   {t.utterance.text}")
            print(f"    {'':14} hypothesis  {t.hypothesis or '(empty)'}")
    print()
    rows = {
        "Training CER": f"{figures['training']['cer']:.1%} (must be below {HIGHEST_CER:.0%})",
        "Test WER, CER": f"{figures['test']['wer']:.1%}, {figures['test']['cer']:.1%}",
        "Results by": trained.scored_by,
        "Scan backend": f"{figures['backend']} on {device}",
        "Decoding": f"real-time factor {figures['real_time_factor']:.2f}",
        **{heading: _short(path) for heading, path in trained.files.items()},
    }
    for heading, value in rows.items():
        print(f"{heading:16} {value}")
    print()
    code = _verdict(training, test)
    print(
        "Four training utterances, learnt by heart, check that the pipeline works from speech to\n"
        "packed model. The error rate on the test utterances means nothing."
    )
    return code


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _verdict(training: list[Transcript], test: list[Transcript]) -> int:
    empty = [t.utterance.name for t in training + test if not t.hypothesis.strip()]
    if empty:
        print(f"FAILED: nothing was heard in {', '.join(empty)}.")
        return 1
    worst = max(_rates([t])["cer"] for t in training)
    if worst >= HIGHEST_CER:
        print(f"FAILED: a training utterance has a character error rate of {worst:.1%}.")
        return 1
    say("the demo has passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
