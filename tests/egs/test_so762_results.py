"""Figures of so762 from made-up folders, against counts by hand, jiwer and ESPnet's own log."""

import datetime
import math
import random

import humanfriendly
import jiwer
import numpy as np
import pytest
import torch
from espnet2.torch_utils.model_summary import model_summary
from espnet2.train.reporter import Reporter

from tests.egs.programs import modules_of

SAID = {"s1-a": "AB CD", "s1-b": "ABC", "s2-a": "A"}
SPEAKERS = {"s1-a": "s1", "s1-b": "s1", "s2-a": "s2"}
LOSSES = {"train": 60.0, "valid": 90.0}  # in the first epoch; ESPnet logs three digits
# By hand, on 5 + 3 + 1 = 9 characters (a space is one) and 2 + 1 + 1 = 4 words.
HEARD = {
    "right": (SAID, "0.0", "0.0"),
    "3 characters and 2 words": (SAID | {"s1-a": "AB CE", "s1-b": "A"}, "33.3", "50.0"),
    "one word less": (SAID | {"s1-a": "AB"}, "33.3", "25.0"),
    "nothing": (dict.fromkeys(SAID, ""), "100.0", "100.0"),
}


@pytest.fixture(scope="module")
def so762():
    names = ["results", "runs", "bootstrap", "epoch"]
    with modules_of("so762", *names) as modules:
        yield dict(zip(names, modules, strict=True))


@pytest.fixture
def results(so762):
    return so762["results"]


@pytest.fixture
def runs(so762):
    return so762["runs"]


@pytest.fixture
def bootstrap(so762):
    return so762["bootstrap"]


@pytest.fixture
def epoch(so762):
    return so762["epoch"]


def write(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def lines_of(texts):
    return [f"{name} {text}" for name, text in texts.items()]


def log_line(epoch, cer, training, validation):
    """Return what ESPnet itself logs about an epoch."""
    reporter = Reporter()
    reporter.set_epoch(epoch)
    reporter.stats[epoch - 1] = {key: {"total_count": 0} for key in ("train", "valid")}
    for key, seconds in (("train", training), ("valid", validation)):
        with reporter.observe(key) as sub:
            times = {"iter_time": 0.5, "train_time": 1.5} if key == "train" else {}
            # ESPnet's trainer leaves out what is None: in training there is no error rate.
            rate = {} if key == "train" or cer is None else {"cer_ctc": cer}
            sub.register({**times, "loss_ctc": 12.5, "loss": LOSSES[key] / epoch, **rate})
            sub.next()
        reporter.stats[epoch][key]["time"] = datetime.timedelta(seconds=seconds)
    return f"[host] 2026-01-01 12:00:00,000 (trainer:392) INFO: {reporter.log_message(epoch)}"


@pytest.fixture
def recipe(tmp_path):
    for place in ("org/dev", "test"):
        write(tmp_path / "dump/raw" / place / "text", lines_of(SAID))
        write(tmp_path / "dump/raw" / place / "utt2spk", lines_of(SPEAKERS))
    return tmp_path


def train(recipe, model, seed, heard=None, cers=(0.9, 0.5, 0.6), log=None, best=2):
    """Write the folder of a training; with ``heard`` it was decoded."""
    folder = recipe / f"exp/asr_{model}_seed{seed}"
    net = torch.nn.Linear(999, 2000)
    course = [log_line(n, cer, 70 * n, 5) for n, cer in enumerate(cers, 1)]
    write(folder / "train.log", log or [*model_summary(net).splitlines(), *course])
    (folder / "valid.cer_ctc.best.pth").symlink_to(f"{best}epoch.pth")
    for place in ("org/dev", "test"):
        if heard is not None:
            write(folder / "decode_x_asr_model_y" / place / "text", lines_of(heard))
    return folder


@pytest.mark.parametrize("case", HEARD)
def test_error_rates_are_those_counted_by_hand(results, runs, recipe, case):
    heard, cer, wer = HEARD[case]
    train(recipe, "conformer", 1, heard)
    (run,) = runs.read_all(recipe)
    for name in ("dev", "test"):
        found = [results.scored([run.texts[name]], kind).rate for kind in ("CER", "WER")]
        assert [f"{100 * rate:.1f}" for rate in found] == [cer, wer]


def test_error_rates_are_jiwers(results, runs):
    chance = random.Random(0)

    def sentence(least):
        words = range(chance.randint(least, 6))
        return " ".join("".join(chance.choices("ABC", k=chance.randint(1, 5))) for _ in words)

    said, heard = [sentence(1) for _ in range(200)], [sentence(0) for _ in range(200)]
    text = runs.Text(["s"] * 200, said, heard)
    assert results.scored([text], "CER").rate == pytest.approx(jiwer.cer(said, heard), abs=1e-12)
    assert results.scored([text], "WER").rate == pytest.approx(jiwer.wer(said, heard), abs=1e-12)


def test_a_training_is_read_from_what_espnet_logs(runs, recipe):
    train(recipe, "conextbimamba", 3)
    (run,) = runs.read_all(recipe)
    assert (run.model, run.seed, run.parameters, run.texts) == ("conextbimamba", 3, "2.00 M", {})
    assert run.epochs == [
        runs.Epoch(1, 60.0, 90.0, 0.9, 75.0),
        runs.Epoch(2, 30.0, 45.0, 0.5, 145.0),
        runs.Epoch(3, 20.0, 30.0, 0.6, 215.0),
    ]


def test_a_continued_training_has_the_epochs_of_all_its_logs(runs, recipe):
    folder = train(recipe, "conformer", 1, cers=[0.8, 0.7, 0.6])
    (folder / "train.log").rename(folder / "train.10.log")
    write(folder / "train.2.log", [log_line(n, cer, 60, 5) for n, cer in [(2, 0.65), (3, 0.5)]])
    write(folder / "train.log", [log_line(3, 0.45, 60, 5), log_line(4, 0.4, 60, 5)])
    (run,) = runs.read_all(recipe)
    assert [e.number for e in run.epochs] == [1, 2, 3, 4]
    assert [e.dev_cer for e in run.epochs] == [0.8, 0.65, 0.45, 0.4]


@pytest.mark.parametrize("seconds", [0.25, 1, 59.5, 60, 61.25, 725, 3600, 3725.5, 90061])
def test_durations_are_read_as_espnet_writes_them(runs, seconds):
    assert runs.seconds(humanfriendly.format_timespan(seconds)) == pytest.approx(seconds, abs=61)
    line = log_line(1, 0.5, seconds, 2)
    (epoch,) = runs.epochs([line])
    # ESPnet drops seconds beside days.
    tolerance = 61 if seconds > 86400 else 0.01
    assert epoch.seconds == pytest.approx(seconds + 2, abs=tolerance)


def test_a_log_without_the_error_rate_is_refused_with_its_line(runs):
    line = log_line(7, None, 60, 5)
    with pytest.raises(runs.ResultsError, match=r"no cer_ctc or no time .*: .*7epoch results"):
        runs.epochs([line])


def test_one_group_alone_leaves_nothing_to_chance(bootstrap):
    rates = bootstrap.Resampling(["s"] * 4).rates(np.array([1.0, 0, 0, 0]), np.full(4, 2.0))
    assert bootstrap.interval(rates) == (0.125, 0.125)


def test_an_interval_is_as_wide_as_a_binomial_law_says(bootstrap):
    errors = np.repeat([1.0, 0.0], [120, 280])
    rates = bootstrap.Resampling(list(map(str, range(400)))).rates(errors, np.ones(400))
    deviation = math.sqrt(0.3 * 0.7 / 400)
    assert len(rates) == 10_000
    assert rates.std() == pytest.approx(deviation, rel=0.1)
    low, high = bootstrap.interval(rates)
    assert low == pytest.approx(0.3 - 1.96 * deviation, abs=0.2 * deviation)
    assert high == pytest.approx(0.3 + 1.96 * deviation, abs=0.2 * deviation)


def test_longer_utterances_weigh_more(bootstrap):
    # A draw has the long one 0, 1 or 2 times: all errors over all lengths, not a mean of rates.
    rates = bootstrap.Resampling(["a", "b"]).rates(np.array([9.0, 0.0]), np.array([9.0, 1.0]))
    assert set(rates.tolist()) == {0.0, 0.9, 1.0}


def test_speakers_are_drawn_whole(bootstrap):
    errors, lengths = np.array([1.0, 1, 0, 0]), np.ones(4)
    rates = bootstrap.Resampling(["x", "x", "y", "y"]).rates(errors, lengths)
    assert set(rates.tolist()) == {0.0, 0.5, 1.0}


def test_draws_are_the_same_each_time(bootstrap):
    first, second = (bootstrap.Resampling(["a", "b", "c"]).weights for _ in range(2))
    assert (first == second).all()
    assert (first.sum(axis=1) == 3).all()


def cells(table):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_tables_name_the_baseline_first_and_average_seeds(results, runs, recipe):
    worse, nothing = HEARD["3 characters and 2 words"][0], HEARD["nothing"][0]
    train(recipe, "conformer", 1, SAID)
    train(recipe, "conformer", 2, worse)
    train(recipe, "bimamba", 1, nothing)
    train(recipe, "bimamba_deep", 1)
    found = results.Results(runs.read_all(recipe), "conformer")
    head, _, conformer, bimamba, deep = cells(results.error_rates(found))
    assert head == ["model", "seeds", "dev CER", "dev WER", "test CER", "test WER"]
    # 3 errors on 9 characters in one of two seeds.
    assert conformer[0] == "conformer"
    assert conformer[1] == "2"
    assert conformer[4].startswith("16.7 (0.0 to ")
    # Wherever everything is wrong no draw is better.
    assert bimamba == ["bimamba", "1", *["100.0 (100.0 to 100.0)"] * 4]
    assert deep == ["bimamba_deep", "1", "-", "-", "-", "-"]
    by_seeds = cells(results.seeds(found))
    # 0 and 33.3 lie 33.3 / sqrt(2) apart, by n - 1; words 0 and 50.
    assert by_seeds[2:] == [
        ["conformer", "dev", "2", "16.7 ± 23.6", "25.0 ± 35.4"],
        ["conformer", "test", "2", "16.7 ± 23.6", "25.0 ± 35.4"],
    ]


def test_each_draw_averages_seeds_that_are_drawn_too(bootstrap):
    draws = bootstrap.Resampling(["a", "b"])
    errors, lengths = np.array([[0.0, 0], [1, 1]]), np.ones(2)
    first, second = (draws.rates_of_seeds(errors, lengths) for _ in range(2))
    # Neither utterance matters; of two seeds one draws both, or one of them twice.
    for rates in (first, second):
        shares = [(rates == rate).mean() for rate in (0, 0.5, 1)]
        assert shares == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05, "the same seeds for two models"
    alone = draws.rates_of_seeds(np.array([[0.0, 1]]), lengths)
    assert (alone == draws.rates(np.array([0.0, 1]), lengths)).all()


def test_an_interval_over_seeds_is_wider(results, runs, recipe):
    train(recipe, "conformer", 1, SAID)
    train(recipe, "conformer", 2, HEARD["nothing"][0])
    found = results.Results(runs.read_all(recipe), "conformer")
    assert "| conformer | 2 | 50.0 (0.0 to 100.0) |" in results.error_rates(found)


def test_a_seed_that_was_not_decoded_is_told(results, runs, recipe):
    train(recipe, "conformer", 1, SAID)
    train(recipe, "conformer", 2)
    found = results.Results(runs.read_all(recipe), "conformer")
    assert "| conformer | 2 | 0.0 (0.0 to 0.0), 1 of 2 seeds |" in results.error_rates(found)


def test_what_is_drawn_is_the_speaker_or_on_demand_the_utterance(results, runs, recipe):
    train(recipe, "conformer", 1, SAID)
    read = runs.read_all(recipe)
    alone = results.Results(read, "conformer", "utterance").resampling("test").weights
    by_speaker = results.Results(read, "conformer").resampling("test").weights
    assert (alone[:, 0] != alone[:, 1]).any()
    assert (by_speaker[:, 0] == by_speaker[:, 1]).all()
    assert (by_speaker[:, 0] + by_speaker[:, 2] == 2).all()


def test_differences_are_paired(results, runs, recipe):
    # Both wrong in the same utterance: alone either's rate is uncertain, the difference is not.
    train(recipe, "conformer", 1, HEARD["one word less"][0])
    train(recipe, "other", 1, HEARD["one word less"][0])
    found = results.Results(runs.read_all(recipe), "conformer")
    _, _, rates, _ = cells(results.error_rates(found))
    assert not rates[4].endswith("(33.3 to 33.3)")
    _, _, difference = cells(results.differences(found))
    assert difference == ["other", *["+0.0 (+0.0 to +0.0)"] * 4]


def test_a_difference_has_the_sign_of_more_errors(results, runs, recipe):
    train(recipe, "conformer", 1, SAID)
    train(recipe, "other", 1, HEARD["nothing"][0])
    found = results.Results(runs.read_all(recipe), "conformer")
    assert "| other | +100.0 (+100.0 to +100.0) |" in results.differences(found)


def test_each_training_has_its_course(results, runs, recipe):
    train(recipe, "conformer", 5, HEARD["one word less"][0])
    found = results.Results(runs.read_all(recipe), "conformer")
    _, _, row = cells(results.trainings(found))
    losses = ["20.0", "30.0", "30.0", "3"]
    assert row == ["conformer", "5", "2.00 M", "3", "145", *losses, "50.0", "2", "33.3", "25.0"]


def test_the_best_epoch_is_that_of_the_kept_model(results, runs, recipe):
    """Of two error rates that the log cannot tell apart, too."""
    folder = train(recipe, "conformer", 1, cers=(0.9, 0.5, 0.5), best=3)
    found = results.Results(runs.read_all(recipe), "conformer")
    _, _, row = cells(results.trainings(found))
    assert row[9:11] == ["50.0", "3"]
    (folder / "valid.cer_ctc.best.pth").unlink()
    found = results.Results(runs.read_all(recipe), "conformer")
    _, _, row = cells(results.trainings(found))
    assert row[3:5] == ["3", "145"]
    assert row[9:11] == ["-", "-"]


def test_the_program_puts_tables_between_the_markers(results, recipe, capsys):
    train(recipe, "conformer", 1, SAID)
    page = recipe / "results.md"
    page.write_text(
        f"# Ours\n\nbefore\n<!-- written by {results.PROGRAM} -->\nold\n<!-- end -->\nafter\n"
    )
    plot = recipe / "plots/curves"
    assert results.main([str(recipe), "--into", str(page), "--plot", str(plot)]) == 0
    text = page.read_text()
    assert text.startswith("# Ours\n\nbefore\n")
    assert text.endswith("<!-- end -->\nafter\n")
    assert "old" not in text
    row = "| conformer | 1 | 2.00 M | 3 | 145 | 20.0 | 30.0 | 30.0 | 3 | 50.0 | 2 | 0.0 | 0.0 |"
    assert row in text
    assert row in capsys.readouterr().out
    assert plot.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"
    assert "<svg" in plot.with_suffix(".svg").read_text()
    assert results.main([str(recipe), "--into", str(page)]) == 0
    assert page.read_text() == text


def test_a_page_that_is_not_there_is_made(results, recipe):
    train(recipe, "conformer", 1)
    page = recipe / "docs/results.md"
    assert results.main([str(recipe), "--into", str(page)]) == 0
    assert page.read_text().startswith(f"# Results\n\n<!-- written by {results.PROGRAM} -->\n")


def test_an_epoch_of_several_copies_is_put_between_its_own_markers(epoch, recipe, capsys):
    train(recipe, "conformer", 1)
    train(recipe / "other", "conformer", 2, cers=(0.8, 0.7))
    train(recipe / "other", "bimamba", 1, cers=(0.8,))
    page = recipe / "page.md"
    markers = [f"<!-- written by {epoch.PROGRAM} {n} -->\nold\n<!-- end -->\n" for n in (1, 2)]
    page.write_text("".join(markers))
    assert epoch.main(["2", str(recipe), str(recipe / "other"), "--into", str(page)]) == 0
    printed = capsys.readouterr().out
    assert cells(printed)[2:] == [
        ["conformer", "1", "30.0", "45.0", "50.0", "145"],
        ["conformer", "2", "30.0", "45.0", "70.0", "145"],
    ]
    assert page.read_text() == markers[0] + markers[1].replace("old", f"\n{printed}")
    assert epoch.main(["4", str(recipe)]) == 2
    assert "no training has finished epoch 4" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        epoch.main(["0", str(recipe)])


def refused(results, capsys, *options):
    assert results.main([*map(str, options)]) == 2
    return capsys.readouterr().err


def test_what_cannot_be_read_is_said(results, recipe, capsys):
    assert "holds no asr_MODEL_seedN with a train.log" in refused(results, capsys, recipe)
    folder = train(recipe, "conformer", 1, SAID)
    message = refused(results, capsys, recipe, "--baseline", "transformer")
    assert "no training of transformer; there are conformer" in message
    page = recipe / "page.md"
    page.write_text("# Ours\n")
    assert "has no lines <!--" in refused(results, capsys, recipe, "--into", page)
    assert page.read_text() == "# Ours\n"
    for option in ("--into", "--plot"):
        assert str(page) in refused(results, capsys, recipe, option, page / "below")
    write(folder / "decode_x_asr_model_y/test/text", ["s1-a AB CD"])
    message = refused(results, capsys, recipe)
    assert "differ in 2 utterances, s1-b the first" in message
    write(folder / "decode_other/test/text", lines_of(SAID))
    assert "was decoded more than once" in refused(results, capsys, recipe)
    write(folder / "train.log", ["# Running on host"])
    assert "says no number of parameters" in refused(results, capsys, recipe)
