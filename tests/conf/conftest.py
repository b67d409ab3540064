"""The stock recipes, which no test fetches itself."""

from pathlib import Path

import pytest

from espnet_bimamba import recipes


@pytest.fixture(scope="session")
def tree():
    path = Path(__file__).parents[2] / ".cache" / f"espnet-{recipes.installed_version()}"
    if not path.is_dir():
        # Skipped, the comparisons with ESPnet would be missed by nobody.
        pytest.fail(f"{path} is not there: run `make recipes` (or `make test-quick`) first")
    return path
