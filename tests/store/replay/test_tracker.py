import dataclasses
from pathlib import Path

import pytest

from avtd3.store.dataset import Refusal, Snapshot
from avtd3.store.errors import DatasetUnreadableError
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.store.replay.tracker import Refusals, name_refused
from avtd3.tests.faults.flaky import flaky
from avtd3.tests.store.memory import World, make_spec
from avtd3.tests.store.segments import make_episode, write_dataset


def snapshot(*names, refused=()):
    world = World(make_spec(image=False))
    return Snapshot(
        segments=tuple(world.segment(name, [(2, True)]) for name in names),
        refused=tuple(Refusal(segment_id=name, reason=f"{name} is truncated") for name in refused),
    )


def names(refused):
    return [segment.segment_id for segment in refused]


def test_fixed_and_removed_segments_are_forgotten():
    refusals = Refusals([Path("/d"), Path("/e")])
    refusals.update([snapshot(), snapshot("b", refused=["c"])])
    refusals.update([snapshot(refused=["a"]), snapshot("b", refused=["c"])])
    found = refusals.take_new()
    assert [(str(r.dataset), r.segment_id, r.reason) for r in found] == [
        ("/e", "c", "c is truncated"),
        ("/d", "a", "a is truncated"),
    ]
    assert refusals.all() == found
    refusals.update([snapshot(refused=["a"]), snapshot("b", "c")])
    assert names(refusals.all()) == ["a"]
    assert refusals.take_new() == ()
    refusals.update([snapshot(), snapshot("b", "c")])
    assert refusals.all() == ()
    refusals.update([snapshot(refused=["a"]), snapshot("b", "c")])
    assert names(refusals.take_new()) == ["a"], "broken again is news again"


def test_what_is_tried_again_and_fails_again_is_no_news_until_it_was_loaded():
    refusals = Refusals([Path("/d")])
    refused = snapshot(refused=["a"])
    refusals.update([refused])
    assert names(refusals.take_new()) == ["a"]
    tried_again = dataclasses.replace(snapshot("a"), earlier=refused.refused)
    for loaded, news in (([], []), ([(0, "a")], ["a"])):
        refusals.update([tried_again])
        assert refusals.all() == ()
        refusals.forget(loaded)
        refusals.update([refused])
        assert names(refusals.take_new()) == news


def test_an_error_names_the_first_of_many():
    refusals = Refusals([Path("/d")])
    refusals.update([snapshot(refused=[f"s{i}" for i in range(8)])])
    text = name_refused(refusals.all())
    assert text.startswith("8 segments are refused (s0, s1, s2, s3, s4 and 3 more)")
    assert text.endswith("s0 is truncated")


@pytest.mark.parametrize("mode", ["cache", "direct"])
@pytest.mark.parametrize("where", ["", "frames/c/0/0/0/0", "action/c/0/0"])
def test_nothing_but_unreadable_segments_is_an_error_of_the_environment(
    tmp_path, monkeypatch, mode, where
):
    monkeypatch.setattr("avtd3.store.files._WAITS_S", (0.0,) * 4)
    spec = make_spec()
    dataset = write_dataset(tmp_path / "d", spec, [make_episode(spec, 9)])
    segments = dataset.segments_path / dataset.segment_ids()[0] / where
    config = ReplayConfig(mode=mode, batch_size=4)
    with (
        flaky(segments, errors=["EIO"], calls=["open", "pread"]),
        Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler,
        pytest.raises(DatasetUnreadableError, match="1 segment is refused"),
    ):
        sampler.sample()
