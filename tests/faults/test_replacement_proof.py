"""No segment hides or removes another one unless its bytes contain the other one's episodes."""

import dataclasses
import shutil

import pytest

from avtd3.store.dataset import Dataset, Snapshot
from avtd3.store.format.codec import crc32c
from avtd3.store.format.layout import MANIFEST_FILE
from avtd3.store.format.manifest import read_manifest
from avtd3.store.maintenance import compact as compact_module
from avtd3.store.maintenance import removal as removal_module
from avtd3.store.maintenance.compact import compact
from avtd3.store.maintenance.derive import relabel
from avtd3.store.maintenance.prune import PruneConfig, prune
from avtd3.store.replaced import REPLACES
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.faults.flaky import flaky
from avtd3.tests.store.damage import flip, rebuild_manifest, zero_a_run
from avtd3.tests.store.maintenance.datasets import START, fill, identity, publish
from avtd3.tests.store.segments import assert_holds

LATER = START + 1000.0


def digests(dataset):
    return {segment.id: segment.manifest_digest for segment in dataset.snapshot().segments}


def claim(dataset, segment_id, replaces):
    """Let a segment say that it replaces others, with a manifest that is sound."""
    path = dataset.segments_path / segment_id
    segment = dataset.open_segment(segment_id)
    rebuild_manifest(path, provenance={**segment.provenance, REPLACES: replaces})


def other_episodes(dataset):
    """A stranger's segment with episodes of its own, and the right digests of the others."""
    found = digests(dataset)
    publish(dataset, [5], seed=900, now=LATER, **{REPLACES: found})
    return [max(dataset.segment_ids())]


def no_digest(dataset):
    publish(dataset, [5], seed=900, now=LATER, **{REPLACES: dict.fromkeys(digests(dataset), "")})
    return [max(dataset.segment_ids())]


def wrong_digest(dataset):
    wrong = dict.fromkeys(digests(dataset), "0" * 64)
    publish(dataset, [5], seed=900, now=LATER, **{REPLACES: wrong})
    return [max(dataset.segment_ids())]


def wrong_types(dataset):
    values = [None, 3, ["a"]]
    claims = dict(zip(digests(dataset), values, strict=True))
    publish(dataset, [5], seed=900, now=LATER, **{REPLACES: claims})
    return [max(dataset.segment_ids())]


def a_part(dataset):
    """A segment that holds one of an honest one's two episodes, bytes and times alike."""
    names = dataset.segment_ids()
    publish(dataset, [4], seed=0, now=START, **{REPLACES: {names[0]: digests(dataset)[names[0]]}})
    return [name for name in dataset.segment_ids() if name not in names]


def one_number(dataset):
    """A copy of a segment in which one number of one step differs."""
    return _copy(dataset, "sim_time/c/0")


def one_measurement(dataset):
    """The same for one number of an observation."""
    return _copy(dataset, "vector/c/0/0")


def _copy(dataset, file):
    """Copy the first segment, change a file of it, and let it claim the first."""
    first = dataset.segment_ids()[0]
    digest = digests(dataset)[first]
    name = f"{first}-copy"
    path = dataset.segments_path / name
    shutil.copytree(dataset.segments_path / first, path)
    data = bytearray((path / file).read_bytes())[:-4]
    data[5] ^= 1
    (path / file).write_bytes(bytes(data) + crc32c(bytes(data)))
    manifest = dataclasses.replace(read_manifest(dataset.segments_path / first), segment_id=name)
    (path / MANIFEST_FILE).write_bytes(manifest.sealed().to_bytes())
    rebuild_manifest(path)
    claim(dataset, name, {first: digest})
    return [name]


def each_other(dataset):
    """Two honest-looking segments that claim each other."""
    first, second = dataset.segment_ids()[:2]
    claim(dataset, first, {second: ""})
    claim(dataset, second, {first: ""})
    return [first, second]


def in_a_ring(dataset):
    names = dataset.segment_ids()
    for number, name in enumerate(names):
        claim(dataset, name, {names[number - 1]: ""})
    return names


FALSE_CLAIMS = (
    other_episodes,
    no_digest,
    wrong_digest,
    wrong_types,
    a_part,
    one_number,
    one_measurement,
    each_other,
    in_a_ring,
)


@pytest.fixture
def dataset(tmp_path):
    """Three segments of five episodes, 23 steps."""
    return fill(tmp_path / "data", [[4, 5], [3], [6, 5]])[0]


@pytest.fixture(params=FALSE_CLAIMS, ids=lambda forge: forge.__name__)
def claimed(request, dataset):
    """A dataset with a false claim: the honest names, all names and the names of the claimants."""
    honest = dataset.segment_ids()
    episodes = set(identity(dataset))
    claimants = request.param(dataset)
    return honest, episodes, claimants


def test_a_false_claim_hides_nothing_from_any_reader(dataset, claimed, tmp_path):
    _, episodes, _ = claimed
    there = dataset.segment_ids()
    assert [s.id for s in dataset.snapshot().segments] == there
    assert {s.id for s in dataset.refresh(Snapshot(segments=())).segments} == set(there)
    assert episodes <= set(identity(dataset))
    steps = sum(segment.steps for segment in dataset.snapshot().segments)
    for mode in ("cache", "direct"):
        config = ReplayConfig(mode=mode, batch_size=4)
        with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
            assert (sampler.steps, sampler.refused) == (steps, ())


def test_a_false_claim_that_arrives_later_hides_nothing(dataset, tmp_path):
    with Sampler([dataset], ReplayConfig(), seed=0, scratch=tmp_path) as sampler:
        other_episodes(dataset)
        report = sampler.refresh()
        assert (report.steps_added, report.segments_removed, sampler.steps) == (5, 0, 28)


def test_the_audit_names_the_claimant_as_an_error(dataset, claimed, avtd3):
    _, _, claimants = claimed
    code, document = avtd3("replay-inspect", dataset.path, "--json")
    assert code == 1
    found = [f for f in document["findings"] if f["check"] == "replaces-unproven"]
    assert {finding["segment"] for finding in found} == set(claimants)
    assert {finding["severity"] for finding in found} == {"error"}
    assert document["segments"] == len(dataset.segment_ids())


def test_a_false_claim_is_no_reason_to_quarantine_anything(dataset, claimed, avtd3):
    there = dataset.segment_ids()
    avtd3("replay-inspect", dataset.path, "--quarantine")
    assert dataset.segment_ids() == there


@pytest.mark.parametrize("command", ["compact", "prune", "audit"])
def test_maintenance_deletes_nothing_because_of_a_false_claim(dataset, claimed, avtd3, command):
    _, episodes, claimants = claimed
    before = identity(dataset)
    assert episodes <= set(before)
    if command == "compact":
        avtd3("store", "compact", dataset.path)
        avtd3("store", "compact", dataset.path, "--target-steps", 60)
        assert sorted(identity(dataset)) == sorted(before)
    elif command == "prune":
        there = dataset.segment_ids()
        avtd3("store", "prune", dataset.path, "--filter", "policy=900")
        gone = set(there) - set(dataset.segment_ids())
        assert gone <= set(claimants)
        assert episodes <= set(identity(dataset))
    else:
        avtd3("replay-inspect", dataset.path, "--quarantine")
        assert identity(dataset) == before


def test_a_compaction_does_not_inherit_a_false_claim(dataset, claimed):
    before = identity(dataset)
    compact(dataset.path, target_steps=1000)
    found = dataset.snapshot()
    assert sorted(identity(dataset)) == sorted(before)
    assert not found.unproven or {c.claimant for c in found.unproven} <= set(claimed[2])


@pytest.fixture
def interrupted(tmp_path, monkeypatch):
    """A dataset whose compaction was killed before it removed what it had merged."""
    dataset, episodes = fill(tmp_path / "data", [[4, 5], [3], [6, 5]])
    old = dataset.segment_ids()
    with monkeypatch.context() as patch:
        patch.setattr(compact_module, "remove", lambda *_: None)
        compact(dataset.path)
    (merged,) = set(dataset.segment_ids()) - set(old)
    return dataset, episodes, old, merged


def test_a_true_claim_hides_what_it_contains(interrupted, avtd3, tmp_path):
    dataset, episodes, old, merged = interrupted
    found = dataset.snapshot()
    assert [segment.id for segment in found.segments] == [merged]
    assert sorted(segment.id for segment in found.replaced) == old
    assert_holds(dataset, episodes)
    with Sampler([dataset], ReplayConfig(), seed=0, scratch=tmp_path) as sampler:
        assert sampler.steps == 23
    code, document = avtd3("replay-inspect", dataset.path, "--json")
    assert document["finding_counts"].get("replaced") == 1
    assert (document["errors"], document["steps"], code) == (0, 23, int(document["warnings"] > 0))
    assert avtd3("store", "compact", dataset.path)[0] == 0
    assert dataset.segment_ids() == [merged]
    assert_holds(dataset, episodes)


def test_a_true_claim_is_proven_once_and_not_at_every_refresh(interrupted):
    dataset = interrupted[0]
    snapshot = dataset.snapshot()
    with flaky(dataset.path, rate=0.0) as files:
        assert dataset.refresh(snapshot) == snapshot
        assert not [path for path in files.opened if "/c/" in path]


def test_a_dataset_without_leftovers_is_opened_without_reading_data(interrupted):
    dataset, _, old, _ = interrupted
    for name in old:
        shutil.rmtree(dataset.segments_path / name)
    with flaky(dataset.path, rate=0.0) as files:
        assert len(dataset.snapshot().segments) == 1
        assert not [path for path in files.opened if "/c/" in path]


@pytest.mark.parametrize("name", ["reward/c/0", "frames/c/0/0/0/0", "episode_seed/c/0"])
@pytest.mark.parametrize("change", [flip, zero_a_run])
@pytest.mark.parametrize("is_known", [False, True])
def test_a_damaged_replacement_hides_and_removes_nothing(interrupted, name, change, is_known):
    import numpy as np

    dataset, episodes, old, merged = interrupted
    file = dataset.segments_path / merged / name
    good = file.read_bytes()
    file.write_bytes(change(good, np.random.default_rng(0)))
    assert file.read_bytes() != good
    snapshot = dataset.snapshot()
    assert [segment.id for segment in snapshot.segments] == old
    assert [refusal.segment_id for refusal in snapshot.refused] == [merged]
    prune(dataset.path, PruneConfig(max_steps=1000))
    compact(dataset.path)
    assert_holds(dataset, episodes)
    shutil.rmtree(dataset.segments_path / merged, ignore_errors=True)
    assert_holds(dataset, episodes)


@pytest.mark.parametrize("name", ["reward/c/0", "frames/c/0/0/0/0"])
def test_what_is_replaced_and_damaged_is_not_deleted_unproven(interrupted, name):
    dataset, _, old, merged = interrupted
    file = dataset.segments_path / old[1] / name
    data = bytearray(file.read_bytes())
    data[1] ^= 1
    file.write_bytes(bytes(data))
    compact(dataset.path)
    assert dataset.segment_ids() == sorted([old[1], merged])
    assert [segment.id for segment in dataset.snapshot().segments] == [merged]


def test_the_bytes_are_read_again_right_before_the_deletion(interrupted, monkeypatch):
    """Damage that comes between the snapshot of a compaction and its deletions."""
    dataset, _, old, merged = interrupted
    removal = removal_module.remove_leftovers

    def late(*arguments):
        file = dataset.segments_path / merged / "reward/c/0"
        data = bytearray(file.read_bytes())
        data[0] ^= 1
        file.write_bytes(bytes(data))
        return removal(*arguments)

    monkeypatch.setattr(compact_module, "remove_leftovers", late)
    report = compact(dataset.path)
    assert (report.leftovers, merged in "".join(report.problems)) == (0, True)
    assert set(old) <= set(dataset.segment_ids())


def test_claims_that_a_second_compaction_inherits_are_proven_from_bytes(tmp_path):
    """A copying tool brings back segments that were merged twice."""
    dataset, episodes = fill(tmp_path / "data", [[4], [5], [3], [6]])
    shutil.copytree(dataset.path, tmp_path / "old")
    compact(dataset.path, target_steps=9)
    compact(dataset.path, target_steps=100)
    (merged,) = dataset.segment_ids()
    for path in (tmp_path / "old" / "segments").iterdir():
        shutil.copytree(path, dataset.segments_path / path.name)
    assert_holds(Dataset.open(dataset.path), episodes)
    compact(dataset.path)
    assert dataset.segment_ids() == [merged]
    assert_holds(dataset, episodes)


def test_a_relabelling_makes_what_is_only_claimed_to_be_there(tmp_path):
    dataset, _ = fill(tmp_path / "data", [[4], [5]])
    relabel(dataset.path, tmp_path / "new", {"r0": 2.0})
    new = Dataset.open(tmp_path / "new")
    first, second = new.segment_ids()
    claim(new, second, {first: digests(new)[first]})
    shutil.rmtree(new.segments_path / first)
    report = relabel(dataset.path, tmp_path / "new", {"r0": 2.0})
    assert (report.segments, new.segment_ids()) == (1, [first, second])
