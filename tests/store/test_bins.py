"""Counts between edges, and how near to nothing most values are: figures known by hand."""

import numpy as np
import pytest

from avtd3.store.audit.bins import Bins, near_zero, strip
from avtd3.store.audit.statistics import Distribution


def binned(values, **options):
    bins = Bins.of(np.asarray(values, np.float64), **options)
    assert bins is not None
    return bins


def test_bins_hold_every_finite_value():
    bins = binned([0.0, 1.0, np.nan, 2.5, np.inf, 10.0])
    assert bins.counts.sum() == 4
    assert (bins.edges[0], bins.edges[-1]) == (0.0, 10.0)
    assert Bins.of(np.array([np.nan])) is None
    assert binned(np.full(5, 7.25)).counts.tolist() == [5.0]
    assert binned([3.0, 4.0, 4.0, 6.0]).counts.tolist() == [1.0, 2.0, 0.0, 1.0]
    assert binned([0.0, 1.0, 2.0, 9.5], most=2).counts.tolist() == [3.0, 1.0]


def test_the_share_near_zero_is_of_the_largest_size():
    steer = Distribution.of(np.array([-1.0, -0.05, 0.0, 0.04, 0.06, 0.5]), "steer")
    assert near_zero(steer) == (0.05, 0.5)


@pytest.mark.parametrize(
    ("values", "width", "drawn"),
    [
        # counts of 1, 9 and 4; 2, 0 and 1; every bin with a value is seen, and none without
        ([0.0] + [1.1] * 9 + [3.0] * 4, 3, ".@="),
        ([0.0, 0.5, 3.0], 3, "@ +"),
        ([1.0], 4, "@@@@"),
        ([0.0, 1.0, 1.0], 4, "++@@"),
    ],
)
def test_a_strip_is_darkest_where_most_values_are(values, width, drawn):
    assert strip(binned(values, most=width), width) == drawn
