"""The tree of sums against a plain running sum."""

import bisect
import itertools
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from avtd3.store.replay import draws as sum_tree
from avtd3.store.replay.draws import FAN_OUT, SumTree

# Whole numbers: all sums are exact, so the plain model has no rounding to excuse.
VALUES = st.lists(st.integers(0, 5), min_size=1, max_size=3 * FAN_OUT).filter(any)


@pytest.fixture(autouse=True, scope="module", params=[2, sum_tree.TOP], ids="top {}".format)
def top(request):
    """Trees of many levels and trees of few."""
    with mock.patch.object(sum_tree, "TOP", request.param):
        yield


def tree_of(values):
    return SumTree(np.array(values, np.float64))


@settings(deadline=None)
@given(values=VALUES, data=st.data())
def test_places_are_where_the_running_sum_passes_the_target(values, data):
    tree, running = tree_of(values), list(itertools.accumulate(values))
    assert tree.total == running[-1]
    targets = data.draw(st.lists(st.floats(0, running[-1], exclude_max=True), min_size=1))
    expected = [bisect.bisect_right(running, target) for target in targets]
    assert tree.find(np.array(targets)).tolist() == expected


@settings(deadline=None)
@given(values=VALUES, data=st.data())
def test_changed_values_make_the_tree_that_is_built_from_them(values, data):
    tree = tree_of(values)
    places = st.integers(0, len(values) - 1)
    for _ in range(3):
        changes = data.draw(st.lists(st.tuples(places, st.floats(0, 1e6)), min_size=1))
        where = np.array([place for place, _ in changes])
        tree.set(where, np.array([value for _, value in changes]))
        for place, value in changes:
            values[place] = value
    fresh = tree_of(values)
    assert tree.values(np.arange(len(values))).tolist() == values
    assert tree.total == fresh.total
    pairs = zip([*tree._levels, tree._top], [*fresh._levels, fresh._top], strict=True)
    for ours, theirs in pairs:
        assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize("size", [1, FAN_OUT, FAN_OUT + 1, FAN_OUT**2 + 1, 40 * FAN_OUT**3])
def test_no_rounding_finds_a_place_of_value_0(size):
    rng = np.random.default_rng(size)
    values = rng.exponential(size=size) ** 8 * (rng.random(size) < 0.2)
    values[size // 2] = 0.1
    tree = tree_of(values)
    edges = np.minimum(values.cumsum(), np.nextafter(tree.total, 0.0))
    for targets in (edges[:5000], edges[-5000:], np.nextafter(edges[-5000:], 0.0), [0.0]):
        assert (values[tree.find(np.array(targets))] > 0.0).all()
    assert values[tree.find(np.array([2.0 * tree.total]))] > 0.0


def test_the_last_of_two_values_for_one_place_counts():
    tree = tree_of([1.0, 1.0])
    tree.set(np.array([0, 0]), np.array([5.0, 3.0]))
    assert (tree.total, tree.values(np.array([0])).tolist()) == (4.0, [3.0])


def test_draws_are_in_proportion():
    values = np.random.default_rng(0).integers(0, 9, 5000).astype(np.float64)
    tree = tree_of(values)
    targets = np.random.default_rng(1).random(200_000) * tree.total
    drawn = np.bincount(tree.find(targets), minlength=5000)
    expected = 200_000 * values / tree.total
    live = expected > 0.0
    chi_square = ((drawn - expected)[live] ** 2 / expected[live]).sum()
    assert abs(chi_square - live.sum()) < 4 * (2 * live.sum()) ** 0.5
    assert not drawn[~live].any()
