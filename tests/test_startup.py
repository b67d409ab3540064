"""The hook that registers us, in real interpreters started on an installed wheel.

ESPnet takes ten seconds to import, so most tests run on a made-up one that has a registry.
"""

import json
import re
import shutil
import site
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).parents[1]

FAKE_ESPNET = {
    "espnet2/__init__.py": "__version__ = '202611'\n",
    "espnet2/tasks/__init__.py": "",
    "espnet2/tasks/asr.py": """
class Choices:
    base_type = object
    def __init__(self):
        self.classes = {'conformer': object}

encoder_choices = Choices()
""",
    "espnet2/tasks/lm.py": "",
    "fake_encoders.py": "class Encoder: pass\n",
    # Read after ours, since .pth files run in the order of their names.
    "zz_fake.pth": (
        "import espnet_bimamba.registry as r; r.ENCODERS.clear(); "
        "r.ENCODERS['conbimamba'] = 'fake_encoders:Encoder'\n"
    ),
}
# Behind the environment's own, the packages of the one that runs the tests.
HOST_PACKAGES = "".join(
    f"import site; site.addsitedir({path!r})\n" for path in site.getsitepackages()
)
NAMES = "import espnet2.tasks.asr as asr; print(*asr.encoder_choices.classes)"
BOTH = "conformer conbimamba"


@dataclass(frozen=True)
class Environment:
    """A virtual environment made for a test."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        (packages,) = self.folder.glob("lib/python*/site-packages")
        return packages

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.packages / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def run(
        self, *arguments: str, check: bool = True, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.python, *arguments],
            check=check,
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={"PATH": "/usr/bin:/bin", **variables},
            timeout=300,
        )

    def output(self, *arguments: str, **variables: str) -> str:
        result = self.run(*arguments, check=False, **variables)
        assert result.returncode == 0, result.stderr
        assert result.stderr == ""
        return result.stdout.strip()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["standard"])
    return Path(path)


@pytest.fixture(scope="session")
def editable_wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("editable")
    (path,) = WheelBuilder(str(ROOT)).build(directory=str(folder), versions=["editable"])
    return Path(path)


@pytest.fixture
def empty(tmp_path) -> Environment:
    """An environment without us and without ESPnet."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    return Environment(tmp_path / "venv")


@pytest.fixture
def installed(empty, wheel) -> Environment:
    """An environment with our wheel and a made-up ESPnet."""
    empty.write(FAKE_ESPNET)
    zipfile.ZipFile(wheel).extractall(empty.packages)
    return empty


@pytest.fixture
def pip() -> list[str]:
    command = [sys.executable, "-m", "pip"]
    if subprocess.run([*command, "--version"], capture_output=True, check=False).returncode:
        pytest.skip("this environment has no pip to install and uninstall with")
    return command


@pytest.mark.parametrize("flags", [[], ["-I"], ["-E"], ["-s"], ["-O"]], ids=str)
def test_the_names_are_known_without_an_import_of_ours(installed, flags):
    assert installed.output(*flags, "-c", NAMES) == BOTH


def test_a_module_run_by_name_knows_them(installed):
    installed.write({"espnet2/bin.py": f"if __name__ == '__main__':\n    {NAMES}\n"})
    assert installed.output("-m", "espnet2.bin") == BOTH


def test_it_can_be_switched_off(installed):
    assert installed.output("-c", NAMES, ESPNET_BIMAMBA_DISABLE="1") == "conformer"
    named = f"import espnet_bimamba; {NAMES}"
    assert installed.output("-c", named, ESPNET_BIMAMBA_DISABLE="1") == "conformer"


# Without site no .pth file is read: this plays zz_fake.pth, and leaves us as if not yet imported.
PREPARE = """
import os, sys
sys.path.append({!r})
os.environ["ESPNET_BIMAMBA_DISABLE"] = "1"
import espnet_bimamba.registry as r
r.ENCODERS.clear()
r.ENCODERS["conbimamba"] = "fake_encoders:Encoder"
del os.environ["ESPNET_BIMAMBA_DISABLE"], sys.modules["espnet_bimamba"]
"""


@pytest.mark.parametrize(
    ("imports", "names"),
    [
        ("", "conformer"),
        ("import espnet_bimamba", BOTH),
        ("import espnet2.tasks.asr, espnet_bimamba", BOTH),
    ],
    ids=["not-at-all", "before-espnet", "after-espnet"],
)
def test_without_site_an_import_of_ours_does_it(installed, imports, names):
    prepare = PREPARE.format(str(installed.packages))
    assert installed.output("-S", "-c", f"{prepare}\n{imports}\n{NAMES}") == names


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_worker_processes_know_them(installed, method):
    script = installed.folder / "workers.py"
    script.write_text(
        "import multiprocessing\n"
        f"def names():\n    {NAMES}\n"
        "if __name__ == '__main__':\n"
        f"    worker = multiprocessing.get_context({method!r}).Process(target=names)\n"
        "    worker.start()\n"
        "    worker.join()\n"
        "    raise SystemExit(worker.exitcode)\n"
    )
    assert installed.output(str(script)) == BOTH


def test_the_module_keeps_its_loader_and_can_be_reloaded(installed):
    code = (
        "import importlib, inspect, espnet2.tasks.asr as asr\n"
        "from importlib.machinery import SourceFileLoader\n"
        "assert type(asr.__loader__) is SourceFileLoader is type(asr.__spec__.loader)\n"
        "assert asr.__spec__.origin == asr.__file__\n"
        "assert inspect.getsource(asr) == open(asr.__file__).read()\n"
        "old = asr.encoder_choices\n"
        "assert importlib.reload(asr) is asr and asr.encoder_choices is not old\n"
        "print(*asr.encoder_choices.classes)\n"
    )
    assert installed.output("-c", code) == BOTH


def test_installing_again_changes_nothing(installed):
    code = (
        "import sys, espnet_bimamba, espnet2.tasks.asr as asr\n"
        "from espnet_bimamba import startup\n"
        "before = dict(asr.encoder_choices.classes)\n"
        "startup.install(); startup.install()\n"
        "finders = [f for f in sys.meta_path if isinstance(f, startup.HostFinder)]\n"
        "print(len(finders), sys.meta_path[0] is finders[0])\n"
        "assert asr.encoder_choices.classes == before\n"
    )
    assert installed.output("-c", code) == "1 True"


def test_only_host_modules_make_us_import_our_encoders(installed):
    code = "import sys, {}; print('fake_encoders' in sys.modules)"
    assert installed.output("-c", code.format("espnet2.tasks.lm")) == "False"
    assert installed.output("-c", code.format("espnet2.tasks.asr")) == "True"


def test_an_error_in_espnet_is_espnets(installed):
    installed.write({"espnet2/tasks/asr.py": "raise RuntimeError('of ESPnet')\n"})
    result = installed.run("-c", NAMES, check=False)
    assert result.returncode == 1
    assert result.stderr.rstrip().endswith("RuntimeError: of ESPnet")


def test_an_espnet_that_is_not_there_is_not_there(empty, wheel):
    zipfile.ZipFile(wheel).extractall(empty.packages)
    result = empty.run("-c", NAMES, check=False)
    assert "ModuleNotFoundError: No module named 'espnet2'" in result.stderr


def test_a_failure_of_ours_does_not_stop_espnet(installed):
    installed.write({"fake_encoders.py": "raise OSError('libcudart.so is missing')\n"})
    result = installed.run("-c", NAMES)
    assert result.stdout.strip() == "conformer"
    assert "RuntimeWarning: espnet-bimamba did not register its classes" in result.stderr
    assert "(OSError: libcudart.so is missing)" in result.stderr


def test_a_loader_that_cannot_be_extended_does_not_stop_espnet(installed):
    code = (
        "import sys\n"
        "from importlib.machinery import PathFinder\n"
        "class Loader:\n"
        "    __slots__ = ('inner',)\n"
        "    def create_module(self, spec): return None\n"
        "    def exec_module(self, module): self.inner.exec_module(module)\n"
        "class Finder:\n"
        "    @staticmethod\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        spec = PathFinder.find_spec(name, path, target)\n"
        "        if name == 'espnet2.tasks.asr':\n"
        "            loader = Loader(); loader.inner = spec.loader; spec.loader = loader\n"
        "        return spec\n"
        "sys.meta_path.insert(1, Finder)\n"
    )
    result = installed.run("-c", code + NAMES)
    assert result.stdout.strip() == "conformer"
    assert "Loader, which loads ESPnet here, does not let itself be extended" in result.stderr


def test_two_copies_on_the_path_are_both_named(installed, tmp_path):
    shutil.copytree(installed.packages / "espnet_bimamba", tmp_path / "other" / "espnet_bimamba")
    result = installed.run("-c", NAMES, PYTHONPATH=str(tmp_path / "other"))
    assert result.stdout.strip() == BOTH
    assert f"{tmp_path / 'other' / 'espnet_bimamba'} is used" in result.stderr
    assert str(installed.packages / "espnet_bimamba") in result.stderr


MODULES = "import sys; print(*sorted(sys.modules))"


def test_it_imports_three_small_modules_of_ours(installed):
    (installed.packages / "zz_fake.pth").unlink()
    with_us = set(installed.output("-c", MODULES).split())
    (installed.packages / "espnet_bimamba.pth").unlink()
    without_us = set(installed.output("-c", MODULES).split())
    assert with_us - without_us == {
        "espnet_bimamba",
        "espnet_bimamba.registry",
        "espnet_bimamba.startup",
    }


def test_it_costs_less_than_a_millisecond(installed):
    (installed.packages / "zz_fake.pth").unlink()
    # Starting an interpreter takes 20 of them and varies by more: the line is timed in one.
    code = (
        "import sys, time\n"
        f"line = open({str(installed.packages / 'espnet_bimamba.pth')!r}).read()\n"
        "costs = []\n"
        "for _ in range(500):\n"
        "    for name in [name for name in sys.modules if name.startswith('espnet_bimamba')]:\n"
        "        del sys.modules[name]\n"
        "    del sys.meta_path[0]\n"
        "    start = time.perf_counter()\n"
        "    exec(line)\n"
        "    costs.append(time.perf_counter() - start)\n"
        "    assert type(sys.meta_path[0]).__name__ == 'HostFinder'\n"
        "print(min(costs) * 1000)\n"
    )
    milliseconds = float(installed.output("-c", code))
    assert milliseconds < 1, f"{milliseconds:.2f} ms"


def test_a_package_that_is_gone_is_not_missed(installed):
    (installed.packages / "zz_fake.pth").unlink()
    shutil.rmtree(installed.packages / "espnet_bimamba")
    assert installed.output("-c", "print('quiet')") == "quiet"
    (installed.packages / "espnet_bimamba" / "__pycache__").mkdir(parents=True)
    assert installed.output("-c", "print('quiet')") == "quiet"


def test_an_error_of_ours_at_start_is_not_hidden(installed):
    (installed.packages / "zz_fake.pth").unlink()
    installed.write({"espnet_bimamba/startup.py": "import no_such_package\n"})
    result = installed.run("-c", "print('runs')")
    assert result.stdout.strip() == "runs"
    assert "No module named 'no_such_package'" in result.stderr


def test_uninstalling_leaves_nothing(empty, wheel, pip):
    # pip removes site-packages, too, when nothing else is in it.
    empty.write({"other.py": ""})

    def files() -> set[Path]:
        return {path.relative_to(empty.folder) for path in empty.folder.rglob("*")}

    before = files()
    manage = [*pip, "--python", str(empty.python), "--disable-pip-version-check"]
    install = ["install", "--quiet", "--no-index", "--no-deps", "--no-cache-dir", str(wheel)]
    subprocess.run([*manage, *install], check=True)
    assert empty.output("-c", "import sys; print('espnet_bimamba' in sys.modules)") == "True"
    assert Path("bin/espnet-bimamba") in files()
    subprocess.run([*manage, "uninstall", "--quiet", "--yes", "espnet-bimamba"], check=True)
    assert empty.output("-c", "import sys; print('espnet_bimamba' in sys.modules)") == "False"
    assert files() == before


def test_an_editable_install_knows_them(empty, editable_wheel):
    empty.write(FAKE_ESPNET)
    zipfile.ZipFile(editable_wheel).extractall(empty.packages)
    assert not (empty.packages / "espnet_bimamba" / "__init__.py").exists()
    assert empty.output("-c", NAMES) == BOTH
    located = "import espnet_bimamba as e; print(e.__file__)"
    assert empty.output("-c", located) == str(ROOT / "espnet_bimamba" / "__init__.py")


def test_the_installed_command_finds_every_yaml(empty, wheel):
    zipfile.ZipFile(wheel).extractall(empty.packages)
    empty.write({"host.pth": HOST_PACKAGES})
    command = "from espnet_bimamba.cli import main; main(['conf', 'list', '--json'])"
    paths = {Path(file["path"]) for file in json.loads(empty.run("-c", command).stdout)}
    shipped = {path.relative_to(empty.packages / "espnet_bimamba" / "conf") for path in paths}
    assert shipped == {path.relative_to(ROOT / "conf") for path in (ROOT / "conf").rglob("*.yaml")}


@pytest.mark.slow
def test_espnets_own_command_takes_our_encoder(empty, wheel):
    zipfile.ZipFile(wheel).extractall(empty.packages)
    empty.write({"host.pth": HOST_PACKAGES})
    command = ["-m", "espnet2.bin.asr_train", "--print_config"]
    result = empty.run(*command, "--encoder", "conbimamba", "--encoder_conf", "num_blocks=3")
    assert re.search(r"^encoder: conbimamba$", result.stdout, re.MULTILINE)
    assert re.search(r"^    num_blocks: 3$", result.stdout, re.MULTILINE)
    assert re.search(r"^    mamba_type: extbimamba$", result.stdout, re.MULTILINE)
