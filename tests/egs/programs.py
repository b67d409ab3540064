"""The programs under egs/, which are no package, as modules and in copies."""

import contextlib
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from espnet_bimamba import recipes
from tests.test_recipes import FILES, write_sdist

HOME = Path(__file__).resolve().parents[2]

#: What ``local/data.sh`` of a recipe that ESPnet lacks calls of its template.
DATA_STAGE = {
    "utils/parse_options.sh": "",
    "utils/validate_data_dir.sh": "",
    "path.sh": "",
    "db.sh": "LIBRISPEECH=downloads\n",
}


def load(program: str) -> ModuleType:
    """The module that a file, named from the root of the repository, holds."""
    spec = importlib.util.spec_from_file_location(Path(program).stem, HOME / program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def modules_of(folder: str, *names: str) -> Iterator[list[ModuleType]]:
    """Import modules of ``egs/<folder>`` as a script there would; forget them afterwards.

    Another folder may have modules of the same names.
    """
    place = HOME / "egs" / folder
    sys.path.insert(0, str(place))
    try:
        yield [importlib.import_module(name) for name in names]
    finally:
        sys.path.remove(str(place))
        for name in {path.stem for path in place.glob("*.py")} & sys.modules.keys():
            del sys.modules[name]


def own_runner(
    recipe: str, folder: Path, script: str, task: str = "asr", conf: Sequence[str] = ()
) -> Callable[..., subprocess.CompletedProcess]:
    """A copy of the runner of a recipe that ESPnet lacks, as a function of its options.

    Another ``program`` may be called, in another ``place``.

    Args:
        recipe: Its folder below ``egs``.
        folder: Where the copy goes, and where the runner is called.
        script: What stands in for ESPnet's ``asr.sh`` or ``enh.sh``.
        task: ``asr`` or ``enh``.
        conf: Its folders below ``conf``, if they are called otherwise.
    """
    for part in (f"egs/{recipe}", *(f"conf/{name}" for name in conf or (recipe,))):
        shutil.copytree(HOME / part, folder / part)
    shutil.copy(HOME / "egs/options.sh", folder / "egs")
    version = recipes.installed_version()
    files = FILES | {f"egs2/TEMPLATE/{task}1/{task}.sh": f"#!/bin/bash\n{script}"}
    for name, text in DATA_STAGE.items():
        files |= {f"egs2/TEMPLATE/{kind}/{name}": text for kind in ("asr1", f"{task}1")}
    write_sdist(folder / ".cache" / f"espnet-{version}.tar.gz", files, f"espnet-{version}")

    runner = folder / "egs" / recipe / f"{task}1" / "run.sh"

    def call(
        *options: str, program: Path | str = runner, place: Path = folder
    ) -> subprocess.CompletedProcess:
        environment = os.environ | {"PATH": f"{sys.prefix}/bin:{os.environ['PATH']}"}
        return subprocess.run(
            [program, *options],
            env=environment | {"PYTHONPATH": str(HOME)},
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )

    return call
