"""Fetching and linking the stock recipes, with a tiny source distribution and no network."""

import io
import os
import re
import subprocess
import sys
import tarfile

import numpy as np
import pytest
import soundfile

from espnet_bimamba import recipes
from espnet_bimamba.errors import RecipeError

VERSION = "209901"
FILES = {
    "egs2/TEMPLATE/asr1/scripts/utils/hello.sh": "echo hello\n",
    "egs2/TEMPLATE/asr1/pyscripts/a.py": "",
    "egs2/TEMPLATE/asr1/steps/a.sh": "",
    "egs2/TEMPLATE/asr1/utils/a.sh": "",
    "egs2/TEMPLATE/asr1/local/path.sh": "",
    "egs2/TEMPLATE/asr1/asr.sh": "",
    "egs2/TEMPLATE/asr1/path.sh": "asr1",
    "egs2/TEMPLATE/enh1/enh.sh": "",
    "egs2/TEMPLATE/enh1/path.sh": "enh1",
    "egs2/TEMPLATE/enh1/scripts/TEMPLATE_Readme.md": "",
    "egs2/TEMPLATE/enh1/local/path.sh": "",
    "egs2/mini_an4/asr1/run.sh": "cat data/x; . ./path.sh; echo 1 > exp\n",
    "egs2/mini_an4/asr1/path.sh": "",
    "egs2/mini_an4/asr1/local/data.sh": "",
    "egs2/mini_an4/asr1/db.sh": "AN4=downloads\n",
    "egs2/mini_an4/asr1/conf/slurm.conf": "command sbatch\n",
    "egs2/mini_an4/asr1/conf/train.yaml": "",
    "egs2/mini_an4/enh1/run.sh": "",
    "egs3/mini_an4/esp2_asr/run.py": "",
    "tools/extra_path.sh": "",
    "espnet2/__init__.py": "raise ImportError('this must not shadow the installed one')\n",
    "version.txt": VERSION,
}


def write_sdist(file, files=FILES, top=f"espnet-{VERSION}"):
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(f"{top}/{name}")
            info.size, info.mode = len(content.encode()), 0o755
            archive.addfile(info, io.BytesIO(content.encode()))
    return file


@pytest.fixture
def cache(tmp_path):
    """A cache that holds the source distribution, as on a machine without network."""
    write_sdist(tmp_path / "cache" / f"espnet-{VERSION}.tar.gz")
    return tmp_path / "cache"


@pytest.fixture
def no_pip(monkeypatch):
    """Fails a test that starts any program."""

    def refuse(*args, **kwargs):
        raise AssertionError(f"started {args}")

    monkeypatch.setattr(subprocess, "run", refuse)


def test_unpacks_the_recipes_and_nothing_importable(cache, no_pip):
    tree = recipes.prepare(cache, VERSION)
    assert tree == cache / f"espnet-{VERSION}"
    assert (tree / "egs2" / "mini_an4" / "asr1" / "run.sh").stat().st_mode & 0o100
    assert (tree / "egs3" / "mini_an4" / "esp2_asr" / "run.py").is_file()
    assert not (tree / "espnet2").exists()
    assert sorted(f.name for f in cache.iterdir()) == [tree.name, f"{tree.name}.tar.gz"]


def test_restores_the_links_that_a_source_distribution_drops(cache):
    tree = recipes.prepare(cache, VERSION)
    for task in ("asr1", "enh1"):
        recipe = tree / "egs2" / "mini_an4" / task
        assert (recipe / "scripts" / "utils" / "hello.sh").read_text() == "echo hello\n"
        assert all((recipe / name).is_dir() for name in ("pyscripts", "steps", "utils", "local"))
    assert (tree / "egs2" / "mini_an4" / "enh1" / "local").readlink().as_posix() == "../asr1/local"
    assert not (tree / "egs2" / "TEMPLATE" / "asr1" / "utils").is_symlink()


def test_second_call_reuses_the_tree(cache, no_pip):
    tree = recipes.prepare(cache, VERSION)
    (tree / "mark").touch()
    (cache / f"espnet-{VERSION}.tar.gz").unlink()
    assert recipes.prepare(cache, VERSION) == tree
    assert (tree / "mark").exists()


def test_interrupted_unpacking_leaves_no_tree_and_goes_on(cache, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(recipes, "_restore_links", interrupt)
        with pytest.raises(KeyboardInterrupt):
            recipes.prepare(cache, VERSION)
    assert [f.name for f in cache.iterdir()] == [f"espnet-{VERSION}.tar.gz"]
    assert recipes.prepare(cache, VERSION).is_dir()


def test_two_processes_at_once_both_find_a_tree(cache):
    code = (
        "import sys; from pathlib import Path; from espnet_bimamba import recipes; "
        f"print(recipes.prepare(Path(sys.argv[1]), {VERSION!r}))"
    )
    command = [sys.executable, "-c", code, str(cache)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = {process.communicate()[0].strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert printed == {str(cache / f"espnet-{VERSION}")}
    assert not [f for f in cache.iterdir() if f.name.startswith(".")]


def test_working_copy_keeps_what_a_run_writes_out_of_the_tree(cache, tmp_path):
    tree = recipes.prepare(cache, VERSION)
    (tree / "egs2" / "mini_an4" / "asr1" / "data").mkdir()  # somebody ran it in the tree
    for _ in range(2):
        work = recipes.link(tree, "mini_an4/asr1", tmp_path / "work")
    assert work == tmp_path / "work" / "egs2" / "mini_an4" / "asr1"
    assert not (work / "data").exists()
    (work / "exp").mkdir()
    assert not (tree / "egs2" / "mini_an4" / "asr1" / "exp").exists()
    assert (work / "../../../tools/extra_path.sh").is_file()
    assert (work / "../../TEMPLATE/asr1/utils").is_dir()
    assert (work / "scripts" / "utils" / "hello.sh").is_file()


def test_what_users_edit_is_theirs(cache, tmp_path):
    tree = recipes.prepare(cache, VERSION)
    stock = tree / "egs2" / "mini_an4" / "asr1"
    work = recipes.link(tree, "mini_an4/asr1", tmp_path)
    edited = ("db.sh", "conf/slurm.conf", "conf/mine.yaml")
    for name in edited:
        (work / name).write_text("mine\n")
    (work / "path.sh").unlink()
    (work / "path.sh").write_text("mine, though it was a link\n")
    assert recipes.link(tree, "mini_an4/asr1", tmp_path) == work
    assert [(work / name).read_text() for name in edited] == ["mine\n"] * 3
    assert (work / "path.sh").read_text() == "mine, though it was a link\n"
    assert (stock / "db.sh").read_text() == "AN4=downloads\n"
    assert (stock / "conf" / "slurm.conf").read_text() == "command sbatch\n"
    assert sorted(f.name for f in (stock / "conf").iterdir()) == ["slurm.conf", "train.yaml"]
    assert (work / "conf" / "train.yaml").is_symlink()


def test_working_copy_of_an_earlier_version_is_brought_up_to_date(cache, tmp_path):
    tree = recipes.prepare(cache, VERSION)
    stock = tree / "egs2" / "mini_an4" / "asr1"
    work = tmp_path / "egs2" / "mini_an4" / "asr1"
    work.mkdir(parents=True)
    for name in ("conf", "local", "db.sh"):
        (work / name).symlink_to(stock / name)
    recipes.link(tree, "mini_an4/asr1", tmp_path)
    assert not any((work / name).is_symlink() for name in ("conf", "local", "db.sh"))
    assert (work / "local" / "data.sh").readlink() == stock / "local" / "data.sh"
    assert not (stock / "conf" / "train.yaml").is_symlink(), "the tree must stay as it was"


def test_working_copy_of_an_espnet3_recipe(cache, tmp_path):
    tree = recipes.prepare(cache, VERSION)
    work = recipes.link(tree, "mini_an4/esp2_asr", tmp_path)
    assert work == tmp_path / "egs3" / "mini_an4" / "esp2_asr"
    assert (work / "run.py").is_file()


def test_working_copy_of_a_recipe_that_espnet_lacks(cache, tmp_path):
    tree = recipes.prepare(cache, VERSION)
    own = tmp_path / "own"
    for file in ("run.sh", "local/data.sh", "conf/train.yaml", "data/left/by/a/run"):
        (own / file).parent.mkdir(parents=True, exist_ok=True)
        (own / file).write_text(file)
    for _ in range(2):
        work = recipes.link_own(tree, own, "new/asr1", tmp_path / "work")
    assert work == tmp_path / "work" / "egs2" / "new" / "asr1"
    assert (work / "run.sh").read_text() == "run.sh"
    assert (work / "local" / "data.sh").read_text() == "local/data.sh"
    assert (work / "local" / "path.sh").is_file(), "what the template has stays beside it"
    assert (work / "conf" / "train.yaml").is_file()
    assert (work / "scripts" / "utils" / "hello.sh").is_file()
    assert (work / "../../../tools/extra_path.sh").is_file()
    assert not (work / "data").exists()
    (work / "conf" / "mine.yaml").touch()
    assert not (own / "conf" / "mine.yaml").exists()
    with pytest.raises(RecipeError, match="nowhere is no folder"):
        recipes.link_own(tree, tmp_path / "nowhere", "new/asr1", tmp_path / "work")


def test_working_copy_of_an_enhancement_recipe_that_espnet_lacks(cache, tmp_path):
    tree = recipes.prepare(cache, VERSION)
    (tmp_path / "own").mkdir()
    work = recipes.link_own(tree, tmp_path / "own", "new/enh1", tmp_path / "work")
    assert (work / "enh.sh").is_file()
    assert (work / "path.sh").read_text() == "enh1"
    # A source distribution drops the links in the folder of that name of the task's template.
    assert (work / "scripts" / "utils" / "hello.sh").is_file()
    assert (work / "local" / "path.sh").is_file()
    with pytest.raises(RecipeError, match=r"TEMPLATE has no task 'enh2'"):
        recipes.link_own(tree, tmp_path / "own", "new/enh2", tmp_path / "work")


@pytest.mark.parametrize("blank", [" ", "\t", "\n"])
def test_a_path_that_ends_espnets_scripts_is_refused(cache, tmp_path, blank):
    tree = recipes.prepare(cache, VERSION)
    root = tmp_path / f"w{blank}3" / "x"
    (tmp_path / "link").symlink_to(root)
    (tmp_path / "own").mkdir()
    for given in (root, tmp_path / "link"):
        says = re.escape(f"a working copy in {str(root)!r} is not possible: whitespace in its path")
        with pytest.raises(RecipeError, match=f"{says}.* --work of a runner, --to of "):
            recipes.link(tree, "mini_an4/asr1", given)
        with pytest.raises(RecipeError, match=says):
            recipes.link_own(tree, tmp_path / "own", "new/asr1", given)
    assert not root.parent.exists()


def test_the_name_of_a_link_counts_as_well(cache, tmp_path):
    (tmp_path / "w 3").symlink_to(tmp_path)
    with pytest.raises(RecipeError, match="w 3' is not possible"):
        recipes.link(recipes.prepare(cache, VERSION), "mini_an4/asr1", tmp_path / "w 3")


def test_unknown_recipe_is_named(cache, tmp_path):
    tree = recipes.prepare(cache, VERSION)
    with pytest.raises(RecipeError, match="no recipe 'mini_an5/asr1'"):
        recipes.link(tree, "mini_an5/asr1", tmp_path)


def test_recipes_run_the_python_of_the_active_environment(cache, tmp_path):
    tree = recipes.prepare(cache, VERSION)
    script = f". {tree}/tools/activate_python.sh && command -v python3"
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text("")
    (tmp_path / "bin" / "python3").chmod(0o755)

    def python_with(**environment):
        done = subprocess.run(
            ["bash", "-c", script],
            env={"PATH": os.defpath} | environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    assert python_with() == f"{sys.prefix}/bin/python3"
    assert python_with(VIRTUAL_ENV=str(tmp_path)) == f"{tmp_path}/bin/python3"


def test_sph2pipe_stand_in_converts_one_channel(cache, tmp_path):
    tree = recipes.prepare(cache, VERSION)
    samples = np.arange(-600, 600, dtype=np.int16).reshape(-1, 2)
    sphere = tmp_path / "in.sph"
    soundfile.write(sphere, samples, 16000, format="NIST", subtype="PCM_16")
    done = subprocess.run(
        [tree / "tools" / "sph2pipe" / "sph2pipe", "-f", "wav", "-p", "-c", "2", sphere],
        env={"PATH": f"{sys.prefix}/bin:{os.defpath}"},
        capture_output=True,
        check=True,
    )
    wav, rate = soundfile.read(io.BytesIO(done.stdout), dtype="int16")
    assert rate == 16000
    np.testing.assert_array_equal(wav, samples[:, 1])


def test_sclite_of_the_system_is_found(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setattr(recipes, "DEBIAN_SCTK", tmp_path)
    assert recipes.find_sclite(recipes.prepare(cache, VERSION)) is None
    (tmp_path / "sclite").write_text("#!/bin/sh\n")
    (tmp_path / "sclite").chmod(0o755)
    tree = recipes.prepare(cache, VERSION)
    assert recipes.find_sclite(tree) == tree / "tools" / "sctk" / "bin" / "sclite"


class FakePip:
    """Stands in for ``subprocess.run`` where pip would run."""

    def __init__(self, stderr="", content=None):
        self.stderr, self.content, self.command = stderr, content, None

    def __call__(self, command, **_):
        self.command = command
        if self.content is not None:
            folder = command[command.index("--dest") + 1]
            write_sdist(recipes.Path(folder) / f"espnet-{VERSION}.tar.gz", self.content)
        code = 0 if self.content is not None else 1
        return subprocess.CompletedProcess(command, code, "", self.stderr)


def test_pip_of_this_python_is_asked_for_the_exact_version(tmp_path, monkeypatch):
    monkeypatch.setattr(subprocess, "run", pip := FakePip(content=FILES))
    assert recipes.prepare(tmp_path, VERSION).is_dir()
    assert pip.command[:4] == [sys.executable, "-m", "pip", "download"]
    assert pip.command[-1] == f"espnet=={VERSION}"
    assert (tmp_path / f"espnet-{VERSION}.tar.gz").is_file()


NO_NETWORK = "ERROR: Could not find a version that satisfies ... (from versions: none)\n"
NO_VERSION = "ERROR: Could not find a version that satisfies ... (from versions: 202609, 202611)\n"


@pytest.mark.parametrize(
    ("stderr", "remedy"),
    [(NO_NETWORK, "check the network"), (NO_VERSION, "install a released ESPnet")],
    ids=["no network", "no such version"],
)
def test_failing_download_says_why_and_what_to_do(tmp_path, monkeypatch, stderr, remedy):
    monkeypatch.setattr(subprocess, "run", FakePip(stderr=stderr))
    with pytest.raises(RecipeError, match=remedy) as caught:
        recipes.prepare(tmp_path, VERSION)
    assert stderr.strip() in str(caught.value)
    assert f"put espnet-{VERSION}.tar.gz into {tmp_path}" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_python_without_pip_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(recipes.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"has no pip .*ensurepip"):
        recipes.prepare(tmp_path, VERSION)


def test_wheel_only_espnet_says_so(tmp_path, monkeypatch):
    def nothing(command, **_):
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", nothing)
    with pytest.raises(RecipeError, match="no source distribution"):
        recipes.prepare(tmp_path, VERSION)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:200]), "cannot be unpacked"),
        (lambda file: file.write_text("not found"), "cannot be unpacked"),
        (lambda file: write_sdist(file, {"README": ""}), "holds no ESPnet recipes"),
    ],
    ids=["cut short", "an error page", "another project"],
)
def test_spoilt_source_distribution_is_named(cache, spoil, says):
    spoil(cache / f"espnet-{VERSION}.tar.gz")
    with pytest.raises(RecipeError, match=f"(?s){says}.*delete it"):
        recipes.prepare(cache, VERSION)
    assert not (cache / f"espnet-{VERSION}").exists()


def test_member_outside_the_tree_is_refused(cache):
    write_sdist(cache / f"espnet-{VERSION}.tar.gz", FILES | {"egs2/../../../evil": "x"})
    with pytest.raises(RecipeError, match="cannot be unpacked"):
        recipes.prepare(cache, VERSION)


def test_no_espnet_is_a_clear_error(tmp_path, monkeypatch):
    def missing(name):
        raise recipes.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(recipes.importlib.metadata, "version", missing)
    with pytest.raises(RecipeError, match=r"no ESPnet is installed.*pip install"):
        recipes.prepare(tmp_path)


def test_command_prints_a_path_or_the_reason(cache, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "installed_version", lambda: VERSION)
    for notice in ("fetching and unpacking ESPnet's stock recipes (36 MB)\n", ""):
        assert recipes.main(["--cache", str(cache)]) == 0
        assert capsys.readouterr() == (f"{cache / f'espnet-{VERSION}'}\n", notice)
    assert recipes.main(["--cache", "/dev/null"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "/dev/null cannot be written: File exists. What to do: name a folder other" in err


@pytest.mark.parametrize("place", ["a_file", "a_file/below", "/proc/nope"])
def test_a_place_that_cannot_be_written_to_is_named(cache, tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").touch()
    tree = recipes.prepare(cache, VERSION)
    named = rf"{tmp_path / place}.* cannot be written: .*name a folder other than {place}"
    with pytest.raises(RecipeError, match=named):
        recipes.link(tree, "mini_an4/asr1", recipes.Path(place))
    with pytest.raises(RecipeError, match=named):
        recipes.link_own(tree, tree / "egs2" / "mini_an4" / "asr1", "x/asr1", recipes.Path(place))
    with pytest.raises(RecipeError, match=f"{place}.* cannot be written"):
        recipes.prepare(recipes.Path(place), VERSION)


def test_imports_no_torch_and_no_espnet():
    code = "import sys, espnet_bimamba.recipes; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "espnet2", "numpy", "numba"} & set(done.stdout.split())
