"""`espnet-bimamba zoo` on the model that the demo packed, and its upload to a stand-in Hub."""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import soundfile
import yaml
from espnet2.bin.asr_inference import Speech2Text
from hatchling.builders.wheel import WheelBuilder

from espnet_bimamba import recipes
from espnet_bimamba.cli import main
from tests.recipes.conftest import HOME
from tests.recipes.test_demo import LEARNT

pytestmark = pytest.mark.recipe

REPO = "me/conbimamba_mini_an4"
ENCODER = "espnet_bimamba.encoders.conbimamba.ConBiMambaEncoder"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def speech(overfitted):
    """An utterance that the model has learnt, and what is said in it."""
    lines = (overfitted.recipe / "dump/raw/train_nodev/wav.scp").read_text().splitlines()
    name, path = lines[1].split()
    return overfitted.recipe / path, LEARNT[name]


@pytest.fixture
def packed(overfitted, tmp_path):
    """A copy of what stage 14 packed."""
    original = Path(overfitted.report["files"]["Packed model"])
    return Path(shutil.copy(original, tmp_path))


@pytest.fixture(scope="module")
def environments(tmp_path_factory):
    """Python of two environments: ESPnet and what it needs; the same with our wheel."""
    folder = tmp_path_factory.mktemp("environments")
    (wheel,) = WheelBuilder(str(HOME)).build(directory=str(folder), versions=["standard"])
    pythons = {}
    for name in ("without us", "with us"):
        venv.create(folder / name, symlinks=True)
        (packages,) = (folder / name).glob("lib/python*/site-packages")
        # A folder that a .pth file names is on the path, but the .pth files in it are not read:
        # ours, by which we are installed here, does not come along.
        (packages / "0.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
        for file in Path(sysconfig.get_path("purelib")).glob("*.pth"):
            if "espnet_bimamba" not in file.name:
                shutil.copy(file, packages)
        if name == "with us":
            zipfile.ZipFile(wheel).extractall(packages)
        pythons[name] = folder / name / "bin/python"
    return pythons


def run(python, program, *arguments):
    """Run a program in an environment, with a new home and kernels that need no compiling."""
    home = {"HOME": str(Path.cwd()), "ESPNET_BIMAMBA_BACKEND": "reference"}
    return subprocess.run(
        [python, "-I", "-c", program, *map(str, arguments)],
        env=os.environ | home,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_packed_model_with_card_is_in_order(packed, speech, environments):
    wav, text = speech
    assert main(["zoo", "card", str(packed), "--repo", REPO, "--source", "git+https://x"]) == 0
    program = "import sys; from espnet_bimamba.cli import main; sys.exit(main())"
    done = run(environments["with us"], program, "zoo", "check", packed, "--wav", wav, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    details = {line["name"]: line["detail"] for line in json.loads(done.stdout)["checks"]}
    assert f"espnet {recipes.installed_version()}, built {ENCODER}" in details["loading"]
    assert details["configuration"].endswith("packed: normalize_conf.stats_file, bpemodel")
    assert details["transcribing"] == f"heard {text!r}"


def test_the_usage_in_the_card_works_with_us_and_names_the_encoder_without(
    packed, speech, environments
):
    wav, text = speech
    main(["zoo", "card", str(packed), "-o", "card.md"])
    [program] = re.findall(r"(?s)```python\n(.*?)```", Path("card.md").read_text())
    soundfile.write("speech.wav", *soundfile.read(wav))
    done = run(environments["with us"], program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == text

    done = run(environments["without us"], program)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ValueError: --encoder must be one of ('conformer',")
    assert last.endswith("--encoder conbimamba")
    assert "bimamba" not in done.stderr.replace("--encoder conbimamba", "")


def headings(text):
    """The headings outside of code, and what the front matter holds."""
    front, body = text.split("---\n", 2)[1:]
    body = re.sub(r"(?s)\\?`{3}.*?\\?`{3}", "", body.replace("\\`", "`"))
    return set(yaml.safe_load(front)), re.findall(r"(?m)^#+ .*", body)


def test_the_card_has_the_form_of_espnets_template(overfitted, tree, packed):
    labels = ["--repo", REPO, "--corpus", "mini_an4", "--language", "en"]
    main(["zoo", "card", str(packed), *labels, "-o", "card.md"])
    keys, ours = headings(Path("card.md").read_text())
    text = (tree / "egs2/TEMPLATE/asr1/scripts/utils/TEMPLATE_HF_Readme.md").read_text()
    template_keys, template = headings(text.replace("${espnet_task}", "ASR"))
    wanted = [line.replace("${hf_repo}", REPO) for line in template]
    assert len(wanted) == 5
    assert keys == {*template_keys, "pipeline_tag"}
    remaining = iter(ours)
    for heading in wanted:
        assert any(line.startswith(heading) for line in remaining), (heading, ours)
    results = (overfitted.exp / "RESULTS.md").read_text().strip()
    assert results in Path("card.md").read_text()


@pytest.fixture
def hub(tmp_path):
    """A folder that git takes for the Hugging Face Hub, with one new repository in it."""
    folder = tmp_path / "hub"
    config = tmp_path / "gitconfig"
    config.write_text(
        "[user]\nname = me\nemail = me@example.org\n[init]\ndefaultBranch = main\n"
        f'[url "file://{folder}/"]\ninsteadOf = https://huggingface.co/\n'
    )
    lfs = tmp_path / "bin/git-lfs"
    lfs.parent.mkdir()
    lfs.write_text("#!/bin/sh\necho 'git-lfs/0 (stand-in)'\n")
    lfs.chmod(0o755)
    hub = Hub(
        folder,
        os.environ
        | {
            "GIT_CONFIG_GLOBAL": str(config),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_CEILING_DIRECTORIES": str(tmp_path),
            "GIT_TERMINAL_PROMPT": "0",
            "VIRTUAL_ENV": sys.prefix,
            "PATH": f"{lfs.parent}:{sys.prefix}/bin:{os.environ['PATH']}",
        },
    )
    hub.git("init", "--quiet", "--bare", str(folder / REPO))
    # A new repository of the Hub has this file and says which files git-lfs takes.
    new = hub.cloned(tmp_path / "new")
    (new / ".gitattributes").write_text("*.pth filter=lfs diff=lfs merge=lfs -text\n")
    hub.push(new, "initial commit")
    return hub


class Hub:
    def __init__(self, folder, environment):
        self.folder = folder
        self.environment = environment

    def git(self, *arguments, cwd="."):
        subprocess.run(["git", *arguments], cwd=cwd, env=self.environment, check=True)

    def cloned(self, folder):
        self.git("clone", "--quiet", f"https://huggingface.co/{REPO}", str(folder))
        return folder

    def push(self, folder, message):
        self.git("add", ".", cwd=folder)
        self.git("commit", "--quiet", "-m", message, cwd=folder)
        self.git("push", "--quiet", cwd=folder)


@pytest.fixture
def stage_15(overfitted, tree, tmp_path, hub):
    """Run the last stage of the stock recipe in a working copy that has the demo's model."""
    work = tmp_path / "work"
    exp = recipes.link(tree, "mini_an4/asr1", work) / "exp"
    exp.mkdir()
    (exp / overfitted.exp.name).symlink_to(overfitted.exp)

    def run():
        runner = HOME / "egs/mini_an4/asr1/run.sh"
        command = [str(runner), "--model", "conbimamba", "--work", str(work)]
        command += ["--stage", "15", "--skip_upload_hf", "false", "--hf_repo", REPO]
        done = subprocess.run(
            command, env=hub.environment, capture_output=True, text=True, check=False
        )
        return done, exp / f"hf_{REPO.replace('/', '_')}"

    return run


def test_stage_15_uploads_and_the_card_follows(
    stage_15, hub, tmp_path, packed, speech, monkeypatch
):
    hub.git("init", "--quiet", cwd=tmp_path / "work")
    hub.git("commit", "--quiet", "--allow-empty", "-m", "for stage 15", cwd=tmp_path / "work")
    done, uploaded = stage_15()
    assert done.returncode == 0, done.stdout + done.stderr
    snapshot = hub.cloned(tmp_path / "first")
    assert {"meta.yaml", "exp", "data", "README.md"} <= {path.name for path in snapshot.iterdir()}
    # ESPnet's template knows nothing of us, and takes the place of a card that was packed.
    assert "### Requirement" not in (snapshot / "README.md").read_text()

    main(["zoo", "card", str(packed), "--repo", REPO, "-o", str(uploaded / "README.md")])
    hub.push(uploaded, "Say what the model needs")
    snapshot = hub.cloned(tmp_path / "second")
    assert "### Requirement: espnet-bimamba" in (snapshot / "README.md").read_text()

    # What huggingface_hub would have downloaded.
    monkeypatch.setattr("espnet_model_zoo.downloader.snapshot_download", lambda *_, **__: snapshot)
    monkeypatch.setenv("HOME", str(tmp_path))
    wav, text = speech
    with contextlib.chdir(tmp_path):
        model = Speech2Text.from_pretrained(REPO)
        assert model(soundfile.read(wav)[0])[0][0] == text


def test_stage_15_wants_to_run_in_a_git_repository(stage_15):
    done, _ = stage_15()
    assert done.returncode != 0
    assert "not a git repository" in done.stderr
