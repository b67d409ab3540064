"""The stock recipes, where they are."""

from pathlib import Path

import pytest

from espnet_bimamba import recipes


@pytest.fixture(scope="session")
def tree():
    path = Path(__file__).parents[2] / ".cache" / f"espnet-{recipes.installed_version()}"
    if not path.is_dir():
        pytest.skip(f"ESPnet's stock recipes are not at {path}: `make recipes` brings them")
    return path
