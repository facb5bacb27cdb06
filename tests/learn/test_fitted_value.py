"""`fitted_value` on small decision processes whose values are known."""

import numpy as np
import pytest

from avtd3.learn.fitted_value import FittedEpisode, fitted_value

STATES, GAMMA = 6, 0.9


def one_hot(state, action):
    found = np.zeros(2 * STATES)
    found[2 * state + action] = 1.0
    return found


def drive(rng, policy, length=40, terminates=True):
    """Walk on a line with random actions: 1 goes right, 0 stays; the last state pays 1 and ends."""
    features, after, reward, discount = [], [], [], []
    state = 0
    first = one_hot(0, policy)
    for _ in range(length):
        action = int(rng.integers(2))
        following = state + action
        ends = following == STATES - 1
        features.append(one_hot(state, action))
        after.append(one_hot(following, policy))
        reward.append(1.0 if ends else -0.05)
        discount.append(0.0 if ends and terminates else GAMMA)
        state = 0 if ends and not terminates else following
        if ends and terminates:
            break
    arrays = (np.array(each, np.float64) for each in (features, after, reward, discount))
    names = ("features", "next_features", "reward", "discount")
    return FittedEpisode(**dict(zip(names, arrays, strict=True)), first=first)


def value_of_going_right():
    steps = STATES - 1
    return sum(GAMMA**t * -0.05 for t in range(steps - 1)) + GAMMA ** (steps - 1)


@pytest.mark.parametrize(
    ("policy", "expected"), [(1, value_of_going_right()), (0, -0.05 / (1.0 - GAMMA))]
)
def test_the_value_of_a_policy_comes_from_random_drives(policy, expected):
    rng = np.random.default_rng(0)
    found = fitted_value([drive(rng, policy) for _ in range(200)])
    assert found is not None
    assert found.mean == pytest.approx(expected, abs=0.06)
    assert found.low <= found.mean <= found.high


def test_better_policies_are_ranked_higher():
    rng = np.random.default_rng(1)
    staying, going = (fitted_value([drive(rng, policy) for _ in range(20)]) for policy in (0, 1))
    assert staying is not None
    assert going is not None
    assert staying.high < going.low


def test_the_same_episodes_give_the_same_value():
    rng = np.random.default_rng(2)
    episodes = [drive(rng, 1) for _ in range(10)]
    assert fitted_value(episodes) == fitted_value(episodes)


def test_the_interval_comes_from_the_first_states():
    rng = np.random.default_rng(3)
    episodes = [drive(rng, 1) for _ in range(20)]
    found = fitted_value(episodes)
    assert found is not None
    assert found.high - found.low < 0.2  # all start alike, only the fits differ


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_episodes_have_no_value(count):
    rng = np.random.default_rng(4)
    assert fitted_value([drive(rng, 1) for _ in range(count)]) is None


def test_values_without_a_fixed_point_are_not_reported():
    rng = np.random.default_rng(5)
    episodes = [drive(rng, 1) for _ in range(10)]
    wild = [
        FittedEpisode(
            features=e.features,
            next_features=30.0 * e.features,
            reward=e.reward,
            discount=np.full(len(e.reward), GAMMA),
            first=e.first,
        )
        for e in episodes
    ]
    assert fitted_value(wild) is None
