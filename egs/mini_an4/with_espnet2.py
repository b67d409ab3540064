"""The demo the ESPnet2 way: the stock, unchanged ``egs2/mini_an4/asr1/run.sh``."""

import hashlib
import re
import shutil
from pathlib import Path

from espnet_model_zoo.downloader import ModelDownloader
from results import BY_JIWER, kaldi_table, write_results
from stages import DoneStages, StageRunner, epochs_of, say
from trained import Trained, Utterance

from espnet_bimamba import recipes

HOME = Path(__file__).resolve().parents[2]
CONFIGS = HOME / "conf" / "mini_an4"
DECODING = CONFIGS / "decode_asr.yaml"

#: Stages 6 to 9 train language models, which ``--use_lm false`` skips.
STAGES = ("1", "2", "3", "4", "5", "10", "11", "12", "13", "14")
DATA_STAGES = STAGES[:5]

EPOCH_ENDS = re.compile(r"(\d+)epoch results: \[train\].*? acc=([^,]+),.*? loss=([^,]+),")

HOW_TO_GET_SCLITE = "Debian and Ubuntu have sclite in the package sctk"


def train(encoder: str, root: Path, device: str) -> Trained:
    """Runs the stages that are not done yet, and unpacks the model that the last one packed."""
    config = CONFIGS / f"train_asr_{encoder}.yaml"
    tree = recipes.prepare(HOME / ".cache")
    work = recipes.link(tree, "mini_an4/asr1", root)
    exp = work / "exp" / f"asr_train_asr_{encoder}_raw_en_bpe30"
    done = DoneStages(root / "stages.json", _key(config), DATA_STAGES)
    if done.outdated:
        say("the configuration has changed: training again")
        shutil.rmtree(work / "exp", ignore_errors=True)
    if "1" not in done.done:
        shutil.rmtree(work / "downloads", ignore_errors=True)  # may be half unpacked

    runner = _runner(encoder, root, device, done)
    if recipes.find_sclite(tree):
        runner.stages(STAGES)
    else:
        say(f"no sclite here: jiwer scores instead ({HOW_TO_GET_SCLITE})")
        runner.stages(STAGES[:-2])
        if "13" not in done.done:
            say("stage 13: Scoring, by jiwer")
            write_results(exp, work / "dump" / "raw")
            done.add("13")
        runner.stages(STAGES[-1:])
    say("every stage is done")

    packed = exp / f"{exp.name}_train.loss.ave.zip"
    return Trained(
        model=_unpacked(packed, root / "unpacked"),
        folder=work,
        training=_utterances(work, "dump/raw/train_nodev"),
        test=_utterances(work, "dump/raw/test"),
        files={
            "Log": runner.log,
            "Training log": exp / "train.log",
            "Results": exp / "RESULTS.md",
            "Packed model": packed,
            "Training curves": exp / "images",
        },
        scored_by=_scorer(exp / "RESULTS.md"),
    )


def _key(config: Path) -> str:
    parts = [config.read_bytes(), DECODING.read_bytes(), recipes.installed_version().encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _runner(encoder: str, root: Path, device: str, done: DoneStages) -> StageRunner:
    """Our thin runner, for any row of stages."""
    command = [str(HOME / "egs/mini_an4/asr1/run.sh"), "--model", encoder, "--work", str(root)]
    if device == "cuda":
        command += ["--ngpu", "1", "--gpu_inference", "true"]
    text = "epoch {0}: training loss {2}, accuracy {1}"
    logs = "egs2/mini_an4/asr1/exp/*/train.log"
    return StageRunner(
        command,
        cwd=HOME,
        log=root / "run.log",
        done=done,
        script="asr.sh",
        epochs=lambda: epochs_of(root, logs, EPOCH_ENDS, text),
    )


def _utterances(work: Path, folder: str) -> list[Utterance]:
    audio = kaldi_table(work / folder / "wav.scp")
    text = kaldi_table(work / folder / "text")
    return [Utterance(name, work / audio[name], text[name]) for name in sorted(text)]


def _scorer(results: Path) -> str:
    # An earlier run may have filled the table: what was there then counts.
    return f"jiwer ({HOW_TO_GET_SCLITE})" if BY_JIWER in results.read_text() else "sclite"


def _unpacked(packed: Path, folder: Path) -> dict[str, object]:
    # The cache of espnet_model_zoo goes by the file's name: it would hand out an earlier model.
    shutil.rmtree(folder, ignore_errors=True)
    files = ModelDownloader(folder).unpack_local_file(str(packed))
    return {key: files[key] for key in ("asr_train_config", "asr_model_file")}
