"""Every benchmark runs, at sizes whose figures mean nothing, and leaves what is promised."""

import itertools
import json
import re
from types import SimpleNamespace

import pytest
import torch
from torch._C._autograd import DeviceType

from benchmarks import __main__ as command_line
from benchmarks import encoders, enhancement, layers, ops, peers, report, timing, training
from benchmarks.products import operations_of, products_of
from benchmarks.results import Measurement, Results
from benchmarks.timing import Settings, in_fresh_process, peak_memory
from espnet_bimamba.layers import ExtBiMamba
from espnet_bimamba.ops.backends import ENVIRONMENT_VARIABLE

TINY = Settings(threads=1, scale="tiny")


@pytest.fixture
def in_this_process(monkeypatch):
    """Saves the seconds that imports take in a fresh process."""

    def call(target, settings, **arguments):
        order = {"target": target, "settings": vars(settings), "arguments": arguments}
        return json.loads(timing.obey(json.dumps(order)))

    for module in (ops, timing):
        monkeypatch.setattr(module, "in_fresh_process", call)


@pytest.fixture
def made(in_this_process, tmp_path, capsys, monkeypatch):
    """What ``python -m benchmarks run --scale tiny`` leaves; parts by argument."""
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)

    def run(*parts):
        options = ["--scale", "tiny", "--threads", "1", "--out", str(tmp_path)]
        assert command_line.main(["run", *options, "--only", *parts]) == 0
        file = tmp_path / f"tiny-cpu-{'-'.join(parts)}.json"
        return file, json.loads(file.read_text()), capsys.readouterr().out

    return run


def subjects(run, benchmark, case=None, unit="s"):
    return {
        m["subject"]
        for m in run["measurements"]
        if m["benchmark"] == benchmark and m["unit"] == unit and case in (None, m["case"])
        if m["samples"]
    }


def test_the_scan_the_layers_and_the_file(made):
    file, run, printed = made("ops", "layers")
    assert run["format"] == command_line.FORMAT
    assert run["settings"] == {
        **{"device": "cpu", "threads": 1},
        **{"scale": "tiny", "malloc": "keep"},
    }
    assert {"cpu", "cores", "memory_bytes", "load_before", "load_after"} <= run["machine"].keys()
    assert {"python", "torch", "numba", "espnet"} <= run["versions"].keys()
    for m in run["measurements"]:
        measurement = Measurement(**m)
        assert measurement.samples or measurement.note
        assert all(sample >= 0 for sample in measurement.samples)
    # A busy machine must not fail a test: what must be there is there, not how fast it is.
    assert {"ours", "loop"} <= subjects(run, "scan", "forward")
    assert {"ours", "loop"} <= subjects(run, "scan", "forward+backward")
    assert {"ours", "loop"} <= subjects(run, "scan", "forward+backward", unit="bytes")
    assert {"ours", "loop"} <= subjects(run, "scan", "forward, malloc default")
    assert subjects(run, "layer", "products") == subjects(run, "layer", "whole")
    assert subjects(run, "layer", layers.SQUARE) == subjects(run, "layer", "whole")
    assert {"ExtBiMamba", "InnBiMamba"} <= subjects(run, "layer parts", "projections")
    assert {"ExtBiMamba", "InnBiMamba"} <= subjects(run, "layer parts", "selective scan")
    assert {bar["id"] for bar in run["bars"]} >= {"scan-memory", "layer-products-ExtBiMamba"}
    assert all(bar["what"] in printed and bar["status"] in printed for bar in run["bars"])
    assert sorted(p.name for p in (file.parent / "plots-cpu").iterdir()) == [
        "scan-time.png",
        "scan-time.svg",
        "speed-up.png",
        "speed-up.svg",
    ]


@pytest.mark.slow
def test_models_and_the_report(made, capsys):
    file, run, _ = made("encoders", "training", "decoding")
    assert {"conbimamba-ext", "conformer", encoders.FLOOR} <= subjects(run, "encoder", "forward")
    assert {"conbimamba-ext", "conformer"} <= subjects(run, "encoder", "forward", unit="bytes")
    assert {"conbimamba-ext", "conformer"} == subjects(run, "encoder", "subsampling")
    assert {"conbimamba-inn", "conformer"} <= subjects(run, "training", "step")
    memories = [m for m in run["measurements"] if m["benchmark"] == "training"]
    memories = [m for m in memories if m["unit"] == "bytes" and m["samples"]]
    assert {(m["subject"], m["size"]["seconds"]) for m in memories} == set(
        itertools.product(("conbimamba-ext", "conbimamba-inn", "conformer"), (0.5, 1))
    )
    recognized = {"conbimamba-ext", "conbimamba-inn", "conformer"}
    assert subjects(run, "decoding", "encoder") == subjects(run, "decoding", "all") == recognized
    assert command_line.main(["report", str(file)]) == 0
    written = capsys.readouterr().out
    for title in (
        "# Benchmarks on a CPU",
        "## Bars",
        "## Encoders",
        "## Training step",
        "## Recognition",
    ):
        assert f"{title}\n" in written
    assert "conbimamba-ext" in written
    assert "Of that, subsampling" in written
    assert "Their memory is that of the leaner one: conformer plain" in written
    assert str(file.parent) not in written.replace(run["command"], "")
    assert command_line.main(["table", str(file)]) == 0


def test_a_part_that_fails_takes_none_of_the_others_with_it(made, monkeypatch, tmp_path):
    def fail(_):
        raise RuntimeError("no decoding today")

    monkeypatch.setitem(command_line.PARTS, "layers", fail)
    with pytest.raises(RuntimeError, match="no decoding today"):
        made("ops", "layers")
    run = json.loads((tmp_path / "tiny-cpu-ops-layers.json").read_text())
    assert subjects(run, "scan", "forward")


def test_enhancement(made, capsys):
    file, run, _ = made("enhancement")
    measured = {"extbimamba3", "transformer4"}
    for benchmark, case in (("enhancement", "forward"), ("enhancement", "step")):
        assert subjects(run, benchmark, case) == measured
    assert subjects(run, "enhancement parts", "selective scan") == {"extbimamba3"}
    assert subjects(run, "enhancement", "frame") == {"mamba4"}
    (streamed,) = [m for m in run["measurements"] if m["case"] == "frame"]
    assert streamed["size"] == {"seconds": 0.5, "batch": 1, "threads": 1}
    assert len(streamed["samples"]) == 31, "as many hops of 16 ms as half a second has"
    # At lengths of the tests there is nothing to hold to the bars, which are of 10 and 60 s.
    assert run["bars"] == []
    assert command_line.main(["report", str(file)]) == 0
    written = capsys.readouterr().out
    assert "|  | RTF, 0.5 s | RTF, 1 s | training step, 2 x 0.5 s |" in written
    assert "### Where the time goes, 1 x 1 s, one call profiled" in written
    assert "### Streaming, 0.5 s, one thread" in written
    assert "|  | RTF | ms a frame, median | 99th percentile |" in written
    drawn = [path.name for path in (file.parent / "plots-cpu").iterdir()]
    assert sorted(drawn) == ["enhancement-time.png", "enhancement-time.svg"]


def test_a_streams_table_has_its_factor_its_median_and_its_last_hundredth():
    # 99 frames of 1 ms and 2 of 9 ms: of 101 the hundredth is one of the latter.
    samples = [0.001] * 99 + [0.009] * 2
    size = {"seconds": 30, "batch": 1, "threads": 1}
    frames = Measurement("enhancement", "frame", "mamba4", "s", samples, size)
    # (99 + 18) ms over 101 hops of 16 ms.
    assert "| mamba4 | 0.072 | 1 | 9 |" in report._streaming(Results([frames]))


@torch.no_grad()
def test_what_is_streamed_is_what_the_whole_signal_gives():
    model = enhancement.separator("mamba4", TINY)
    stream, sound = enhancement.Stream(model), torch.randn(1, 20 * enhancement.HOP)
    out = torch.cat([stream.enhance(hop) for hop in sound.split(enhancement.HOP, dim=1)], dim=1)
    # Nothing is known before the first hop: zeros, where the centred transform reflects.
    whole = torch.cat([torch.zeros(1, enhancement.HOP), sound], dim=1)
    encoder, decoder = (make(**enhancement.STFT, center=False) for make in enhancement.TRANSFORMS)
    lengths = torch.tensor([whole.shape[1]])
    (source,), _, _ = model(*encoder(whole, lengths))
    expected, _ = decoder(source, lengths)
    # Of the last hop there is one window only.
    inner = slice(enhancement.HOP, -enhancement.HOP)
    delayed = out[:, enhancement.HOP :]
    assert (delayed - expected[:, inner]).abs().max() < 1e-5
    assert delayed.abs().max() > 0.1


def test_every_row_of_the_papers_tables_of_speed_is_measured_with_its_size():
    text = (timing.ROOT / "docs/paper.md").read_text()
    rows = text.partition("\nTables 2, 4, 6 and 14")[2].partition("\n## ")[0]
    named = set(re.findall(r"`se/(\w+)`", rows))
    assert len(named) == 16
    subjects = enhancement.SIZES["full"].subjects
    assert named <= set(subjects)
    assert {"mamba7", "mamba13", "transmamba4", "conmamba4"} <= set(subjects)
    for ours, peer in enhancement.PEERS.items():
        causal = ("mamba", "transmamba", "conmamba")
        assert peer.endswith("_causal") == (ours.rstrip("0123456789") in causal)


def test_no_peer_keeps_its_matrices_of_attention_between_calls():
    model = enhancement.separator("transformer4", TINY)
    enhancement.enhance(model, enhancement.spectra(0.5, 1, "cpu"))()
    held = [m.attn for m in model.modules() if hasattr(m, "attn")]
    assert held == [None]


def test_bars_of_enhancement_are_ratios_to_the_papers_peers():
    def taken(subject, seconds, *samples):
        size = {"seconds": seconds, "batch": 1}
        return Measurement("enhancement", "forward", subject, "s", list(samples), size)

    found = enhancement.bars(
        Results(
            [
                taken("extbimamba3", 10, 1.0, 2.0, 3.0),
                taken("transformer4", 10, 2.0, 2.0, 2.0),
                taken("extbimamba3", 60, 6.0),
                taken("transformer4", 60, 10.0),
            ]
        )
    )
    values = {bar.id: (bar.value, bar.met) for bar in found if bar.value}
    assert values == {
        "enhancement-extbimamba3-transformer4-10": (1.0, True),
        "enhancement-extbimamba3-transformer4-60": (0.6, False),
    }


def test_an_hour(made):
    _, run, _ = made("hour")
    for unit in ("s", "total bytes"):
        assert subjects(run, "encoder", "hour", unit) == {"conbimamba-ext", "conbimamba-inn"}


def test_a_wrong_scan_is_not_timed(monkeypatch):
    monkeypatch.setattr(peers, "loop_scan", lambda u, *_, **__: u)
    found = ops._compare(ops.Shape(1, 8, 32), TINY, "float32", 0.1, backward=False)
    (loop,) = (m for m in found if m.subject == "loop" and m.unit == "s")
    assert not loop.samples
    assert loop.note.startswith("wrong: differs from the float64 reference by")


def test_a_missing_compiler_is_seen(monkeypatch):
    monkeypatch.setattr(peers.shutil, "which", lambda _: None)
    found, missing = ops.scans(TINY, "float32", backward=False)
    assert "c++" not in found
    assert missing["c++"] == "no C++ compiler was found"


def test_rounds_alternate_and_every_sample_is_kept():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    samples = timing.interleaved(calls, TINY, seconds=1)
    assert order == list("ab" * (len(order) // 2)), "one warm-up, then rounds"
    assert {name: len(s) for name, s in samples.items()} == {"a": 2, "b": 2}


def test_peak_memory_is_what_a_call_touches():
    peak = peak_memory(lambda: bytearray(b"x") * 50_000_000, "cpu")
    assert 45e6 < peak.above < 60e6
    assert peak.total > peak.above


def test_a_fresh_process_that_fails_is_reported():
    told = in_fresh_process("benchmarks.nothing:here", TINY)
    assert "nothing" in told["failed"]


def works(settings, value):
    return {"value": value, "device": settings.device}


def fails(settings):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 30 GiB. More\nadvice")


def test_on_a_card_nothing_is_started_to_measure_apart(monkeypatch):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    monkeypatch.setattr(timing, "in_fresh_process", lambda *_, **__: pytest.fail("a process"))
    card = Settings(device="cuda", scale="tiny")
    here = "tests.benchmarks.test_run"
    assert timing.apart(f"{here}:works", card, value=3) == {"value": 3, "device": "cuda"}
    assert timing.apart(f"{here}:fails", card) == {"failed": "CUDA out of memory"}
    assert len(emptied) == 2


def test_an_error_without_a_word_has_its_name():
    assert timing.first_sentence(RuntimeError()) == "RuntimeError"


def test_a_card_s_profile_counts_each_kernel_once():
    """A row of an operation, its kernel's own row, and the spans of what was named."""

    def row(key, kind, microseconds):
        return SimpleNamespace(
            key=key, device_type=kind, self_device_time_total=microseconds, self_cpu_time_total=9
        )

    cpu, cuda = DeviceType.CPU, DeviceType.CUDA
    rows = [
        row("aten::mm", cpu, 50),
        row("sm90_gemm", cuda, 50),
        row("selective_scan", cpu, 30),
        row("_forward_kernel", cuda, 30),
        row("selective_scan", cuda, 35),
        row("whole call", cpu, 0),
        row("whole call", cuda, 280),
    ]
    parts = layers._by_part(rows, cuda=True, times=2)
    assert parts == pytest.approx({"projections": 25e-6, "selective scan": 15e-6})
    waiting = layers._with_waiting(parts, whole=100e-6)
    assert waiting["the card waits"] == pytest.approx(60e-6)
    assert sum(layers._by_part(rows, cuda=False, times=1).values()) == pytest.approx(27e-6)


def test_a_peer_takes_the_memory_of_its_leaner_attention(monkeypatch):
    def peaks(settings, subject, kind, options):
        taken = [[30, 60], [20, 70]][options["use_sdpa"]] if options else [10, 10]
        return [Measurement("training", "step", subject, "bytes", [n], {"batch": n}) for n in taken]

    monkeypatch.setattr(training, "_peaks", peaks)
    found = training._memory(TINY, "conformer", "float32")
    assert [m.samples for m in found if m.benchmark == "training"] == [[20], [60]]
    assert [(m.case, *m.samples) for m in found if m.benchmark == "attention in training"] == [
        *[("plain", 30), ("plain", 60)],
        *[("sdpa", 20), ("sdpa", 70)],
    ]
    assert [m.samples for m in training._memory(TINY, "conbimamba-ext", "float32")] == [[10], [10]]


def test_a_peer_that_would_take_too_long_is_left_out(monkeypatch):
    monkeypatch.setattr(encoders, "PATIENCE", 0.0)
    told = encoders.walk(TINY, "conformer", [0.5, 1.0], "float32", {})
    first, second = told["steps"]
    assert first["seconds"] > 0
    assert second["note"].startswith("left out: would take about")


@pytest.mark.parametrize(
    ("subject", "lengths"),
    [
        ("conbimamba-inn", [10, 30, 60, 300, 60, 1800, 60, 300]),
        ("bimamba", [10, 30, 60, 300]),
        ("conformer", [10, 30, 60, 300, 60, 1800]),
    ],
)
def test_what_is_held_to_be_linear_is_measured_beside_a_minute(monkeypatch, subject, lengths):
    asked = []

    def fresh(_, settings, lengths, **order):
        asked.extend(lengths)
        step = {"above": 2, "total": 3}
        return {"steps": [step | {"seconds": n + t / 10} for n, t in enumerate(lengths)]}

    monkeypatch.setattr(encoders, "apart", fresh)
    full = Settings()
    found = Results(encoders._walk(full, encoders.SIZES["full"], subject, "float32", {}))
    assert asked == lengths
    (beside,) = found.select("encoder", encoders.BESIDE, unit="s")
    assert beside.size["seconds"] == 60
    assert beside.samples == [n + 6 for n, seconds in enumerate(lengths) if seconds == 60]
    (five,) = found.select("encoder", "forward", unit="s", seconds=300)
    assert five.samples == [n + 30 for n, seconds in enumerate(lengths) if seconds == 300]
    assert {m.size["seconds"] for m in found.select("encoder", unit="bytes")} >= {10, 30}


def test_of_several_profiles_the_one_nearest_to_the_whole_is_kept(monkeypatch):
    profiles = iter([{"a": 9.0, "b": 4.0}, {"a": 3.0, "b": 2.0}, {"a": 3.0, "b": 0.5}])
    monkeypatch.setattr(layers, "_profile", lambda *_: next(profiles))
    assert layers.parts(lambda: None, TINY, whole=4.5) == {"a": 3.0, "b": 2.0}


def test_the_operations_of_products_are_those_of_the_weights():
    mixer, length = ExtBiMamba(32).eval(), 7
    x = torch.randn(1, length, 32)
    found = operations_of(products_of(lambda: mixer(x)))
    # Two for each weight and frame, a multiplication and an addition.
    weights = [p for name, p in mixer.named_parameters() if name.endswith("_proj.weight")]
    assert found == 2 * length * sum(p.numel() for p in weights)


def test_a_process_that_dies_of_the_longest_length_loses_no_other(monkeypatch):
    def fresh(_, settings, lengths, **order):
        if max(lengths) > 1:
            return {"failed": "the process was ended by signal 9"}
        return {"steps": [{"seconds": 1.0, "above": 2, "total": 3} for _ in lengths]}

    monkeypatch.setattr(encoders, "apart", fresh)
    found = Results(encoders._walk_over(TINY, (0.5, 1.0, 2.0), "conformer", "float32", {}))
    assert [m.samples for m in found.select("encoder", unit="bytes")] == [[2], [2], []]
    (longest,) = found.select("encoder", unit="s", seconds=2.0)
    assert longest.note == "the process was ended by signal 9"
