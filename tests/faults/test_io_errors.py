"""An error of the operating system says nothing about the bytes: it is waited out or reported."""

import json
import shutil

import pytest

from avtd3.collect.plan import held_episodes
from avtd3.store import errors
from avtd3.store.dataset import Dataset
from avtd3.store.maintenance.compact import compact
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.faults.flaky import BY_PATH, ERRORS, flaky, run_flaky
from avtd3.tests.store.damage import rebuild_manifest
from avtd3.tests.store.maintenance.datasets import identity
from avtd3.tests.store.segments import (
    Clock,
    assert_holds,
    make_episode,
    make_spec,
    write_dataset,
)

SPEC = make_spec(terms=1)
LENGTHS = (9, 5, 7, 4, 6)
LONG = 3600.0
WAYS = {
    "open": ["open"],
    "stat": ["stat", "lstat"],
    "list": ["scandir", "listdir"],
    "fstat": ["fstat"],
    "pread": ["pread", "preadv"],
    "read": ["read"],
}
"""Calls of the system that fail together."""


def make_bright(length, seed):
    """An episode in which an audit finds nothing: its frames are not black."""
    episode = make_episode(SPEC, length, seed)
    episode.frames *= 60
    return episode


@pytest.fixture(scope="module")
def episodes():
    return [make_bright(length, seed) for seed, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def source(tmp_path_factory, episodes):
    """Five segments of one episode each."""
    path = tmp_path_factory.mktemp("source") / "d"
    return write_dataset(path, SPEC, episodes, segment_steps=1).path


@pytest.fixture
def dataset(source, tmp_path):
    return Dataset.open(shutil.copytree(source, tmp_path / "d"))


def flip(dataset, number, name="reward/c/0"):
    """Flip a bit in a file; the size stays."""
    file = dataset.segments_path / dataset.segment_ids()[number] / name
    data = bytearray(file.read_bytes())
    data[0] ^= 1
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("error", ERRORS)
def test_a_few_failures_are_not_noticed_by_a_reader(dataset, episodes, error):
    with flaky(dataset.path, rate=0.03, errors=[error], seed=ERRORS.index(error)) as files:
        snapshot = Dataset.open(dataset.path).snapshot()
        assert (len(snapshot.segments), snapshot.refused) == (5, ())
        for segment in snapshot.segments:
            segment.verify()
        assert_holds(dataset, episodes)
    assert files.failed > 0


@pytest.mark.parametrize("mode", ["cache", "direct"])
@pytest.mark.parametrize("seed", range(3))
def test_a_few_failures_are_not_noticed_by_a_sampler(dataset, mode, seed, tmp_path):
    config = ReplayConfig(mode=mode, batch_size=16)
    with (
        flaky(dataset.path, rate=0.03, seed=seed) as files,
        Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler,
    ):
        for _ in range(8):
            sampler.sample()
            sampler.refresh()
        assert (sampler.steps, sampler.refused) == (sum(LENGTHS), ())
    assert files.failed > 0


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("call", WAYS)
def test_a_segment_that_cannot_be_read_now_is_not_called_damaged(dataset, error, call, wait):
    name = dataset.segment_ids()[2]
    with flaky(dataset.segments_path / name, errors=[error], calls=WAYS[call]) as files:
        snapshot = dataset.snapshot()
        problems = [refusal.reason for refusal in snapshot.refused]
        for segment in snapshot.segments:
            try:
                segment.verify()
                segment.read_frames()
            except errors.SegmentUnreadableError as unreadable:
                problems.append(str(unreadable))
    if call == "list":  # readers know the names of the files from the manifest
        return
    assert files.failed > 0
    (problem,) = problems
    assert name in problem
    assert "unreadable now" in problem
    assert "quarantine" not in problem
    assert "copy it again" not in problem
    wait(LONG)
    assert dataset.refresh(snapshot).steps == dataset.snapshot().steps == sum(LENGTHS)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("mode", ["cache", "direct"])
@pytest.mark.parametrize("config", [{}, {"filter": ("policy=-1",)}], ids=["all", "filtered"])
def test_a_sampler_takes_what_could_not_be_read_when_the_mount_is_back(
    dataset, error, mode, config, tmp_path, wait
):
    name = dataset.segment_ids()[1]
    settings = ReplayConfig(mode=mode, batch_size=16, **config)
    with flaky(dataset.segments_path / name, errors=[error]) as files:
        sampler = Sampler([dataset], settings, seed=0, scratch=tmp_path)
        sampler.sample()
    assert files.failed > 0
    with sampler:
        assert [refusal.segment_id for refusal in sampler.refused] == [name]
        assert "unreadable now" in sampler.refused[0].reason
        assert sampler.steps == sum(LENGTHS) - LENGTHS[1]
        wait(LONG)
        sampler.refresh()
        assert (sampler.steps, sampler.refused) == (sum(LENGTHS), ())


@pytest.mark.parametrize("where", ["frames/c/0/0/0/0", "action/c/0/0", "action/zarr.json"])
@pytest.mark.parametrize("mode", ["cache", "direct"])
def test_the_mount_may_go_between_opening_and_decoding(dataset, where, mode, tmp_path, wait):
    name = dataset.segment_ids()[3]
    with flaky(dataset.segments_path / name / where, calls=["open", "pread"]) as files:
        sampler = Sampler([dataset], ReplayConfig(mode=mode), seed=0, scratch=tmp_path)
        for _ in range(4):
            sampler.sample()
    with sampler:
        assert files.failed > 0
        assert [refusal.segment_id for refusal in sampler.refused] == [name]
        wait(LONG)
        sampler.refresh()
        assert (sampler.steps, sampler.refused) == (sum(LENGTHS), ())


@pytest.mark.parametrize("error", ["ESTALE", "EIO", "EACCES"])
def test_frames_that_cannot_be_drawn_for_a_while_come_back(dataset, error, tmp_path, wait):
    config = ReplayConfig(mode="direct", batch_size=64)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        name = dataset.segment_ids()[0]
        with flaky(dataset.segments_path / name, errors=[error]):
            for _ in range(8):
                sampler.sample()
        wait(LONG)
        sampler.refresh()
        assert (sampler.steps, sampler.refused) == (sum(LENGTHS), ())
        for _ in range(8):
            sampler.sample()
        assert sampler.refused == ()


@pytest.mark.parametrize("mode", ["cache", "direct"])
def test_a_sampler_that_does_not_follow_its_datasets_heals_as_well(dataset, mode, tmp_path, wait):
    """Nothing is published to it, so it never refreshes; it still tries again what it refused."""
    name = dataset.segment_ids()[1]
    with flaky(dataset.segments_path / name):
        sampler = Sampler([dataset], ReplayConfig(mode=mode), seed=0, scratch=tmp_path)
    with sampler:
        write_dataset(dataset.path, SPEC, [make_bright(8, 50)], clock=Clock(1_800_000_000.0))
        wait(LONG)
        assert sampler.retry_refused().steps_added == LENGTHS[1]
        assert not sampler.refused
        assert sampler.steps == sum(LENGTHS)
        assert sampler.refresh().steps_added == 8


def test_a_plan_is_not_resumed_while_it_is_unknown_what_is_there(tmp_path):
    episodes = [make_episode(SPEC, 4, seed, index=seed) for seed in range(3)]
    dataset = write_dataset(tmp_path / "d", SPEC, episodes, segment_steps=1)
    for name in dataset.segment_ids():
        path = dataset.segments_path / name
        about = dict(dataset.open_segment(name).provenance)
        rebuild_manifest(path, provenance={**about, "plan_digest": "p"})
    assert held_episodes(dataset, "p") == {0: 4, 1: 4, 2: 4}
    with flaky(dataset.segments_path / name), pytest.raises(errors.UnreadableError):
        held_episodes(dataset, "p")
    flip(dataset, 1, "episode_length/c/0")
    assert held_episodes(dataset, "p") == {0: 4, 2: 4}


@pytest.mark.parametrize("error", ERRORS)
def test_a_listing_that_fails_removes_nothing(dataset, error, tmp_path):
    with Sampler([dataset], ReplayConfig(), seed=0, scratch=tmp_path) as sampler:
        with flaky(dataset.segments_path, errors=[error], calls=["scandir", "listdir"]) as files:
            assert sampler.refresh().absent == (dataset.path,)
            with pytest.raises(errors.UnreadableError):
                dataset.snapshot()
        assert files.failed > 0
        assert (sampler.refresh().absent, sampler.steps) == ((), sum(LENGTHS))


def test_a_segment_whose_manifest_cannot_be_looked_at_is_no_unsealed_one(dataset):
    names = dataset.segment_ids()
    with flaky(dataset.segments_path / names[0], calls=BY_PATH):
        assert dataset.segment_ids() == names
        assert dataset.unsealed_ids() == []


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("call", WAYS)
def test_an_audit_says_unreadable_and_quarantines_nothing(dataset, error, call, avtd3):
    names = dataset.segment_ids()
    with flaky(dataset.segments_path / names[2], errors=[error], calls=WAYS[call]) as files:
        code, text = avtd3("replay-inspect", dataset.path, "--quarantine", "--json")
    assert files.failed > 0
    assert code == 3
    assert text["verdict"] == "unreadable"
    assert text["finding_counts"] == {"unreadable": 1}
    assert (text["findings"][0]["segment"], text["quarantined"]) == (names[2], [])
    assert (text["segments"], text["steps"]) == (4, sum(LENGTHS) - LENGTHS[2])
    assert dataset.segment_ids() == names
    assert avtd3("replay-inspect", dataset.path)[0] == 0


def test_an_error_that_is_found_beside_an_unreadable_segment_is_the_answer(dataset, avtd3):
    flip(dataset, 1)
    names = dataset.segment_ids()
    with flaky(dataset.segments_path / names[2]):
        code, document = avtd3("replay-inspect", dataset.path, "--json")
    assert (code, document["verdict"]) == (1, "errors")
    assert document["finding_counts"] == {"file-digest": 1, "unreadable": 1}


@pytest.mark.parametrize("folder", ["segments", ".staging", "quarantine"])
@pytest.mark.parametrize("error", ["EACCES", "EIO", "ESTALE"])
def test_an_unreadable_directory_does_not_end_the_audit(dataset, folder, error, tmp_path, avtd3):
    write_dataset(tmp_path / "more", SPEC, [make_bright(8, 50)], segment_steps=1)
    (dataset.path / folder).mkdir(exist_ok=True)
    with flaky(dataset.path / folder, errors=[error], calls=["scandir", "listdir"]) as files:
        code, document = avtd3("replay-inspect", dataset.path, tmp_path / "more", "--json")
    assert files.failed > 0
    assert code == 3
    assert [f["check"] for f in document["findings"] if f["severity"] != "info"] == ["unreadable"]
    assert folder in document["findings"][0]["message"]
    steps = 8 if folder == "segments" else 8 + sum(LENGTHS)
    assert document["steps"] == steps


@pytest.mark.parametrize("seed", range(4))
def test_a_few_failures_quarantine_nothing(dataset, seed, avtd3):
    names = dataset.segment_ids()
    with flaky(dataset.path, rate=0.03, seed=seed) as files:
        code, document = avtd3("replay-inspect", dataset.path, "--quarantine", "--json")
    assert files.failed > 0
    assert (document["errors"], document["quarantined"]) == (0, [])
    assert code in (0, 3)
    assert dataset.segment_ids() == names


@pytest.mark.parametrize("rate", [0.3, 0.9])
def test_many_failures_quarantine_nothing(dataset, rate, avtd3):
    names = dataset.segment_ids()
    with flaky(dataset.segments_path, rate=rate):
        code, document = avtd3("replay-inspect", dataset.path, "--quarantine", "--json")
    assert code in (0, 3)
    assert (document["errors"], document["quarantined"]) == (0, [])
    assert dataset.segment_ids() == names


def test_what_reads_right_the_second_time_is_not_quarantined(dataset, avtd3, monkeypatch):
    """A copy that is completed while the audit runs, or memory that flipped a bit once."""
    from avtd3.configs.commands import replay_inspect

    flip(dataset, 2)
    names = dataset.segment_ids()
    ask = replay_inspect._quarantine

    def late(*arguments, **options):
        flip(dataset, 2)  # back
        return ask(*arguments, **options)

    monkeypatch.setattr(replay_inspect, "_quarantine", late)
    code, document = avtd3("replay-inspect", dataset.path, "--quarantine", "--json")
    assert (code, document["quarantined"]) == (1, [])
    assert document["kept"][0]["segment"] == names[2]
    assert dataset.segment_ids() == names


def test_proven_damage_is_quarantined(dataset, avtd3):
    flip(dataset, 2)
    names = dataset.segment_ids()
    code, document = avtd3("replay-inspect", dataset.path, "--quarantine", "--json")
    assert (code, document["quarantined"], document["kept"]) == (1, [names[2]], [])
    assert avtd3("replay-inspect", dataset.path)[0] == 0
    assert dataset.segment_ids() == [*names[:2], *names[3:]]


@pytest.mark.parametrize("name", ["reward/c/0", "frames/c/0/0/0/0", "MANIFEST.json"])
def test_nothing_is_quarantined_while_most_segments_fail_alike(dataset, name, avtd3):
    """A wrong mount, a broken driver or a bad cable looks like this."""
    for number in (0, 1, 3, 4):
        flip(dataset, number, name)
    names = dataset.segment_ids()
    code, document = avtd3("replay-inspect", dataset.path, "--quarantine", "--json")
    assert (code, document["quarantined"]) == (1, [])
    assert len(document["kept"]) == 4
    code, text = avtd3("replay-inspect", dataset.path, "--quarantine")
    assert "4 of 5 segments" in " ".join(text.split())
    assert dataset.segment_ids() == names


@pytest.mark.parametrize("command", [["compact"], ["prune", "--max-steps", "1000"]])
def test_maintenance_leaves_alone_what_it_cannot_read(dataset, command, avtd3):
    names, before = dataset.segment_ids(), identity(dataset)
    with flaky(dataset.segments_path / names[2]) as files:
        code, text = avtd3("store", command[0], dataset.path, *command[1:])
    assert files.failed > 0
    assert "unreadable now" in " ".join(text.split())
    assert code == 3
    assert identity(dataset) == before


@pytest.mark.parametrize("rate", [0.03, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_maintenance_on_a_flaky_mount_loses_and_doubles_nothing(dataset, rate, seed, avtd3):
    before = identity(dataset)
    for number in range(3):
        with flaky(dataset.segments_path, rate=rate, seed=10 * seed + number):
            code, text = avtd3("store", "compact", dataset.path, "--target-steps", 20)
        assert code in (0, 1, 3), text
        assert identity(dataset) == before
    assert avtd3("store", "compact", dataset.path)[0] == 0
    assert identity(dataset) == before
    assert len(dataset.segment_ids()) == 1


def test_leftovers_are_not_removed_while_either_side_cannot_be_read(tmp_path, monkeypatch, dataset):
    from avtd3.store.maintenance import compact as compact_module

    old, before = dataset.segment_ids(), identity(dataset)
    with monkeypatch.context() as patch:
        patch.setattr(compact_module, "remove", lambda *_: None)
        compact(dataset.path)
    (merged,) = set(dataset.segment_ids()) - set(old)
    for name in (merged, old[1]):
        with flaky(dataset.segments_path / name / "frames"):
            compact(dataset.path, dry_run=True)
            report = compact(dataset.path, target_steps=2)
        assert report.problems
        assert name in dataset.segment_ids()
        assert identity(dataset) == before


def test_a_dataset_that_cannot_be_read_now_is_an_environment_error(dataset, avtd3):
    for command in (["replay-inspect"], ["store", "compact"], ["store", "pins"]):
        with flaky(dataset.path / "zarr.json", errors=["ESTALE"]):
            code, text = avtd3(*command, dataset.path)
        assert code == 3, text
        assert "zarr.json" in text


@pytest.mark.parametrize("seed", [1, 2])
def test_a_flaky_mount_costs_an_audit_in_its_own_process_nothing(dataset, seed, tmp_path):
    names = dataset.segment_ids()
    done = run_flaky(
        tmp_path / "shim",
        dataset.path,
        *("replay-inspect", dataset.path, "--quarantine", "--json"),
        rate=0.03,
        seed=seed,
    )
    assert done.returncode in (0, 3), done.stderr
    assert json.loads(done.stdout)["errors"] == 0
    assert dataset.segment_ids() == names


@pytest.mark.slow
@pytest.mark.parametrize("seed", [3, 4])
def test_a_learner_on_a_flaky_mount_learns_from_all_steps(seed, tmp_path):
    spec = make_spec(image=False, terms=1)
    episodes = [make_episode(spec, length, number) for number, length in enumerate(LENGTHS)]
    dataset = write_dataset(tmp_path / "d", spec, episodes, segment_steps=1)
    done = run_flaky(
        tmp_path / "shim",
        dataset.path,
        *("learn", dataset.path, "--run", tmp_path / "run", "--updates", 20, "--json"),
        *("--set", "learn.replay.batch_size=8"),
        rate=0.03,
        seed=seed,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["refused"] == []
    assert document["steps"] == sum(LENGTHS)
