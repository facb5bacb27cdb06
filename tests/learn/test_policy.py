import json
import shutil

import numpy as np
import pytest
import safetensors.numpy
import torch

from avtd3.learn import policy as policy_module
from avtd3.learn.networks import Actor, NetworkConfig
from avtd3.learn.policy import Policy, PolicyActor
from avtd3.learn.policy_store import PolicyStore
from avtd3.store import files
from avtd3.store.errors import CheckpointError, FormatVersionError, SpecError
from avtd3.store.spec import ImageSpec
from avtd3.store.step import Observation

CONFIG = NetworkConfig(hidden=(8,), features=16)


@pytest.fixture
def spec(make_spec):
    return make_spec(image=ImageSpec(height=36, width=36, stack=2), vector=3)


@pytest.fixture
def actor(spec):
    torch.manual_seed(0)
    return Actor(spec, CONFIG)


@pytest.fixture
def directory(tmp_path):
    return PolicyStore(tmp_path / "policies")


def observation(spec):
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, spec.image.observation_shape, dtype=np.uint8)
    return frames, rng.normal(size=spec.vector_size).astype(np.float32)


def newest(directory, spec):
    policy = directory.latest(spec)
    assert policy is not None
    return policy


def rewrite(path, header=None, tensors=None):
    """Change a policy file, and update its sidecar."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    found = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["avtd3_policy"])
    arrays = safetensors.numpy.load(data) if tensors is None else tensors
    text = json.dumps(found | (header or {}))
    altered = safetensors.numpy.save(arrays, metadata={"avtd3_policy": text})
    path.write_bytes(altered)
    sidecar = json.loads(path.with_suffix(".json").read_text())
    sidecar["sha256"] = files.sha256(altered)
    path.with_suffix(".json").write_text(json.dumps(sidecar))


def test_a_published_policy_drives_as_the_actor_did(directory, actor, spec):
    assert directory.latest(spec) is None
    assert directory.newest_version() is None
    assert directory.publish(actor, spec, CONFIG, updates=7) == 0
    policy = directory.latest(spec)
    assert (policy.version, policy.updates, policy.spec) == (0, 7, spec)
    assert policy.digest == files.sha256((directory.path_of(0)).read_bytes())
    frames, vector = observation(spec)
    direct = Policy(actor, spec, version=0, updates=7).act(frames, vector)
    action = policy.act(frames, vector)
    assert action.dtype == np.float32
    assert action.shape == (2,)
    np.testing.assert_array_equal(action, direct)
    np.testing.assert_array_equal(action, policy.act(frames, vector))


def test_a_new_version_is_taken_and_the_same_one_kept(directory, actor, spec):
    directory.publish(actor, spec, CONFIG, updates=0)
    first = directory.poll(None, spec)
    assert directory.poll(first, spec) is first
    assert directory.publish(actor, spec, CONFIG, updates=5) == 1
    second = directory.poll(first, spec)
    assert (second.version, second.updates) == (1, 5)
    assert Policy.load(directory.path_of(0)).version == 0


def test_a_truncated_newest_policy_leaves_the_last_good_one_and_warns_once(directory, actor, spec):
    directory.publish(actor, spec, CONFIG, updates=0)
    good = directory.poll(None, spec)
    directory.publish(actor, spec, CONFIG, updates=1)
    path = directory.path_of(1)
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    assert directory.poll(good, spec) is good
    assert "policy-00000001" in directory.warning
    assert directory.poll(good, spec) is good
    assert directory.warning == ""
    assert newest(PolicyStore(directory.path), spec).version == 0
    path.write_bytes(whole)
    assert directory.poll(good, spec).version == 1


def test_a_truncated_latest_file_is_no_reason_to_stop(directory, actor, spec):
    directory.publish(actor, spec, CONFIG, updates=0)
    for text in ("", "[]", '{"version": 0, "file": "../../etc/passwd", "sha256": "x"}'):
        (directory.path / "LATEST.json").write_text(text)
        reader = PolicyStore(directory.path)
        assert reader.poll(None, spec) is None
        assert "LATEST.json" in reader.warning
        assert newest(reader, spec).version == 0


@pytest.mark.parametrize("position", [3, 60, -5])
def test_a_flipped_bit_is_found(directory, actor, spec, position):
    directory.publish(actor, spec, CONFIG, updates=0)
    path = directory.path_of(0)
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="SHA-256"):
        Policy.load(path)


def test_a_policy_without_its_sidecar_is_refused(directory, actor, spec, tmp_path):
    directory.publish(actor, spec, CONFIG, updates=0)
    alone = tmp_path / directory.path_of(0).name
    shutil.copy(directory.path_of(0), alone)
    with pytest.raises(CheckpointError, match="together"):
        Policy.load(alone)


def test_a_policy_of_another_spec_is_refused_with_the_difference(directory, actor, spec, make_spec):
    directory.publish(actor, spec, CONFIG, updates=0)
    other = make_spec(image=spec.image, vector=4)
    with pytest.raises(SpecError, match="vector_names"):
        directory.latest(other)


def test_a_file_too_large_is_refused_before_it_is_read(directory, actor, spec, monkeypatch):
    directory.publish(actor, spec, CONFIG, updates=0)
    monkeypatch.setattr(policy_module, "MAX_POLICY_BYTES", 1000)
    with pytest.raises(CheckpointError, match="1000"):
        Policy.load(directory.path_of(0))


def test_a_file_with_a_valid_digest_is_still_checked(directory, actor, spec):
    path = directory.path_of(0)
    directory.publish(actor, spec, CONFIG, updates=0)
    good = safetensors.numpy.load(path.read_bytes())
    name = "head.layers.1.bias"
    cases = [
        ({"format_version": 99}, None, FormatVersionError, "update avtd3"),
        ({"network": {"hidden": [60000, 60000]}}, None, CheckpointError, "header"),
        ({"network": {"depth": 3}}, None, CheckpointError, "invalid"),
        ({"network": {"hidden": [8], "features": 1.5}}, None, CheckpointError, "invalid"),
        ({"spec": {}}, None, CheckpointError, "invalid"),
        ({"version": "x"}, None, CheckpointError, "not a policy"),
        (None, {k: v for k, v in good.items() if k != name}, CheckpointError, name),
        (None, good | {name: good[name][:1]}, CheckpointError, name),
        (None, good | {name: good[name].astype(np.float64)}, CheckpointError, "float64"),
        (None, good | {name: good[name] * np.float32("nan")}, CheckpointError, "finite"),
    ]
    for header, tensors, error, match in cases:
        shutil.rmtree(directory.path)
        directory.publish(actor, spec, CONFIG, updates=0)
        rewrite(path, header, tensors)
        with pytest.raises(error, match=match):
            Policy.load(path)


@pytest.mark.parametrize("data", [b"", b"\xff" * 64, b"\x10" + bytes(7) + b"[" * 16])
def test_files_that_are_not_policies_are_refused(directory, actor, spec, data):
    directory.publish(actor, spec, CONFIG, updates=0)
    path = directory.path_of(0)
    path.write_bytes(data)
    sidecar = {"version": 0, "file": path.name, "sha256": files.sha256(data)}
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    with pytest.raises(CheckpointError, match="not a policy"):
        Policy.load(path)


def test_an_observation_of_another_shape_is_refused(actor, spec):
    policy = Policy(actor, spec, version=0, updates=0)
    frames, vector = observation(spec)
    for wrong in ((frames[:1], vector), (None, vector), (frames, None), (frames, vector[:2])):
        with pytest.raises(SpecError, match="expected"):
            policy.act(*wrong)


def test_an_action_that_is_not_finite_is_never_given(actor, spec):
    policy = Policy(actor, spec, version=3, updates=0)
    frames, vector = observation(spec)
    vector[0] = np.nan
    with pytest.raises(CheckpointError, match="policy 3"):
        policy.act(frames, vector)


def test_pruning_keeps_the_newest(directory, actor, spec):
    for updates in range(4):
        directory.publish(actor, spec, CONFIG, updates=updates)
    directory.prune(2)
    assert directory.versions() == [2, 3]
    assert len(list(directory.path.iterdir())) == 5
    assert directory.publish(actor, spec, CONFIG, updates=4) == 4


def test_a_version_that_another_process_takes_is_skipped(directory, actor, spec, monkeypatch):
    directory.publish(actor, spec, CONFIG, updates=0)
    monkeypatch.setattr("avtd3.learn.policy_store.list_versions", lambda _: [])
    before = (directory.path_of(0)).read_bytes()
    assert directory.publish(actor, spec, CONFIG, updates=1) == 1
    assert (directory.path_of(0)).read_bytes() == before


def test_the_same_weights_give_the_same_bytes(actor, spec, tmp_path):
    digests = set()
    for name in ("one", "two"):
        directory = PolicyStore(tmp_path / name)
        directory.publish(actor, spec, CONFIG, updates=0)
        digests.add(newest(directory, spec).digest)
    assert len(digests) == 1


def test_a_directory_loads_its_newest_policy(directory, actor, spec):
    with pytest.raises(CheckpointError, match="missing"):
        Policy.load(directory.path)
    directory.path.mkdir()
    with pytest.raises(CheckpointError, match="contains no policy"):
        Policy.load(directory.path)
    for updates in (3, 5):
        directory.publish(actor, spec, CONFIG, updates=updates)
    assert Policy.load(str(directory.path)).updates == 5
    (directory.path / "LATEST.json").unlink()
    assert Policy.load(directory.path).version == 1


def test_an_actor_sees_the_stacks_that_the_sampler_rebuilds(actor, spec):
    policy = Policy(actor, spec, version=0, updates=0)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (4, *spec.image.frame_shape), dtype=np.uint8)
    vectors = rng.normal(size=(4, spec.vector_size)).astype(np.float32)
    player = PolicyActor(policy)
    for _ in range(2):  # the second episode must not see the first one
        player.reset()
        for t, (image, vector) in enumerate(zip(images, vectors, strict=True)):
            stack = np.concatenate([images[max(0, t - 1)], image])
            action = player.act(Observation(image=image, vector=vector))
            np.testing.assert_array_equal(action, policy.act(stack, vector))


def test_an_actor_refuses_an_image_of_another_shape_and_stays_usable(actor, spec):
    policy = Policy(actor, spec, version=0, updates=0)
    player = PolicyActor(policy)
    player.reset()
    frames, vector = observation(spec)
    for image in (None, frames, frames[:, :30]):
        with pytest.raises(SpecError, match="expected"):
            player.act(Observation(image=image, vector=vector))
    action = player.act(Observation(image=frames[:1], vector=vector))
    np.testing.assert_array_equal(action, policy.act(frames[[0, 0]], vector))
