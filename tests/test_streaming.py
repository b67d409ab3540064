"""ESPnet's streaming recogniser on a causal encoder: its chunks of samples give the whole's frames.

The oracle is ``ESPnetASRModel.encode`` on all samples at once.
"""

import numpy as np
import pytest
import torch
from espnet2.bin import asr_inference_streaming as stock
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError

from espnet_bimamba.errors import OptionError
from espnet_bimamba.streaming import Speech2TextStreaming
from tests.encoders.asr import options_of, tiny_conf
from tests.tolerances import assert_close

SAMPLES = 8317
FRONTENDS = {
    "recipes": {"n_fft": 512, "win_length": 400, "hop_length": 160},
    "default": {"n_fft": 512, "win_length": None, "hop_length": 128},
    "odd": {"n_fft": 256, "win_length": 200, "hop_length": 90},
    "long_hop": {"n_fft": 256, "win_length": 256, "hop_length": 200},
}
every_frontend = pytest.mark.parametrize("frontend", FRONTENDS.values(), ids=FRONTENDS)
# Chunks of one sample would take a minute.
CUTS = {
    "7": [7] * (SAMPLES // 7) + [SAMPLES % 7],
    "160": [160] * (SAMPLES // 160) + [SAMPLES % 160],
    "640": [640] * (SAMPLES // 640) + [SAMPLES % 640],
    "mixed": [1, 0, 200, 1, 255, 2, 3000, 4857, 1],
    "one": [SAMPLES],
    "nothing_last": [SAMPLES, 0],
}
every_cut = pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS)
BLOCKS = {"look_ahead": 0, "hop_size": 1, "block_size": 1}


def signal(samples=SAMPLES):
    return torch.randn(samples, generator=torch.Generator().manual_seed(1))


def recogniser(cls, folder, frontend=FRONTENDS["recipes"], **options):
    """Build a model as a training does, and ESPnet's recogniser around it."""
    stats = folder / "stats.npz"
    total = np.linspace(-30, -10, 20, dtype=np.float32)
    np.savez(stats, count=np.array(2), sum=total, sum_square=total**2 + 8)
    conf = tiny_conf("conbimamba", mamba_type="mamba", causal=True, **BLOCKS)
    options = {"normalize": "global_mvn", "normalize_conf": {"stats_file": str(stats)}} | options
    args = options_of(
        "conbimamba",
        conf,
        input_size=None,
        token_type="char",
        frontend_conf=frontend | {"n_mels": 20, "fs": 16000},
        **options,
    )
    torch.manual_seed(2)
    model = stock.ASRTask.build_model(args)
    return cls(asr_model=model, asr_train_args=args, beam_size=2, ctc_weight=0.5)


def encoded(recognise, chunks):
    """Return all frames that the search was given."""
    frames = []
    hook = recognise.asr_model.encoder.register_forward_hook(
        lambda module, inputs, output: frames.append(output[0])
    )
    # The search on a model that knows nothing takes longer than all the rest.
    recognise.beam_search.forward = lambda **_: []
    for number, chunk in enumerate(chunks):
        recognise(chunk, is_final=number == len(chunks) - 1)
    hook.remove()
    return torch.cat(frames, dim=1)


@torch.no_grad()
def whole(recognise, samples):
    out, _ = recognise.asr_model.encode(samples[None], torch.tensor([len(samples)]))
    return out


@every_frontend
@every_cut
def test_chunks_of_samples_give_the_frames_of_the_whole(frontend, cuts, tmp_path):
    recognise, samples = recogniser(Speech2TextStreaming, tmp_path, frontend), signal()
    expected = whole(recognise, samples)
    for _ in range(2):  # a second utterance starts afresh
        frames = encoded(recognise, samples.split(cuts))
        assert_close("frames", frames, expected, torch.float32, "output")
        assert (frames - expected).abs().max() < 1e-5


@pytest.mark.parametrize("samples", [257, 300, 400, 1360, 1361])
def test_short_utterances(samples, tmp_path):
    recognise, speech = recogniser(Speech2TextStreaming, tmp_path), signal(samples)
    frames = samples // 160 + 1
    if frames < 7:
        with pytest.raises(TooShortUttError, match=f"has {frames} frames"):
            encoded(recognise, speech.split(100))
        return
    actual = encoded(recognise, speech.split(100))
    assert_close("frames", actual, whole(recognise, speech), torch.float32, "output")


def test_an_utterance_of_half_a_window_is_too_short(tmp_path):
    recognise = recogniser(Speech2TextStreaming, tmp_path)
    with pytest.raises(TooShortUttError, match=r"has 256 samples .* at least 257\)"):
        encoded(recognise, signal(256).split(200))


def test_what_is_kept_of_the_samples_does_not_grow(tmp_path):
    recognise, state, kept = recogniser(Speech2TextStreaming, tmp_path), None, []
    for chunk in signal(16_000).split(500):
        _, _, state = recognise.apply_frontend(chunk, state)
        kept.append(state.samples.untyped_storage().nbytes() // 4)
    # Half a window behind the frame to come, half a window before it, less than a hop.
    assert max(kept) <= 2 * 256 + 2 * 160


def test_with_a_recipes_frontend_and_chunks_of_640_samples_stock_gives_the_whole(tmp_path):
    """What conf/librispeech_100/decode_asr_streaming.yaml relies on."""
    recognise, samples = recogniser(stock.Speech2TextStreaming, tmp_path), signal()
    frames = encoded(recognise, samples.split(CUTS["640"]))
    assert_close("frames", frames, whole(recognise, samples), torch.float32, "output")


def test_stock_loses_two_frames_of_features_after_a_short_first_chunk(tmp_path):
    """If this fails, ESPnet has mended it: then `espnet_bimamba.streaming` can go."""
    recognise, samples = recogniser(stock.Speech2TextStreaming, tmp_path), signal()
    states, features = None, []
    for chunk in (samples[:400], samples[400:]):
        out, _, states = recognise.apply_frontend(chunk, states)
        features += [] if out is None else [out]
    ours = recogniser(Speech2TextStreaming, tmp_path)
    expected, _, _ = ours.apply_frontend(samples)
    assert torch.equal(features[0][0, 0], expected[0, 2])


def test_normalisation_over_the_utterance_is_refused(tmp_path):
    with pytest.raises(OptionError) as error:
        recogniser(Speech2TextStreaming, tmp_path, normalize="utterance_mvn", normalize_conf={})
    assert str(error.value) == (
        "normalize='utterance_mvn' is not possible: allowed is global_mvn or none for streaming. "
        "It reads the whole utterance."
    )


@pytest.mark.parametrize("conf", [{"apply_stft": False}], ids=["no_transform"])
def test_a_frontend_whose_samples_cannot_be_told_is_refused(conf, tmp_path):
    frontend = FRONTENDS["recipes"] | conf
    with pytest.raises(OptionError, match=r"frontend='DefaultFrontend' .* default, centred"):
        recogniser(Speech2TextStreaming, tmp_path, frontend)


def test_stocks_recogniser_says_what_an_encoder_lacks_that_is_not_causal(tmp_path):
    recognise = recogniser(stock.Speech2TextStreaming, tmp_path)
    recognise.asr_model.encoder.causal = False
    with pytest.raises(OptionError, match="allowed is true for streaming"):
        recognise(signal().numpy())
