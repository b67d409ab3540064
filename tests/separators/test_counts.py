"""The paper's parameter counts, all of them, and which of the two ends they belong to."""

import pytest
import torch

from espnet_bimamba.layers.mamba import SelectiveSSM
from espnet_bimamba.separators.bimamba import BiMambaSeparator
from tests.separators.zoo import MISPRINTED, ROWS


@pytest.fixture
def count(monkeypatch):
    """Count the parameters of a model at the paper's sizes, without memory for them."""
    for cls in (torch.nn.Linear, torch.nn.modules.conv._ConvNd):
        monkeypatch.setattr(cls, "reset_parameters", lambda self: None)
    monkeypatch.setattr(SelectiveSSM, "espnet_initialization_fn", lambda self: None)

    def count(**options):
        with torch.device("meta"):
            model = BiMambaSeparator(257, **options)
        return sum(parameter.numel() for parameter in model.parameters())

    return count


def test_there_are_thirty_counts_in_thirty_four_rows():
    """Causal and non-causal baselines share a count."""
    assert len(ROWS) == 34
    assert len({name.removesuffix("_causal") for name in ROWS}) == 30
    assert sum(row.causal for row in ROWS.values()) == 14


@pytest.mark.parametrize(("name", "row"), ROWS.items(), ids=ROWS)
def test_a_row_has_the_papers_parameters(name, row, count):
    millions = count(**row.options, ends="plain") / 1e6
    assert millions == pytest.approx(row.millions, abs=0.00051)
    if name in MISPRINTED:
        assert 0.01 < millions - row.printed < 0.012
    else:
        assert millions == pytest.approx(row.printed, abs=0.01)


@pytest.mark.parametrize(("name", "row"), ROWS.items(), ids=ROWS)
def test_the_normalized_ends_add_768(name, row, count):
    """Two norms of 512 parameters for a bias of 256; at 0.01 million the counts cannot tell."""
    plain, normalized = (count(**row.options, ends=ends) for ends in ("plain", "normalized"))
    assert normalized - plain == 768
    assert count(**row.options) == normalized, "the default"
    if name not in MISPRINTED:
        assert normalized / 1e6 == pytest.approx(row.printed, abs=0.01)


def test_one_mixer_and_two_norms_are_what_differs_by_arithmetic(count):
    """From the shapes alone: the ends, and a layer of each kind."""
    ends = 257 * 256 + 256 + 256 * 257 + 257
    feed_forward = 256 * 1024 + 1024 + 1024 * 256 + 256
    convolution = (256 * 512 + 512) + (256 * 32 + 256) + 512 + (256 * 256 + 256)
    attention, mamba, norm = 4 * (256 * 256 + 256), 437_760, 512
    layers = {
        "mamba4": mamba + norm,
        "transformer4": attention + feed_forward + 2 * norm,
        "transmamba4": mamba + feed_forward + 2 * norm,
        "conformer4": attention + 2 * feed_forward + convolution + 5 * norm,
        "conmamba4": mamba + 2 * feed_forward + convolution + 5 * norm,
    }
    for name, layer in layers.items():
        assert count(**ROWS[name].options, ends="plain") == ends + 4 * layer
