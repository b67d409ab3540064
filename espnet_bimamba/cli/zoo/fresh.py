"""Makes this interpreter like one of an environment with ESPnet, this package and no more.

Whoever packs a model has more installed: whisper, s3prl, transformers, of which the model may need
one. Here what neither of the two requires, extras left out, cannot be imported, and whoever asks
whether it is installed hears no. :mod:`espnet_bimamba.cli.zoo.probe` runs this file by its path, so
it imports nothing of this package.
"""

import csv
import importlib.util
import inspect
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import Distribution, DistributionFinder
from pathlib import PurePosixPath
from types import ModuleType

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

#: What somebody installs to use a packed model.
WANTED = ("espnet", "espnet-bimamba")

#: The distributions of each name; the first is the one in use.
Installed = Mapping[str, Sequence[Distribution]]


class HidingFinder:
    """Refuses modules, and leaves all others to the other finders.

    Args:
        hidden: What is refused, with the distribution that each module belongs to.
    """

    def __init__(self, hidden: Mapping[str, str]) -> None:
        self.hidden = hidden

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return None.

        Raises:
            ModuleNotFoundError: The module is hidden.
        """
        if name not in self.hidden:
            return None
        raise ModuleNotFoundError(
            f"No module named {name!r}: neither {' nor '.join(WANTED)} requires "
            f"{self.hidden[name]}, which has it here",
            name=name,
        )


def hide_others() -> None:
    """Hide all that an environment made for :data:`WANTED` would not hold.

    The standard library stays, and so does what belongs to no distribution, such as a folder that
    a ``.pth`` file names.

    Raises:
        PackageNotFoundError: One of them is not installed.
    """
    found = installed()
    kept = required(found)
    hidden = hidden_modules(found, kept)
    for name in hidden.keys() & sys.modules.keys():  # which a .pth file imported
        del sys.modules[name]
    sys.meta_path.insert(0, HidingFinder(hidden))
    _hide_from_find_spec(hidden)
    _hide_metadata(kept)


def installed() -> Installed:
    """Return what is installed, by normalised name."""
    found: dict[str, list[Distribution]] = {}
    for distribution in metadata.distributions():
        found.setdefault(_name(distribution), []).append(distribution)
    return found


def required(found: Installed) -> set[str]:
    """Return the names of :data:`WANTED` and of all that the two require, here, without extras.

    Raises:
        PackageNotFoundError: One of them is not installed.
    """
    for name in WANTED:
        if name not in found:
            raise metadata.PackageNotFoundError(name)
    pending, seen = [(name, "") for name in WANTED], set()
    while pending:
        name, extra = pending.pop()
        if name not in found or (name, extra) in seen:
            continue
        seen.add((name, extra))
        for requirement in map(Requirement, found[name][0].requires or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                # With the extras that it is required with: torch asks for cuda-toolkit[cublas].
                child = canonicalize_name(requirement.name)
                pending += [(child, each) for each in requirement.extras or ("",)]
    return {name for name, _ in seen}


def hidden_modules(found: Installed, kept: Collection[str]) -> dict[str, str]:
    """Return the modules that belong to others only, each with its distribution."""
    ours = {
        module
        for name in kept
        for distribution in found[name]
        for module in modules_of(distribution)
    }
    return {
        module: name
        for name, distributions in found.items()
        if name not in kept
        for distribution in distributions
        for module in modules_of(distribution) - ours
        # Backports, which Python looks for behind its own.
        if module.partition(".")[0] not in sys.stdlib_module_names
    }


def modules_of(distribution: Distribution) -> set[str]:
    """Return the dotted names of a distribution's modules, and of the packages that hold them."""
    # What is installed for editing lists no module, but setuptools notes the topmost.
    found = set((distribution.read_text("top_level.txt") or "").split())
    rows = csv.reader((distribution.read_text("RECORD") or "").splitlines())
    for path in (row[0] for row in rows if row and row[0]):
        *folders, file = PurePosixPath(path).parts
        module = inspect.getmodulename(file)
        names = folders if module == "__init__" else [*folders, module or "-"]
        if all(map(str.isidentifier, names)):
            found.update(".".join(names[:depth]) for depth in range(1, len(names) + 1))
    return found


def _name(distribution: Distribution) -> str:
    # An installation that was broken off leaves a folder without a name.
    return canonicalize_name(distribution.metadata.get("Name") or "")


def _hide_from_find_spec(hidden: Collection[str]) -> None:
    """Let None be the answer to who asks for a module without importing it."""
    find_spec = importlib.util.find_spec

    def found(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in hidden else find_spec(name, package)

    importlib.util.find_spec = found


def _hide_metadata(kept: Collection[str]) -> None:
    """Let versions and entry points, some of which torch and numba load, be of what is kept."""
    find = PathFinder.find_distributions

    def found(*context: DistributionFinder.Context) -> Iterator[Distribution]:
        return (each for each in find(*context) if _name(each) in kept)

    PathFinder.find_distributions = found  # type: ignore[assignment, method-assign]
