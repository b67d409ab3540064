"""Through ESPnet's own tasks: YAML, training step, init, streaming inference, joint recognition."""

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml
from espnet2.bin.enh_inference_streaming import SeparateSpeechStreaming
from espnet2.tasks.enh import EnhancementTask
from espnet2.torch_utils.initialize import INITIALIZATIONS

from espnet_bimamba.layers.mamba import SelectiveSSM
from espnet_bimamba.separators.bimamba import BiMambaSeparator
from espnet_bimamba.separators.loss import CompressedMagnitudeMSE
from espnet_bimamba.separators.stft import SqrtHannDecoder, SqrtHannEncoder
from tests.encoders.test_initialization import check_initialisation
from tests.separators.zoo import KINDS, every_kind, tiny
from tests.tiny_models import TINY

SAMPLES = (800, 620)
SPECTRUM = {"n_fft": 64, "win_length": 64, "hop_length": 32}


def config(options, **more):
    return {
        "encoder": "stft_sqrt_hann",
        "encoder_conf": SPECTRUM,
        "separator": "bimamba",
        "separator_conf": tiny(options),
        "decoder": "stft_sqrt_hann",
        "decoder_conf": SPECTRUM,
        "criterions": [
            {
                "name": "compressed_mse",
                "conf": {"exponent": 0.3},
                "wrapper": "fixed_order",
                "wrapper_conf": {"weight": 1.0},
            }
        ],
        **more,
    }


@pytest.fixture
def built(tmp_path):
    """Build a model from a YAML; return it and where ESPnet would have put its config."""

    def build(options, **more):
        path = tmp_path / "train.yaml"
        path.write_text(yaml.safe_dump(config(options, **more)))
        torch.manual_seed(0)
        args = EnhancementTask.get_parser().parse_args(["--config", str(path)])
        model = EnhancementTask.build_model(args)
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(vars(args)))
        torch.save(model.state_dict(), tmp_path / "model.pth")
        return model, tmp_path

    return build


def test_the_example_in_the_documentation_builds():
    text = (Path(__file__).parents[2] / "docs" / "enhancement.md").read_text()
    args = EnhancementTask.get_parser().parse_args([])
    vars(args).update(yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0]))
    with torch.device("meta"):
        model = EnhancementTask.build_model(args)
    assert sum(p.numel() for p in model.parameters()) == 4_512_257 + 768, "ExtBiMamba-5"


def batch(speakers=1):
    generator = torch.Generator().manual_seed(3)
    draw = [torch.randn(2, SAMPLES[0], generator=generator) for _ in range(speakers + 1)]
    references = {f"speech_ref{index + 1}": draw[index] for index in range(speakers)}
    lengths = torch.tensor(SAMPLES)
    return {
        "speech_mix": sum(draw),
        "speech_mix_lengths": lengths,
        **references,
        "noise_ref1": draw[-1],
    }


@every_kind
def test_a_step_of_training_lowers_the_loss(options, built):
    model, _ = built(options)
    assert type(model.encoder) is SqrtHannEncoder
    assert type(model.separator) is BiMambaSeparator
    assert type(model.decoder) is SqrtHannDecoder
    assert type(model.loss_wrappers[0].criterion) is CompressedMagnitudeMSE
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = batch(model.num_spk)
    loss, stats, _ = model.train()(**inputs)
    loss.backward()
    # The noise's own output is trained by a loss of the noise only.
    unused = {"output_layers.2"} if options.get("predict_noise") else set()
    for name, parameter in model.separator.named_parameters():
        if not any(name.startswith(prefix) for prefix in unused):
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    optimizer.step()
    assert stats["MSE_on_Mag^0.3"] == loss
    assert 0 < model(**inputs)[0] < loss


def test_the_loss_of_a_batch_is_that_of_its_utterances(built):
    model, _ = built(KINDS["extbimamba_concat"])
    model.eval().double()
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in batch().items()}
    loss, _, _ = model(**inputs)
    alone = []
    for index, samples in enumerate(SAMPLES):
        own = {key: value[index : index + 1] for key, value in inputs.items()}
        own = {k: v if k.endswith("lengths") else v[:, :samples] for k, v in own.items()}
        alone.append(model(**own)[0])
    torch.testing.assert_close(loss, torch.stack(alone).mean(dim=0), rtol=1e-12, atol=0)


def test_with_stft_consistency_the_loss_is_that_of_the_signal(built):
    criterion = {"exponent": 0.3, "stft_consistency": True}
    criterions = config({})["criterions"]
    model, _ = built(KINDS["mamba4"], criterions=[criterions[0] | {"conf": criterion}])
    inputs = batch()
    loss, _, _ = model(**inputs)
    lengths = inputs["speech_mix_lengths"]
    (signal,), *_ = model.forward_enhance(inputs["speech_mix"], lengths)
    spectra = [model.encoder(wave, lengths)[0] for wave in (inputs["speech_ref1"], signal)]
    target, estimate = (spectrum.abs().clamp_min(1e-5) ** 0.3 for spectrum in spectra)
    expected = torch.stack(
        [
            ((target - estimate)[index, : samples // 32 + 1] ** 2).mean()
            for index, samples in enumerate(SAMPLES)
        ]
    )
    torch.testing.assert_close(loss, expected.mean(dim=0, keepdim=True))


def test_a_loss_of_the_noise(built):
    first = config({})["criterions"][0]
    noise = first | {"conf": {"is_noise_loss": True, "name": "noise"}}
    model, _ = built(KINDS["two_speakers_and_noise"], criterions=[first, noise])
    loss, stats, _ = model(**batch(2))
    loss.backward()
    torch.testing.assert_close(loss, stats["MSE_on_Mag^0.3"] + stats["noise"])
    assert model.separator.output_layers[2].weight.grad.abs().max() > 0


WIDE = {"adim": 32, "d_state": 16}


@pytest.mark.parametrize("name", ["mamba4", "transinnbimamba4", "conextbimamba4"])
@pytest.mark.parametrize("init", [None, *[i for i in INITIALIZATIONS if i != "normal"]], ids=str)
def test_the_ssm_keeps_its_initialisation(name, init, built):
    model, _ = built(KINDS[name] | WIDE, init=init)
    check_initialisation(model.separator)


def test_and_the_check_sees_what_espnet_alone_would_leave(built, monkeypatch):
    monkeypatch.setattr(
        SelectiveSSM, "espnet_initialization_fn", _once(SelectiveSSM.espnet_initialization_fn)
    )
    model, _ = built(KINDS["mamba4"] | WIDE, init="xavier_uniform")
    with pytest.raises(AssertionError):
        check_initialisation(model.separator)


def _once(function):
    """What the constructor calls; ESPnet's later call finds it done."""
    done = set()

    def run(module):
        if id(module) not in done:
            done.add(id(module))
            function(module)

    return run


STREAMING = ["mamba4", "transmamba4", "conmamba4", "two_speakers_and_noise"]


@pytest.mark.parametrize("name", STREAMING)
def test_espnets_streaming_inference_gives_what_the_whole_gives(name, built):
    model, folder = built(KINDS[name])
    model.eval()
    separate = SeparateSpeechStreaming(folder / "config.yaml", folder / "model.pth")
    mixture = batch()["speech_mix"]
    lengths = torch.tensor([SAMPLES[0]] * 2)
    with torch.no_grad():
        whole, *_ = model.forward_enhance(mixture, lengths)
    for _ in range(2):  # a second signal starts afresh
        outputs = [separate(chunk) for chunk in separate.frame(mixture)]
        separate.reset()
        for speaker, expected in enumerate(whole):
            merged = separate.merge([output[speaker] for output in outputs], lengths)
            assert (merged - expected).abs().max() < 1e-5
            assert expected.abs().max() > 0.1


def test_streaming_inference_with_attention_says_why_not(built):
    _, folder = built(KINDS["transformer4_causal"])
    separate = SeparateSpeechStreaming(folder / "config.yaml", folder / "model.pth")
    with pytest.raises(ValueError, match="allowed is mamba for streaming"):
        separate(separate.frame(batch()["speech_mix"])[0])


def test_a_checkpoint_of_attention_is_refused_by_name(built):
    _, folder = built(KINDS["transformer4"])
    state = torch.load(folder / "model.pth")
    model, _ = built(KINDS["transextbimamba4"])
    with pytest.raises(
        RuntimeError, match=r"the checkpoint holds self-attention at separator\.layers\.0"
    ):
        model.load_state_dict(state, strict=False)


def test_in_front_of_a_recogniser(tmp_path):
    """enh_s2t: the paper's two halves in one model."""
    joint = TINY["espnet2.tasks.enh_s2t", "asr_encoder_choices"]
    ours = {f"enh_{key}": value for key, value in config(KINDS["extbimamba_concat"]).items()}
    model = dataclasses.replace(joint, options={**joint.options, **ours}).build(
        "espnet2.tasks.enh_s2t", "conbimamba", tmp_path
    )
    separator = model.enh_model.separator
    assert type(separator) is BiMambaSeparator
    loss, _, _ = model.train()(**joint.batch())
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in separator.parameters())
    assert separator.input_layer[0].weight.grad.abs().max() > 0
