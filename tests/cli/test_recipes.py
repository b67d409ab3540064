"""`espnet-bimamba recipes`: what is missing is said, then the working copy is made."""

import json

import pytest

from espnet_bimamba import files, recipes
from espnet_bimamba.cli import main
from espnet_bimamba.cli import recipes as command
from tests.egs.programs import HOME
from tests.test_recipes import FILES, VERSION, write_sdist

LIBRISPEECH = {
    "egs2/librispeech_100/asr1/run.sh": "./asr.sh --speed_perturb_factors '0.9 1.0 1.1' \"$@\"\n",
    "egs2/librispeech_100/asr1/db.sh": "LIBRISPEECH=downloads\n",
    "egs3/librispeech_100/esp2_asr/run.py": "",
    "egs2/wsj/asr1/run.sh": "",
}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with a tiny source distribution, and a machine without any program."""
    write_sdist(tmp_path / "cache" / f"espnet-{VERSION}.tar.gz", FILES | LIBRISPEECH)
    monkeypatch.setattr(recipes, "installed_version", lambda: VERSION)
    monkeypatch.setattr(recipes, "DEBIAN_SCTK", tmp_path / "sctk")
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def install(folder, *programs):
    folder.mkdir(exist_ok=True)
    for program in programs:
        (folder / program).write_text("")
        (folder / program).chmod(0o755)


def get(cache, *arguments):
    return main(["recipes", "get", *arguments, "--cache", str(cache)])


def test_get_warns_and_brings_the_recipe(cache, tmp_path, capsys):
    install(tmp_path / "bin", "perl", "tar", "wget", "gzip", "which")
    assert get(cache, "librispeech_100") == 0
    out, err = capsys.readouterr()
    work = tmp_path / "exp" / "librispeech_100" / "egs2" / "librispeech_100" / "asr1"
    assert out == f"{work}\n"
    assert (work / "run.sh").is_file()
    assert err.splitlines()[:3] == [
        "warning: flac is not here, and stage 1 will fail where it needs it: local/data_prep.sh "
        "refuses to start without it. Debian: apt install flac. "
        "Conda: conda install -c conda-forge libflac.",
        "warning: sox is not here, and stage 2 will fail where it needs it: speed perturbation. "
        "Debian: apt install sox. Conda: conda install -c conda-forge sox.",
        "warning: sclite is not here, and stage 13 will fail where it needs it: scoring. "
        "Debian: apt install sctk. Elsewhere: bash installers/install_sctk.sh in tools/ downloads "
        "and builds it, for all working copies, which share that folder.",
    ]
    assert "fetching and unpacking" in err
    assert get(cache, "librispeech_100/asr1") == 0
    again = capsys.readouterr()
    assert again.out == out
    assert "fetching" not in again.err


def test_nothing_is_said_where_nothing_is_missing(cache, tmp_path, capsys):
    install(tmp_path / "bin", *command.PACKAGES, "sph2pipe")
    (tmp_path / "bin" / "sclite").unlink()
    install(tmp_path / "sctk", "sclite")  # where Debian's package has it, which is not on PATH
    for first in (True, False):
        assert get(cache, "mini_an4", "--to", "there") == 0
        err = capsys.readouterr().err
        assert err == ("fetching and unpacking ESPnet's stock recipes (36 MB)\n" if first else "")


def test_a_stand_in_is_no_missing_program(cache, tmp_path, capsys):
    install(tmp_path / "bin", *command.PACKAGES)
    assert get(cache, "mini_an4", "--to", str(tmp_path / "there"), "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["missing"] == []
    assert "note: sph2pipe is not here; the recipe gets a stand-in" in err
    assert (tmp_path / "there" / "tools" / "sph2pipe" / "sph2pipe").is_file()


def test_get_as_json(cache, tmp_path, capsys):
    install(tmp_path / "bin", *command.PACKAGES)
    (tmp_path / "bin" / "sox").unlink()
    assert get(cache, "librispeech_100", "--json", "--to", "there") == 0
    assert json.loads(capsys.readouterr().out) == {
        "recipe": "librispeech_100/asr1",
        "espnet": VERSION,
        "path": str(tmp_path / "there" / "egs2" / "librispeech_100" / "asr1"),
        "missing": [
            {
                "program": "sox",
                "stage": 2,
                "purpose": "speed perturbation",
                "debian": "sox",
                "otherwise": "Conda: conda install -c conda-forge sox",
            }
        ],
    }


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("wsj", "exp/wsj/egs2/wsj/asr1"),
        ("mini_an4/esp2_asr", "exp/mini_an4/egs3/mini_an4/esp2_asr"),
    ],
)
def test_a_recipe_that_is_not_listed(cache, tmp_path, capsys, name, folder):
    assert get(cache, name) == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path / folder}\n"
    assert f"which programs {name} needs is not known here" in err


def test_an_espnet3_recipe_that_is_listed_calls_no_program(cache, tmp_path, capsys):
    assert get(cache, "librispeech_100/esp2_asr") == 0
    out, err = capsys.readouterr()
    assert out == f"{tmp_path}/exp/librispeech_100/egs3/librispeech_100/esp2_asr\n"
    assert err == "fetching and unpacking ESPnet's stock recipes (36 MB)\n"


@pytest.mark.parametrize(
    ("name", "says"),
    [("librispeech_1000", "has no recipe 'librispeech_1000/asr1'"), ("../x", "names no recipe")],
)
def test_an_unknown_recipe_is_an_error(cache, capsys, name, says):
    assert get(cache, name) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("espnet-bimamba: ")
    assert says in err


@pytest.mark.parametrize("name", ["asru", "so762", "asru/asr1"])
def test_a_recipe_that_espnet_lacks_is_said_to_be_ours(cache, capsys, name):
    assert get(cache, name) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"run egs/{name.partition('/')[0]}/asr1/run.sh in a clone of espnet-bimamba" in err


def test_a_working_copy_of_a_recipe_of_ones_own(cache, tmp_path, capsys):
    install(tmp_path / "bin", "perl")
    (tmp_path / "mine" / "local").mkdir(parents=True)
    (tmp_path / "mine" / "run.sh").write_text("mine\n")
    assert get(cache, "asru", "--own", "mine") == 0
    out, err = capsys.readouterr()
    work = tmp_path / "exp" / "asru" / "egs2" / "asru" / "asr1"
    assert out == f"{work}\n"
    assert (work / "run.sh").read_text() == "mine\n"
    assert (work / "scripts" / "utils" / "hello.sh").is_file(), "of ESPnet's template"
    assert [line.split(" is not here")[0] for line in err.splitlines()[:-1]] == ["warning: sox"]


@pytest.mark.parametrize("place", ["/dev/null", "/proc/nope"])
def test_a_place_that_cannot_be_written_to_is_an_error(cache, capsys, place):
    for arguments in (["--to", place], ["--cache", place]):
        assert main(["recipes", "get", "wsj", "--cache", str(cache), *arguments]) == 2
        err = capsys.readouterr().err
        assert f"espnet-bimamba: {place}" in err
        assert "cannot be written: " in err


def test_a_place_with_whitespace_is_an_error(cache, tmp_path, capsys):
    install(tmp_path / "bin", "perl", "sclite")
    assert get(cache, "wsj", "--to", "w 3") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == (
        f"espnet-bimamba: a working copy in '{tmp_path}/w 3' is not possible: whitespace in its "
        "path ends ESPnet's scripts without a message. What to do: name another folder: --work of "
        "a runner, --to of `espnet-bimamba recipes get`"
    )
    assert not (tmp_path / "w 3").exists()


def test_recipes_are_kept_where_all_folders_of_a_user_find_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recipes, "installed_version", lambda: VERSION)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert files.user_cache() == tmp_path / ".cache" / "espnet-bimamba"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))
    cache = tmp_path / "caches" / "espnet-bimamba"
    write_sdist(cache / f"espnet-{VERSION}.tar.gz", FILES | LIBRISPEECH)
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        assert main(["recipes", "get", "wsj"]) == 0
        assert ("fetching" in capsys.readouterr().err) is (folder == "one")
    assert (cache / f"espnet-{VERSION}").is_dir()


def test_list(cache, tmp_path, capsys):
    install(tmp_path / "bin", *command.PACKAGES)
    (tmp_path / "bin" / "flac").unlink()
    assert main(["recipes", "list", "--cache", str(cache)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[::3]] == list(command.RECIPES)
    columns = [recipe.corpus for recipe in command.RECIPES.values()]
    starts = {line.index(text) for line, text in zip(lines[::3], columns, strict=True)}
    starts |= {line.index("corpus: ") for line in lines[1::3]}
    starts |= {line.index("missing here: ") for line in lines[2::3]}
    assert len(starts) == 1, "one column"
    (so762,) = [line for line in lines if line.startswith("so762 ")]
    assert so762.endswith(" (ESPnet has no such recipe: in a clone, egs/so762/asr1/run.sh)")
    assert lines[1].endswith(" corpus: LIBRISPEECH in db.sh: the folder above LibriSpeech/")
    assert lines[2].endswith(" missing here: flac")
    assert lines[-1].endswith(" missing here: nothing")
    assert main(["recipes", "list", "--cache", str(cache), "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["seame"]["missing"] == ["flac"]
    assert rows["an4"]["missing"] == []
    ours = {name: row["own"] for name, row in rows.items() if row["own"]}
    assert ours == {
        "asru": "egs/asru/asr1/run.sh",
        "so762": "egs/so762/asr1/run.sh",
        "se/enh1": "egs/se/enh1/run.sh",
    }
    assert all((HOME / runner).is_file() for runner in ours.values())
    assert not (cache / f"espnet-{VERSION}").exists(), "listing should unpack nothing"


LIBRISPEECH_NEEDS = ["perl", "which", "flac", "wget", "tar", "gzip", "sox", "sclite"]
NEEDS = {
    "librispeech_100": LIBRISPEECH_NEEDS,
    "librispeech_100/esp2_asr": [],
    "librispeech": LIBRISPEECH_NEEDS,
    "seame": ["perl", "git", "sox", "flac", "sclite"],
    "an4": ["perl", "which", "wget", "tar", "sox", "sclite"],
    "mini_an4": ["perl", "tar", "sclite"],
    "asru": ["perl", "sox"],
    "so762": ["perl"],
    "se/enh1": ["perl"],
    "vctk_noisy/enh1": ["perl"],
}


def test_on_a_bare_machine_each_recipe_misses_what_its_stages_call(cache, capsys):
    assert main(["recipes", "list", "--cache", str(cache), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"]: row["missing"] for row in rows} == NEEDS


def test_sclite_in_the_tools_of_the_recipes_is_not_missing(cache, tmp_path, capsys):
    place = cache / f"espnet-{VERSION}" / "tools" / "sctk" / "bin"
    place.mkdir(parents=True)
    install(place, "sclite")
    assert main(["recipes", "list", "--cache", str(cache), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    without = {name: [n for n in needs if n != "sclite"] for name, needs in NEEDS.items()}
    assert {row["name"]: row["missing"] for row in rows} == without


def test_every_program_has_a_remedy():
    needs = {need.program for recipe in command.RECIPES.values() for need in recipe.needs}
    assert needs - set(command.STAND_INS) == set(command.PACKAGES)


def test_help_has_examples(capsys):
    for action in ("list", "get"):
        with pytest.raises(SystemExit):
            main(["recipes", action, "--help"])
        assert f"  espnet-bimamba recipes {action}" in capsys.readouterr().out
