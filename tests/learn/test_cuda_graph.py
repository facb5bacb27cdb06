"""Recorded updates, without a GPU: the recorder here runs the function again instead."""

import dataclasses

import pytest
import torch

from avtd3.learn import device as graph
from avtd3.learn.device import WARM_UP, GraphedUpdate
from avtd3.learn.td3 import TD3Config, create_state, state_of, update
from avtd3.store.spec import ImageSpec

CPU = torch.device("cpu")
UPDATES = 30
NAMES = ("actor", "critic", "actor_target", "critic_target")


def weights(state):
    return {
        f"{name}.{key}": value.clone()
        for name in NAMES
        for key, value in getattr(state, name).state_dict().items()
    }


def alike(ours, theirs):
    """Compare two values up to the rounding of the rates, which a recording reads as float32."""
    for one, other in zip(graph._tensors(ours), graph._tensors(theirs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.fixture
def setting(make_spec, make_batch, small_network):
    spec = make_spec(image=ImageSpec(height=36, width=36, channels=1, stack=2))
    config = TD3Config(bc_alpha=2.5, bc_fade_from=16, bc_fade_until=20, target_clip_every=2)

    def fresh():
        return create_state(spec, small_network, config, CPU, seed=3)

    generator = torch.Generator().manual_seed(0)
    steps = [
        (make_batch(spec, seed=i), torch.randn(8, 2, generator=generator)) for i in range(UPDATES)
    ]
    return fresh, config, steps


def test_recorded_updates_are_the_plain_ones(setting):
    fresh, config, steps = setting
    plain, recorded = fresh(), fresh()
    recordings = []

    def recorder(work):
        recordings.append(work)
        return work

    graphed = GraphedUpdate(recorded, config, None, recorder)
    kept = []
    for number, (batch, noise) in enumerate(steps):
        share = 1.0 - number / UPDATES  # rates that fall all the time
        plain.scale_rates(share), recorded.scale_rates(share)
        kept.append((graphed(batch, noise), update(plain, batch, noise, config)))
        assert recorded.updates == plain.updates == number + 1
    assert len(recordings) == 3  # without the actor, with it, with it after imitation has faded
    for ours, theirs in kept:  # what an early one said is not overwritten by later ones
        alike(ours, theirs)
    ours, theirs = weights(recorded), weights(plain)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6)


def test_a_recording_reads_and_writes_the_same_memory_each_time(setting):
    fresh, config, steps = setting
    state = fresh()
    seen: list[list[int]] = []

    def recorder(work):
        def replay():
            work()
            seen.append([part.data_ptr() for part in graph._tensors(graphed._inputs)])

        return replay

    graphed = GraphedUpdate(state, config, None, recorder)
    held = [state.skipped_in_a_row.data_ptr(), state.skipped.data_ptr()]
    for batch, noise in steps:
        graphed(batch, noise)
    assert len(seen) == UPDATES - 3 * WARM_UP - 1  # imitation is fading in one
    assert all(places == seen[0] for places in seen)
    assert held == [state.skipped_in_a_row.data_ptr(), state.skipped.data_ptr()]


def test_a_batch_that_is_not_finite_changes_nothing_and_is_counted(setting):
    fresh, config, steps = setting
    state = fresh()
    graphed = GraphedUpdate(state, config, None, lambda work: work)
    for batch, noise in steps:
        graphed(batch, noise)
    before = weights(state)
    batch, noise = steps[0]
    torn = dataclasses.replace(batch, reward=batch.reward * float("nan"))
    graphed(torn, noise)
    assert (float(state.skipped), float(state.skipped_in_a_row)) == (1.0, 1.0)
    for name, value in weights(state).items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    graphed(batch, noise), graphed(batch, noise)
    assert float(state.skipped_in_a_row) == 0.0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_recorded_updates_on_a_gpu_are_the_plain_ones_but_for_rounding(setting):
    fresh, config, steps = setting
    cuda = torch.device("cuda")
    states = [fresh() for _ in range(2)]
    plain, recorded = (state_of(s.actor.to(cuda), s.critic.to(cuda), config) for s in states)
    graphed = GraphedUpdate(recorded, config, None)
    for batch, noise in steps:
        batch, noise = graph.map_tensors(lambda part: part.cuda(), (batch, noise))
        ours, theirs = graphed(batch, noise), update(plain, batch, noise, config)
        torch.testing.assert_close(ours.critic.loss, theirs.critic.loss, rtol=1e-4, atol=1e-6)
    ours, theirs = weights(recorded), weights(plain)
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-3, atol=1e-5)
