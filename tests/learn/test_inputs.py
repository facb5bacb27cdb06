"""The critics may see numbers that the actor, and so a policy, does not."""

import dataclasses

import numpy as np
import pytest
import torch

from avtd3.learn.config import LearnConfig
from avtd3.learn.networks import Actor, NetworkConfig, ObservationBatch, TwinCritic, actor_spec
from avtd3.learn.policy_store import PolicyStore
from avtd3.learn.td3 import TD3Config, create_state, update
from avtd3.learn.trainer import train
from avtd3.store.errors import ConfigError, SpecError
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.spec import ImageSpec

CPU = torch.device("cpu")
IMAGE = ImageSpec(height=36, width=36, stack=2)
PRIVILEGED = NetworkConfig(hidden=(16, 16), features=24, actor_inputs=("v1", "v[34]"))
SEEN, HIDDEN = [1, 3, 4], [0, 2]


def changed(observation, places):
    """The same observation with other numbers in some places of the vector."""
    vector = observation.vector.clone()
    vector[:, places] += 1.0
    return ObservationBatch(pixels=observation.pixels, vector=vector)


@pytest.mark.parametrize("image", [None, IMAGE])
@pytest.mark.parametrize("shared", [False, True])
def test_actions_do_not_depend_on_hidden_numbers_and_values_do(
    make_spec, make_batch, image, shared
):
    spec = make_spec(image=image)
    network = dataclasses.replace(PRIVILEGED, shared_encoder=shared)
    config = TD3Config(policy_delay=1, bc_alpha=2.5)
    state = create_state(spec, network, config, CPU, seed=0)
    batch = make_batch(spec)
    for seed in range(2):
        update(state, batch, torch.randn(8, 2, generator=torch.manual_seed(seed)), config)
    seen = batch.observation
    action = state.actor(seen)
    assert torch.equal(action, state.actor(changed(seen, HIDDEN)))
    for place in SEEN:
        assert not torch.equal(action, state.actor(changed(seen, [place])))
    value = state.critic.first(state.critic.encode(seen), action)
    for place in range(5):
        other = state.critic.encode(changed(seen, [place]))
        assert not torch.equal(value, state.critic.first(other, action))


def test_an_actor_that_shares_the_cnn_takes_its_part_of_the_critics_state(make_spec, make_batch):
    network = dataclasses.replace(
        PRIVILEGED, shared_encoder=True, vector_statistics=True, critic_inputs=("v*",)
    )
    spec = make_spec(image=IMAGE)
    state = create_state(spec, network, TD3Config(), CPU, seed=0)
    state.set_vector_statistics(torch.randn(50, 5))
    seen = make_batch(spec).observation
    own = state.actor.own_state(state.critic.encode(seen))
    torch.testing.assert_close(own, state.actor.encode(seen))
    assert own.shape == (8, 24 + 3)


@pytest.mark.parametrize("image", [None, IMAGE])
def test_naming_every_number_changes_nothing(make_spec, make_batch, image):
    spec = make_spec(image=image)
    plain = NetworkConfig(hidden=(16, 16), features=24)
    named = dataclasses.replace(plain, actor_inputs=("v*",), critic_inputs=("v?", "v0"))
    config, batch = TD3Config(policy_delay=1), make_batch(spec)
    states = [create_state(spec, network, config, CPU, seed=0) for network in (plain, named)]
    for state in states:
        update(state, batch, torch.zeros(8, 2), config)
    for ours, theirs in zip(*(state.actor.state_dict().values() for state in states), strict=True):
        assert torch.equal(ours, theirs)


def test_a_policy_has_the_inputs_of_the_actor_and_acts_the_same(
    tmp_path, make_spec, publish_episodes
):
    spec = make_spec(image=IMAGE)
    publish_episodes(tmp_path / "data", spec)
    network = dataclasses.replace(PRIVILEGED, vector_statistics=True)
    config = LearnConfig(
        updates=4, threads=1, network=network, replay=ReplayConfig(batch_size=8), checkpoint_every=2
    )
    train(config, datasets=tmp_path / "data", run=tmp_path / "run")
    store, expected = PolicyStore(tmp_path / "run" / "policies"), actor_spec(spec, network)
    assert expected.vector_names == ("v1", "v3", "v4")
    policy = store.latest(expected)
    assert policy is not None
    assert policy.spec == expected
    assert store.latest(spec) is not None  # it takes its inputs out of all
    with pytest.raises(SpecError, match="another spec"):
        store.latest(dataclasses.replace(spec, vector_names=("a", "b", "c", "d", "e")))
    frames = np.zeros(IMAGE.observation_shape, np.uint8)
    assert policy.act(frames, np.ones(3, np.float32)).shape == (2,)
    longer = dataclasses.replace(config, updates=6)
    report = train(longer, datasets=tmp_path / "data", run=tmp_path / "run", resume=True)
    assert report.updates == 6


def test_an_actor_may_see_the_images_alone(make_spec, make_batch):
    spec = make_spec(image=IMAGE)
    network = dataclasses.replace(PRIVILEGED, actor_inputs=("image",), vector_statistics=True)
    state = create_state(spec, network, TD3Config(), CPU, seed=0)
    state.set_vector_statistics(torch.randn(50, 5))
    seen = make_batch(spec).observation
    assert torch.equal(state.actor(seen), state.actor(changed(seen, range(5))))
    assert actor_spec(spec, network).vector_names == ()


@pytest.mark.parametrize(
    ("network", "image", "named"),
    [
        (NetworkConfig(actor_inputs=("speed",)), None, "actor_inputs has 'speed'.*v0, v1"),
        (NetworkConfig(actor_inputs=("image",)), None, "actor_inputs has 'image'"),
        (NetworkConfig(critic_inputs=("w*",)), IMAGE, "critic_inputs has 'w\\*'"),
        (
            NetworkConfig(shared_encoder=True, actor_inputs=("v0", "v1"), critic_inputs=("v0",)),
            IMAGE,
            "critic_inputs lacks v1",
        ),
    ],
)
def test_inputs_that_cannot_be_seen_are_refused(make_spec, network, image, named):
    with pytest.raises(ConfigError, match=named):
        (Actor(make_spec(image=image), network), TwinCritic(make_spec(image=image), network))


def test_rating_by_the_actors_features_needs_equal_inputs():
    with pytest.raises(ConfigError, match="critic_features"):
        LearnConfig(network=PRIVILEGED, td3=TD3Config(critic_features="actor"))
