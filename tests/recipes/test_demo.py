"""`make demo` from end to end, the ESPnet2 and the ESPnet3 way."""

import zipfile
from pathlib import Path

import pytest

from espnet_bimamba.ops.backends import Call, choose
from tests.recipes.conftest import demo

pytestmark = pytest.mark.recipe

LEARNT = {
    "fash-an253-b": "GO",
    "fbbh-cen8-b": "MARCH THIRD NINETEEN TWENTY EIGHT",
    "mwhw-an152-b": "START",
    "mwhw-cen8-b": "ELEVEN SEVENTEEN FIFTY ONE",
}


def check_report(report):
    assert report["training"]["cer"] < 0.2
    assert all(report["hypotheses"].values()), "an empty hypothesis"
    assert set(report["hypotheses"]) == {*LEARNT, "fcaw-cen8-b", "mmxg-cen8-b"}
    call = Call("selective_scan", report["device"], lengths=True)
    assert report["backend"] == choose(call).backend.name
    assert 0 < report["real_time_factor"] < 20
    for file in report["files"].values():
        assert Path(file).exists(), file


def test_espnet2_demo_learns_its_utterances_and_packs_the_model(overfitted):
    report = overfitted.report
    check_report(report)
    packed = zipfile.ZipFile(report["files"]["Packed model"]).namelist()
    assert "meta.yaml" in packed
    for content in ("config.yaml", "RESULTS.md", "images/loss.png", ".pth"):
        assert any(name.endswith(content) for name in packed), (content, packed)
    results = Path(report["files"]["Results"]).read_text()
    assert "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|" in results
    assert "/test|2|10|" in results  # two test utterances of ten words


def test_interrupted_demo_says_so_and_goes_on(overfitted):
    before, after = overfitted.printed_before, overfitted.printed
    for shown in ("stage 1:", "stage 5:", "stage 10:", "stage 11:", "epoch 1:", "epoch 2:"):
        assert shown in before
    assert "interrupted; the same command goes on from here" in before
    for done in ("stage 1:", "stage 10:", "epoch 1:", "epoch 2:"):
        assert done not in after
    for shown in ("stage 11:", "epoch 3:", "epoch 6:", "stage 12:", "stage 14:"):
        assert shown in after
    assert after.rstrip().endswith("test utterances means nothing.")


def test_stock_tree_stays_as_it_came(overfitted, tree):
    for written in ("data", "dump", "exp", "downloads"):
        assert not (tree / "egs2" / "mini_an4" / "asr1" / written).exists()


def test_second_run_trains_nothing(overfitted):
    before = (overfitted.exp / "train.log").stat().st_mtime_ns
    again = demo(overfitted.root, "--encoder", "conbimamba").stdout
    assert "stage 11" not in again
    assert "the demo has passed" in again
    assert (overfitted.exp / "train.log").stat().st_mtime_ns == before


def test_unknown_encoder_lists_the_known(tmp_path):
    done = demo(tmp_path, "--encoder", "conformer", check=False)
    assert done.returncode == 2
    assert "no encoder 'conformer' here" in done.stderr
    assert "bimamba, conbimamba, e_branchbimamba, transbimamba" in done.stderr


def test_espnet3_demo_learns_its_utterances_and_packs_the_model(overfitted3):
    check_report(overfitted3.report)
    for stage in ("create_dataset", "collect_stats", "train", "infer", "measure", "pack_model"):
        assert f"stage {stage}\n" in overfitted3.printed
