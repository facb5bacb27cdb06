import numpy as np
import pytest

from avtd3.learn.config import LearnConfig
from avtd3.learn.networks import NetworkConfig
from avtd3.learn.td3 import TD3Config
from avtd3.store.errors import ConfigError
from avtd3.store.replay.config import ReplayConfig


def test_rates_fall_linearly_from_the_given_update_to_the_last():
    config = LearnConfig(updates=100, decay_from=60, decay_to=0.2)
    shares = [config.rate_share(updates) for updates in (0, 60, 70, 80, 100, 150)]
    np.testing.assert_allclose(shares, [1.0, 1.0, 0.8, 0.6, 0.2, 0.2])


def test_rates_stay_without_a_decay():
    assert LearnConfig(updates=100).rate_share(100) == 1.0


@pytest.mark.parametrize("share", [0.0, 1.5, float("nan")])
def test_an_impossible_share_is_refused(share):
    with pytest.raises(ConfigError, match="decay_to"):
        LearnConfig(decay_to=share)


def test_imitation_of_some_data_needs_imitation():
    replay = ReplayConfig(imitate=("policy=none",))
    with pytest.raises(ConfigError, match="imitate is"):
        LearnConfig(replay=replay)
    assert LearnConfig(replay=replay, td3=TD3Config(bc_alpha=2.5)).replay.imitate


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"seed": 2**64}, "seed"),
        ({"seed": 10**400}, "seed"),
        ({"updates_per_step": float("nan")}, "updates_per_step"),
        ({"keep_best": "offline/td_error"}, "held_out"),
        ({"keep_best": "x" * 10**6}, "keep_best"),
        (
            {
                "network": NetworkConfig(conv_norm="batch"),
                "replay": ReplayConfig(batch_size=1),
            },
            "batch_size",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_that_cannot_work_are_refused_before_the_run(settings, named):
    with pytest.raises(ConfigError, match=named) as caught:
        LearnConfig(**settings)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "settings",
    [
        {"hidden": (8,) * 65},
        {"hidden": ()},
        {"hidden": (8.0,)},
        {"features": True},
        {"features": 1.5},
        {"feature_clamp": float("nan")},
        {"feature_clamp": "1"},
        {"feature_norm": 1},
        {"activation": ["relu"]},
    ],
    ids=str,
)
def test_a_network_of_another_type_is_refused(settings):
    (name,) = settings
    with pytest.raises(ConfigError, match=f"network.{name}"):
        NetworkConfig(**settings)


def test_a_filter_that_cannot_be_read_is_refused():
    with pytest.raises(ConfigError, match="driver-is"):
        ReplayConfig(imitate=("driver-is=expert",))
