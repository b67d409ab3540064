"""A causal encoder learns four utterances by heart; streaming, it is heard as it is offline."""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from espnet2.asr.frontend.default import DefaultFrontend
from espnet2.bin import asr_inference, asr_inference_streaming
from espnet2.tasks.asr import ASRTask

from espnet_bimamba.cli.conf.shipped import find
from espnet_bimamba.streaming import Speech2TextStreaming
from tests.recipes.test_demo import LEARNT

pytestmark = pytest.mark.recipe

#: The shipped YAML, made small and without what keeps a model from learning by heart.
SMALL = {
    "encoder_conf": {
        "output_size": 64,
        "linear_units": 128,
        "num_blocks": 2,
        "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
        "cnn_module_kernel": 15,
    },
    "decoder_conf": {
        "linear_units": 128,
        "num_blocks": 1,
        "dropout_rate": 0.0,
        "positional_dropout_rate": 0.0,
        "self_attention_dropout_rate": 0.0,
        "src_attention_dropout_rate": 0.0,
    },
    "model_conf": {"lsm_weight": 0.0},
    "optim_conf": {"lr": 0.003},
    "scheduler_conf": {"warmup_steps": 1},
}
CHANGED = {
    "batch_type": "unsorted",
    "batch_size": 4,
    "accum_grad": 1,
    "max_epoch": 1,
    "num_iters_per_epoch": 130,
    "num_workers": 0,
    "best_model_criterion": [["train", "loss", "min"]],
    "keep_nbest_models": 1,
    "use_amp": False,
    "specaug": None,
    "specaug_conf": {},
    "scheduler": None,
    "scheduler_conf": {},
    "use_tensorboard": False,
    "use_matplotlib": False,
    "token_type": "char",
}
TOKENS = ["<blank>", "<unk>", "<space>", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ", "<sos/eos>"]


@dataclass(frozen=True)
class Trained:
    """A model, and what it has learnt from."""

    config: Path
    model: Path
    wav_scp: Path
    speech: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def trained(tree, tmp_path_factory):
    """What ESPnet's training program makes of four utterances of mini_an4 and the shipped YAML."""
    folder = tmp_path_factory.mktemp("conmamba_streaming")
    speech = _write_corpus(tree, folder)
    config = yaml.safe_load(find("librispeech_100/conmamba_streaming").path.read_text())
    for section, values in SMALL.items():
        config[section] |= values
    config |= CHANGED
    (folder / "train.yaml").write_text(yaml.safe_dump(config))
    _write_statistics(folder, speech, config["frontend_conf"])
    data = {"speech": f"{folder}/wav.scp,speech,sound", "text": f"{folder}/text,text,text"}
    options = [
        *("--config", f"{folder}/train.yaml", "--output_dir", f"{folder}/exp", "--ngpu", "0"),
        *("--token_list", f"{folder}/tokens.txt"),
        *("--normalize", "global_mvn", "--normalize_conf", f"stats_file={folder}/stats.npz"),
    ]
    for part in ("train", "valid"):
        for name, source in data.items():
            options += [f"--{part}_data_path_and_name_and_type", source]
            options += [f"--{part}_shape_file", f"{folder}/{name}_shape"]
    ASRTask.main(cmd=options)
    exp = folder / "exp"
    return Trained(exp / "config.yaml", exp / "train.loss.best.pth", folder / "wav.scp", speech)


def _write_corpus(tree, folder):
    speech = {}
    with tarfile.open(tree / "egs2" / "mini_an4" / "asr1" / "downloads.tar.gz") as archive:
        for name in LEARNT:
            speaker, sentence, kind = name.split("-")
            member = f"downloads/an4/wav/an4_clstk/{speaker}/{sentence}-{speaker}-{kind}.sph"
            samples, rate = soundfile.read(io.BytesIO(archive.extractfile(member).read()))
            assert rate == 16000
            soundfile.write(folder / f"{name}.wav", samples, rate)
            speech[name] = samples
    lists = {
        "wav.scp": {name: folder / f"{name}.wav" for name in LEARNT},
        "text": LEARNT,
        "speech_shape": {name: len(samples) for name, samples in speech.items()},
        "text_shape": {name: len(text) for name, text in LEARNT.items()},
    }
    for file, values in lists.items():
        lines = [f"{name} {value}\n" for name, value in values.items()]
        (folder / file).write_text("".join(lines))
    (folder / "tokens.txt").write_text("\n".join(TOKENS) + "\n")
    return speech


def _write_statistics(folder, speech, frontend_conf):
    frontend = DefaultFrontend(fs=16000, **frontend_conf)
    features = [
        frontend(torch.tensor(samples)[None].float(), torch.tensor([len(samples)]))[0][0]
        for samples in speech.values()
    ]
    frames = torch.cat(features).double()
    sums = {"sum": frames.sum(0).numpy(), "sum_square": (frames**2).sum(0).numpy()}
    np.savez(folder / "stats.npz", count=np.array(len(frames)), **sums)


def decode(program, trained, out, *options):
    program.main(
        [
            *("--output_dir", str(out), "--ngpu", "0", "--num_workers", "0"),
            *("--data_path_and_name_and_type", f"{trained.wav_scp},speech,sound"),
            *("--asr_train_config", str(trained.config), "--asr_model_file", str(trained.model)),
            *options,
        ]
    )
    lines = (out / "1best_recog" / "text").read_text().splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def test_espnets_streaming_program_hears_what_its_offline_program_hears(trained, tmp_path):
    search = yaml.safe_load(find("librispeech_100/decode_asr_streaming").path.read_text())
    shared = [f"--{key}={search[key]}" for key in ("beam_size", "ctc_weight", "lm_weight")]
    offline = decode(asr_inference, trained, tmp_path / "offline", *shared)
    config = str(find("librispeech_100/decode_asr_streaming").path)
    streaming = decode(asr_inference_streaming, trained, tmp_path / "streaming", "--config", config)
    assert streaming == offline == LEARNT


def test_chunks_of_a_microphone_are_heard_as_well(trained):
    recognise = Speech2TextStreaming(
        trained.config, trained.model, beam_size=2, disable_repetition_detection=True
    )
    for name, samples in trained.speech.items():
        chunks = np.split(samples, range(160, len(samples), 160))
        for chunk in chunks[:-1]:
            recognise(chunk, is_final=False)
        [(text, *_)] = recognise(chunks[-1], is_final=True)
        assert text == LEARNT[name]


@pytest.mark.parametrize("limit", [0, 60])
def test_with_a_limit_ctc_hears_nothing_new_and_every_frame_is_kept(trained, limit):
    """If this fails, ESPnet has mended it: then decode_asr_streaming.yaml should have a limit."""
    samples = np.concatenate([trained.speech[name] for name in ("mwhw-cen8-b", "fbbh-cen8-b")])
    recognise = Speech2TextStreaming(
        trained.config, trained.model, beam_size=2, encoded_feat_length_limit=limit
    )
    search, seen = recognise.beam_search, []
    for part in (samples[: len(samples) * 3 // 4], samples[len(samples) * 3 // 4 : -640]):
        recognise(part, is_final=False)
        seen.append(search.scorers["ctc"].impl.x.clone())
    frames = len(search.encbuffer)
    assert frames > 2 * 60
    # The last block of 16 frames may still be incomplete.
    assert seen[1].shape[1] == (limit or pytest.approx(frames, abs=16))
    assert torch.equal(*seen) == bool(limit)
