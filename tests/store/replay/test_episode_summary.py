import numpy as np
import pytest

from avtd3.store.replay.cache import EpisodeSummary
from avtd3.tests.store.memory import World, make_spec


def summarise(segment):
    return EpisodeSummary.of(segment.arrays, [about["end_reason"] for about in segment.about])


def check(summary, episodes):
    """The summary says of each episode what a plain loop finds."""
    assert len(summary) == len(episodes)
    for i, episode in enumerate(episodes):
        assert summary.returns[i] == episode.reward.sum(dtype=np.float64)
        assert summary.lengths[i] == episode.length
        assert summary.policy_versions[i] == episode.number
        assert summary.end_reasons[i] == ("goal" if episode.terminated else "time_limit")
        sums = [sum(map(float, column)) for column in episode.terms.T]
        assert summary.reward_term_sums[i] == pytest.approx(sums)
        vector = [] if episode.vector is None else episode.vector.T
        sizes = [sum(abs(float(v)) for v in column) / (episode.length + 1) for column in vector]
        assert summary.vector_mean_abs[i] == pytest.approx(sizes)


@pytest.mark.parametrize("vector", [0, 3])
@pytest.mark.parametrize("terms", [0, 2])
def test_each_episode_is_what_its_steps_add_up_to(vector, terms):
    spec = make_spec(vector=vector, terms=terms)
    world = World(spec)
    first = world.segment("a", [(3, True), (1, False), (7, True)])
    second = world.segment("b", [(2, False)])
    check(summarise(first), world.episodes[:3])
    joined = EpisodeSummary.join([summarise(first), summarise(second)], spec)
    check(joined, world.episodes)


def test_nothing_joined_has_no_rows_and_the_right_widths():
    empty = EpisodeSummary.join([], make_spec(vector=3, terms=2))
    assert len(empty) == 0
    assert empty.end_reasons == ()
    assert (empty.reward_term_sums.shape, empty.vector_mean_abs.shape) == ((0, 2), (0, 3))
