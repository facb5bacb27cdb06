"""One directory that cannot be read now, or a link in place of one, does not end an audit."""

import shutil

import pytest

from avtd3.store.audit.audit import AuditConfig, audit, quarantine_damaged
from avtd3.tests.faults.flaky import flaky
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

SPEC = make_spec(image=False)
SYNC = AuditConfig(scheduler="sync")
CALLS = ["open", "stat", "lstat", "fstat", "scandir", "listdir"]
PLACES = (
    "",
    "segments",
    ".staging",
    "quarantine",
    "segments/{0}",
    "segments/{0}/reward",
    "segments/{0}/reward/c",
)


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr("avtd3.store.files._WAITS_S", (0.0,) * 4)


@pytest.fixture
def dataset(tmp_path):
    episodes = [make_episode(SPEC, 6, n) for n in range(2)]
    dataset = write_dataset(tmp_path / "d", SPEC, episodes, segment_steps=1)
    (dataset.path / "quarantine").mkdir()
    return dataset


@pytest.fixture
def other(tmp_path):
    return write_dataset(tmp_path / "other", SPEC, [make_episode(SPEC, 9, 5)])


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("is_damaged", [False, True])
def test_an_unreadable_directory_is_reported_and_the_rest_is_audited(
    dataset, other, place, is_damaged
):
    if is_damaged:
        (dataset.path / "zarr.json").write_text("{")
    directory = dataset.path / place.format(dataset.segment_ids()[0])
    with flaky(directory, errors=["EIO"], calls=CALLS):
        report = audit([dataset.path, other.path], SYNC)
        kept = quarantine_damaged(report)
    assert "unreadable" in report.log.counts or is_damaged
    assert report.datasets[1].summary.steps == 9
    assert kept.moved == ()
    whole = place.startswith((".", "q", "segments/"))
    if whole and not is_damaged:
        assert report.datasets[0].summary.steps == (12 if place[0] in ".q" else 6)


@pytest.mark.parametrize("target", ["../../aside", "nowhere", "."])
def test_a_link_in_place_of_a_segment_is_named(dataset, tmp_path, target):
    name, _ = dataset.segment_ids()
    link = dataset.segments_path / name
    shutil.move(link, tmp_path / "aside")
    link.symlink_to(target)
    report = audit([dataset.path], SYNC)
    (found,) = [f for f in report.findings if f.check == "segment-link"]
    assert found.message == f"segments/{name} is a symbolic link to {target}"
    assert report.total.steps == 6
    assert quarantine_damaged(report).moved == ()
    assert link.is_symlink()


def test_a_link_in_place_of_a_file_is_named(dataset, tmp_path):
    file = dataset.segments_path / dataset.segment_ids()[0] / "reward/c/0"
    shutil.move(file, tmp_path / "aside")
    file.symlink_to(tmp_path / "aside")
    messages = [f.message for f in audit([dataset.path], SYNC).findings]
    assert any("reward/c/0" in text and "is a symbolic link" in text for text in messages)
