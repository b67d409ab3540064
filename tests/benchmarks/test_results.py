"""Bars are computed right; no time is asserted anywhere."""

import dataclasses
import re

import pytest

from benchmarks import encoders, layers, ops, report, training
from benchmarks.results import Bar, Measurement, Results, ratio, ratio_bar, table


def seconds(*samples, benchmark="scan", case="forward", subject="ours", **size):
    return Measurement(benchmark, case, subject, "s", list(samples), size)


@pytest.mark.parametrize(
    ("value", "limits", "status"),
    [
        (1.2, {"most": 1.3}, "met"),
        (1.3, {"most": 1.3}, "met"),
        (1.4, {"most": 1.3}, "NOT MET (1.4x of 1.3x)"),
        (15.0, {"least": 15}, "met"),
        (14.0, {"least": 15}, "NOT MET (14x of 15x)"),
        (4.0, {"least": 3.5, "most": 4.5}, "met"),
        (3.0, {"least": 3.5, "most": 4.5}, "NOT MET (3x of 3.5x to 4.5x)"),
        (5.0, {"least": 3.5, "most": 4.5}, "NOT MET (5x of 3.5x to 4.5x)"),
        (float("nan"), {"most": 1.3}, "NOT MET (nanx of 1.3x)"),
        (None, {"most": 1.3}, "not measured"),
    ],
)
def test_a_bar_says_whether_it_is_met(value, limits, status):
    bar = Bar("id", "what", value, **limits)
    assert bar.status == status
    assert bar.met is (None if value is None else status == "met")


def test_a_ratio_is_the_median_of_single_rounds_with_their_spread():
    # The machine was three times slower in the first round; the medians' ratio would be 1.5.
    bar = ratio_bar("id", "what", seconds(9.0, 2.0, 3.0), seconds(3.0, 1.0, 2.0), most=1.4)
    assert bar.value == 2.0
    assert bar.spread == (1.5, 3.0)
    assert bar.status == "NOT MET (2x of 1.4x)"
    assert ratio_bar("id", "what", None, seconds(1.0), most=1).status == "not measured"


def test_what_was_not_measured_in_rounds_has_no_spread():
    apart = ratio_bar("id", "what", seconds(9.0, 2.0), seconds(3.0), most=1.4, paired=False)
    once = ratio_bar("id", "what", seconds(9.0), seconds(3.0), most=1.4)
    assert apart.spread is once.spread is None
    assert ratio(seconds(9.0, 2.0), seconds(3.0)) == 5.5 / 3


def test_the_tables_last_column_is_the_status():
    bars = [Bar("a", "first", 0.7, least=0.6, unit="%"), Bar("b", "second", 2.0, most=1.0)]
    lines = table(bars).splitlines()
    assert lines[1].split() == ["first", "70%", ">=", "60%", "met"]
    assert lines[2].endswith("NOT MET (2x of 1x)")


def test_a_subject_that_was_left_out_is_not_found():
    m = Measurement("scan", "forward", "c++", "s", [], {"length": 4}, "no compiler")
    results = Results([m])
    assert results.select("scan", subject="c++") == [m]
    assert results.find("scan", "forward", "c++") is None


def scans(**times):
    results = Results()
    for subject, by_length in times.items():
        for length, time in by_length.items():
            size = {"batch": 1, "length": length, "dtype": "float32"}
            results.append(seconds(time, subject=subject.replace("cpp", "c++"), **size))
    return results


def status(bars, id):
    (bar,) = (bar for bar in bars if bar.id == id)
    return bar.status


def test_the_scans_bars():
    good = ops.bars(
        scans(ours={1000: 1.0, 4000: 4.0}, loop={1000: 15.0}, mambapy={1000: 30.0}, cpp={1000: 0.8})
    )
    assert status(good, "scan-forward-loop") == "met"
    assert status(good, "scan-forward-mambapy") == "met"
    assert status(good, "scan-forward-c++-1000") == "met"
    assert status(good, "scan-linear") == "met"
    assert status(good, "scan-backward-loop") == "not measured"
    bad = ops.bars(
        scans(ours={1000: 1.0, 4000: 6.0}, loop={1000: 9.0}, mambapy={1000: 20.0}, cpp={1000: 0.5})
    )
    assert status(bad, "scan-forward-loop") == "NOT MET (9x of 15x)"
    assert status(bad, "scan-forward-c++-1000") == "NOT MET (2x of 1.3x)"
    assert status(bad, "scan-linear") == "NOT MET (6x of 3.5x to 4.5x)"


def encoder_times(subject, times):
    size = {"batch": 1, "precision": "float32"}
    return [
        seconds(t, benchmark="encoder", subject=subject, seconds=s, **size)
        for s, t in times.items()
    ]


def test_the_encoders_bars_and_the_crossover():
    peer = encoder_times("conformer", {5: 1.0, 10: 2.0, 60: 20.0})
    results = Results([*peer, *encoder_times("conbimamba-ext", {5: 2.0, 10: 1.0, 60: 11.0})])
    bars = encoders.bars(results, "cpu")
    assert status(bars, "encoder-conbimamba-ext-conformer-10") == "met"
    assert status(bars, "encoder-conbimamba-ext-conformer-60") == "NOT MET (0.55x of 0.5x)"
    # From twice as slow to twice as fast: in the middle on the logarithmic axis.
    faster_from, _ = encoders.crossover(results, "conbimamba-ext", "conformer")
    assert faster_from == pytest.approx(50**0.5)
    assert status(bars, "encoder-crossover-conbimamba-ext") == "met"
    assert status(bars, "encoder-crossover-conbimamba-inn") == "not measured"


@pytest.mark.parametrize(
    ("times", "found", "words"),
    [
        ({5: 0.9, 60: 19.0}, (5, True), "faster from 5 s on"),
        ({5: 0.9, 60: 21.0}, (60, False), "slower up to 60 s"),
        ({5: 2.0, 60: 21.0}, (60, False), "slower up to 60 s"),
        ({}, None, "not measured"),
    ],
)
def test_where_there_is_no_crossover(times, found, words):
    results = Results(encoder_times("conformer", {5: 1.0, 60: 20.0}))
    results += encoder_times("conbimamba-ext", times)
    assert encoders.crossover(results, "conbimamba-ext", "conformer") == found
    assert report._in_words(found) == words


def test_longer_speech_is_held_against_a_minute_of_the_same_process():
    results = Results(encoder_times("conbimamba-inn", {60: 1.0, 300: 6.0, 1800: 32.0}))
    assert (
        status(encoders.bars(results, "cpu"), "encoder-linear-conbimamba-inn-300") == "not measured"
    )
    size = {"seconds": 60, "batch": 1, "precision": "float32"}
    minutes, ratios = [1.1, 1.2, 1.3, 1.2], {}
    results.append(
        seconds(
            *minutes, benchmark="encoder", case=encoders.BESIDE, subject="conbimamba-inn", **size
        )
    )
    for bar in encoders.bars(results, "cpu"):
        if bar.id.startswith("encoder-linear-conbimamba-inn"):
            ratios[bar.id] = bar.value
    assert ratios == pytest.approx(
        {
            "encoder-linear-conbimamba-inn-300": 6.0 / 5 / 1.2,
            "encoder-linear-conbimamba-inn-1800": 32.0 / 30 / 1.2,
        }
    )


def test_trainings_bars():
    size = {"batch": 8, "seconds": 10, "precision": "float32"}
    ours = seconds(1.2, benchmark="training", case="step", subject="conbimamba-ext", **size)
    peer = seconds(1.0, benchmark="training", case="step", subject="conformer", **size)
    (bar,) = training.bars(Results([ours, peer]))
    assert bar.status == "NOT MET (1.2x of 1.15x)"
    rows = [dataclasses.replace(m, unit="bytes") for m in (ours, peer)]
    (bar,) = training.bars(Results(rows))
    assert bar.status == "NOT MET (1.2x of 1x)"


@pytest.mark.parametrize(
    ("known", "guess"),
    [
        ([], 0.0),
        ([(10, 1.0)], 6.0),
        ([(10, 1.0), (30, 9.0)], 36.0),
        ([(10, 1.0), (30, 3.0)], 6.0),
        ([(10, 1.0), (30, 81.0)], 324.0),
        ([(10, 2.0), (30, 1.0)], 2.0),
    ],
)
def test_what_a_length_takes_is_guessed_by_a_power_of_it(known, guess):
    assert encoders._guess(60, known) == pytest.approx(guess)


def test_reasons_quote_no_figure_that_changes_from_run_to_run():
    for device in ("cpu", "cuda"):
        for id, reason in report.explanations(device).items():
            assert not re.search(r"\d\s?(%|x\b|ms\b)|\d\.\d", reason), id


def test_the_speed_of_products_stands_beside_that_of_a_large_one():
    size = {"length": 250, "batch": 1}
    whole = seconds(4e-3, benchmark="layer", case="whole", subject="ExtBiMamba", **size)
    alone, square = (
        seconds(time, benchmark="layer", case=case, subject="ExtBiMamba", **size, operations=n)
        for case, time, n in (("products", 2e-3, 2e8), (layers.SQUARE, 0.1, 1.5e10))
    )
    parts = [
        seconds(time, benchmark="layer parts", case=case, subject="ExtBiMamba", **size)
        for case, time in (("projections", 3e-3), ("selective scan", 1e-3))
    ]
    text = report._layers(Results([whole, alone, square, *parts]))
    assert "alone: 2 ms, at 100 GFLOP/s where a large square product runs at 150 GFLOP/s." in text
    assert "| projections | 3 ms | 75% |" in text
    assert "| together | 4 ms |  |" in text


def test_training_steps_are_held_to_the_conformers_in_every_precision():
    results = Results(
        Measurement(
            "training", "step", subject, unit, [value], {"batch": 8, "seconds": 10, "precision": p}
        )
        for p, half in (("float32", 1.0), ("bfloat16", 0.5))
        for unit in ("s", "bytes")
        for subject, value in (("conformer", 2.0), ("conbimamba-ext", 2.2 * half))
    )
    found = {bar.id: (bar.what, round(bar.value, 3), bar.most) for bar in training.bars(results)}
    ours = "conbimamba-ext / conformer"
    assert found == {
        "training-time-conbimamba-ext-8x10": (f"training step, 8 x 10 s: {ours}", 1.1, 1.15),
        "training-memory-conbimamba-ext-8x10": (
            *(f"training step, peak memory, 8 x 10 s: {ours}", 1.1, 1.0),
        ),
        "training-time-conbimamba-ext-8x10-bfloat16": (
            *(f"training step, bfloat16, 8 x 10 s: {ours}", 0.55, 1.15),
        ),
        "training-memory-conbimamba-ext-8x10-bfloat16": (
            *(f"training step, bfloat16, peak memory, 8 x 10 s: {ours}", 0.55, 1.0),
        ),
    }
