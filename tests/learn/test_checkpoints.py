import json
from pathlib import Path

import pytest
import torch

from avtd3.learn.checkpoints import (
    FORMAT_VERSION,
    CheckpointMetadata,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from avtd3.learn.networks import NetworkConfig
from avtd3.learn.td3 import DECAYS, TD3Config, create_state, update
from avtd3.store.errors import CheckpointError, FormatVersionError
from avtd3.store.spec import ImageSpec

CPU = torch.device("cpu")


@pytest.fixture
def spec(make_spec):
    return make_spec(image=ImageSpec(height=36, width=36, stack=1))


@pytest.fixture
def make_state(spec, small_network):
    return lambda seed=0: create_state(spec, small_network, TD3Config(), CPU, seed)


def metadata(updates):
    return CheckpointMetadata(
        updates=updates, spec_digest="d", sampler={"state": 5}, config={"a": 1}, seconds=2.5
    )


def test_what_was_saved_is_what_is_loaded(tmp_path, make_state, make_batch, spec):
    state, noise = make_state(), torch.Generator().manual_seed(3)
    for seed in range(3):
        update(state, make_batch(spec, seed=seed), torch.randn(8, 2, generator=noise), TD3Config())
    path = save_checkpoint(tmp_path, state, noise, metadata(3))
    other, other_noise = make_state(seed=9), torch.Generator()
    assert load_checkpoint(path, other, other_noise) == metadata(3)
    assert other.updates == 3
    for each in (state, other):
        update(each, make_batch(spec, seed=7), torch.ones(8, 2), TD3Config())
    assert_equal(state, other)
    assert torch.equal(torch.rand(3, generator=noise), torch.rand(3, generator=other_noise))


def test_a_checkpoint_of_another_device_is_read_without_its_random_state(tmp_path, make_state):
    class OfGpu(torch.Generator):
        def get_state(self):
            return torch.zeros(16, dtype=torch.uint8)

    path = save_checkpoint(tmp_path, make_state(), OfGpu(), metadata(3))
    other = make_state(seed=1)
    assert load_checkpoint(path, other, None) == metadata(3)
    assert_equal(make_state(), other)
    with pytest.raises(CheckpointError, match="noise"):
        load_checkpoint(path, other, torch.Generator())


def assert_equal(state, other):
    for name in ("actor", "critic", "actor_target", "critic_target"):
        ours, theirs = getattr(state, name).state_dict(), getattr(other, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_the_range_of_the_targets_is_kept(tmp_path, make_batch, spec, small_network):
    config = TD3Config(target_clip_every=2)
    state, other = (create_state(spec, small_network, config, CPU, seed) for seed in (0, 1))
    for seed in range(3):
        update(state, make_batch(spec, seed=seed), torch.ones(8, 2), config)
    path = save_checkpoint(tmp_path, state, torch.Generator(), metadata(3))
    load_checkpoint(path, other, torch.Generator())
    assert state.value_range is not None
    assert other.value_range is not None
    assert torch.equal(other.value_range, state.value_range)
    for each in (state, other):
        update(each, make_batch(spec, seed=7), torch.ones(8, 2), config)
    assert_equal(state, other)


def test_a_run_may_continue_with_another_kind_of_decay(tmp_path, make_batch, spec, small_network):
    configs = [TD3Config(weight_decay_kind=kind, cnn_weight_decay=0) for kind in DECAYS]
    states = [create_state(spec, small_network, config, CPU, seed=0) for config in configs]
    for state, config in zip(states, configs, strict=True):
        update(state, make_batch(spec), torch.ones(8, 2), config)
    path = save_checkpoint(tmp_path, states[0], torch.Generator(), metadata(1))
    load_checkpoint(path, states[1], torch.Generator())
    for state, config in zip(states, configs, strict=True):
        update(state, make_batch(spec, seed=7), torch.ones(8, 2), config)
    assert_equal(*states)


def test_a_checkpoint_of_a_fresh_run_can_be_loaded(tmp_path, make_state):
    path = save_checkpoint(tmp_path, make_state(), torch.Generator(), metadata(0))
    other = make_state(seed=1)
    load_checkpoint(path, other, torch.Generator())
    assert not other.actor_optimizer.state


def test_milestones_and_the_newest_are_kept(tmp_path, make_state):
    state, noise = make_state(), torch.Generator()
    for updates in (10, 20, 30, 40):
        save_checkpoint(tmp_path, state, noise, metadata(updates))
    prune_checkpoints(tmp_path, 1, (20,))
    assert [path.name[-2:] for path in list_checkpoints(tmp_path)] == ["20", "40"]
    assert list_checkpoints(tmp_path / "nowhere") == []


def test_a_half_written_checkpoint_is_not_seen_and_is_cleaned_up(tmp_path, make_state):
    (tmp_path / ".update-000000005.1.tmp").mkdir()
    assert list_checkpoints(tmp_path) == []
    save_checkpoint(tmp_path, make_state(), torch.Generator(), metadata(5))
    assert [path.name for path in tmp_path.iterdir()] == ["update-000000005"]


def test_writing_the_same_update_again_replaces_it(tmp_path, make_state):
    save_checkpoint(tmp_path, make_state(), torch.Generator(), metadata(5))
    path = save_checkpoint(tmp_path, make_state(seed=1), torch.Generator(), metadata(5))
    state = make_state()
    load_checkpoint(path, state, torch.Generator())
    wanted = make_state(seed=1).actor.state_dict()
    assert all(torch.equal(v, wanted[k]) for k, v in state.actor.state_dict().items())


@pytest.mark.parametrize("file", ["tensors.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("damage", ["missing", "short", "flipped"])
def test_damage_is_found_and_named(tmp_path, make_state, file, damage):
    path = save_checkpoint(tmp_path, make_state(), torch.Generator(), metadata(1))
    data = bytearray((path / file).read_bytes())
    if damage == "missing":
        (path / file).unlink()
    else:
        data[len(data) // 2] ^= 0xFF
        (path / file).write_bytes(data[:-9] if damage == "short" else data)
    with pytest.raises(CheckpointError, match="update-000000001"):
        load_checkpoint(path, make_state(), torch.Generator())


@pytest.mark.parametrize("key", ["updates", "sampler", "tensors", "seconds"])
def test_a_document_without_a_key_is_refused(tmp_path, make_state, key):
    path = save_checkpoint(tmp_path, make_state(), torch.Generator(), metadata(1))
    document = json.loads((path / "checkpoint.json").read_text())
    del document[key]
    (path / "checkpoint.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError):
        load_checkpoint(path, make_state(), torch.Generator())


@pytest.mark.parametrize("version", [0, 2, 10**30, "1", None])
def test_another_format_version_is_refused(tmp_path, make_state, version):
    path = save_checkpoint(tmp_path, make_state(), torch.Generator(), metadata(1))
    document = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(document | {"format_version": version}))
    with pytest.raises(FormatVersionError, match="update avtd3"):
        load_checkpoint(path, make_state(), torch.Generator())


def test_the_documentation_states_the_only_format_version():
    text = (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()
    assert f"There is one format version of checkpoints so far, {FORMAT_VERSION}." in text


@pytest.mark.parametrize(
    "network",
    [NetworkConfig(hidden=(16,), features=24), NetworkConfig(hidden=(16, 8), features=24)],
)
def test_other_networks_are_refused(tmp_path, make_state, spec, network):
    path = save_checkpoint(tmp_path, make_state(), torch.Generator(), metadata(1))
    other = create_state(spec, network, TD3Config(), CPU, 0)
    before = [p.clone() for p in other.actor.parameters()]
    with pytest.raises(CheckpointError, match="settings of the run"):
        load_checkpoint(path, other, torch.Generator())
    assert all(torch.equal(a, b) for a, b in zip(before, other.actor.parameters(), strict=True))
