"""The shape of the package: imports point down the stair, twins agree, docs and code agree."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import espnet_bimamba
from espnet_bimamba.ops.backends import BACKENDS, OPERATORS

PACKAGE = Path(espnet_bimamba.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
)

# A module stands on the floor of its longest prefix here and imports from lower floors only.
# What stands beside the stair may be used from every floor and uses none.
FLOORS = {
    "espnet_bimamba.errors": 0,
    "espnet_bimamba.files": 0,
    "espnet_bimamba.recipes": 1,
    "espnet_bimamba.scoring": 1,
    "espnet_bimamba.ops": 1,
    "espnet_bimamba.layers": 2,
    "espnet_bimamba.convolution": 3,
    "espnet_bimamba.encoders": 4,
    "espnet_bimamba.separators": 4,
    "espnet_bimamba.streaming": 4,
    "espnet_bimamba.registry": 5,
    "espnet_bimamba.startup": 6,
    "espnet_bimamba.cli": 6,
    "espnet_bimamba": 7,
}

ESPNET = {"espnet", "espnet2", "espnet3"}
KERNELS = {"numba", "triton", "mamba_ssm", "causal_conv1d", "kernels"}
# The operators and what they run on: the floors above the layers leave both to the layers.
OPERATION = KERNELS | {
    f"espnet_bimamba.ops.{name}"
    for name in (*OPERATORS, "backends", "cpu_runtime", "triton_runtime", "fused_runtime")
}
# Prefix of modules -> what none of them imports anywhere.
FORBIDDEN = {
    "espnet_bimamba.ops": ESPNET,
    "espnet_bimamba.layers": ESPNET | KERNELS,
    "espnet_bimamba.convolution": OPERATION,
    "espnet_bimamba.encoders": OPERATION,
    "espnet_bimamba.separators": OPERATION,
    "espnet_bimamba.streaming": OPERATION,
    "espnet_bimamba.registry": KERNELS | {"torch", "numpy"},
    "espnet_bimamba.startup": KERNELS | ESPNET | {"torch", "numpy"},
    "espnet_bimamba.recipes": KERNELS | ESPNET | {"torch", "numpy"},
    "espnet_bimamba.scoring": KERNELS | ESPNET | {"torch", "numpy"},
    "espnet_bimamba.errors": KERNELS | ESPNET | {"torch", "numpy"},
    "espnet_bimamba.files": KERNELS | ESPNET | {"torch", "numpy"},
    "espnet_bimamba.encoders.options": KERNELS | ESPNET | {"torch", "numpy"},
}
# Prefix of modules -> what none of them imports before one of its functions is called.
FORBIDDEN_AT_IMPORT = {"espnet_bimamba.cli": KERNELS | ESPNET | {"torch", "numpy"}}


def _source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _imports(module: str, *, at_import_only: bool = False) -> set[str]:
    """Names of the modules that a module imports, in functions too unless asked otherwise."""
    tree = ast.parse(_source(module).read_text())
    found: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if at_import_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if _is_type_checking(node):
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            # The version is the one thing that the floors take from the top.
            aliases = [alias for alias in node.names if alias.name != "__version__"]
            names = {f"{node.module}.{alias.name}" for alias in aliases}
            found.update({name if name in MODULES else str(node.module) for name in names})
        pending.extend(ast.iter_child_nodes(node))
    return found


def _is_type_checking(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "TYPE_CHECKING"
    )


def _is_below(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _floor(module: str) -> int:
    prefix = max((prefix for prefix in FLOORS if _is_below(module, prefix)), key=len)
    return FLOORS[prefix]


def _room(module: str) -> str:
    return ".".join(module.split(".")[:2])


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_the_stair(module):
    for name in _imports(module):
        if not _is_below(name, "espnet_bimamba") or _room(name) == _room(module):
            continue
        assert _floor(name) < _floor(module), f"{module} (floor {_floor(module)}) imports {name}"


@pytest.mark.parametrize("prefix", FORBIDDEN)
def test_what_a_room_never_imports(prefix):
    for module in MODULES:
        if _is_below(module, prefix):
            found = {
                name
                for name in _imports(module)
                if any(_is_below(name, forbidden) for forbidden in FORBIDDEN[prefix])
            }
            assert not found, f"{module} imports {sorted(found)}"


@pytest.mark.parametrize("prefix", FORBIDDEN_AT_IMPORT)
def test_what_a_room_imports_only_when_needed(prefix):
    for module in MODULES:
        if _is_below(module, prefix):
            found = {
                name
                for name in _imports(module, at_import_only=True)
                if any(_is_below(name, heavy) for heavy in FORBIDDEN_AT_IMPORT[prefix])
            }
            assert not found, f"{module} imports {sorted(found)}"


def _arguments(path: Path, function: str) -> str:
    (found,) = (
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == function
    )
    return ast.unparse(found.args)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backend_has_the_references_signature(operator, backend):
    # Read, not imported: not every backend can be imported everywhere.
    folder = PACKAGE / "ops" / operator
    reference = _arguments(folder / "reference.py", operator)
    assert _arguments(folder / f"{backend}.py", operator) == reference
    # A backend is given the tensor in lengths that are known to fit.
    public = _arguments(folder / "__init__.py", operator).replace("Tensor | Lengths |", "Tensor |")
    assert public == f"{reference}, backend: str | None=None"


@pytest.mark.parametrize("operator", OPERATORS)
def test_every_backend_file_is_in_the_table(operator):
    files = {path.stem for path in (PACKAGE / "ops" / operator).glob("*.py")}
    assert files - {"__init__"} == set(BACKENDS)


def _modules_after(code: str) -> set[str]:
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], check=True, capture_output=True, text=True
    )
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_nothing_heavy():
    bare = _modules_after("pass")
    heavy = KERNELS | ESPNET | {"torch", "numpy"}
    assert not heavy & bare, "this interpreter loads them at its start"
    assert _modules_after("import espnet_bimamba") - bare <= {"espnet_bimamba"}
    assert not heavy & _modules_after("import espnet_bimamba.recipes, espnet_bimamba.scoring")
    assert not heavy & _modules_after("import espnet_bimamba.cli")


def test_the_encoders_options_are_plain_data():
    loaded = _modules_after("import espnet_bimamba.encoders.options")
    assert not loaded & (KERNELS | ESPNET | {"torch", "numpy"})


VARIABLE = re.compile(r"ESPNET_BIMAMBA_[A-Z_]+")


def _variables_read() -> set[str]:
    constants = (
        node.value
        for path in [*PACKAGE.rglob("*.py"), ROOT / "tests" / "conftest.py"]
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )
    return {value for value in constants if VARIABLE.fullmatch(value)}


def test_every_environment_variable_is_documented_and_every_documented_one_exists():
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    documented = set(VARIABLE.findall("\n".join(path.read_text() for path in documents)))
    assert documented == _variables_read()


def test_recipe_runs_stand_where_make_looks_for_them():
    tests = Path(__file__).parent
    marked = [
        p for p in tests.rglob("*.py") if re.search(r"^[^#'\"]*mark\.recipe\b", p.read_text(), re.M)
    ]
    assert {path.parent for path in marked} == {tests / "recipes"}
