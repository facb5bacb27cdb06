"""Bins and the share of values near zero, against numbers known by hand."""

import numpy as np

from avtd3.store.audit.statistics import Bins, Distribution, near_zero


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
