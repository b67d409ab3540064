"""What the demos of egs/mini_an4 refuse before they train anything."""

import warnings

import pytest

from espnet_bimamba import recipes
from tests.egs.programs import modules_of


@pytest.mark.parametrize(
    ("program", "options"),
    [("demo", ["--espnet", "2"]), ("demo", ["--espnet", "3"]), ("demo_enh", [])],
)
def test_whitespace_in_the_path_of_a_working_copy_is_refused(
    program, options, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(recipes, "prepare", lambda cache: tmp_path)
    with modules_of("mini_an4", program) as (demo,), warnings.catch_warnings():
        monkeypatch.setattr(demo.signal, "signal", lambda *_: None)
        if program == "demo_enh":
            monkeypatch.setattr(demo, "_check_scoring", lambda: None)
        assert demo.main(["--work", str(tmp_path / "w 3"), *options]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"\na working copy in '{tmp_path}/w 3' is not possible: whitespace in ")
    assert not (tmp_path / "w 3").exists()
