"""Transducer and CTC models: small ones of the shipped YAMLs learn two utterances of mini_an4.

What they hear then is what was said. ``test_ctc.py`` runs one through a recipe.
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
from torch.nn.utils.rnn import pad_sequence

from espnet_bimamba.cli.conf.shipped import find

pytestmark = pytest.mark.recipe

TOKENS = ["<blank>", "<unk>", *"abcdefghijklmnopqrstuvwxyz", "<sos/eos>"]
#: What is said in which recording, of a second or less.
SPEECH = {"yes": "an251-fash-b", "go": "an253-fash-b"}
FOLDER = "downloads/an4/wav/an4_clstk/fash"
# Without dropout and SpecAugment, for two utterances are learnt by heart.
TINY = {"output_size": 16, "linear_units": 16, "num_blocks": 3, "d_state": 4}
TINY |= {"dropout_rate": 0.0, "positional_dropout_rate": 0.0}
STEPS = 90
# The layers of each variant that have a loss of their own.
CTC = {"ctc": (), "interctc": (1, 2), "scctc": (1, 2)}


@pytest.fixture(scope="module")
def utterances(tree):
    """Two utterances of mini_an4 by what is said in them, 16 kHz."""
    found = {}
    with tarfile.open(tree / "egs2" / "mini_an4" / "asr1" / "downloads.tar.gz") as archive:
        for text, name in SPEECH.items():
            file = archive.extractfile(f"{FOLDER}/{name}.sph")
            found[text], rate = soundfile.read(io.BytesIO(file.read()))
            assert rate == 16000
    return found


@pytest.fixture
def transducer_loss(monkeypatch):
    """ESPnet's own RNN-T loss by the name of the package that its model imports.

    warprnnt_pytorch is built from source and is no package of pip's.
    """
    module = ModuleType("warprnnt_pytorch")
    module.RNNTLoss = RNNTLossNumba
    monkeypatch.setitem(sys.modules, module.__name__, module)


def built_model(variant, **changes):
    """Build a small model of a shipped YAML; return it and the arguments."""
    file = find(f"librispeech_100/conextbimamba_{variant}")
    args = ASRTask.get_parser().parse_args(["--config", str(file.path)])
    args.encoder_conf |= TINY
    args.token_list, args.token_type = TOKENS, "char"
    args.normalize, args.normalize_conf, args.specaug = "utterance_mvn", {}, None
    for option, value in changes.items():
        getattr(args, option).update(value)
    torch.manual_seed(4)
    return ASRTask.build_model(args), args


def learn(model, utterances):
    """Train until the utterances are known; return the last statistics and what has no gradient."""
    speech = [torch.tensor(samples).float() for samples in utterances.values()]
    text = [torch.tensor([TOKENS.index(letter) for letter in words]) for words in utterances]
    batch = {
        "speech": pad_sequence(speech, batch_first=True),
        "speech_lengths": torch.tensor([len(samples) for samples in speech]),
        "text": pad_sequence(text, batch_first=True, padding_value=-1),
        "text_lengths": torch.tensor([len(ids) for ids in text]),
    }
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss, stats, _ = model(**batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    model.eval()
    return stats, [name for name, p in model.named_parameters() if p.grad is None]


def save(model, args, folder):
    """Write what a training leaves: config.yaml and weights."""
    files = folder / "config.yaml", folder / "model.pth"
    files[0].write_text(yaml_no_alias_safe_dump(vars(args)))
    torch.save(model.state_dict(), files[1])
    return files


def decoder(files, decode):
    options = yaml.safe_load(find(f"librispeech_100/{decode}").path.read_text())
    return Speech2Text(*files, **options)


@torch.no_grad()
def encode(model, speech):
    encoded, _ = model.encode(torch.tensor(speech[None]).float(), torch.tensor([len(speech)]))
    return encoded[0] if isinstance(encoded, tuple) else encoded


@pytest.mark.parametrize(("variant", "layers"), CTC.items(), ids=CTC)
def test_a_ctc_model_learns_and_decodes(variant, layers, utterances, tmp_path):
    changes = {"encoder_conf": {"interctc_layer_idx": list(layers)}} if layers else {}
    model, args = built_model(variant, **changes)
    assert model.decoder is None
    stats, untrained = learn(model, utterances)
    assert untrained == []
    assert {key for key in stats if key.startswith("loss_interctc")} == {
        f"loss_interctc_layer{layer}" for layer in layers
    }

    decode = decoder(save(model, args, tmp_path), "decode_asr_ctc")
    for said, speech in utterances.items():
        results = decode(speech)
        if layers:
            results, intermediate = results
            assert tuple(intermediate) == layers
            assert all(set(tokens) <= set(TOKENS) for tokens in intermediate.values())
        [(text, _, ids, hypothesis)] = results
        assert text == said
        assert_ctc_score(model, speech, ids, hypothesis.score)


def assert_ctc_score(model, speech, ids, score):
    # A hypothesis that has ended has the probability of all its alignments: CTC's loss.
    log_probs = model.ctc.log_softmax(encode(model, speech)).detach()
    expected = torch.nn.functional.ctc_loss(
        log_probs.transpose(0, 1),
        torch.tensor([ids], dtype=torch.long),
        torch.tensor([log_probs.shape[1]]),
        torch.tensor([len(ids)]),
        reduction="sum",
    )
    torch.testing.assert_close(float(score), -float(expected), rtol=1e-4, atol=1e-3)


def test_a_transducer_learns_and_decodes(utterances, transducer_loss, tmp_path):
    small = {
        "decoder_conf": {"hidden_size": 16, "dropout": 0.0, "dropout_embed": 0.0},
        "joint_net_conf": {"joint_space_size": 16},
    }
    model, args = built_model("transducer", **small)
    stats, untrained = learn(model, utterances)
    assert stats["loss_transducer"] < 1
    assert untrained == []

    decode = decoder(save(model, args, tmp_path), "decode_asr_transducer")
    for said, speech in utterances.items():
        [(text, _, ids, hypothesis)] = decode(speech)
        assert text == said
        assert_transducer_score(model, speech, ids, hypothesis.score)


@torch.no_grad()
def assert_transducer_score(model, speech, ids, score):
    # A hypothesis is one alignment of its tokens, or several: all of them are the loss.
    encoded = encode(model, speech)
    labels = torch.tensor([ids], dtype=torch.int32)
    decoded = model.decoder(torch.tensor([[0, *ids]]))
    loss = model.criterion_transducer(
        model.joint_network(encoded.unsqueeze(2), decoded.unsqueeze(1)),
        labels,
        torch.tensor([encoded.shape[1]], dtype=torch.int32),
        torch.tensor([len(ids)], dtype=torch.int32),
    )
    assert -10 < float(score) <= -float(loss) + 1e-3


def test_without_the_loss_a_transducer_says_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "warprnnt_pytorch", None)
    with pytest.raises(ImportError, match="warprnnt_pytorch"):
        built_model("transducer")
