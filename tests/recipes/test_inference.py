"""What ESPnet offers for decoding, on the model of the demo, whose hypotheses are not empty."""

import contextlib
from pathlib import Path

import jiwer
import pytest
import soundfile
import torch
from espnet2.bin import asr_inference
from espnet2.bin.asr_inference import Speech2Text
from espnet_model_zoo.downloader import ModelDownloader

from tests.recipes.test_demo import LEARNT

pytestmark = pytest.mark.recipe


def speech2text(overfitted, **options):
    with contextlib.chdir(overfitted.recipe):
        return Speech2Text(
            overfitted.exp / "config.yaml",
            overfitted.exp / "train.loss.ave.pth",
            **({"beam_size": 2, "ctc_weight": 0.3} | options),
        )


def audio(overfitted, names=LEARNT):
    folder = overfitted.recipe / "dump" / "raw"
    lines = [
        line
        for part in ("train_nodev", "test")
        for line in (folder / part / "wav.scp").read_text().splitlines()
    ]
    return {
        name: soundfile.read(overfitted.recipe / path)[0]
        for name, path in map(str.split, lines)
        if names is None or name in names
    }


def transcribe(model, speech):
    return {name: model(samples)[0][0] for name, samples in speech.items()}


def scores(model, speech):
    return {name: float(model(samples)[0][3].score) for name, samples in speech.items()}


def cer(hypotheses):
    return jiwer.cer(list(LEARNT.values()), [hypotheses[name] for name in LEARNT])


@pytest.fixture(autouse=True)
def in_the_recipe(overfitted, monkeypatch):
    """Where the relative paths of an unpacked model's configuration start from."""
    monkeypatch.chdir(overfitted.recipe)


@pytest.fixture(scope="module")
def before(overfitted):
    """The model as the training left it."""
    return speech2text(overfitted)


def test_packed_model_hears_what_it_heard_before(overfitted, before, tmp_path):
    zipped = overfitted.report["files"]["Packed model"]
    files = ModelDownloader(tmp_path).unpack_local_file(zipped)
    packed = Speech2Text(
        files["asr_train_config"], files["asr_model_file"], beam_size=2, ctc_weight=0.3
    )
    speech = audio(overfitted, names=None)
    assert len(speech) == 6
    assert transcribe(packed, speech) == transcribe(before, speech)
    torch.testing.assert_close(scores(packed, speech), scores(before, speech), rtol=0.0, atol=0.0)


def test_stage_12_decoded_the_same(overfitted, before):
    [text] = overfitted.exp.glob("decode_asr_*/test/text")
    decoded = dict(line.split(maxsplit=1) for line in text.read_text().splitlines())
    assert transcribe(before, audio(overfitted, names=decoded)) == decoded


def decode(overfitted, out, batch_size):
    raw = overfitted.recipe / "dump" / "raw" / "train_nodev" / "wav.scp"
    options = {
        "--batch_size": batch_size,
        "--ngpu": 0,
        "--output_dir": out,
        "--data_path_and_name_and_type": f"{raw},speech,sound",
        "--asr_train_config": overfitted.exp / "config.yaml",
        "--asr_model_file": overfitted.exp / "train.loss.ave.pth",
        "--beam_size": 2,
        "--ctc_weight": 0.3,
    }
    asr_inference.main([str(word) for option in options.items() for word in option])
    lines = (out / "1best_recog" / "text").read_text().splitlines()
    return dict(line.split(maxsplit=1) for line in lines)


def test_batch_of_four_gives_the_hypotheses_of_one(overfitted, tmp_path):
    one = decode(overfitted, tmp_path / "one", batch_size=1)
    four = decode(overfitted, tmp_path / "four", batch_size=4)
    assert four == one
    assert one == LEARNT


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_other_dtypes_hear_the_same(overfitted, before, dtype):
    model = speech2text(overfitted, dtype=dtype)
    assert next(model.asr_model.encoder.parameters()).dtype == getattr(torch, dtype)
    assert transcribe(model, audio(overfitted)) == transcribe(before, audio(overfitted)) == LEARNT


@torch.no_grad()
def test_half_precision_encodes_the_same(overfitted, before):
    """Of ``dtype="float16"`` only the encoder can be tried.

    Whatever the encoder, ESPnet's features become infinite in half precision (the floor of their
    logarithm, 1e-10, is zero there) and its CTC scorer's -1e10 does not fit.
    """
    half = speech2text(overfitted, dtype="float16").asr_model
    for samples in audio(overfitted).values():
        speech, length = torch.tensor(samples)[None].float(), torch.tensor([len(samples)])
        features, frames = before.asr_model._extract_feats(speech, length)
        features, frames = before.asr_model.normalize(features, frames)
        expected, _, _ = before.asr_model.encoder(features, frames)
        encoded, _, _ = half.encoder(features.half(), frames)
        assert encoded.dtype == torch.float16
        torch.testing.assert_close(encoded.float(), expected, rtol=0.0, atol=0.02)


def test_int8_quantised_model_hears_nearly_the_same(overfitted):
    model = speech2text(overfitted, quantize_asr_model=True)
    modules = model.asr_model.encoder.named_modules()
    int8 = {name for name, module in modules if "quantized.dynamic" in type(module).__module__}
    for projection in ("in_proj", "x_proj", "out_proj", "w_1", "w_2"):
        assert any(name.endswith(projection) for name in int8), (projection, int8)
    assert cer(transcribe(model, audio(overfitted))) < 0.2


def test_results_name_the_scorer(overfitted):
    results = Path(overfitted.report["files"]["Results"]).read_text()
    scorer = overfitted.report["scored_by"].split()[0]
    assert scorer in ("jiwer", "sclite")
    assert (scorer == "jiwer") == ("scored by: `jiwer`" in results)
