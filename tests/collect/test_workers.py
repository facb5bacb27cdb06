import dataclasses
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from avtd3.collect.collector import CollectConfig, collect
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.collect.reports import CollectProgress
from avtd3.collect.workers import run_jobs
from avtd3.store.dataset import Dataset
from avtd3.store.errors import WorldError, WorldLost
from avtd3.store.writer import WriterConfig
from avtd3.tests.collect import point_world
from avtd3.tests.collect.lossy_world import lose_world

CONFIG = CollectConfig(
    scenario=ScenarioConfig(route_length_m=20.0, time_limit_s=5.0),
    driver="1:expert+noise,1:random",
    min_free_mb=0,
    workers=2,
    writer=WriterConfig(segment_steps=50),
)


def actions(path):
    """Actions by episode; also checks that no episode is there twice and all files are whole."""
    found = {}
    for segment in Dataset.open(path).snapshot().segments:
        segment.verify()
        table, rows = segment.episode_table(), segment.read("action")
        for index, first, count in zip(table.index, table.offset, table.length, strict=True):
            assert int(index) not in found
            found[int(index)] = rows[first:][:count]
    return found


def test_two_workers_collect_the_bytes_of_one(tmp_path):
    seen: list[CollectProgress] = []
    two = collect(
        tmp_path / "two",
        CONFIG,
        episodes=7,
        open_world=point_world.open_point_world,
        on_progress=seen.append,
    )
    one = collect(
        tmp_path / "one",
        dataclasses.replace(CONFIG, workers=1),
        episodes=7,
        open_world=point_world.open_point_world,
    )
    ours, theirs = actions(tmp_path / "two"), actions(tmp_path / "one")
    assert sorted(ours) == list(range(7))
    for index, rows in theirs.items():
        np.testing.assert_array_equal(ours[index], rows)
    assert two.plan_digest == one.plan_digest
    assert two.tally.steps == one.tally.steps
    assert two.tally.return_sum == pytest.approx(one.tally.return_sum)
    assert seen[-1].tally == two.tally
    names = {
        segment_id.rsplit("-", 2)[0] for segment_id in Dataset.open(tmp_path / "two").segment_ids()
    }
    assert len(names) > 1


def test_a_stop_reaches_all_workers_and_publishes_what_they_drive(tmp_path):
    seen: list[CollectProgress] = []
    report = collect(
        tmp_path / "d",
        CONFIG,
        episodes=10**6,
        open_world=point_world.open_point_world,
        on_progress=seen.append,
        should_stop=lambda: bool(seen) and seen[-1].tally.episodes > 4,
    )
    assert report.interrupted
    reasons = report.tally.end_reasons
    assert reasons.get("collector_stop", 0) <= 2
    assert len(actions(tmp_path / "d")) == report.tally.episodes


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (point_world.open_world_that_dies, r"worker \d \(process \d+\) died with signal 9"),
        (point_world.open_world_with_a_fault, r"worker \d \(process \d+\) died with exit code 1"),
        (point_world.open_world_that_fails, "the simulator is gone"),
    ],
)
def test_a_worker_that_dies_is_named_and_the_dataset_stays_sound(tmp_path, factory, message):
    with pytest.raises(WorldError, match=message):
        collect(tmp_path / "d", CONFIG, episodes=8, open_world=factory)
    held = actions(tmp_path / "d")
    assert len(held) <= 2
    collect(
        tmp_path / "d",
        CONFIG,
        episodes=8,
        resume=True,
        open_world=point_world.open_point_world,
    )
    assert sorted(actions(tmp_path / "d")) == list(range(8))


def test_a_lost_world_keeps_its_reason_on_the_way_from_a_worker():
    with pytest.raises(WorldLost, match="no frame within 5 s") as lost:
        run_jobs(lose_world, [None, None], should_stop=lambda: False, on_reports=lambda _: None)
    assert lost.value.reason == "sensor_stall"


PROGRAM = """
from pathlib import Path
from avtd3.collect.collector import collect
from avtd3.tests.collect import point_world
from avtd3.tests.collect.test_workers import CONFIG

def show(progress):
    if progress.tally.segments > 2:
        print("published", flush=True)

if __name__ == "__main__":
    collect(
        Path(DATASET), CONFIG, seconds=600.0,
        open_world=point_world.open_point_world, on_progress=show,
    )
"""


def test_workers_outlive_their_parent_only_to_publish(tmp_path):
    program = tmp_path / "program.py"
    text = textwrap.dedent(PROGRAM).replace("DATASET", repr(str(tmp_path / "d")))
    program.write_text(text, "utf-8")
    with subprocess.Popen(
        [sys.executable, str(program)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "published\n"
        os.kill(parent.pid, signal.SIGKILL)
        parent.stdout.read()  # ends when the last worker, who shares it, has left
    held = actions(tmp_path / "d")
    reasons = [
        reason
        for segment in Dataset.open(tmp_path / "d").snapshot().segments
        for reason in segment.episode_table().end_reason
    ]
    assert len(held) > 2
    assert reasons.count("collector_stop") <= 2
    assert list((tmp_path / "d" / ".staging").iterdir()) == []
