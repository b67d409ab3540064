"""What we say of the stock recipes, against ESPnet's own files: a release may change them."""

import re
import subprocess

import pytest

from espnet_bimamba import recipes
from espnet_bimamba.cli.recipes import RECIPES

pytestmark = pytest.mark.recipe

ESPNET3 = "librispeech_100/esp2_asr"


@pytest.mark.parametrize(
    "name", [name for name in RECIPES if not RECIPES[name].own and name != ESPNET3]
)
def test_the_programs_are_those_that_the_scripts_call(tree, name):
    corpus, _, task = name.partition("/")
    stock = tree / "egs2" / corpus / (task or "asr1")
    run, data = (stock / "run.sh").read_text(), (stock / "local" / "data.sh").read_text()
    called = "\n".join(
        file.read_text()
        for file in (stock / "local").iterdir()
        if file.name == "data.sh" or f"local/{file.name}" in data
    )
    needed = {need.program for need in RECIPES[name].needs}
    in_use = {
        "flac": re.search(r"(which |\")flac\b", called),
        "git": re.search(r"\bgit clone\b", called),
        "gzip": re.search(r"\bzcat\b", called),
        "sox": "--speed_perturb_factors" in run,
        "sph2pipe": "sph2pipe" in called,
        "tar": re.search(r"\btar -", called),
        "wget": re.search(r"\bwget (-|http)", called),
        "which": re.search(r"(?<!\[ ! )\bwhich \w", called),
        "perl": True,
        "sclite": not task,
    }
    assert needed == {program for program, found in in_use.items() if found}


def test_the_espnet3_recipe_starts_no_program(tree):
    programs = list((tree / "egs3" / ESPNET3).rglob("*.py"))
    assert programs
    assert not [file for file in programs if re.search(r"subprocess|os\.system", file.read_text())]
    assert RECIPES[ESPNET3].needs == ()


def test_speed_perturbation_asks_for_sox_and_scoring_for_sclite(tree):
    template = tree / "egs2" / "TEMPLATE" / "asr1"
    perturb = (template / "scripts" / "utils" / "perturb_data_dir_speed.sh").read_text()
    assert "command -v sox" in perturb
    stages = (template / "asr.sh").read_text().split('log "Stage ')
    assert [s[:2] for s in stages if "perturb_data_dir_speed.sh" in s] == ["2:"]
    assert [s[:2] for s in stages if "sclite \\\n" in s] == ["13"]


def test_seames_own_script_cannot_start(tree, tmp_path):
    """Its first call of asr.sh names no training set: the reason for our runner's own call."""
    work = recipes.link(tree, "seame/asr1", tmp_path)
    done = subprocess.run(["./run.sh"], cwd=work, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Error: --train_set is required" in done.stdout
