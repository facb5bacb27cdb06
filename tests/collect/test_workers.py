import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avtd3.collect.collector import CollectConfig, collect
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.collect.reports import CollectProgress
from avtd3.collect.workers import run_jobs
from avtd3.store.dataset import Dataset
from avtd3.store.errors import InUseError, WorldError, WorldLost
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


def gather(path, config=CONFIG, **options):
    """Collect in point worlds."""
    return collect(path, config, open_world=point_world.open_point_world, **options)


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
    two = gather(tmp_path / "two", episodes=7, on_progress=seen.append)
    one = gather(tmp_path / "one", dataclasses.replace(CONFIG, workers=1), episodes=7)
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
    report = gather(
        tmp_path / "d",
        episodes=10**6,
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
    gather(tmp_path / "d", episodes=8, resume=True)
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

said = []

def show(progress):
    if progress.tally.segments > 2 and not said:
        said.append(1)
        print("published", flush=True)

if __name__ == "__main__":
    collect(
        Path(DATASET), CONFIG, episodes=EPISODES,
        open_world=point_world.open_point_world, on_progress=show,
    )
"""


def start_collecting(tmp_path, episodes=10**6):
    program = tmp_path / "program.py"
    text = PROGRAM.replace("DATASET", repr(str(tmp_path / "d"))).replace("EPISODES", str(episodes))
    program.write_text(text, "utf-8")
    parent = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "published\n"
    return parent


def end_reasons(path):
    return [
        reason
        for segment in Dataset.open(path).snapshot().segments
        for reason in segment.episode_table().end_reason
    ]


def test_after_a_kill_a_resume_finds_whole_episodes_and_waits_for_the_workers(tmp_path):
    with start_collecting(tmp_path) as parent:
        os.kill(parent.pid, signal.SIGKILL)
        count = 400
        report = gather(tmp_path / "d", episodes=count, resume=True)
    assert report.missing == ""
    assert len(actions(tmp_path / "d")) >= count  # none is there twice
    assert "collector_stop" not in end_reasons(tmp_path / "d")
    assert list((tmp_path / "d" / ".staging").iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_all_workers_ends_them_in_good_order(tmp_path, number):
    with start_collecting(tmp_path) as parent:
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        for child in children:
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                os.kill(int(child), number)
        assert parent.wait(120) == 0
    reasons = end_reasons(tmp_path / "d")
    assert len(reasons) == len(actions(tmp_path / "d")) > 2
    assert reasons.count("collector_stop") <= 2


def test_a_second_collection_of_a_plan_says_who_has_it(tmp_path):
    with start_collecting(tmp_path) as parent:
        for resume in (True, False):
            with pytest.raises(InUseError, match=rf"is in use by process {parent.pid} on"):
                gather(tmp_path / "d", episodes=3, resume=resume)
        gather(tmp_path / "d", dataclasses.replace(CONFIG, seed=5, workers=1), episodes=1)
        parent.kill()


def test_one_bad_environment_among_workers_costs_only_its_own_episodes(tmp_path):
    for number, factory in enumerate(
        (point_world.open_second_world_dies, point_world.open_second_world_fails)
    ):
        path = tmp_path / str(number)
        report = collect(path, CONFIG, episodes=8, open_world=factory)
        assert "worker 1 " in report.failure
        assert "--resume" in report.failure
        assert set(actions(path)) >= {0, 1, 2, 3}
        assert report.tally.episodes == len(actions(path))
        assert report.missing == f"{8 - report.tally.episodes} episodes"
        again = gather(path, episodes=8, resume=True)
        assert (again.failure, sorted(actions(path))) == ("", list(range(8)))


def test_an_error_of_a_user_s_own_kind_arrives_as_the_one_that_it_derives_from():
    with pytest.raises(WorldError, match="own kind"):
        run_jobs(raise_own_kind, [1, 2], should_stop=lambda: False, on_reports=lambda _: None)


def raise_own_kind(job, should_stop, report):
    class OwnWorldError(WorldError):
        pass

    raise OwnWorldError("own kind", job)
