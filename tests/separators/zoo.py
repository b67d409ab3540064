"""The separators under test: every row of the paper, and small ones of every kind of block."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from espnet_bimamba.separators.bimamba import BiMambaSeparator

Options = dict[str, Any]

BINS = 9


@dataclass(frozen=True)
class Row:
    """A row of the paper's tables of enhancement.

    Attributes:
        options: What it is in ``separator_conf``, but for its sizes.
        causal: What the paper's column "Causality" says.
        millions: Parameters by arithmetic, of the plain form.
        printed: What the paper prints.
    """

    options: Options
    causal: bool
    millions: float
    printed: float


# Layers -> parameters in millions, by arithmetic and as printed. Printed is cut or rounded as it
# comes, and wrong for Transformer-6 and Conformer-6.
_INDEPENDENT = {
    "mamba": {
        4: (1.885, 1.88),
        6: (2.762, 2.76),
        7: (3.200, 3.20),
        10: (4.515, 4.51),
        13: (5.830, 5.83),
        20: (8.898, 8.89),
    },
    "innbimamba": {9: (4.477, 4.48), 13: (6.409, 6.41)},
    "extbimamba": {
        3: (2.760, 2.76),
        4: (3.636, 3.64),
        5: (4.512, 4.51),
        6: (5.388, 5.39),
        7: (6.264, 6.26),
        10: (8.892, 8.89),
    },
}
_HOSTED = {
    ("transformer", "attention"): {4: (3.291, 3.29), 6: (4.871, 4.86)},
    ("transformer", "mamba"): {4: (3.990, 3.99), 6: (5.918, 5.92)},
    ("transformer", "innbimamba"): {4: (4.168, 4.17), 6: (6.185, 6.19)},
    ("transformer", "extbimamba"): {4: (5.741, 5.74), 6: (8.545, 8.54)},
    ("conformer", "attention"): {4: (6.225, 6.22), 6: (9.271, 9.26)},
    ("conformer", "mamba"): {4: (6.923, 6.92), 6: (10.319, 10.32)},
    ("conformer", "innbimamba"): {4: (7.101, 7.10), 6: (10.586, 10.59)},
    ("conformer", "extbimamba"): {4: (8.674, 8.67), 6: (12.945, 12.94)},
}
MISPRINTED = {"transformer6", "transformer6_causal", "conformer6", "conformer6_causal"}


def _rows() -> dict[str, Row]:
    rows = {}
    for mixer, sizes in _INDEPENDENT.items():
        for layers, counts in sizes.items():
            options = {"block_type": "independent", "mamba_type": mixer, "layers": layers}
            rows[f"{mixer}{layers}"] = Row(options, mixer == "mamba", *counts)
    for (block, mixer), sizes in _HOSTED.items():
        for layers, counts in sizes.items():
            options = {"block_type": block, "mamba_type": mixer, "layers": layers}
            if mixer != "attention":
                name = f"{block.removesuffix('former')}{mixer}{layers}"
                causal = mixer == "mamba"
                # A Transformer's block with Mamba is causal without a word.
                said = {"causal": causal} if block == "conformer" else {}
                rows[name] = Row(options | said, causal, *counts)
                continue
            rows[f"{block}{layers}"] = Row(options | {"causal": False}, False, *counts)
            rows[f"{block}{layers}_causal"] = Row(options | {"causal": True}, True, *counts)
    return rows


ROWS = _rows()

#: One of each kind of block, all that is in it, by a readable name.
KINDS: dict[str, Options] = {
    **{
        name: row.options | {"layers": 2}
        for name, row in ROWS.items()
        if name.removesuffix("_causal").endswith(("4", "9")) and name != "conmamba4"
    },
    "conmamba4": {"block_type": "conformer", "mamba_type": "mamba", "layers": 2},
    "conmamba_noncausal": {
        "block_type": "conformer",
        "mamba_type": "mamba",
        "causal": False,
        "layers": 2,
    },
    "extbimamba_concat": {"mamba_type": "extbimamba", "fusion": "concat", "layers": 2},
    "plain": {"mamba_type": "innbimamba", "ends": "plain", "layers": 2},
    "magnitude": {"mamba_type": "mamba", "target": "magnitude", "layers": 2},
    "two_speakers_and_noise": {
        "mamba_type": "mamba",
        "num_spk": 2,
        "predict_noise": True,
        "layers": 2,
    },
    "odd_kernel": {
        "block_type": "conformer",
        "mamba_type": "extbimamba",
        "conformer_enc_kernel_size": 5,
        "layers": 2,
    },
}
every_kind = pytest.mark.parametrize("options", KINDS.values(), ids=KINDS)


def tiny(options: Options) -> Options:
    """Make a block small, in whatever of its sizes it has."""
    sizes: Options = {"adim": 8}
    if options.get("mamba_type") == "attention":
        sizes["aheads"] = 2
    else:
        sizes["d_state"] = 4
    if options.get("block_type", "independent") != "independent":
        sizes["linear_units"] = 12
    if options.get("block_type") == "conformer":
        sizes["conformer_enc_kernel_size"] = 6
    return sizes | options


def build(
    options: Options, dtype: torch.dtype = torch.float64, bins: int = BINS
) -> BiMambaSeparator:
    """Build a small separator whose batch norms have seen something."""
    torch.manual_seed(0)
    separator = BiMambaSeparator(bins, **tiny(options)).to(dtype).eval()
    for module in separator.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return separator


def spectra(*shape: int, seed: int = 1, dtype: torch.dtype = torch.complex128) -> Tensor:
    """Draw complex spectra ``(batch, frames, bins)``."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
