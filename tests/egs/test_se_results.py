"""What egs/se scores and reports, from made-up folders, against means by hand."""

import importlib.util
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from tests.egs.programs import HOME, modules_of
from tests.egs.signals import voice
from tests.egs.test_so762_results import write

RATE = 16000
MEASURES = {
    "NB-PESQ": "PESQ_NB",
    "WB-PESQ": "PESQ_WB",
    "ESTOI": "ESTOI",
    "CSIG": "CSIG",
    "CBAK": "CBAK",
    "COVL": "COVL",
    "SI-SDR": "SI_SNR",
}
needs_scoring = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("pesq", "pystoi"))),
    reason="the extra `enh` is not installed",
)
#: Utterance -> clip, noise, ratio.
MIXTURES = {
    f"s-{clip}-{noise}-{snr}dB": (clip, noise, snr)
    for clip, noise in (("a", "hiss"), ("b", "hiss"), ("c", "hum"), ("d", "hum"))
    for snr in (0, 5)
}
LOG = """\
[h] 2026-11-26 INFO: Total Number of model parameters: 1.89 M
INFO: 1epoch results: [train] iter_time=0.1, loss=0.020, time=1 minute and 2 seconds,\
 total_count=2, [valid] loss=0.015, time=8 seconds, total_count=2
INFO: 2epoch results: [train] iter_time=0.1, loss=0.010, time=1 minute and 2 seconds,\
 total_count=4, [valid] loss=0.012, time=8 seconds, total_count=4
"""


@pytest.fixture(scope="module")
def se():
    with modules_of("so762"), modules_of("se", "results") as (module,):
        yield module


@pytest.fixture
def recipe(tmp_path):
    """Two models: the gain of one is 1 in each utterance, that of the other is -1, 0, 1 or 2."""
    rows = ["\t".join(map(str, (name, *of))) for name, of in MIXTURES.items()]
    write(tmp_path / "data/test/mixtures.tsv", ["utterance\tclip\tnoise\tsnr", *rows])
    write_speakers(tmp_path, dict(zip("abcd", "pqrs", strict=True)))
    noisy = {name: 2.0 + (snr == 5) for name, (_, _, snr) in MIXTURES.items()}
    write_scores(tmp_path / "dump/raw/test/scoring", noisy)
    gains = {"a": -1, "b": 0, "c": 1, "d": 2}
    for tag, gain in {
        "sure_seed1": dict.fromkeys("abcd", 1),
        "unsure_seed1": gains,
        "unsure_seed2": gains,
    }.items():
        folder = tmp_path / "exp" / f"enh_{tag}"
        write(folder / "train.log", LOG.splitlines())
        (folder / "valid.loss.best.pth").symlink_to("2epoch.pth")
        scores = {name: noisy[name] + gain[clip] for name, (clip, _, _) in MIXTURES.items()}
        write_scores(folder / "enhanced_test/scoring", scores)
    return tmp_path


def write_speakers(recipe, speakers):
    lines = [f"{name} {speakers[clip]}" for name, (clip, _, _) in MIXTURES.items()]
    write(recipe / "data/test/utt2spk", lines)


def write_scores(folder, scores):
    for file in MEASURES.values():
        write(folder / f"{file}_spk1", [f"{name} {value}" for name, value in scores.items()])


def write_signals(recipe, names=tuple(MIXTURES)):
    """Speech, noisier and less noisy, where the recipe has it."""
    lists = {}
    for number, name in enumerate(names):
        clean = voice(1.5, seed=number)
        noise = np.random.default_rng(number).standard_normal(len(clean))
        for place, level in (
            ("dump/raw/test/spk1.scp", 0.0),
            ("dump/raw/test/wav.scp", 0.03),
            ("exp/enh_sure_seed1/enhanced_test/spk1.scp", 0.01),
            ("exp/enh_unsure_seed1/enhanced_test/spk1.scp", 0.02),
        ):
            path = recipe / "wavs" / f"{level}-{name}.wav"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, clean + level * noise, RATE)
            lists.setdefault(place, []).append(f"{name} {path}")
    for place, lines in lists.items():
        write(recipe / place, lines)


def test_gains_are_means_by_hand_and_a_model_that_may_gain_nothing_has_failed(se, recipe):
    results = se.Results(recipe)
    sure, unsure = (results.gain(model, "CSIG") for model in ("sure", "unsure"))
    assert (sure.score, sure.mean, sure.low, sure.high) == (3.5, 1.0, 1.0, 1.0)
    assert (unsure.score, unsure.mean) == (3.0, 0.5)
    # Of four clips drawn with replacement, four times the worst and four times the best are rare.
    assert unsure.low in (-0.75, -0.5)
    assert unsure.high in (1.5, 1.75)
    assert results.failed("sure") == []
    assert results.failed("unsure") == list(MEASURES)
    table = se.gains_table(results).splitlines()
    assert table[0] == f"|  | {' | '.join(MEASURES)} | verdict |"
    assert table[2].startswith("| noisy | 2.50 | 2.50 ")
    assert "| sure | 3.50, +1.00 (+1.00 to +1.00) |" in table[3]
    assert table[3].endswith("| improves all |")
    assert table[4].endswith(f"| failed: {', '.join(MEASURES)} |")


def test_speakers_are_drawn_whole(se, recipe):
    """With both ratios of all their clips, or the interval would be narrower."""
    write_speakers(recipe, {"a": "p", "b": "q", "c": "p", "d": "q"})
    results = se.Results(recipe)
    weights = results.resampling.weights
    for clips in ([0, 1, 4, 5], [2, 3, 6, 7]):
        assert (weights[:, clips] == weights[:, clips[:1]]).all()
    assert (weights.sum(axis=1) == len(MIXTURES)).all()
    # The gains of p are 0 in the mean, those of q 1: drawn are twice p, both, or twice q.
    gain = results.gain("unsure", "CSIG")
    assert (gain.mean, gain.low, gain.high) == (0.5, 0.0, 1.0)


def test_the_report_says_what_its_intervals_are_for(se, recipe):
    text = se.report(se.Results(recipe))
    said = (
        "10000 bootstrap draws of the 4 speakers; it is for these 2 noises and these trainings, 2 "
    )
    assert said in text
    shutil.rmtree(recipe / "exp/enh_unsure_seed2")
    text = se.report(se.Results(recipe))
    assert "for these 2 noises and this one training of each model, which are not drawn)" in text


def test_the_best_epoch_is_that_of_the_kept_model(se, recipe):
    """Of two losses that the log cannot tell apart, too."""
    log = recipe / "exp/enh_sure_seed1/train.log"
    log.write_text(log.read_text().replace("[valid] loss=0.015", "[valid] loss=0.012"))
    (row,) = (r for r in se.trainings_table(se.Results(recipe)).splitlines() if "| sure |" in r)
    assert row == "| sure | 1 | 1.89 M | 2 | 2 | 0.012 | 0.012 | 2 |"
    (recipe / "exp/enh_sure_seed1/valid.loss.best.pth").unlink()
    (row,) = (r for r in se.trainings_table(se.Results(recipe)).splitlines() if "| sure |" in r)
    assert row == "| sure | 1 | 1.89 M | 2 | 2 | 0.012 | - | - |"


@pytest.mark.parametrize("harm", ["missing", "another"])
def test_speakers_must_be_known(se, recipe, harm):
    file = recipe / "data/test/utt2spk"
    if harm == "missing":
        file.unlink()
    else:
        file.write_text(file.read_text().replace("s-a-hiss-0dB", "s-a-hiss-1dB"))
    says = {"missing": "utt2spk is missing: run.sh --stage 1", "another": "differ in 2 utterances"}
    with pytest.raises(se.ResultsError, match=says[harm]):
        se.Results(recipe)


def test_no_title_names_a_corpus_that_may_be_another(se, recipe, tmp_path):
    (file,) = (f for f in se.draw_curves(se.Results(recipe), tmp_path / "c") if f.suffix == ".svg")
    assert "so762" not in file.read_text()


def test_gains_apart_and_trainings(se, recipe):
    results = se.Results(recipe)
    assert "| unsure | hiss | -0.50 " in se.conditions_table(results, "noise")
    assert "| unsure | hum | +1.50 " in se.conditions_table(results, "noise")
    lines = se.conditions_table(results, "snr").splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["0 dB", "5 dB"] * 2
    # 2 * (62 + 8) seconds.
    row = "| 1.89 M | 2 | 2 | 0.015 | 0.012 | 2 |"
    assert f"| sure | 1 {row}" in se.trainings_table(results)
    assert f"| unsure | 2 {row}" in se.trainings_table(results)


def test_scores_that_are_missing_are_named(se, recipe):
    (recipe / "exp/enh_sure_seed1/enhanced_test/scoring/CBAK_spk1").unlink()
    with pytest.raises(se.ResultsError, match=r"CBAK_spk1 and the mixtures differ in 8 utterances"):
        se.Results(recipe)


def test_a_training_without_scores_has_its_row_and_its_curve(se, recipe):
    shutil.rmtree(recipe / "exp/enh_sure_seed1/enhanced_test")
    results = se.Results(recipe)
    assert results.scored == ["unsure"]
    assert "sure | 1 | 1.89 M" in se.trainings_table(results)


def test_the_program_writes_tables_curves_and_spectrograms(se, recipe, tmp_path, capsys):
    write_signals(recipe)
    document = tmp_path / "results.md"
    document.write_text(f"before\n<!-- written by {se.PROGRAM} -->\nold\n<!-- end -->\nafter\n")
    options = ["--into", str(document), "--plots", str(tmp_path / "plots/se")]
    assert se.main([str(recipe), *options]) == 0
    text = document.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "old" not in text
    assert se.report(se.Results(recipe)) in text
    names = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert names == ["se-curves.png", "se-curves.svg", "se-hiss.png", "se-hum.png"]
    assert all(name in capsys.readouterr().out for name in names[:1])


def test_a_folder_without_trainings_is_refused(se, recipe, tmp_path, capsys):
    assert se.main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere/data/test/mixtures.tsv is missing" in capsys.readouterr().err


def test_a_spectrogram_shows_a_tone_where_it_is():
    with modules_of("se", "pictures") as (pictures,):
        tone = np.sin(2 * np.pi * 1000 * np.arange(RATE) / RATE)
        levels = pictures.decibels(tone)
        assert levels.shape == ((RATE - 512) // 128 + 1, 257)
        assert (levels.argmax(axis=1) == 32).all(), "1000 Hz at 31.25 Hz a bin"


@pytest.fixture(scope="module")
def score():
    with modules_of("se/enh1/local", "score") as (module,):
        yield module


@needs_scoring
def test_scoring_writes_a_file_a_measure_and_the_means(score, recipe, monkeypatch, capsys):
    for scoring in recipe.rglob("scoring"):
        shutil.rmtree(scoring)
    names = list(MIXTURES)[:3]
    write_signals(recipe, names)
    monkeypatch.chdir(recipe)
    assert score.main(["--experiment", "exp/enh_sure_seed1"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("scoring 3 utterances of ") == 2
    scores = {}
    for part in ("dump/raw/test/scoring", "exp/enh_sure_seed1/enhanced_test/scoring"):
        for measure, file in MEASURES.items():
            lines = (recipe / part / f"{file}_spk1").read_text().splitlines()
            assert [line.split()[0] for line in lines] == sorted(names)
            scores[part[:4], measure] = [float(line.split()[1]) for line in lines]
    for measure in MEASURES:
        assert np.mean(scores["exp/", measure]) > np.mean(scores["dump", measure])
    table = (recipe / "exp/enh_sure_seed1/RESULTS.md").read_text().splitlines()
    means = [f"{np.mean(scores['exp/', measure]):.2f}" for measure in MEASURES]
    assert table[-1] == f"| enhanced | {' | '.join(means)} |"
    # The noisy speech is scored once for all models, and nothing twice.
    assert score.main(["--experiment", "exp/enh_unsure_seed1"]) == 0
    assert capsys.readouterr().out.count("scoring 3 utterances of ") == 1


def test_another_set_has_results_and_a_file_of_its_own(se, score, recipe, monkeypatch):
    with pytest.raises(se.ResultsError, match=r"valid/mixtures.tsv is missing"):
        se.Results(recipe, "valid")
    write_signals(recipe)
    for there in ("data/{}", "dump/raw/{}", "exp/enh_sure_seed1/enhanced_{}"):
        shutil.copytree(recipe / there.format("test"), recipe / there.format("valid"))
    shutil.rmtree(recipe / "dump/raw/valid/scoring")
    with pytest.raises(se.ResultsError, match=r"of valid: local/score.py --set valid first"):
        se.Results(recipe, "valid")
    monkeypatch.chdir(recipe)
    monkeypatch.setattr(score, "_compared", lambda *_: dict.fromkeys(MEASURES, 7.0))
    assert score.main(["--experiment", "exp/enh_sure_seed1", "--set", "valid"]) == 0
    written = [path.name for path in (recipe / "exp/enh_sure_seed1").glob("RESULTS*")]
    assert written == ["RESULTS_valid.md"]
    results = se.Results(recipe, "valid")
    assert results.scored == ["sure"]
    assert set(results.noisy["CSIG"].values()) == {7.0}
    assert se.Results(recipe).scored == ["sure", "unsure"]


def test_scores_of_other_utterances_are_not_taken_for_those_of_these(
    score, recipe, monkeypatch, capsys
):
    """They may be newer than the list and yet be of a part of it only."""
    write_signals(recipe)
    monkeypatch.chdir(recipe)
    row = dict.fromkeys(MEASURES, 1.0)
    monkeypatch.setattr(score, "_compared", lambda *_: row)
    for scores in recipe.rglob("scoring/*_spk1"):
        later = (recipe / "dump/raw/test/wav.scp").stat().st_mtime + 100
        os.utime(scores, (later, later))
    assert score.main(["--experiment", "exp/enh_sure_seed1"]) == 0
    assert "scoring" not in capsys.readouterr().out
    file = recipe / "exp/enh_sure_seed1/enhanced_test/scoring/CBAK_spk1"
    file.write_text("\n".join(file.read_text().splitlines()[1:]))
    os.utime(file, (later, later))
    assert score.main(["--experiment", "exp/enh_sure_seed1"]) == 0
    assert capsys.readouterr().out.count("scoring 8 utterances of ") == 1
    assert len(file.read_text().splitlines()) == len(MIXTURES)


def test_what_needs_no_pesq_is_tested_without_it():
    """The modules of these tests load where pesq does not."""
    program = "import sys; sys.modules['pesq'] = None; import tests.egs.test_se_results"
    done = subprocess.run([sys.executable, "-c", program], cwd=HOME, check=False)
    assert done.returncode == 0


def test_scoring_says_what_is_missing(score, recipe, monkeypatch, capsys):
    monkeypatch.chdir(recipe)
    assert score.main(["--experiment", "exp/enh_sure_seed1"]) == 2
    assert "dump/raw/test/spk1.scp is missing: run the stages before 8" in capsys.readouterr().err
