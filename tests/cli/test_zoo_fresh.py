"""What `espnet-bimamba zoo check` hides from the process that loads a model."""

import json
import subprocess
import sys
from importlib import metadata

import pytest

from espnet_bimamba.cli.zoo import fresh, probe


@pytest.fixture
def install(tmp_path):
    """Install a made-up distribution: its requirements, and the text of its files."""
    folder = tmp_path / "site"
    folder.mkdir()

    def write(name, requires=(), files=None, record=True, **noted):
        info = folder / f"{name.replace('-', '_')}-1.dist-info"
        info.mkdir()
        lines = [f"Name: {name}", "Version: 1", *(f"Requires-Dist: {each}" for each in requires)]
        (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.1", *lines, ""]))
        for path, text in (files or {}).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        if record:
            rows = ["", ",,", *(f"{path},sha256=x,1" for path in files or ())]
            (info / "RECORD").write_text("\n".join(rows))
        for file, text in noted.items():
            (info / f"{file}.txt").write_text(text)
        return folder

    return write


@pytest.fixture
def found(install, monkeypatch):
    """Find made-up distributions before the real ones."""

    def look():
        monkeypatch.syspath_prepend(install("last"))
        return fresh.installed()

    return look


def test_what_is_required_is_what_pip_would_install(install, found):
    install("espnet", ["Alpha_One>=2", "beta; python_version < '3'", "gamma[fast]", "not-there"])
    install("espnet-bimamba", ["espnet", "delta; extra == 'bench'"])
    install("alpha.one", ["espnet"])
    install("beta")
    install("gamma", ["epsilon; extra == 'fast'", "zeta; extra == 'slow'", "eta"])
    for name in ("delta", "epsilon", "zeta", "eta"):
        folder = install(name)
    (folder / "broken_off-1.dist-info").mkdir()
    assert fresh.required(found()) == {
        "espnet", "espnet-bimamba", "alpha-one", "gamma", "epsilon", "eta"
    }  # fmt: skip


@pytest.mark.parametrize("lacking", fresh.WANTED)
def test_without_metadata_of_the_two_nothing_is_guessed(lacking):
    found = {name: [] for name in fresh.WANTED if name != lacking}
    with pytest.raises(metadata.PackageNotFoundError, match=f"for {lacking}$"):
        fresh.required(found)


def test_modules_are_those_of_the_record_with_their_packages(install, found):
    files = [
        "one/__init__.py", "one/sub/deep.py", "one/fast.cpython-312-x86_64-linux-gnu.so",
        "two.py", "one/data.txt", "one/__pycache__/old.cpython-312.pyc", "bad-name/x.py",
    ]  # fmt: skip
    install("lister", files=dict.fromkeys(files, ""))
    install("edited", top_level="three\nfour\n")
    install("unknown", record=False)
    have = {name: fresh.modules_of(each[0]) for name, each in found().items()}
    # What is compiled has the suffix of one Python.
    assert have["lister"] - {"one.fast"} == {"one", "one.sub", "one.sub.deep", "two"}
    assert have["edited"] == {"three", "four"}
    assert have["unknown"] == set()


def test_what_the_two_have_as_well_and_what_python_has_is_not_hidden(install, found):
    install("ours", files={"space/ours/__init__.py": "", "same.py": ""})
    install(
        "theirs",
        files={"space/theirs/__init__.py": "", "same.py": "", "dataclasses.py": "", "own.py": ""},
    )
    installed = {name: each for name, each in found().items() if name in ("ours", "theirs")}
    assert fresh.hidden_modules(installed, {"ours"}) == {
        "space.theirs": "theirs",
        "own": "theirs",
    }


PROGRAM = """\
import importlib.util, json, runpy, sys
from importlib import metadata
sys.path.insert(0, sys.argv[2])
import loaded
runpy.run_path(sys.argv[1])["hide_others"]()
said = {}
for name in ("extra", "extra.sub", "loaded", "plain", "needed", "json.tool"):
    try:
        said[name] = __import__(name).__name__
    except ModuleNotFoundError as error:
        said[name] = [str(error), error.name]
def version(name):
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError as error:
        return str(error)
asked = [importlib.util.find_spec(name) is None for name in ("extra", "plain", "needed")]
versions = [version(name) for name in ("extra-dist", "needed-dist")]
groups = [entry.name for entry in metadata.entry_points(group="made.up")]
print(json.dumps([said, asked, versions, groups]))
"""


def test_others_are_as_good_as_not_installed(install):
    install("espnet", ["needed-dist"])
    install("espnet-bimamba")
    install("needed-dist", files={"needed.py": ""}, entry_points="[made.up]\nkept = needed:x")
    folder = install(
        "extra-dist",
        files={"extra/__init__.py": "", "extra/sub.py": "", "loaded.py": ""},
        entry_points="[made.up]\nhidden = extra:x",
    )
    (folder / "plain.py").touch()
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, fresh.__file__, str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    said, asked, versions, groups = json.loads(done.stdout)
    for name, module in (("extra", "extra"), ("extra.sub", "extra"), ("loaded", "loaded")):
        assert said[name] == [
            f"No module named {module!r}: neither espnet nor espnet-bimamba requires "
            "extra-dist, which has it here",
            module,
        ]
    assert (said["plain"], said["needed"], said["json.tool"]) == ("plain", "needed", "json")
    assert asked == [True, False, False]
    assert versions == ["No package metadata was found for extra-dist", "1"]
    assert groups == ["kept"]


STANDINS = {
    "espnet2/__init__.py": "__version__ = '202611'",
    "espnet2/bin/__init__.py": "",
    "espnet2/bin/asr_inference.py": (
        "class Speech2Text:\n"
        "    @staticmethod\n"
        "    def from_pretrained(name):\n"
        "        import whisper\n"
    ),
    "soundfile.py": "",
    "torch.py": "load = None",
}
LAUNCH = (
    "import runpy, sys; folder, script, *sys.argv[1:] = sys.argv[1:]; "
    "sys.path.insert(0, folder); runpy.run_path(script, run_name='__main__')"
)


@pytest.mark.parametrize("is_of_a_distribution", [True, False])
def test_a_model_that_needs_more_is_not_loaded(install, tmp_path, is_of_a_distribution):
    folder = install("openai-whisper", files={"whisper.py": ""}, record=is_of_a_distribution)
    for name, text in STANDINS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    out = tmp_path / "report.json"
    subprocess.run(
        [sys.executable, "-I", "-c", LAUNCH, folder, probe.__file__, "model.zip", "x.wav", out],
        check=True,
    )
    report = probe.Report(**json.loads(out.read_text()))
    assert report.step == "load"
    if is_of_a_distribution:
        assert report.error == (
            "ModuleNotFoundError: No module named 'whisper': neither espnet nor espnet-bimamba "
            "requires openai-whisper, which has it here"
        )
    else:
        assert report.error.startswith("AttributeError: "), "it went on with a model that is none"
