"""`make demo-enh`: trains our separator in a stock recipe of speech enhancement, and tries it.

ESPnet's mini_an4/enh1 recipe runs unchanged from its first stage to the packed model; then the
model is unpacked and enhances an utterance that it was trained on and one that it was not, in
the recipe's own noise.
"""

import argparse
import contextlib
import hashlib
import io
import json
import re
import shutil
import signal
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from stages import DoneStages, RecipeFailedError, StageRunner, epochs_of, say

sys.path.append(str(Path(__file__).resolve().parents[1] / "se"))
from measures import MEASURES, measures
from pictures import draw_spectrograms

from espnet_bimamba import recipes
from espnet_bimamba.errors import BiMambaError
from espnet_bimamba.files import draft_of, write_whole

HOME = Path(__file__).resolve().parents[2]
CONFIGS = HOME / "conf" / "mini_an4"

type Array = npt.NDArray[np.float64]

RATE = 16000
#: Of what the packed model is tried on, in dB: within what it was trained on.
SNR = 5
#: The demo fails if the utterance that was trained on gains less, in dB of SI-SDR.
LEAST_GAIN = 2.0

#: Stage 2 changes the speed, which nobody asks for; 9 and 10 transcribe.
STAGES = ("1", "3", "4", "5", "6", "7", "8", "11")
DATA_STAGES = STAGES[:4]
EPOCH_ENDS = re.compile(r"(\d+)epoch results: \[train\].*? loss=([^,]+),")

CLOSING = """\
Four training utterances and two noises, one of them beeps, check that the pipeline works from
speech to packed model. That a noise which training has heard is gone, also from an utterance that
it has not heard, is all that they can show; nothing of other noises: see docs/results_se.md."""


@dataclass(frozen=True)
class Tried:
    """An utterance in noise, and what the packed model made of it.

    Attributes:
        name: Of the utterance.
        signals: ``noisy``, ``enhanced``, ``clean``.
        before: Scores of the noisy one.
        after: Scores of the enhanced one.
    """

    name: str
    signals: dict[str, Array]
    before: dict[str, float]
    after: dict[str, float]

    def gain(self, measure: str) -> float:
        """What enhancement has brought."""
        return self.after[measure] - self.before[measure]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the demo; returns 0 if the model takes noise out of what it was trained on."""
    args = _parse(argv)
    # Ended from outside, it ends what it has started, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.filterwarnings("ignore")
    say(f"bimamba, {args.config.name}")
    try:
        _check_scoring()
        work, packed, log = train(args.config, args.work.absolute())
        say("enhancing with the packed model")
        tried = try_out(work, packed, args.work.absolute())
    except RecipeFailedError as error:
        print(f"\nthe recipe failed with {error}", file=sys.stderr)
        return 1
    except BiMambaError as error:
        print(f"\n{error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from here", file=sys.stderr)
        return 130
    files = {"Log": log, "Results": packed.parent / "RESULTS.md", "Packed model": packed}
    return _report(args.work, tried, files)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--separator", default="extbimamba")
    parser.add_argument("--config", type=Path, help="another YAML than conf/mini_an4's")
    parser.add_argument("--work", type=Path, help="default: exp/mini_an4_enh/SEPARATOR")
    args = parser.parse_args(argv)
    names = sorted(
        file.stem.removeprefix("train_enh_")
        for file in CONFIGS.glob("train_enh_*.yaml")
        if not file.stem.startswith("train_enh_s2t")
    )
    if args.separator not in names:
        parser.error(f"no separator {args.separator!r} here; there are {', '.join(names)}")
    args.config = (args.config or CONFIGS / f"train_enh_{args.separator}.yaml").absolute()
    args.work = args.work or HOME / "exp" / "mini_an4_enh" / args.separator
    return args


def _check_scoring() -> None:
    """Sees, before minutes of training, whether stage 8 will find what it imports."""
    import importlib.util

    packages = {"mir_eval": "mir-eval", "pystoi": "pystoi", "pesq": "pesq"}
    packages["fast_bss_eval"] = "fast-bss-eval"
    missing = [name for module, name in packages.items() if not importlib.util.find_spec(module)]
    if missing:
        raise BiMambaError(f"{', '.join(missing)} missing for the scores: pip install '.[enh]'")


def train(config: Path, root: Path) -> tuple[Path, Path, Path]:
    """Runs the stages that are not done yet; returns working copy, packed model and log."""
    tree = recipes.prepare(HOME / ".cache")
    work = recipes.link(tree, "mini_an4/enh1", root)
    exp = work / "exp" / f"enh_{config.stem}_raw"
    key = config.read_bytes() + recipes.installed_version().encode()
    done = DoneStages(root / "stages.json", hashlib.sha256(key).hexdigest(), DATA_STAGES)
    if done.outdated:
        say("the configuration has changed: training again")
        shutil.rmtree(work / "exp", ignore_errors=True)
    if "1" not in done.done:
        shutil.rmtree(work / "downloads", ignore_errors=True)  # may be half unpacked
    command = ["./run.sh", "--ngpu", "0", "--skip_packing", "false", "--enh_config", str(config)]
    command += ["--extra_wav_list", "noises.scp", "--inference_model", "train.loss.best.pth"]
    # Stock names the validation set once more; a process costs more than an utterance.
    command += ["--test_sets", "test", "--inference_nj", "1"]
    runner = StageRunner(
        command,
        cwd=work,
        log=root / "run.log",
        done=done,
        script="enh.sh",
        epochs=lambda: epochs_of(work, "exp/*/train.log", EPOCH_ENDS, "epoch {0}: loss {1}"),
    )
    runner.stages(STAGES)
    say("every stage is done")
    return work, exp / f"{exp.name}_train.loss.best.zip", runner.log


def try_out(work: Path, packed: Path, root: Path) -> dict[str, Tried]:
    """Enhances a training and a test utterance with the packed model."""
    import torch
    from espnet_model_zoo.downloader import ModelDownloader

    with contextlib.redirect_stderr(io.StringIO()):  # which says that Flash Attention is absent
        from espnet2.bin.enh_inference import SeparateSpeech

    torch.set_num_threads(1)  # as the recipe enhances
    # The cache of espnet_model_zoo goes by the file's name: it would hand out an earlier model.
    shutil.rmtree(root / "unpacked", ignore_errors=True)
    model = ModelDownloader(root / "unpacked").unpack_local_file(str(packed))
    with contextlib.chdir(work):
        separate = SeparateSpeech(model["train_config"], model["model_file"])
        noise = _recordings(work, "train_nodev", "noises.scp")
        tried = {}
        for heading, part in (("training", "train_nodev"), ("test", "test")):
            speech = _recordings(work, part, "spk1.scp")
            name = min(speech, key=lambda name: (-len(speech[name]), name))
            clean = speech[name]
            noisy = _mixed(clean, noise[min(noise)])
            enhanced = separate(torch.tensor(noisy)[None], fs=RATE)[0][0].astype(np.float64)
            signals = {"noisy": noisy, "enhanced": enhanced, "clean": clean}
            scores = [measures(clean, signals[kind]) for kind in ("noisy", "enhanced")]
            tried[heading] = Tried(name, signals, *scores)
    return tried


def _recordings(work: Path, part: str, scp: str) -> dict[str, Array]:
    import soundfile

    rows = (line.split() for line in (work / "dump/raw" / part / scp).read_text().splitlines())
    return {name: soundfile.read(work / path, dtype="float64")[0] for name, path in rows}


def _mixed(clean: Array, noise: Array) -> Array:
    """Adds the end of a noise, repeated if it is too short; training takes any part of it."""
    noise = np.resize(noise[::-1], len(clean))[::-1]
    scale = np.sqrt(np.mean(clean**2) / np.mean(noise**2) * 10 ** (-SNR / 10))
    return clean + scale * noise


def _report(root: Path, tried: dict[str, Tried], files: dict[str, Path]) -> int:
    print()
    for heading, of in tried.items():
        print(f"{heading.capitalize()} utterance {of.name} in noise at {SNR} dB")
        print(f"    {'':8} {'before':>8} {'after':>8} {'gain':>8}")
        for measure in MEASURES:
            values = (of.before[measure], of.after[measure], of.gain(measure))
            print(f"    {measure:8} " + " ".join(f"{value:8.2f}" for value in values))
        files |= _sounds(root, heading, of)
        picture = root / f"{heading}.png"
        titles = {f"{kind}, {of.name}": signal for kind, signal in of.signals.items()}
        files[f"{heading.capitalize()} spectrograms"] = draw_spectrograms(titles, picture)
    figures = {
        heading: {"utterance": of.name, "before": of.before, "after": of.after}
        for heading, of in tried.items()
    }
    report = {**figures, "files": {heading: str(path) for heading, path in files.items()}}
    write_whole(root / "report.json", json.dumps(report, indent=2) + "\n")
    print()
    for heading, path in files.items():
        print(f"{heading:22} {_short(path)}")
    print()
    code = _verdict(tried["training"])
    print(CLOSING)
    return code


def _sounds(root: Path, heading: str, tried: Tried) -> dict[str, Path]:
    import soundfile

    written = {}
    for kind, samples in tried.signals.items():
        path = root / f"{heading}_{kind}.wav"
        with draft_of(path) as draft:
            soundfile.write(draft, samples.clip(-1, 1), RATE, subtype="PCM_16")
        written[f"{heading.capitalize()} {kind}"] = path
    return written


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _verdict(training: Tried) -> int:
    gain = training.gain("SI-SDR")
    if not gain >= LEAST_GAIN:
        print(
            f"FAILED: the training utterance gains {gain:.1f} dB of SI-SDR, not {LEAST_GAIN:.1f}."
        )
        return 1
    say("the demo has passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
