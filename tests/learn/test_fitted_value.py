"""`fitted_value` on small decision processes whose values are known."""

import numpy as np
import pytest

from avtd3.learn.evaluation import FittedEpisode, fitted_value

STATES, GAMMA = 6, 0.9


def one_hot(state, action):
    found = np.zeros(2 * STATES)
    found[2 * state + action] = 1.0
    return found


def drive(rng, policy, length=40):
    """Walk on a line with random actions: 1 goes right, 0 stays; the last state pays 1 and ends."""
    features, own, reward, discount = [], [one_hot(0, policy)], [], []
    state = 0
    for _ in range(length):
        action = int(rng.integers(2))
        features.append(one_hot(state, action))
        state += action
        ends = state == STATES - 1
        own.append(one_hot(state, policy))
        reward.append(1.0 if ends else -0.05)
        discount.append(0.0 if ends else GAMMA)
        if ends:
            break
    arrays = (np.array(each, np.float64) for each in (features, own, reward, discount))
    return FittedEpisode(
        **dict(zip(("features", "own", "reward", "discount"), arrays, strict=True))
    )


def value_of_going_right(state):
    steps = STATES - 1 - state
    return sum(GAMMA**t * -0.05 for t in range(steps - 1)) + GAMMA ** (steps - 1)


def value_of_staying(state):
    return -0.05 / (1.0 - GAMMA)


@pytest.mark.parametrize(("policy", "value"), [(1, value_of_going_right), (0, value_of_staying)])
def test_the_value_of_a_policy_comes_from_random_drives(policy, value):
    rng = np.random.default_rng(0)
    episodes = [drive(rng, policy) for _ in range(200)]
    found = fitted_value(episodes)
    assert found is not None
    states = [episode.features.argmax(axis=1) // 2 for episode in episodes]
    expected = np.mean([np.mean([value(s) for s in visited]) for visited in states])
    mean, low, high = found
    assert mean == pytest.approx(expected, abs=0.06)
    assert low <= mean <= high


def test_better_policies_are_ranked_higher():
    rng = np.random.default_rng(1)
    staying, going = (fitted_value([drive(rng, policy) for _ in range(20)]) for policy in (0, 1))
    assert staying is not None
    assert going is not None
    assert staying[2] < going[1]


def test_the_same_episodes_give_the_same_value():
    rng = np.random.default_rng(2)
    episodes = [drive(rng, 1) for _ in range(10)]
    assert fitted_value(episodes) == fitted_value(episodes)


def test_more_episodes_have_a_narrower_interval():
    rng = np.random.default_rng(3)
    few, many = (fitted_value([drive(rng, 1) for _ in range(count)]) for count in (10, 160))
    assert few is not None
    assert many is not None
    assert many[2] - many[1] < 0.5 * (few[2] - few[1])


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
            own=np.concatenate([e.own[:1], 30.0 * e.features]),
            reward=e.reward,
            discount=np.full(len(e.reward), GAMMA),
        )
        for e in episodes
    ]
    assert fitted_value(wild) is None
