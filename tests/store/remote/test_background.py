"""Mirrors, spools and policies that follow: nothing is lost, whatever happens to the link."""

import functools
import json
import os
import re
import time

import pytest

from avtd3.store import ConfigError, Dataset, DatasetError, InUseError, UnreachableError
from avtd3.store.remote import background, client, log
from avtd3.store.remote.background import Mirror, PolicyPull, PolicyPush, Spool, SpoolSize
from avtd3.store.remote.client import open_place
from avtd3.store.remote.commit import Unit
from avtd3.store.remote.transfer import transfer
from avtd3.tests.store.remote.datasets import add, content, make, manifest_of, sealed
from avtd3.tests.store.remote.test_transfer import names, policy


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    monkeypatch.setattr(background, "PERIOD_S", 0.02)


def until(is_so, limit_s=60.0):
    deadline_s = time.monotonic() + limit_s
    while not is_so():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


@pytest.fixture
def url(tmp_path):
    pytest.importorskip("obstore")
    return f"memory://{tmp_path.name}"


def mirror_of(url, tmp_path, **options):
    return Mirror(url, tmp_path / "mirror", **{"max_bytes": 10**9, "steps": 10**9, **options})


def fill(mirror):
    assert mirror.fill(lambda: False, lambda _: None)
    return Dataset.open(mirror.path).segment_ids()


def test_a_mirror_has_the_newest_segments_and_knows_what_is_elsewhere(url, tmp_path):
    data = make(tmp_path / "data", [(3,), (4,), (2,)])
    transfer(data.path, url)
    mirror = mirror_of(url, tmp_path, steps=5)
    assert fill(mirror) == data.segment_ids()[1:]
    assert mirror.steps_elsewhere == 3
    assert content(mirror.path).items() <= content(data.path).items()
    again = mirror_of(url, tmp_path, steps=100)
    assert fill(again) == data.segment_ids()
    assert again.steps_elsewhere == 0


@pytest.mark.slow
def test_a_mirror_follows_in_the_background_also_before_the_dataset_exists(proxy, bucket, tmp_path):
    data = make(tmp_path / "data", [(3,)])
    with mirror_of(bucket, tmp_path) as mirror:
        time.sleep(0.1)
        mirror.check()
        transfer(data.path, bucket)
        until(lambda: len(content_of(mirror)) == 1)
        proxy.is_cut = True
        until(lambda: "cannot be reached now" in mirror.waiting)
        proxy.is_cut = False
        add(data, 9)
        transfer(data.path, bucket)
        until(lambda: content_of(mirror) == data.segment_ids())
    assert content(mirror.path) == content(data.path)


def content_of(mirror):
    is_there = (mirror.path / "zarr.json").exists()
    return Dataset.open(mirror.path).segment_ids() if is_there else []


def test_eviction_makes_room_takes_unwanted_segments_first_and_never_the_only_copy(url, tmp_path):
    data = make(tmp_path / "data", [(3,), (3,), (3,)])
    first, _, third = data.segment_ids()
    sizes = [data.open_segment(name).size_bytes for name in data.segment_ids()]
    transfer(data.path, url)
    mirror = mirror_of(url, tmp_path, max_bytes=sum(sizes))
    fill(mirror)
    open_place(url).delete([f"segments/{third}/MANIFEST.json"])
    mirror.wanted = lambda: {first}  # it has not seen the newest ones yet
    newest = []
    for number in (7, 8):
        newest.append(add(data, number, lengths=(3,)))
        transfer(data.path, url)
        mirror.work()
    # First the one that is unwanted and still there, then the wanted one; never the only copy.
    assert Dataset.open(mirror.path).segment_ids() == sorted([third, *newest])
    here = Dataset.open(mirror.path).snapshot().segments
    assert sum(segment.size_bytes for segment in here) <= sum(sizes)


def test_a_limit_below_the_two_largest_segments_is_an_error_at_the_start(url, tmp_path):
    data = make(tmp_path / "data", [(3,), (9,), (6,)])
    transfer(data.path, url)
    sizes = sorted(data.open_segment(name).size_bytes for name in data.segment_ids())
    with pytest.raises(
        ConfigError, match=rf"mirror_bytes is 1000, expected at least {sum(sizes[1:])}"
    ):
        fill(mirror_of(url, tmp_path, max_bytes=1000))
    fill(mirror_of(url, tmp_path, max_bytes=sum(sizes[1:])))


def test_a_later_segment_that_cannot_fit_is_reported(url, tmp_path):
    data = make(tmp_path / "data", [(3,)])
    transfer(data.path, url)
    (first,) = data.segment_ids()
    mirror = mirror_of(url, tmp_path, max_bytes=3 * data.open_segment(first).size_bytes)
    fill(mirror)
    large = add(data, 9, (4000,))
    transfer(data.path, url)
    mirror.work()
    assert Dataset.open(mirror.path).segment_ids() == [first]
    assert "raise it, or let the collectors write smaller segments" in mirror.problems[large]


def test_a_mirror_of_another_url_and_a_missing_dataset_are_refused(url, tmp_path):
    data = make(tmp_path / "data", [(3,)])
    for place in (url, f"{url}/other"):
        transfer(data.path, place)
    fill(mirror_of(url, tmp_path))
    with pytest.raises(ConfigError, match="is a mirror of"):
        fill(mirror_of(f"{url}/other", tmp_path))
    with pytest.raises(DatasetError, match=r"there is no dataset at .*--follow to wait"):
        fill(mirror_of(f"{url}/missing", tmp_path))


def test_a_damaged_segment_is_skipped_reported_and_tried_again(url, tmp_path, monkeypatch):
    monkeypatch.setattr(background, "_RETRY_S", 0.0)
    data = make(tmp_path / "data", [(3,), (2,)])
    transfer(data.path, url)
    key = f"segments/{data.segment_ids()[0]}/reward/c/0"
    good = open_place(url).read(key)
    open_place(url).write(key, good[::-1])
    mirror = mirror_of(url, tmp_path)
    assert fill(mirror) == data.segment_ids()[1:]
    assert "SHA-256" in mirror.problems[data.segment_ids()[0]]
    open_place(url).write(key, good)
    mirror.work()
    assert mirror.problems == {}
    assert content(mirror.path) == content(data.path)


@pytest.mark.parametrize("name", ["reward/c/0", "MANIFEST.json"])
def test_a_segment_that_another_tool_is_copying_is_taken_when_it_is_whole(
    url, tmp_path, monkeypatch, name
):
    monkeypatch.setattr(background, "_RETRY_S", 0.0)
    monkeypatch.setattr(log, "BACKSTOP_S", 0.0)
    data, place = make(tmp_path / "data", [(3,), (2,)]), open_place(url)
    root = data.path
    paths = [path for path in root.rglob("*") if path.is_file() and path.name[0] != "."]
    whole = {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
    late = f"segments/{data.segment_ids()[0]}/{name}"
    for key in whole.keys() - {late}:
        place.write(key, whole[key])
    mirror = mirror_of(url, tmp_path)
    assert fill(mirror) == data.segment_ids()[1:]
    place.write(late, whole[late][: len(whole[late]) // 2])
    mirror.work()
    assert Dataset.open(mirror.path).segment_ids() == data.segment_ids()[1:]
    place.write(late, whole[late])
    mirror.work()
    assert (mirror.problems, content(mirror.path)) == ({}, content(data.path))


@pytest.mark.parametrize("logged", [True, False])
def test_a_segment_of_a_newer_avtd3_stops_neither_a_mirror_nor_a_pull(url, tmp_path, logged):
    data, place = make(tmp_path / "data", [(3,), (2,), (4,)]), open_place(url)
    transfer(data.path, url)
    newer = data.segment_ids()[0]
    manifest = manifest_of(data, newer)
    place.write(
        f"segments/{newer}/MANIFEST.json", re.sub(rb'(format_version": ?)\d', rb"\g<1>9", manifest)
    )
    if not logged:
        place.delete(place.sizes("log/"))
    mirror = mirror_of(url, tmp_path)
    assert fill(mirror) == data.segment_ids()[1:]
    assert not logged or "install a newer avtd3" in mirror.problems[newer]
    report = transfer(url, tmp_path / "pulled")
    assert (report.copied, len(report.problems)) == (2, 1)


@pytest.mark.parametrize("copy", ["mirror", "pull"])
def test_what_a_killed_copy_left_in_staging_is_deleted_by_the_next(url, tmp_path, copy):
    transfer(make(tmp_path / "data", [(3,)]).path, url)
    mirror = mirror_of(url, tmp_path)
    fill(mirror)
    left = mirror.path / ".staging" / "20261130T000000.000000Z-a-000001-00000000.0123abcd"
    left.mkdir()
    (left / "zarr.json").write_bytes(b"half")
    os.utime(left, (0, 0))
    if copy == "mirror":
        fill(mirror_of(url, tmp_path))
    else:
        transfer(url, mirror.path)
    assert list((mirror.path / ".staging").iterdir()) == []


def test_a_spool_keeps_what_listings_do_not_show_yet(proxy, bucket, tmp_path):
    data = make(tmp_path / "data", [(3,)])
    proxy.lag_s = 1e9
    with Spool(bucket, data.path) as spool:
        until(lambda: "not listed" in spool.waiting)
        assert (spool.left, len(sealed(open_place(bucket)))) == (1, 0)
        proxy.lag_s = 0.0
        assert len(sealed(open_place(bucket))) == 1
        assert spool.finish(lambda: False, lambda _: None)
        assert spool.left == 0


def test_a_spool_is_emptied_into_the_url_and_nothing_is_lost_while_it_is_cut(
    proxy, bucket, tmp_path
):
    data = make(tmp_path / "data", [(3,)])
    transfer(data.path, tmp_path / "kept")
    with Spool(bucket, data.path) as spool:
        assert spool.finish(lambda: False, lambda _: None)
        assert (spool.left, len(sealed(open_place(bucket)))) == (0, 1)
        proxy.is_cut = True
        add(data, 9)
        transfer(data.path, tmp_path / "kept")
        waits: list[str] = []
        assert not spool.finish(lambda: bool(waits and waits[-1]), waits.append)
        assert "cannot be reached now" in waits[-1]
        assert spool.left == 1
        assert SpoolSize(data.path).measure() > 0
        proxy.is_cut = False
        assert spool.finish(lambda: False, lambda _: None)
        assert SpoolSize(data.path).measure() == 0
    transfer(bucket, tmp_path / "back")
    assert content(tmp_path / "back") == content(tmp_path / "kept")


def test_two_spools_publish_a_unit_once_and_a_resume_sees_its_episodes(url, tmp_path):
    unit = Unit(plan="p" * 64, number=4)
    for number in range(2):
        data = make(tmp_path / f"data-{number}", [], plan_digest=unit.plan)
        add(data, number, (3, 2), plan_digest=unit.plan)
        with Spool(url, data.path, unit=unit) as spool:
            assert spool.finish(lambda: False, lambda _: None)
        assert spool.left == 0
        assert len(sealed(open_place(url))) == 1
        assert spool.held(unit.plan, lambda: False) == ({4}, {-1: 2}), (
            "by index, which these episodes have in common"
        )
    # also if the writer died before it added the entry of the log
    open_place(url).delete(open_place(url).sizes("log/"))
    assert spool.held(unit.plan, lambda: False)[1] == {-1: 2}


def test_a_resume_reads_the_log_once(proxy, bucket, tmp_path):
    unit = Unit(plan="p" * 64, number=4)
    data = make(tmp_path / "data", [(3,)], plan_digest=unit.plan)
    with Spool(bucket, data.path, unit=unit) as spool:
        assert spool.finish(lambda: False, lambda _: None)
    proxy.requests.clear()
    assert spool.held(unit.plan, lambda: False) == ({4}, {-1: 3})
    paths = [path for method, path in proxy.requests if method == "GET"]
    assert sum("/log/2" in path for path in paths) == 1
    assert sum("list-type" in path and "prefix=log%2F" in path for path in paths) == 1, paths


@pytest.mark.slow
def test_a_spool_that_is_cut_in_the_middle_is_uploaded_by_the_next_process(proxy, bucket, tmp_path):
    data = make(tmp_path / "data", [(3,)])
    transfer(data.path, tmp_path / "kept")
    count = iter(range(10**9))
    proxy.fault = lambda method, path: "before" if next(count) > 40 else ""
    with Spool(bucket, data.path) as spool:
        until(lambda: "cannot be reached now" in spool.waiting)
    assert spool.left == 1
    proxy.fault = lambda method, path: ""
    with Spool(bucket, data.path) as first, Spool(bucket, data.path) as second:
        for each in (first, second):  # two collectors share a spool
            assert each.finish(lambda: False, lambda _: None)
    transfer(bucket, tmp_path / "back")
    assert content(tmp_path / "back") == content(tmp_path / "kept")


def test_a_spool_waits_no_longer_once_it_uploads_again(proxy, bucket, tmp_path):
    data = make(tmp_path / "data", [(3,), (3,)])
    second, waits = data.segment_ids()[1], list[str]()
    count = iter(range(10**9))

    def fault(method, path):
        if second in path:
            waits.append(spool.waiting)
        return "503" if next(count) in (20, 21) else ""

    with Spool(bucket, data.path) as spool:
        proxy.fault = fault
        assert spool.finish(lambda: False, lambda _: None)
    assert set(waits) == {""}


@pytest.mark.parametrize("is_stopped", [False, True])
def test_what_must_be_known_at_first_is_not_waited_for_without_end(
    proxy, bucket, tmp_path, monkeypatch, is_stopped
):
    """The link may be cut between the first look at the URL and the next request."""
    monkeypatch.setattr(client, "PATIENCE_S", 1e9 if is_stopped else 0.05)
    transfer(make(tmp_path / "data", [(3,)]).path, bucket)
    spool, push = Spool(bucket, tmp_path / "data"), PolicyPush(bucket, tmp_path / "policies")
    monkeypatch.setattr(background, "check_reachable", lambda place: None)
    proxy.is_cut = True
    for ask in (spool.check_spec, functools.partial(spool.held, "plan"), push.adopt):
        with pytest.raises(UnreachableError):
            ask(lambda: is_stopped)


def test_policies_follow_and_continue_after_those_of_an_earlier_run(url, tmp_path):
    learner, later, collector = (tmp_path / name for name in ("learner", "later", "collector"))
    policy(learner, 0)
    with PolicyPush(url, learner) as push, PolicyPull(url, collector) as pull:
        assert push.finish(lambda: False, lambda _: None)
        until(lambda: "policy-00000000.json" in names(collector))
        for version in range(1, 7):
            policy(learner, version)
        assert push.finish(lambda: False, lambda _: None)
        until(lambda: "policy-00000006.json" in names(collector))
        pull.check()
    assert json.loads((collector / "LATEST.json").read_bytes())["version"] == 6
    push = PolicyPush(url, later)
    later.mkdir()
    push.adopt(lambda: False)
    assert names(later) == ["LATEST.json", "policy-00000006.json", "policy-00000006.safetensors"]


def test_a_run_that_continues_keeps_its_policies_that_are_not_sent_yet(url, tmp_path):
    learner = tmp_path / "learner"
    policy(learner, 0)
    PolicyPush(url, learner).work()
    for version in range(1, 8):
        policy(learner, version)
    here = names(learner)
    PolicyPush(url, learner).adopt(lambda: False)
    assert names(learner) == here
    push = PolicyPush(url, learner)
    push.work()
    assert set(here) <= set(open_place(url).sizes(""))


def test_the_newest_policy_is_sent_first_after_a_cut(proxy, bucket, tmp_path):
    for version in range(4):
        policy(tmp_path / "learner", version)
    push = PolicyPush(bucket, tmp_path / "learner")
    push.work()
    put = [path.rsplit("/", 1)[-1] for method, path in proxy.requests if method == "PUT"]
    numbers = [name for name in put if name.endswith((".safetensors", "LATEST.json"))]
    assert numbers == [
        "policy-00000003.safetensors",
        "LATEST.json",
        *(f"policy-{version:08d}.safetensors" for version in (2, 1, 0)),
    ]


def test_a_second_learner_is_recognised_and_old_policies_are_pruned(url, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for version in range(4):
        policy(one, version)
    with PolicyPush(url, one) as push:
        assert push.finish(lambda: False, lambda _: None)
    policy(two, 3, b"of another one")
    with PolicyPush(url, two) as push:
        with pytest.raises(InUseError, match="another learner"):
            push.finish(lambda: False, lambda _: None)
        with pytest.raises(InUseError):
            push.check()
    for version in (0, 1, 2):
        (one / f"policy-{version:08d}.json").unlink()
    policy(one, 4)
    with PolicyPush(url, one, prunes=True) as push:
        assert push.finish(lambda: False, lambda _: None)
    kept = [key for key in open_place(url).sizes("") if key.endswith(".json")]
    assert kept == ["LATEST.json", "policy-00000003.json", "policy-00000004.json"]


def test_a_policy_that_is_being_published_is_copied_when_it_is_whole(url, tmp_path):
    """The sidecar is written first, and ``LATEST.json`` last."""
    learner, other = tmp_path / "learner", tmp_path / "other"
    policy(learner, 0)
    weights = (learner / "policy-00000000.safetensors").read_bytes()
    (learner / "policy-00000000.safetensors").unlink()
    push = PolicyPush(url, learner)
    push.work()
    assert open_place(url).sizes("") == {}
    (learner / "policy-00000000.safetensors").write_bytes(weights)
    latest = (learner / "LATEST.json").read_bytes()
    (learner / "LATEST.json").unlink()
    push.work()
    (learner / "LATEST.json").write_bytes(latest)
    push.work()
    assert open_place(url).read("LATEST.json") == latest
    PolicyPull(url, other).work()
    assert names(other) == names(learner)
