"""Rows in registers against NumPy in float64: every function, every half-precision number."""

import numpy as np
import pytest
import torch
from numba import njit

from espnet_bimamba.ops import cpu_lanes
from espnet_bimamba.ops.cpu_lanes import (
    LANES,
    add_sums,
    load,
    load_first,
    spread,
    store,
    store_first,
)
from espnet_bimamba.ops.cpu_runtime import kind


def apply(function, x):
    """Return ``function`` of every number of ``x``, whose size is a multiple of LANES."""

    @njit
    def rows(x, y):
        for i in range(0, x.size, LANES):
            store(y, i, function(load(x, i)))

    y = np.empty_like(x)
    rows(x, y)
    return y


def softplus(x):
    return np.where(x > 20, x, np.log1p(np.exp(x)))


def softplus_slope(x):
    return np.where(x > 20, 1, 1 / (1 + np.exp(-x)))


FUNCTIONS = [
    ("exp2", np.exp2, (-126, 127.5), 2),
    ("sigmoid", lambda x: 1 / (1 + np.exp(-x)), (-80, 80), 4),
    ("softplus", softplus, (-80, 80), 4),
    ("softplus_slope", softplus_slope, (-80, 80), 4),
]
NAMES = [name for name, *_ in FUNCTIONS]


@pytest.mark.parametrize(("name", "exact", "span", "ulps"), FUNCTIONS, ids=NAMES)
def test_float32_is_right_to_the_last_bits(name, exact, span, ulps):
    x = np.linspace(*span, 1_600_000, dtype=np.float32)
    expected = exact(x.astype(np.float64))
    error = np.abs(apply(getattr(cpu_lanes, name), x) - expected)
    assert (error / np.spacing(expected.astype(np.float32))).max() < ulps


@pytest.mark.parametrize(("name", "exact", "span", "_"), FUNCTIONS, ids=NAMES)
def test_float64_is_right_to_1e_15(name, exact, span, _):
    x = np.linspace(*span, 16_000)
    np.testing.assert_allclose(apply(getattr(cpu_lanes, name), x), exact(x), rtol=1e-15)


def test_exp2_near_zero_is_as_exact_as_the_number():
    # A decay of 2 ** -f forgets within 1 / f steps: its distance from 1 is what counts.
    x = -np.logspace(-7, -1, 1600).astype(np.float32)
    expected = np.exp2(x.astype(np.float64))
    error = np.abs(apply(cpu_lanes.exp2, x) - expected)
    assert error.max() <= 2.0**-24, "half a unit in the last place below 1, rounding up from it"


@pytest.mark.parametrize(
    ("x", "y"),
    [(0.0, 1.0), (-0.0, 1.0), (-1e4, 2.0**-126), (1e4, 2.0**127.5), (np.nan, np.nan)],
    ids=["zero", "minus_zero", "very_small", "very_large", "nan"],
)
def test_exp2_outside_its_range(x, y):
    result = apply(cpu_lanes.exp2, np.full(LANES, x, np.float32))
    np.testing.assert_allclose(result, np.full(LANES, y), rtol=1e-6)


@pytest.mark.parametrize("name", ["sigmoid", "softplus"])
def test_nan_and_infinity_keep_their_meaning(name):
    x = np.resize(np.array([np.nan, np.inf, -np.inf], np.float32), LANES)
    y = apply(getattr(cpu_lanes, name), x)
    limit = {"sigmoid": 1.0, "softplus": np.inf}[name]
    assert np.isnan(y[0])
    assert y[1] == limit
    assert 0 <= y[2] < 1e-37


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_precision_number_is_read(dtype):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(dtype)

    @njit
    def widen(x, y):
        for i in range(0, x.size, LANES):
            store(y, i, load(x, i))

    y = np.empty(2**16, np.float32)
    widen(every.view(torch.int16).numpy().view(kind(dtype).dtype), y)
    np.testing.assert_array_equal(y, every.float().numpy())


@pytest.mark.parametrize("count", [1, 3, LANES - 1, LANES])
def test_a_row_at_the_edge_reads_and_writes_no_further(count):
    @njit
    def copy(x, y, count):
        store_first(y, 2, load_first(x, 1, count), count)

    # The line ends where the row does: a whole row would read and write past it.
    x, y = np.arange(1.0, count + 2), np.zeros(count + 3)
    copy(x, y, count)
    assert y.tolist() == [0, 0, *x[1:], 0]


def test_what_is_not_read_of_a_row_is_zero():
    @njit
    def copy(x, y):
        store(y, 0, load_first(x, 0, 5))

    y = np.empty(LANES)
    copy(np.full(LANES, 7.0), y)
    assert y.tolist() == [7] * 5 + [0] * (LANES - 5)


def test_one_number_in_every_lane():
    @njit
    def copy(x, y):
        store(y, 0, spread(x, 3))

    y = np.empty(LANES)
    copy(np.arange(5.0), y)
    assert y.tolist() == [3] * LANES


def test_sums_over_lanes():
    @njit
    def sums(x, y):
        rows = load(x, 0), load(x, LANES), load(x, 2 * LANES), load(x, 3 * LANES)
        add_sums(y, 1, rows[0], rows[1], rows[2], rows[3])

    x, y = np.random.default_rng(0).standard_normal(4 * LANES), np.arange(6.0)
    sums(x, y)
    expected = np.arange(6.0)
    expected[1:5] += x.reshape(4, LANES).sum(1)
    np.testing.assert_allclose(y, expected, rtol=1e-14)
