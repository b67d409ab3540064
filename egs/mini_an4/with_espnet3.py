"""The demo the ESPnet3 way: the stock, unchanged ``egs3/mini_an4/esp2_asr/run.py``."""

import hashlib
import re
import shlex
import shutil
from pathlib import Path

from stages import DoneStages, epochs_of, run, say
from trained import Trained, Utterance

from espnet_bimamba import recipes

HOME = Path(__file__).resolve().parents[2]
CONFIGS = HOME / "conf" / "mini_an4" / "espnet3"
INFERENCE = CONFIGS / "inference.yaml"

DATA_STAGES = ("create_dataset", "train_tokenizer")
STAGES = (*DATA_STAGES, "collect_stats", "train", "infer", "measure", "pack_model")

STAGE_STARTS = re.compile(r"=== \[START\] stage: (\w+) ===")
STAGE_ENDS = re.compile(r"=== \[DONE\] stage: (\w+) ")
EPOCH_ENDS = re.compile(r"epoch_summary:(\d+)epoch:train: .*?\bacc=([^,]+), loss=([^,]+),")


def train(encoder: str, root: Path) -> Trained:
    """Runs the stages that are not done yet; the last one packs the model into a folder."""
    config = CONFIGS / f"training_{encoder}.yaml"
    tree = recipes.prepare(HOME / ".cache")
    work = recipes.link(tree, "mini_an4/esp2_asr", root)
    exp = work / "exp" / config.stem
    packed = exp / "model_pack"
    done = DoneStages(root / "stages.json", _key(config), DATA_STAGES)
    if done.outdated:
        say("the configuration has changed: training again")
        shutil.rmtree(work / "exp", ignore_errors=True)
    if missing := done.missing(STAGES):
        shutil.rmtree(packed, ignore_errors=True)  # ESPnet does not pack over a pack
        _run(work, config, missing, root / "run.log", done)
    say("every stage is done")
    return Trained(
        model={
            "asr_train_config": str(packed / "exp" / config.stem / "config.yaml"),
            "asr_model_file": str(packed / "exp" / config.stem / "train.loss.ave_1best.pth"),
        },
        folder=packed,
        training=_utterances(work / "data" / "manifest" / "train.tsv"),
        test=_utterances(work / "data" / "manifest" / "test.tsv"),
        files={
            "Log": root / "run.log",
            "Training log": exp / "train.log",
            "Results": exp / "inference" / "metrics.json",
            "Packed model": packed,
            "TensorBoard": exp / "tensorboard",
        },
        scored_by="ESPnet3's metrics",
    )


def _key(config: Path) -> str:
    parts = [config.read_bytes(), INFERENCE.read_bytes(), recipes.installed_version().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _run(work: Path, config: Path, stages: list[str], log: Path, done: DoneStages) -> None:
    options = {
        "--training_config": config,
        "--inference_config": INFERENCE,
        "--metrics_config": "conf/metrics.yaml",
        "--publication_config": "conf/publication.yaml",
    }
    words = ["python", "run.py", "--stages", *stages]
    words += [str(word) for option in options.items() for word in option]

    def on_line(line: str) -> None:
        if match := STAGE_STARTS.search(line):
            say(f"stage {match[1]}")
        elif match := STAGE_ENDS.search(line):
            done.add(match[1])

    epoch = "epoch {0}: training loss {2}, accuracy {1}"
    with epochs_of(work, "exp/training_*/train.log", EPOCH_ENDS, epoch):
        # One thread, as ESPnet2's path.sh sets it: Dask's workers would fight over the cores.
        command = ["bash", "-c", f". ./path.sh && exec {shlex.join(words)}"]
        run(command, cwd=work, log=log, on_line=on_line, env={"OMP_NUM_THREADS": "1"})


def _utterances(manifest: Path) -> list[Utterance]:
    rows = (line.split("\t") for line in manifest.read_text().splitlines())
    return [Utterance(name, Path(audio), text) for name, audio, text in rows]
