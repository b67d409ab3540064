"""The programs under egs/, which are no package, as modules."""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

HOME = Path(__file__).resolve().parents[2]


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
