"""Registers our classes in every ESPnet task as soon as the task has been imported.

``espnet_bimamba.pth`` imports this module when the interpreter starts, so it imports only
what the interpreter has loaded by then, and does no work before ESPnet is imported.
"""

import os
import sys

from espnet_bimamba import registry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any


class HostFinder:
    """Finds ESPnet's task modules through the other finders, and registers once they have run.

    The module keeps the loader that found it, so ``inspect.getsource``, ``importlib.reload``
    and ``__loader__`` are what they are without us.
    """

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Find the spec of a host module; None leaves any other module to the other finders."""
        if name not in registry.HOSTS:
            return None
        for finder in sys.meta_path[sys.meta_path.index(self) + 1 :]:
            spec = finder.find_spec(name, path, target)
            if spec is None:
                continue
            if spec.loader is not None:
                _register_after_execution(spec.loader)
            return spec
        return None


def install() -> None:
    """Register in every host module, now if it is imported already, else when it will be.

    Calling it again changes nothing. ``ESPNET_BIMAMBA_DISABLE=1`` turns it off.
    """
    if os.environ.get("ESPNET_BIMAMBA_DISABLE") == "1":
        return
    if not is_installed():
        sys.meta_path.insert(0, HostFinder())
    for name in registry.HOSTS:
        if name in sys.modules:
            registry.register(sys.modules[name])


def is_installed() -> bool:
    """Whether this interpreter registers us in the tasks that it imports."""
    return any(isinstance(finder, HostFinder) for finder in sys.meta_path)


def _register_after_execution(loader: "Any") -> None:
    execute = loader.exec_module

    def execute_and_register(module: "ModuleType") -> None:
        execute(module)
        # A loader may serve more than one module, a zip archive's does.
        if module.__name__ in registry.HOSTS:
            registry.register(module)

    try:
        loader.exec_module = execute_and_register
    except AttributeError:
        registry.warn_once(
            f"espnet-bimamba cannot register its classes: {type(loader).__name__}, which loads "
            "ESPnet here, does not let itself be extended. `import espnet_bimamba` after the task."
        )
