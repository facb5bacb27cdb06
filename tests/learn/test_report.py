import dataclasses
from pathlib import Path
from typing import Any

from avtd3.learn.report import LearnProgress, LearnReport
from avtd3.store.replay.tracker import RefusedSegment


def refuse(count):
    return tuple(
        RefusedSegment(dataset=Path("/d"), segment_id=f"s{i}", reason=f"s{i} is torn")
        for i in range(count)
    )


def make_report(**changes):
    facts: dict[str, Any] = {
        "run": "run", "updates": 5, "session_updates": 5, "updates_per_second": 1.0,
        "policy_version": 1, "policies": "p", "halted": None, "stopped": False, "seconds": 5.0,
        "waited_s": 0.0, "replay": "replay cache: fits", "steps": 10, "skipped": 0,
        "resumed_exactly": None, "refused": (), "absent": (), "alerts": {}, "rollbacks": 0,
    }  # fmt: skip
    return LearnReport(**(facts | changes))


def test_only_known_values_are_shown():
    assert LearnProgress(updates=0, target=40).line() == "update 0 of 40"
    progress = LearnProgress(
        updates=8,
        target=40,
        updates_per_second=2.0,
        critic_loss=0.5,
        actor_loss=-1.25,
        q=1.5,
        episode_return=-20.0,
        policy_version=0,
    )
    assert progress.fraction == 0.2
    assert dataclasses.replace(progress, target=1).fraction == 1.0
    assert progress.line() == (
        "update 8 of 40, 2.0/s, critic loss 0.5, actor loss -1.25, Q 1.5, return -20, policy 0"
    )


def test_refused_segments_and_absent_datasets_are_on_every_line():
    trouble = {"refused": refuse(2), "absent": (Path("/gone"),)}
    line = LearnProgress(updates=0, target=4, waiting="waiting", **trouble).line()
    assert line.startswith("waiting; 2 segments refused, last: s1: s1 is torn; dataset /gone has")
    assert "2 segments refused" in LearnProgress(updates=1, target=4, **trouble).line()


def test_a_report_names_what_was_refused():
    report = make_report(refused=refuse(12), absent=(Path("/gone"),))
    document = report.document()
    assert document["refused"][11] == {"dataset": "/d", "segment": "s11", "reason": "s11 is torn"}
    assert document["absent"] == ["/gone"]
    summary = report.summary()
    assert "12 segments refused" in summary
    assert "s9: s9 is torn" in summary
    assert "s10" not in summary
    assert "and 2 more" in summary
    assert "dataset /gone" in summary
    assert "refused" not in make_report().summary()
