import copy
import dataclasses
import errno
import json
import math
import os
import re
import shutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from avtd3.learn import policy as policy_module
from avtd3.learn.networks import Actor, NetworkConfig
from avtd3.learn.policy import (
    HEADER_KEY,
    Policy,
    PolicyActor,
    find_fault,
    fit_spec,
    sample_observations,
)
from avtd3.learn.policy_store import PolicyStore
from avtd3.store import files
from avtd3.store.errors import (
    CheckpointError,
    FormatVersionError,
    InUseError,
    SpecError,
    UnreadableError,
)
from avtd3.store.spec import EpisodeSpec, ImageSpec
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


def polled(directory, current, spec):
    policy = directory.poll(current, spec)
    assert policy is not None
    return policy


def read_document(path):
    """The document in the header of a policy file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(json.loads(data[8 : 8 + size])["__metadata__"][HEADER_KEY])


def rewrite(path, header=None, tensors=None):
    """Change a policy file, and update its sidecar."""
    data, found = path.read_bytes(), read_document(path)
    arrays = safetensors.numpy.load(data) if tensors is None else tensors
    text = json.dumps(found | (header or {}))
    replace(path, safetensors.numpy.save(arrays, metadata={"avtd3_policy": text}))


def replace(path, data):
    """Replace the bytes of a policy file, and update its sidecar."""
    path.write_bytes(data)
    sidecar = json.loads(path.with_suffix(".json").read_text())
    sidecar["sha256"] = files.sha256(data)
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


def test_loading_imports_no_compiler(directory, actor, spec):
    directory.publish(actor, spec, CONFIG, updates=1)
    script = (
        "import sys; from avtd3.learn.policy import Policy; Policy.load(sys.argv[1]); "
        "assert 'torch' in sys.modules and 'torch._dynamo' not in sys.modules"
    )
    command = [sys.executable, "-c", script, str(directory.path)]
    subprocess.run(command, check=True, timeout=300)


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
        policy = polled(reader, None, spec)
        assert policy.version == 0
        assert "LATEST.json" in reader.warning
        assert reader.poll(policy, spec) is policy
        assert reader.warning == ""


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
    other = make_spec(image=spec.image, vector=2)
    with pytest.raises(SpecError, match="vector_names"):
        directory.latest(other)


def test_a_policy_that_sees_less_acts_on_its_own_inputs(directory, actor, spec, make_spec):
    directory.publish(actor, spec, CONFIG, updates=0)
    wider = make_spec(image=spec.image, vector=6)
    wider = dataclasses.replace(wider, vector_names=tuple(reversed(wider.vector_names)))
    policy = newest(directory, wider)
    frame = np.zeros(spec.image.frame_shape, np.uint8)
    vector = np.arange(spec.vector_size, dtype=np.float32)
    own = PolicyActor(policy).act(Observation(image=frame, vector=vector))
    seen = np.concatenate([np.full(6 - len(vector), 9.0, np.float32), vector[::-1]])
    assert np.array_equal(
        own, PolicyActor(policy, wider).act(Observation(image=frame, vector=seen))
    )


@pytest.mark.parametrize(
    ("period_s", "steps"), [(0.1, 1), (0.05, 2), (0.02, 5), (0.1 / 3.0, 3), (0.08, None)]
)
def test_a_policy_fits_periods_that_divide_its_own(make_spec, period_s, steps):
    own = dataclasses.replace(make_spec(), control_period_s=0.1)
    fit = fit_spec(own, dataclasses.replace(own, control_period_s=period_s))
    assert (fit and fit.steps) == steps


@pytest.mark.parametrize(
    "changes",
    [
        {"vector_scales": (2.0, 1.0, 1.0, 1.0, 1.0)},
        {"action_high": (1.0, 2.0)},
        {"vector_names": ("v0", "v1", "v2", "v3", "w")},
        {"image": ImageSpec()},
    ],
)
def test_a_policy_fits_nothing_else(make_spec, changes):
    assert fit_spec(make_spec(), dataclasses.replace(make_spec(), **changes)) is None


@pytest.mark.parametrize(("stride", "version"), [(1, 1), (3, 2)])
def test_a_policy_stacks_frames_as_far_apart_as_in_its_training(
    directory, actor, spec, stride, version
):
    directory.publish(actor, spec, CONFIG, updates=0, stack_stride=stride)
    header = read_document(directory.path_of(0))
    assert header["format_version"] == version
    policy = newest(directory, spec)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (12, *spec.image.frame_shape), np.uint8)
    vector = np.zeros(spec.vector_size, np.float32)
    player, size = PolicyActor(policy), spec.image.stack
    for t in range(12):
        rows = [max(0, t - (size - 1 - j) * stride) for j in range(size)]
        expected = policy.act(np.concatenate(frames[rows]), vector)
        played = player.act(Observation(image=frames[t], vector=vector))
        assert np.array_equal(expected, played)


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
        (None, {k: v for k, v in good.items() if k != name}, CheckpointError, name),
        (None, good | {name: good[name][:1]}, CheckpointError, name),
        (None, good | {name: good[name].astype(np.float64)}, CheckpointError, "F64"),
        (None, good | {name: good[name] * np.float32("nan")}, CheckpointError, "finite"),
    ]
    for header, tensors, error, match in cases:
        shutil.rmtree(directory.path)
        directory.publish(actor, spec, CONFIG, updates=0)
        rewrite(path, header, tensors)
        with pytest.raises(error, match=match):
            Policy.load(path)


DEEP = "[" * 100_000
HEADERS: list[Any] = [
    *[{"version": x} for x in (math.inf, "7", 1.5, True, 10**30, -5, None, [1], "x" * 10**6)],
    *[{"updates": x} for x in (math.inf, math.nan, -1, "3", 10**30)],
    *[{"action_limit": x} for x in ("0.5", 0, -1.0, 2, math.nan, math.inf, True, [0.5], None)],
    *[{"stack_stride": x} for x in ("1", 0, -1, 1.5, True, 10**9, None)],
    {"network": {"hidden": [8], "features": 16, "actor_inputs": ["v0"]}},
    *[{"format_version": x} for x in ("1", True, 1.0, None, -1)],
    {"spec": None},
    {"spec": {}},
    {"spec": []},
    {"spec": "x"},
    {"spec": {"image": 10**400}},
    {"network": None},
    {"network": []},
    {"network": {"depth": 3}},
    {"network": {"hidden": [8], "depth": 3}},
    *[{"network": {"hidden": x}} for x in ([], "88", [8] * 200_000, [8.0], [True], ["8"], [-8])],
    *[{"network": {"hidden": [8], "features": x}} for x in (1.5, True, "16", 0, 10**30, None)],
    *[{"network": {"hidden": [8], "feature_clamp": x}} for x in (math.nan, "1", -1.0, True)],
    *[{"network": {"hidden": [8], "activation": x}} for x in ("gelu", None, 1, ["relu"])],
    {"network": {"hidden": [8], "feature_norm": 1}},
    {"network": {"hidden": [60_000] * 64, "features": 60_000}},
]


@pytest.mark.parametrize("header", HEADERS, ids=lambda header: str(header)[:60])
def test_an_invalid_field_of_the_header_is_named(directory, actor, spec, header):
    directory.publish(actor, spec, CONFIG, updates=0)
    path = directory.path_of(0)
    rewrite(path, header)
    (field,) = header
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))}.*{field}") as caught:
        Policy.load(path)
    assert len(str(caught.value)) < 1000


IMAGE_FIELDS = ["channels", "height", "width", "stack"]


@pytest.mark.parametrize("value", [0, -1, 10**30, 4097, 1.5, "36", True, None, math.inf, [36]])
@pytest.mark.parametrize("field", [*IMAGE_FIELDS, "action_names", "action_low", "vector_scales"])
def test_an_invalid_field_of_the_spec_is_named(directory, actor, spec, field, value):
    directory.publish(actor, spec, CONFIG, updates=0)
    document = spec.to_json()
    if field in IMAGE_FIELDS:
        document["image"][field] = value
    else:
        document[field] = [value, value] if field == "action_names" else value
    path = directory.path_of(0)
    rewrite(path, {"spec": document})
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        Policy.load(path)


def test_the_largest_image_costs_nothing(directory, actor, spec):
    directory.publish(actor, spec, CONFIG, updates=0)
    image = dict.fromkeys(IMAGE_FIELDS, 4096)
    path = directory.path_of(0)
    rewrite(path, {"spec": spec.to_json() | {"image": image}})
    with pytest.raises(CheckpointError, match="weights of its network take"):
        Policy.load(path)


def header_of(metadata=None, **tensors):
    text = json.dumps({"__metadata__": metadata} | tensors).encode()
    return len(text).to_bytes(8, "little") + text


def test_a_file_with_very_many_tensors_is_refused_by_their_number(directory, actor, spec):
    directory.publish(actor, spec, CONFIG, updates=0)
    path = directory.path_of(0)
    data = path.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    names = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)}
    replace(path, header_of(metadata, **names))
    with pytest.raises(CheckpointError, match="number of tensors is 20000"):
        Policy.load(path)
    replace(path, (10**12).to_bytes(8, "little") + data[8:])
    with pytest.raises(CheckpointError, match="expected at most"):
        Policy.load(path)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 64,
        b"\x10" + bytes(7) + b"[" * 16,
        len(DEEP).to_bytes(8, "little") + DEEP.encode(),
        *map(header_of, (None, [], {}, {"avtd3_policy": DEEP}, {"avtd3_policy": "[]"})),
        *(header_of({"avtd3_policy": x}) for x in (None, 7, "{", "7", '"x"')),
    ],
    ids=range(14),
)
def test_files_that_are_not_policies_are_refused(directory, actor, spec, data):
    directory.publish(actor, spec, CONFIG, updates=0)
    path = directory.path_of(0)
    replace(path, data)
    with pytest.raises(CheckpointError, match="not a policy"):
        Policy.load(path)


def test_an_observation_of_another_shape_is_refused(actor, spec):
    policy = Policy(actor, spec, version=0, updates=0)
    frames, vector = observation(spec)
    wrongs = [(frames[:1], vector), (None, vector), (frames, None), (frames, vector[:2])]
    wrongs += [(frames.astype(np.float32), vector), (frames, vector.astype(np.float64))]
    for wrong in wrongs:
        with pytest.raises(SpecError, match="expected"):
            policy.act(*wrong)


def test_an_action_that_is_not_finite_is_never_given(actor, spec):
    policy = Policy(actor, spec, version=3, updates=0)
    frames, vector = observation(spec)
    vector[0] = np.nan
    with pytest.raises(CheckpointError, match="policy 3"):
        policy.act(frames, vector)


def test_weights_that_answer_nothing_finite_are_skipped_once_they_are_rejected(
    directory, actor, spec
):
    directory.publish(actor, spec, CONFIG, updates=0)
    drove = directory.poll(None, spec)
    overflowing = Actor(spec, CONFIG)
    with torch.no_grad():
        for parameter in overflowing.head.parameters():
            parameter.fill_(3e38)
        overflowing.head.layers[-1].get_parameter("weight")[:, ::2] = -3e38
    directory.publish(overflowing, spec, CONFIG, updates=1)
    policy = directory.poll(drove, spec)
    assert policy.version == 1
    with pytest.raises(CheckpointError, match="policy 1") as caught:
        policy.act(*observation(spec))
    directory.reject(policy, str(caught.value))
    for current in (drove, policy):
        assert directory.poll(current, spec).version == 0
    directory.reject(policy, "again")
    assert directory.poll(drove, spec) is drove
    assert directory.warning.endswith("again")
    assert directory.poll(drove, spec) is drove
    assert directory.warning == ""
    assert newest(directory, spec).version == 0
    directory.publish(actor, spec, CONFIG, updates=2)
    assert directory.poll(drove, spec).version == 2


@pytest.fixture
def loads(monkeypatch):
    """Names of the policy files that were read, in order."""
    read = []
    before = files.read_bytes

    def read_bytes(path, *limits):
        read.append(path.name)
        return before(path, *limits)

    monkeypatch.setattr(files, "read_bytes", read_bytes)
    return read


def test_the_newest_policy_that_loads_is_used_and_bad_ones_are_read_once(
    directory, actor, spec, loads
):
    for updates in range(5):
        directory.publish(actor, spec, CONFIG, updates=updates)
    for version in (2, 3, 4):
        rewrite(directory.path_of(version), {"version": "7"})
    reader = PolicyStore(directory.path)
    policy = polled(reader, None, spec)
    assert policy.version == 1
    assert all(f"policy-0000000{version}" in reader.warning for version in (2, 3, 4))
    loads.clear()
    for current in (policy, None):
        found = polled(reader, current, spec)
        assert (found.version, reader.warning) == (1, "")
    assert set(loads) <= {"LATEST.json", "policy-00000001.json", "policy-00000001.safetensors"}
    rewrite(directory.path_of(3), {"version": 3})
    assert polled(reader, policy, spec).version == 3
    old = reader.poll(None, spec)
    directory.publish(actor, spec, CONFIG, updates=6)
    rewrite(directory.path_of(5), {"updates": math.inf})
    assert reader.poll(old, spec) is old
    assert "policy-00000005" in reader.warning


def test_many_bad_policies_make_a_short_warning(directory, actor, spec):
    for updates in range(8):
        directory.publish(actor, spec, CONFIG, updates=updates)
        rewrite(directory.path_of(updates), {"version": -5})
    assert directory.poll(None, spec) is None
    assert directory.warning.endswith("and 5 more")


def test_a_policy_of_another_spec_does_not_replace_one_that_drives(
    directory, actor, spec, make_spec
):
    directory.publish(actor, spec, CONFIG, updates=0)
    current = directory.poll(None, spec)
    other = make_spec(image=spec.image, vector=4)
    directory.publish(Actor(other, CONFIG), other, CONFIG, updates=1)
    assert directory.poll(current, spec) is current
    assert "another spec" in directory.warning
    assert newest(PolicyStore(directory.path), spec).version == 0
    assert newest(directory, other).version == 1


def test_a_policy_that_cannot_be_read_now_is_read_later(directory, actor, spec, monkeypatch):
    directory.publish(actor, spec, CONFIG, updates=0)
    current = directory.poll(None, spec)
    directory.publish(actor, spec, CONFIG, updates=1)

    def fail(path, *_):
        raise OSError(errno.ESTALE, "stale file handle", str(path))

    with monkeypatch.context() as broken:
        broken.setattr(files, "read_bytes", fail)
        assert directory.poll(current, spec) is current
        assert "unreadable now" in directory.warning
        assert directory.poll(current, spec) is current
        assert directory.warning == ""
        assert directory.poll(None, spec) is None
        for read in (directory.latest, lambda spec: Policy.load(directory.path_of(1), spec=spec)):
            with pytest.raises(UnreadableError, match="unreadable now"):
                read(spec)
    assert directory.poll(current, spec).version == 1


@pytest.mark.parametrize("kind", ["fifo", "directory", "device"])
def test_a_path_that_is_no_file_is_refused_at_once(directory, actor, spec, kind):
    directory.publish(actor, spec, CONFIG, updates=0)
    path = directory.path_of(0)
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(CheckpointError):
        Policy.load(path)


def test_the_largest_version_has_no_successor(directory, actor, spec):
    directory.publish(actor, spec, CONFIG, updates=0)
    for suffix in (".safetensors", ".json"):
        path = directory.path_of(0).with_suffix(suffix)
        path.rename(directory.path_of(10**18 - 1).with_suffix(suffix))
    with pytest.raises(CheckpointError, match="move it away"):
        directory.publish(actor, spec, CONFIG, updates=1)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from avtd3.learn.networks import Actor, NetworkConfig
from avtd3.learn.policy_store import PolicyStore
from avtd3.store.spec import EpisodeSpec

torch.set_num_threads(1)
spec = EpisodeSpec(vector_names=("x",), action_names=("a",))
config = NetworkConfig(hidden=(4,))
actor = Actor(spec, config)
left = 0

def count(event, args):
    global left
    if event in ("open", "os.link", "os.rename", "os.remove", "os.mkdir") and "kill-" in str(args):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(count)
for versions in (0, 1):
    for number in range(1, 100):
        store = PolicyStore(Path(sys.argv[1]) / f"kill-{versions}-{number:02}")
        for updates in range(versions):
            store.publish(actor, spec, config, updates=updates)
        child = os.fork()
        if child == 0:
            left = number
            store.publish(actor, spec, config, updates=versions)
            os._exit(0)
        if os.waitpid(child, 0)[1] == 0:
            break
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Directories whose learner was killed before each file operation of a publication."""
    root = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, "-c", KILLED, str(root)], check=True, timeout=120)
    return sorted(root.iterdir())


def test_a_learner_that_is_killed_leaves_no_half_of_a_policy(killed):
    assert len(killed) > 20
    left = set()
    for directory in killed:
        versions = int(directory.name.split("-")[1])
        reader = PolicyStore(directory)
        policy = reader.poll(None, None)
        assert reader.warning == "", directory
        found = -1 if policy is None else policy.version
        assert found in (versions - 1, versions)
        assert max(reader.versions(), default=-1) in (found, found + 1)
        left.add((versions, found, (directory / "LATEST.json").exists()))
    assert {(0, -1, False), (0, 0, False), (0, 0, True), (1, 0, True), (1, 1, True)} <= left


def test_the_next_learner_completes_what_a_killed_one_left(killed, tmp_path):
    spec = EpisodeSpec(vector_names=("x",), action_names=("a",))
    config = NetworkConfig(hidden=(4,))
    for directory in killed:
        copy = tmp_path / directory.name
        shutil.copytree(directory, copy)
        store = PolicyStore(copy)
        newest_version = store.newest_version()
        assert store.repair(spec) == newest_version
        names = {path.name for path in copy.iterdir()}
        kinds = (".safetensors", ".json")
        whole = {store.path_of(v).with_suffix(k).name for v in store.versions() for k in kinds}
        assert names == (whole | {"LATEST.json"} if whole else set())
        version = store.publish(Actor(spec, config), spec, config, updates=9)
        assert version == (0 if newest_version is None else newest_version + 1)
        assert newest(PolicyStore(copy), spec).updates == 9


def test_weights_without_their_sidecar_are_no_policy(directory, actor, spec):
    directory.publish(actor, spec, CONFIG, updates=0)
    directory.path_of(0).with_suffix(".json").unlink()
    (directory.path / "LATEST.json").unlink()
    assert (directory.versions(), directory.latest(spec)) == ([], None)
    assert directory.repair(spec) is None
    assert directory.publish(actor, spec, CONFIG, updates=0) == 1
    assert newest(directory, spec).version == 1


def test_an_actor_that_would_not_drive_is_found(actor, spec, make_batch):
    observed = make_batch(spec).observation
    assert find_fault(actor, observed) == ""
    assert find_fault(actor, sample_observations(spec, torch.device("cpu"))) == ""
    bad = [copy.deepcopy(actor) for _ in range(3)]
    with torch.no_grad():
        bad[0].head.layers[0].bias[0] = math.nan
        bad[1].head.layers[-1].weight.fill_(3e38)
        bad[1].head.layers[-1].weight[:, ::2] = -3e38
        bad[1].head.layers[0].bias.fill_(3e38)
        bad[2].squash = lambda x: actor.squash(x) * 1.5 + 0.9
    for broken, fault in zip(bad, ("layers.0.bias", "not finite", "bounds"), strict=True):
        assert fault in find_fault(broken, observed)


def test_pruning_keeps_the_newest(directory, actor, spec):
    for updates in range(4):
        directory.publish(actor, spec, CONFIG, updates=updates)
    directory.prune(2)
    assert directory.versions() == [2, 3]
    assert len(list(directory.path.iterdir())) == 5
    assert directory.publish(actor, spec, CONFIG, updates=4) == 4


def test_a_version_that_another_process_takes_is_skipped(directory, actor, spec, monkeypatch):
    directory.publish(actor, spec, CONFIG, updates=0)
    monkeypatch.setattr("avtd3.learn.policy_store.list_versions", lambda *_, **__: [])
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


def test_two_learners_in_one_directory_are_revealed_by_their_runs(actor, spec, tmp_path):
    def publish(store):
        store.publish(actor, spec, CONFIG, updates=0)
        collector.poll(None, spec)
        return collector.warning

    path = tmp_path / "policies"
    collector, old = PolicyStore(path), PolicyStore(path)  # which knows no ids
    one, two = PolicyStore(path, run="1a"), PolicyStore(path, run="2b")
    assert publish(old) == publish(one) == publish(one) == ""
    assert json.loads((path / "policy-00000002.json").read_bytes())["run"] == "1a"
    assert json.loads((path / "LATEST.json").read_bytes())["run"] == "1a"
    assert publish(two) == "", "a run may continue after another one"
    with pytest.raises(InUseError, match=r"another learner, run 2b, which published policy-0+3"):
        publish(one)
    assert publish(old) == ""
    resumed = PolicyStore(path, run="1a")  # it cannot know that run 2b has not ended
    assert "two learners publish in" in publish(resumed)
    with pytest.raises(InUseError, match="run 1a"):
        publish(two)
    path.joinpath("LATEST.json").unlink()
    resumed.repair(spec)
    assert json.loads((path / "LATEST.json").read_bytes())["run"] == "1a"
