"""The programs under egs/, which are no package, as modules."""

import importlib.util
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
