import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtd3.collect.mixture import BASE_DRIVERS, Mixture
from avtd3.store.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "names", "shares"),
    [
        ("expert", ["expert"], [1.0]),
        ("random", ["random"], [1.0]),
        ("policy+gaussian=0.1", ["policy+gaussian=0.1"], [1.0]),
        ("expert+noise", ["expert+noise=0.2"], [1.0]),
        ("policy+gaussian=0.20/0.05", ["policy+gaussian=0.2/0.05"], [1.0]),
        ("3:expert,1:random", ["expert", "random"], [0.75, 0.25]),
        (
            "0.6:expert, 0.3:expert+noise=0.30,0.1:random",
            ["expert", "expert+noise=0.3", "random"],
            [0.6, 0.3, 0.1],
        ),
    ],
)
def test_mixtures_are_parsed(text, names, shares):
    mixture = Mixture.parse(text)
    assert [driver.name for driver in mixture.drivers] == names
    assert [driver.share for driver in mixture.drivers] == pytest.approx(shares)
    assert Mixture.parse(mixture.text) == mixture


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        ("", "''"),
        ("export", "'1:export'"),
        ("expert,random", "'expert'"),
        ("0.5:expert,", "''"),
        ("0:expert", "above 0"),
        ("-1:expert", "above 0"),
        ("nan:expert", "above 0"),
        ("half:expert", "'half:expert'"),
        ("1:expert+wind", "'1:expert\\+wind'"),
        ("1:expert+noise=0", "above 0"),
        ("1:expert+noise=9", "at most 2"),
        ("1:expert+noise=1.2.3", "1.2.3"),
        ("1:expert+noise=0.1/", "0.1/"),
        ("1:expert+noise=0/0", "above 0"),
        ("1:expert+noise=0.1/3", "at most 2"),
        ("1:expert=0.2", "'1:expert=0.2'"),
    ],
)
def test_bad_mixtures_name_the_bad_part(text, bad):
    with pytest.raises(ConfigError, match=bad):
        Mixture.parse(text)


def test_an_unknown_driver_is_refused_with_the_valid_ones():
    with pytest.raises(ConfigError, match=", ".join(BASE_DRIVERS)):
        Mixture.parse("autopilot")


@given(st.integers(0, 2**62))
def test_sampling_depends_on_the_generator_alone(seed):
    mixture = Mixture.parse("1:expert,2:random,3:expert+noise")
    draws = [mixture.sample(np.random.default_rng(seed)) for _ in range(2)]
    assert draws[0] == draws[1]
    assert draws[0] in range(3)


def test_shares_are_kept():
    mixture = Mixture.parse("1:expert,3:random")
    rng = np.random.default_rng(0)
    assert np.mean([mixture.sample(rng) for _ in range(4000)]) == pytest.approx(0.75, abs=0.03)


def test_exploration_noise_is_added_to_plain_policies_only():
    explored = Mixture.parse("1:expert,1:policy,1:policy+noise=0.5").exploring(0.1)
    names = [driver.name for driver in explored.drivers]
    assert names == ["expert", "policy+gaussian=0.1", "policy+noise=0.5"]
    assert explored.needs_policy
    assert Mixture.parse("policy").exploring(0.0).drivers[0].name == "policy"
    assert not Mixture.parse("expert").needs_policy
