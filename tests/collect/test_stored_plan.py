"""A resumed collection keeps its settings, changes what it is asked to, and lists what changed."""

import json

import pytest

from avtd3.cli import main
from avtd3.collect import CollectConfig, collect
from avtd3.collect.plan import PLANS, stored_plans
from avtd3.store.dataset import Dataset

LINE = "avtd3.tests.collect.line_world:Line"
OWN = f"collect: {{world: '{LINE}', driver: random, seed: 5, min_free_mb: 1}}"


@pytest.fixture
def run(tmp_path, capsys):
    """Run ``avtd3 collect`` on a dataset; return the exit code, and its report or error."""

    def collected(*options):
        with pytest.raises(SystemExit) as ended:
            main(["collect", str(tmp_path / "data"), "--json", *map(str, options)])
        shown = capsys.readouterr()
        code = ended.value.code or 0
        return code, json.loads(shown.out) if code == 0 else shown.err

    return collected


@pytest.fixture
def config(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(OWN)
    return file


def lengths(path):
    segments = Dataset.open(path / "data").snapshot().segments
    tables = [segment.episode_table() for segment in segments]
    return sorted(int(index) for table in tables for index in table.index)


def test_a_resume_without_settings_keeps_all_of_them(tmp_path, run, config):
    _, first = run("--config", config, "--episodes", 3)
    (plan,) = stored_plans(tmp_path / "data")
    assert plan.config["seed"] == 5
    code, again = run("--resume")
    assert (code, again["steps"], again["missing"], again["changes"]) == (0, 0, "", [])
    code, more = run("--resume", "--episodes", 5)
    assert (code, more["episodes"], more["plan_digest"]) == (0, 2, first["plan_digest"])
    assert more["changes"] == ["episodes: 3 -> 5 after 36 steps"]
    assert lengths(tmp_path) == [0, 1, 2, 3, 4]
    assert run("--resume")[1]["missing"] == ""  # of five episodes, the amount of the last command


def test_changes_are_recorded_with_the_steps_before_them(tmp_path, run, config):
    run("--config", config, "--episodes", 1)
    code, report = run("--resume", "--set", "collect.min_free_mb=2", "--episodes", 2)
    assert code == 0
    expected = ["collect.min_free_mb: 1 -> 2 after 12 steps", "episodes: 1 -> 2 after 12 steps"]
    assert report["changes"] == expected
    run("--resume", "--set", "collect.min_free_mb=3")
    (plan,) = stored_plans(tmp_path / "data")
    assert [(c["setting"], c["after"], c["from_step"]) for c in plan.changes] == [
        ("collect.min_free_mb", 2, 12),
        ("episodes", 2, 12),
        ("collect.min_free_mb", 3, 24),
    ]
    assert plan.config["min_free_mb"] == 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--driver", "expert"), "collect.driver: 'random' -> 'expert'"),
        (("--set", "collect.lead.random_steps=9"), "collect.lead.random_steps: 0 -> 9"),
        (
            ("--set", "collect.world_options={limit: 7}"),
            "collect.world_options: {} -> {'limit': 7}",
        ),
    ],
    ids=str,
)
def test_changes_that_would_make_another_plan_are_refused(tmp_path, run, config, options, named):
    run("--config", config, "--episodes", 1)
    before = sorted((tmp_path / "data").rglob("*"))
    code, message = run("--resume", "--episodes", 2, *options)
    assert code == 2
    assert "a plan of seed 5 that cannot be resumed like this" in message
    assert named in message
    assert sorted((tmp_path / "data").rglob("*")) == before


def test_a_seed_chooses_the_plan(tmp_path, run, config):
    run("--config", config, "--episodes", 1)
    code, other = run("--config", config, "--seed", 6, "--episodes", 2, "--resume")  # a new plan
    assert (code, other["episodes"]) == (0, 2)
    code, message = run("--resume", "--episodes", 3)
    assert code == 2
    assert "has 2 plans that this could resume, of seed 5, 6; name one with --seed" in message
    code, report = run("--resume", "--seed", 6, "--episodes", 3)
    assert (code, report["episodes"], report["plan_digest"]) == (0, 1, other["plan_digest"])
    assert run("--resume", "--config", config, "--episodes", 2)[1]["episodes"] == 1


def test_a_plan_of_an_older_version_is_known_from_its_segments(tmp_path, run, config):
    run("--config", config, "--episodes", 2)
    (file,) = (tmp_path / "data" / PLANS).glob("*.json")
    file.unlink()
    code, report = run("--resume", "--episodes", 3)
    assert (code, report["episodes"], report["changes"]) == (0, 1, [])
    assert file.exists()


DAMAGED = ["", "[]", "{", '{"digest": 1}', '{"digest": "a", "config": 3}']
PLAN = {"digest": "a", "config": {}}
DAMAGED += [json.dumps({**PLAN, "options": {n: "x"}}) for n in ("steps", "episodes", "seconds")]
DAMAGED.append(json.dumps({**PLAN, "options": {"policies": 5}}))


@pytest.mark.parametrize("text", DAMAGED)
def test_a_damaged_file_of_a_plan_is_one_error(tmp_path, run, config, text):
    run("--config", config, "--episodes", 1)
    (file,) = (tmp_path / "data" / PLANS).glob("*.json")
    file.write_text(text)
    code, message = run("--resume", "--episodes", 2)
    assert code == 2
    assert message.count("\n") == 1
    assert f"{file} cannot be read" in message


def test_what_is_resumed_from_python_is_recorded_as_well(tmp_path):
    config = CollectConfig(world=LINE, driver="random")
    collect(tmp_path / "data", config, episodes=1)
    report = collect(tmp_path / "data", config, episodes=2, resume=True)
    assert report.changes == ("episodes: 1 -> 2 after 12 steps",)
    assert "changed episodes: 1 -> 2 after 12 steps" in report.summary()
