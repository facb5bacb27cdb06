"""An audit of a URL on a Dask cluster equals the audit of the dataset that is pulled from there."""

import dataclasses
import itertools
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from avtd3.store import cluster
from avtd3.store.audit.audit import AuditConfig, audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, DatasetError, UnreachableError
from avtd3.store.format.codec import seal
from avtd3.store.maintenance.compact import compact
from avtd3.store.remote import client, transfer
from avtd3.store.remote.client import open_place
from avtd3.store.world_record import stored_maps
from avtd3.tests.store.audit.test_audit import reseal
from avtd3.tests.store.remote.datasets import add, make

MAP = "<OpenDRIVE/>"


@pytest.fixture(scope="module")
def scheduler():
    """A Dask cluster in this process, with the environment of the test."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None,
        protocol="tcp", host="127.0.0.1",
    ) as found:  # fmt: skip
        yield found.scheduler_address


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The directory for temporary files, which is empty at the end."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    give_up_s = time.monotonic() + 120.0
    while list(folder.glob("avtd3-*")):  # a unit that was running ends
        assert time.monotonic() < give_up_s
        time.sleep(0.02)


pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture
def damaged(tmp_path):
    """A dataset that has every kind of segment: merged, replaced, with false claims, damaged."""
    data = make(tmp_path / "data", [(3, 2), (4,)], map_text=MAP, plan_digest="p" * 64)
    copy = Dataset.open(shutil.copytree(data.path, tmp_path / "copy"))
    compact(copy.path)
    (merged,) = copy.segment_ids()
    shutil.move(copy.segments_path / merged, data.segments_path / merged)
    false = add(data, 5, (2,), replaces={data.segment_ids()[0]: "0" * 64})
    values = data.open_segment(false).read("reward")
    values[:] = float("nan")
    reseal(data.segments_path / false, data={"reward/c/0": seal(values.tobytes())})
    add(data, 6, (5, 3), plan_digest="p" * 64)
    (path,) = stored_maps(data.path).values()
    path.write_bytes(path.read_bytes()[:-4])
    return data, merged


def document(report, name):
    """The report as text, with one name for the dataset."""
    found = json.dumps(report.document() | {"seconds": 0}, sort_keys=True)
    return found.replace(json.dumps(name)[1:-1], "DATASET")


@pytest.mark.parametrize(("is_broken", "sample"), [(False, 0.5), (True, 1.0)])
def test_the_report_is_that_of_the_pulled_dataset(
    damaged, bucket, scheduler, scratch, tmp_path, is_broken, sample
):
    data, merged = damaged
    transfer.transfer(data.path, bucket)
    broken = {merged, data.segment_ids()[-1]} if is_broken else set()
    for name in broken:
        open_place(bucket).write(f"segments/{name}/reward/c/0", b"x")
    pulled = transfer.transfer(bucket, tmp_path / "back")
    config = AuditConfig(sample=sample)
    ours = audit([bucket], dataclasses.replace(config, scheduler=scheduler))
    theirs = audit([tmp_path / "back"], config)
    assert document(ours, bucket) == document(theirs, str(tmp_path / "back"))
    assert sorted(ours.not_copied) == sorted(pulled.problems)
    assert len(ours.not_copied) == len(broken)
    assert ours.complete
    found = {"map-text", "not-finite"} if is_broken else {"replaced", "replaces-unproven"}
    assert found <= ours.log.counts.keys(), ours.log.counts


def test_the_command_names_the_url_and_what_could_not_be_copied(
    bucket, scheduler, scratch, tmp_path, avtd3
):
    data = make(tmp_path / "data", [(3,), (2,)])
    transfer.transfer(data.path, f"{bucket}/d")
    words = ("replay-inspect", f"{bucket}/d", "--scheduler", scheduler, "--json")
    code, out, err = avtd3(*words)
    assert json.loads(out)["datasets"][0]["path"] == f"{bucket}/d"
    assert "copied" not in err
    open_place(f"{bucket}/d").write(f"segments/{data.segment_ids()[0]}/reward/c/0", b"x")
    code, out, err = avtd3(*words)
    assert (code, json.loads(out)["segments"]) == (1, 1)
    assert f"not copied: {bucket}/d/segments/" in err
    transfer.transfer(data.path, f"{bucket}/e")
    code, out, _ = avtd3(*words[:-1], "--against", f"{bucket}/e")
    assert code == 1
    assert f"{bucket}/e" in out
    code, out, _ = avtd3(*words, "--scores")
    assert json.loads(out)["scores"] is not None
    code, _, err = avtd3(*words, "--quarantine")
    assert (code, "copy it first (avtd3 pull)" in err) == (2, True)
    code, _, err = avtd3("replay-inspect", f"{bucket}/none", "--scheduler", scheduler)
    assert (code, f"no dataset at {bucket}/none" in err) == (2, True)


def test_an_audit_that_is_stopped_covers_the_first_segments(bucket, scheduler, scratch, tmp_path):
    data = make(tmp_path / "data", [(2,)] * 7)
    transfer.transfer(data.path, bucket)
    seen: list[Any] = []
    report = audit(
        [bucket], AuditConfig(scheduler=scheduler, workers=1), on_progress=seen.append,
        should_stop=lambda: bool(seen) and seen[-1].segments_done >= 3,
    )  # fmt: skip
    assert not report.complete
    assert 3 <= report.total.segments < 7
    numbers = itertools.count()
    report = audit(
        [bucket], AuditConfig(scheduler=scheduler), should_stop=lambda: next(numbers) > 5
    )
    assert (report.complete, report.total.segments) == (False, 0)


def test_workers_that_cannot_reach_the_url_are_one_error(
    bucket, scheduler, scratch, tmp_path, monkeypatch
):
    data = make(tmp_path / "data", [(2,)])
    transfer.transfer(data.path, bucket)
    fetch, lines = cluster.fetched_segment, []

    def unreachable(url, name, on_wait):
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        return fetch(url, name, on_wait)

    monkeypatch.setattr("avtd3.store.audit.audit.fetched_segment", unreachable)
    monkeypatch.setattr(client, "PATIENCE_S", 0.5)
    config = AuditConfig(scheduler=scheduler)
    says = rf"not complete, because unit \S+ was given up: on the worker tcp://.*{bucket}"
    with pytest.raises(UnreachableError, match=says) as caught:
        audit([bucket], config, on_progress=lambda progress: lines.append(progress.line()))
    assert "Traceback" not in str(caught.value)
    assert any("cannot be reached now" in line for line in lines)


def test_workers_without_credentials_are_one_error(
    bucket, scheduler, scratch, tmp_path, monkeypatch
):
    transfer.transfer(make(tmp_path / "data", [(2,)]).path, bucket)

    def refuse(url, name, on_wait):
        raise ConfigError(f"{url}: found no credentials")

    monkeypatch.setattr("avtd3.store.audit.audit.fetched_segment", refuse)
    with pytest.raises(ConfigError, match=f"on the worker tcp://.*{bucket}: found no credentials"):
        audit([bucket], AuditConfig(scheduler=scheduler))


def test_a_place_within_this_process_is_refused(scheduler):
    with pytest.raises(ConfigError, match="memory://here is a place within one process"):
        audit(["memory://here"], AuditConfig(scheduler=scheduler))


def test_a_url_without_a_cluster_is_refused(bucket):
    with pytest.raises(ConfigError, match="expected a path of this machine"):
        audit([bucket], AuditConfig())
    with pytest.raises(DatasetError, match="no dataset"):
        audit([f"{bucket}/none"], AuditConfig(scheduler="tcp://127.0.0.1:1"))


def test_a_directory_that_the_workers_do_not_see_is_an_error(scheduler, tmp_path, monkeypatch):
    make(tmp_path / "data", [(2,)])
    monkeypatch.chdir(tmp_path)
    relative = audit([Path("data")], AuditConfig(scheduler=scheduler))
    assert (relative.total.segments, relative.datasets[0].path) == (1, "data")
    monkeypatch.setattr("avtd3.store.audit.audit.is_directory", lambda path: path.name != "data")
    with pytest.raises(ConfigError, match="a directory that all workers see under the same path"):
        audit([Path("data")], AuditConfig(scheduler=scheduler))
