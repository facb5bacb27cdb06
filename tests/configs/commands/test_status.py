"""``avtd3 status``: what it answers, and its exit codes."""

import functools
import json
import os
import time

import pytest

from avtd3.learn.networks import Actor, NetworkConfig
from avtd3.learn.policy_store import PolicyStore
from avtd3.store.remote.client import LocalPlace, open_place
from avtd3.store.status import Beat
from avtd3.tests.collect.line_world import SPEC, Line


@pytest.fixture
def status(avtd3):
    return functools.partial(avtd3, "status")


def beat(place, name, role="collector", **fields):
    made = Beat(role=role, name=name, id=f"{role}-{name}", sequence=1, **fields)
    LocalPlace(place).write(made.key, made.to_bytes())


def test_running_and_ended_processes_are_well(tmp_path, status):
    beat(tmp_path / "d", "car", steps=500, rate=20.0)
    beat(tmp_path / "d", "earlier", steps=100, is_ended=True)
    beat(tmp_path / "run/policies", "run", "learner", updates=50, target=200, policy_version=3)
    code, out, _ = status(tmp_path / "d", tmp_path / "run", "--once")
    assert code == 0
    assert "2 collectors, 1 learner, 20 steps/s" in out
    assert "update 50 of 200" in out
    code, out, _ = status(tmp_path / "d", tmp_path / "run", "--json")
    document = json.loads(out)
    assert [p["state"] for p in document["processes"]] == ["running", "ended", "running"]


def test_a_url_is_a_place(bucket, tmp_path, status):
    beat(tmp_path / "d", "car", steps=500, is_ended=True)
    (sent,) = (tmp_path / "d" / "status").iterdir()
    open_place(bucket).write(f"status/{sent.name}", sent.read_bytes())
    code, out, _ = status(bucket, "--json")
    (process,) = json.loads(out)["processes"]
    assert (code, process["state"], process["place"]) == (0, "ended", bucket)


def test_a_url_that_cannot_be_reached_is_an_error_soon(bucket, status, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    code, _, error = status(bucket, "--once")
    assert code == 3
    assert "cannot be reached now at http://127.0.0.1:1: Connection refused" in error


def test_a_dead_process_exits_with_1(tmp_path, status, monkeypatch):
    beat(tmp_path, "car", steps=500)
    monkeypatch.setattr(time, "time", lambda now_s=time.time: now_s() + 100.0)
    code, out, _ = status(tmp_path, "--once")
    assert code == 1
    assert "car: dead: its last heartbeat came" in out


def test_a_place_without_heartbeats_is_well(tmp_path, status):
    code, out, _ = status(tmp_path, "--once")
    assert (code, out) == (0, "no process has written a heartbeat in the last day\n")


def test_heartbeats_in_a_bucket_are_read(tmp_path, status):
    pytest.importorskip("obstore")
    made = Beat(role="collector", name="car", id="collector-car", sequence=1, is_ended=True)
    open_place(f"memory://{tmp_path.name}").write(made.key, made.to_bytes())
    code, out, _ = status(f"memory://{tmp_path.name}", "--json")
    assert [p["state"] for p in json.loads(out)["processes"]] == ["ended"]
    assert code == 0


def test_a_page_is_written(tmp_path, status):
    beat(tmp_path / "d", "car", steps=500, alerts=("the disk is slow",))
    code, _, _ = status(tmp_path / "d", "--html", tmp_path / "pages" / "status.html")
    page = (tmp_path / "pages" / "status.html").read_text("utf-8")
    assert code == 0
    assert "the disk is slow" in page
    assert "collector car" in page


def test_watching_redraws_until_it_is_interrupted(tmp_path, status, monkeypatch):
    from avtd3.configs.commands import status as command

    beat(tmp_path, "car", steps=500)
    looks = []

    def wait(seconds, should_stop):
        looks.append(seconds)
        if len(looks) == 3:
            os.kill(os.getpid(), 2)
            assert should_stop()

    monkeypatch.setattr(command, "_wait", wait)
    code, out, _ = status(tmp_path, "--watch", "--interval", "0.5")
    assert (code, looks) == (0, [0.5] * 3)
    assert "1 collector" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing"], "missing is not a directory, expected a dataset, a run or a directory"),
        (["--json", "--watch", "."], "--json prints one document"),
        (["ftp://host/d"], "ftp://host/d"),
    ],
)
def test_bad_use_exits_with_2(arguments, said, status):
    code, _, err = status(*arguments)
    assert code == 2
    assert said in err


def test_collect_and_learn_write_heartbeats(tmp_path, status, avtd3):
    for command in (
        ["collect", "d", "--episodes", "1", "--set", "collect.scenario.route_length_m=30"],
        [
            *("learn", "d", "--run", "run", "--updates", "2", "--follow"),
            *("--set", "learn.learning_starts=10", "--set", "learn.replay.batch_size=4"),
        ],
    ):
        code, _, err = avtd3(*(tmp_path / a if a in ("d", "run") else a for a in command))
        assert code == 0, err
    _, out, _ = status(tmp_path / "d", "--json")
    collector, learner = json.loads(out)["processes"]
    assert (collector["state"], learner["state"]) == ("ended", "ended")
    assert learner["acknowledged"] == {collector["name"]: collector["steps"]}
    assert learner["updates"] == 2


class TwoLearners(Line):
    """A world during whose episodes two runs publish in turn."""

    def reset(self, seed, index=0):
        publish(["1a", "2b"][index % 2])
        return super().reset(seed, index)


def publish(run):
    """Publish as a learner of another machine, whose locks are not seen."""
    network = NetworkConfig(hidden=(8,), features=8)
    PolicyStore("policies", run=run).publish(Actor(SPEC, network), SPEC, network, updates=0)


def test_the_warning_of_a_collector_that_two_learners_publish_is_shown(
    tmp_path, status, avtd3, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    publish("1a")
    world = f"{TwoLearners.__module__}:TwoLearners"
    words = ("--policies", "policies", "--driver", "policy", "--world", world, "--episodes", 6)
    assert avtd3("collect", "data", *words, "--set", "collect.min_free_mb=0")[0] == 0
    says = "two learners publish in policies in turn, runs"
    (process,) = json.loads(status("data", "--json")[1])["processes"]
    assert says in str(process["alerts"])
    assert says in " ".join(status("data", "--once")[1].split())
