"""Transducer and CTC models: small ones of the shipped YAMLs train a step and decode real speech.

Their weights are random, so what they hear means nothing; its score does.
"""

import io
import sys
import tarfile
from types import ModuleType

import pytest
import soundfile
import torch
import yaml
from espnet2.asr.transducer.rnnt_multi_blank.rnnt_multi_blank import RNNTLossNumba
from espnet2.bin.asr_inference import Speech2Text
from espnet2.tasks.asr import ASRTask
from espnet2.utils.yaml_no_alias_safe_dump import yaml_no_alias_safe_dump

from espnet_bimamba.cli.conf.shipped import find

pytestmark = pytest.mark.recipe

TOKENS = ["<blank>", "<unk>", *"abcdefgh", "<sos/eos>"]
SPEECH = "downloads/an4/wav/an4_clstk/fash/an251-fash-b.sph"
TINY = {"output_size": 16, "linear_units": 16, "num_blocks": 3, "d_state": 4}
# The layers of each variant that have a loss of their own.
CTC = {"ctc": (), "interctc": (1, 2), "scctc": (1, 2)}


@pytest.fixture(scope="module")
def speech(tree):
    """An utterance of mini_an4, 16 kHz."""
    with tarfile.open(tree / "egs2" / "mini_an4" / "asr1" / "downloads.tar.gz") as archive:
        samples, rate = soundfile.read(io.BytesIO(archive.extractfile(SPEECH).read()))
    assert rate == 16000
    return samples


@pytest.fixture
def transducer_loss(monkeypatch):
    """ESPnet's own RNN-T loss by the name of the package that its model imports.

    warprnnt_pytorch is built from source and is no package of pip's.
    """
    module = ModuleType("warprnnt_pytorch")
    module.RNNTLoss = RNNTLossNumba
    monkeypatch.setitem(sys.modules, module.__name__, module)


def saved_model(variant, folder, **changes):
    """Write what a training would leave: config.yaml and weights; return the model and files."""
    file = find(f"librispeech_100/conextbimamba_{variant}")
    args = ASRTask.get_parser().parse_args(["--config", str(file.path)])
    args.encoder_conf |= TINY
    args.token_list, args.token_type = TOKENS, "char"
    args.normalize, args.normalize_conf = "utterance_mvn", {}
    for option, value in changes.items():
        getattr(args, option).update(value)
    torch.manual_seed(4)
    model = ASRTask.build_model(args).eval()
    files = folder / "config.yaml", folder / "model.pth"
    files[0].write_text(yaml_no_alias_safe_dump(vars(args)))
    torch.save(model.state_dict(), files[1])
    return model, files


def decoder(files, decode):
    options = yaml.safe_load(find(f"librispeech_100/{decode}").path.read_text())
    return Speech2Text(*files, **options)


def train_a_step(model, speech):
    model.train()
    text = torch.tensor([[2, 3, 4, 5], [3, 2, 5, -1]])
    samples = torch.tensor(speech[None, :16000]).float().repeat(2, 1)
    loss, stats, _ = model(samples, torch.tensor([16000, 14000]), text, torch.tensor([4, 3]))
    loss.backward()
    untrained = [name for name, p in model.named_parameters() if p.grad is None]
    model.eval()
    return loss, stats, untrained


@torch.no_grad()
def encode(model, speech):
    encoded, _ = model.encode(torch.tensor(speech[None]).float(), torch.tensor([len(speech)]))
    return encoded[0] if isinstance(encoded, tuple) else encoded


@pytest.mark.parametrize(("variant", "layers"), CTC.items(), ids=CTC)
def test_a_ctc_model_trains_and_decodes(variant, layers, speech, tmp_path):
    changes = {"encoder_conf": {"interctc_layer_idx": list(layers)}} if layers else {}
    model, files = saved_model(variant, tmp_path, **changes)
    assert model.decoder is None

    results = decoder(files, "decode_asr_ctc")(speech)
    if layers:
        results, intermediate = results
        assert tuple(intermediate) == layers
        assert all(set(tokens) <= set(TOKENS) for tokens in intermediate.values())
    [(text, tokens, ids, hypothesis)] = results
    assert text == "".join(tokens).replace("<space>", " ")
    # A hypothesis that has ended has the probability of all its alignments: CTC's loss.
    log_probs = model.ctc.log_softmax(encode(model, speech)).detach()
    expected = torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1),
        torch.tensor([ids], dtype=torch.long),
        torch.tensor([log_probs.shape[1]]),
        torch.tensor([len(ids)]),
        reduction="sum",
    )
    torch.testing.assert_close(float(hypothesis.score), -float(expected), rtol=1e-4, atol=1e-3)

    loss, stats, untrained = train_a_step(model, speech)
    assert loss.isfinite()
    assert untrained == []
    assert {key for key in stats if key.startswith("loss_interctc")} == {
        f"loss_interctc_layer{layer}" for layer in layers
    }


def test_a_transducer_trains_and_decodes(speech, transducer_loss, tmp_path):
    small = {"decoder_conf": {"hidden_size": 16}, "joint_net_conf": {"joint_space_size": 16}}
    model, files = saved_model("transducer", tmp_path, **small)
    short = speech[:12000]

    [(text, tokens, ids, hypothesis)] = decoder(files, "decode_asr_transducer")(short)
    assert text == "".join(tokens)
    assert ids
    # A hypothesis is one alignment of its tokens, or several: all of them are the loss.
    encoded = encode(model, short)
    labels = torch.tensor([ids], dtype=torch.int32)
    decoded = model.decoder(torch.tensor([[0, *ids]]))
    loss = model.criterion_transducer(
        model.joint_network(encoded.unsqueeze(2), decoded.unsqueeze(1)),
        labels,
        torch.tensor([encoded.shape[1]], dtype=torch.int32),
        torch.tensor([len(ids)], dtype=torch.int32),
    )
    assert -1000 < float(hypothesis.score) <= -float(loss) + 1e-3

    loss, stats, untrained = train_a_step(model, speech)
    assert loss.isfinite()
    assert stats["loss_transducer"] > 0
    assert untrained == []


def test_without_the_loss_a_transducer_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "warprnnt_pytorch", None)
    with pytest.raises(ImportError, match="warprnnt_pytorch"):
        saved_model("transducer", tmp_path)
