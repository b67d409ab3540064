"""Figures of what is left of the speech in an encoder's layers: by hand, and through ESPnet."""

import math
import re

import numpy as np
import pytest
import soundfile
import torch
import yaml
from espnet2.tasks.asr import ASRTask
from espnet2.torch_utils.model_summary import model_summary

from tests.egs.programs import modules_of

TOKENS = ["<blank>", "<unk>", "A", "B", "<space>", "<sos/eos>"]
SETTINGS = {
    "encoder": "bimamba",
    "encoder_conf": {
        **{"output_size": 8, "num_blocks": 2, "d_state": 2, "mamba_type": "mamba"},
        **{"dropout_rate": 0.5, "input_layer": "conv2d", "residual": False},
    },
    "frontend_conf": {"n_fft": 128, "hop_length": 64, "n_mels": 16, "fs": "8k"},
    "model_conf": {"ctc_weight": 1.0, "length_normalized_loss": False},
    "normalize": None,
    "token_type": "char",
}


@pytest.fixture(scope="module")
def spread():
    with modules_of("so762", "spread") as (module,):
        yield module


@pytest.mark.parametrize(
    ("columns", "share"),
    [
        ([[1.0, 1], [5, 5]], 0.0),  # frames alike, whatever the channels are
        ([[5.0, 5], [5, 5]], 0.0),
        ([[1.0, -1], [1, -1]], 1.0),  # channels alike
        # Channels at ±2, around which time makes ±1: deviations 1 and sqrt(4 + 1).
        ([[3.0, 1], [-1, -3]], 1 / math.sqrt(5)),
    ],
)
def test_the_spread_is_what_time_has_of_the_deviation(spread, columns, share):
    frames = torch.tensor(columns).T
    assert spread.spread_over_time(frames) == pytest.approx(share, abs=1e-6)


class Layer(torch.nn.Module):
    """Doubles its input, behind dropout, and hands positions and a mask on."""

    def __init__(self):
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)
        self.norm = torch.nn.BatchNorm1d(3)

    def forward(self, x):
        return (2 * self.dropout(x), torch.zeros(1)), None


class Model(torch.nn.Module):
    """Hears a sample as a frame of three channels; the loss is the output's sum of squares."""

    def __init__(self):
        super().__init__()
        self.encoder = torch.nn.Module()
        self.encoder.encoders = torch.nn.ModuleList([Layer(), Layer()])

    def forward(self, speech, speech_lengths, text, text_lengths):
        assert (speech_lengths.tolist(), text_lengths.tolist()) == ([speech.shape[1]], [2])
        x = speech[..., None] + torch.tensor([2.0, 0, -2])
        for layer in self.encoder.encoders:
            (x, _), _ = layer(x)
        return x.square().sum(), {}, torch.ones(1)


def test_each_layer_is_heard_with_and_without_dropout(spread):
    model = Model()
    sounds = [torch.tensor([[1.0, -1, 1, -1]]), torch.tensor([[2.0, -2]])]
    clips = [spread.Clip(sound, torch.tensor([[2, 3]])) for sound in sounds]
    quiet = spread.listen(model, clips, dropout=False)
    # A square is 1 or 4 of time and 8 / 3 of the channels; two layers make it 16 times as large.
    assert quiet.loss == pytest.approx(16 * 3 * (4 * (1 + 8 / 3) + 2 * (4 + 8 / 3)) / 2)
    share = (math.sqrt(1 / (1 + 8 / 3)) + math.sqrt(4 / (4 + 8 / 3))) / 2
    assert quiet.spread == [pytest.approx(share), pytest.approx(share)]
    noisy = spread.listen(model, clips, dropout=True)
    assert noisy.loss != quiet.loss
    assert noisy.spread[0] != quiet.spread[0]
    assert spread.listen(model, clips, dropout=True) == noisy, "not the same noise each time"
    assert not any(layer.norm.training for layer in model.encoder.encoders)
    assert not any(layer._forward_hooks for layer in model.encoder.encoders)


class Scale(torch.nn.Module):
    """Multiplies by two numbers, and has one more that nothing asks for."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second, self.other = (
            torch.nn.Parameter(torch.tensor(value)) for value in (first, second, 1.0)
        )

    def forward(self, x):
        return (self.first * self.second * x, None), None


def test_gradients_are_those_of_each_layers_own_parameters(spread):
    model = Model()
    model.encoder.encoders = torch.nn.ModuleList([Scale(3.0, 4.0), Scale(0.0625, 1.0)])
    clips = [spread.Clip(torch.tensor([[1.0, -1]]), torch.tensor([[2, 3]]))] * 2
    # The loss is (3 * 4 * 0.0625 * 1)^2 times a constant c; of each factor it is 2c / factor.
    first, second = math.hypot(1 / 3, 1 / 4), math.hypot(16, 1)
    assert spread.gradients(model, clips) == pytest.approx([first / second, 1.0])
    assert spread.gradients(model, clips) == pytest.approx([first / second, 1.0]), "not anew"


@pytest.mark.parametrize(
    ("shares", "text"),
    [([1, 0.126, 0.01], "100 13 1"), ([0.00994, 0.00012, 2.3e-8, 0], "1 0.01 2e-06 0")],
)
def test_small_shares_keep_a_digit(spread, shares, text):
    assert spread._percent(shares) == text


@pytest.fixture
def recipe(tmp_path):
    """A training that has ended, one that has not, and three clips of noise."""
    dev = tmp_path / "dump/raw/dev"
    dev.mkdir(parents=True)
    chance = np.random.default_rng(0)
    for name in ("b", "a", "c"):
        soundfile.write(dev / f"{name}.wav", chance.normal(scale=0.1, size=8000), 8000)
    (dev / "wav.scp").write_text("".join(f"{n} dump/raw/dev/{n}.wav\n" for n in "bac"))
    (dev / "text").write_text("b AB\na A B\nc B\n")
    ended, other = (tmp_path / f"exp/asr_{name}_seed1" for name in ("ended", "other"))
    for folder in (ended, other):
        folder.mkdir(parents=True)
        log = model_summary(torch.nn.Linear(9, 9))
        (folder / "train.log").write_text(f"{log}\n")
    args = ASRTask.get_parser().parse_args([])
    vars(args).update(SETTINGS, token_list=TOKENS)
    torch.manual_seed(0)
    torch.save(ASRTask.build_model(args).state_dict(), ended / "valid.cer_ctc.ave.pth")
    config = {name: value for name, value in vars(args).items() if name != "config"}
    (ended / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_clips_are_the_first_of_the_dev_set_with_their_tokens(spread, recipe):
    found = spread.clips(recipe, TOKENS, 2)
    assert [clip.tokens.tolist() for clip in found] == [[[2, 4, 3]], [[2, 3]]]
    samples, _ = soundfile.read(recipe / "dump/raw/dev/a.wav", dtype="float32")
    assert torch.equal(found[0].speech[0], torch.from_numpy(samples))


def test_the_program_tells_of_trainings_that_have_ended(spread, recipe, capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    page = recipe / "page.md"
    page.write_text(f"before\n<!-- written by {spread.PROGRAM} -->\nold\n<!-- end -->\n")
    assert spread.main([str(recipe), "--clips", "2", "--into", str(page)]) == 0
    printed = capsys.readouterr().out
    spreads, slopes = re.findall(r"^(\|.*)\n\|.*\n(\|.*)$", printed, flags=re.MULTILINE)
    head, row = spreads
    assert head.startswith("| model | seed | loss | with dropout |")
    model, tokens = spread.load(recipe / "exp/asr_ended_seed1")
    clips = spread.clips(recipe, tokens, 2)
    quiet, noisy = (spread.listen(model, clips, dropout) for dropout in (False, True))
    assert len(quiet.spread) == SETTINGS["encoder_conf"]["num_blocks"]
    losses = f"{quiet.loss:.1f} | {noisy.loss:.1f}"
    first = spread.listen(spread.untrained(recipe / "exp/asr_ended_seed1", 1), clips, False)
    shares = [
        " ".join(f"{100 * share:.0f}" for share in heard.spread) for heard in (quiet, noisy, first)
    ]
    assert row == f"| ended | 1 | {losses} | {' | '.join(shares)} |"
    assert len(set(shares)) == 3
    fresh = spread.untrained(recipe / "exp/asr_ended_seed1", 1)
    ways = [" ".join(f"{100 * x:.0f}" for x in spread.gradients(m, clips)) for m in (model, fresh)]
    assert slopes[1] == f"| ended | 1 | {' | '.join(ways)} |"
    assert noisy.spread[0] != quiet.spread[0]
    assert page.read_text().startswith(f"before\n<!-- written by {spread.PROGRAM} -->\n\nLoss, ")


def test_the_loss_is_that_of_espnets_own_model(spread, recipe):
    model, tokens = spread.load(recipe / "exp/asr_ended_seed1")
    (clip,) = spread.clips(recipe, tokens, 1)
    with torch.inference_mode():
        expected, _, _ = model.eval()(
            clip.speech, torch.tensor([8000]), clip.tokens, torch.tensor([clip.tokens.shape[1]])
        )
    assert spread.listen(model, [clip], dropout=False).loss == pytest.approx(float(expected))


def test_an_untrained_model_is_that_of_its_seed(spread, recipe):
    folder = recipe / "exp/asr_ended_seed1"
    again, same, other = (spread.untrained(folder, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(value, same[name]) for name, value in again.items())
    assert any(not torch.equal(value, other[name]) for name, value in again.items())


@pytest.mark.parametrize("count", ["0", "-3", "1.5", "many"])
def test_the_number_of_clips_is_from_one_on(spread, capsys, count):
    with pytest.raises(SystemExit, match="2"):
        spread.main([f"--clips={count}"])
    assert f"must be a whole number from 1 on, not '{count}'" in capsys.readouterr().err


def test_what_is_missing_is_said(spread, recipe, capsys):
    with pytest.raises(spread.ResultsError, match=r"asr_other_seed1 holds no valid\.cer_ctc\.ave"):
        spread.load(recipe / "exp/asr_other_seed1")
    (recipe / "dump/raw/dev/text").unlink()
    assert spread.main([str(recipe)]) == 2
    assert "dump/raw/dev/text is missing" in capsys.readouterr().err
