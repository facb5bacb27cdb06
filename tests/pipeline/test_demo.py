"""A small demo: every step runs and writes its files."""

import json
import shlex
import subprocess
import sys

import pytest
from PIL import Image

from avtd3.collect.sim.world import BARE_ROAD
from avtd3.configs.commands.demo import DemoSettings, load_quick, next_commands
from avtd3.store import Dataset
from avtd3.store.errors import ConfigError
from avtd3.tests.pipeline.conftest import ENVIRONMENT, avtd3, avtd3_json

SMALL = (
    "--set=demo.steps=300",
    "--set=demo.more_steps=100",
    "--set=collect.workers=1",
    "--set=collect.scenario.route_length_m=60",
    "--set=learn.updates=4",
    "--set=learn.log_every=2",
    "--set=learn.replay.batch_size=4",
    "--set=evaluate.workers=1",
    "--set=evaluate.episodes=2",
    "--set=evaluate.scenario.route_length_m=60",
)


def test_every_step_writes_its_files(tmp_path):
    out = tmp_path / "out"
    report = avtd3_json("demo", "--out", out, *SMALL)
    assert report == json.loads((out / "report.json").read_text())
    assert set(report["evaluations"]) == {"random", "behaviour", "learned"}
    seeds = [[row["seed"] for row in e["rows"]] for e in report["evaluations"].values()]
    assert seeds[0] == seeds[1] == seeds[2], "each driver drives on the same roads"
    assert all(seed % 2 for seed in seeds[0]), "held-out roads have odd seeds"
    assert report["updates"] == 4
    assert (report["gate"]["stage"], report["gate"]["judged_to"]) == ("demo", 4)
    assert {c["name"]: c["verdict"] for c in report["gate"]["criteria"]} | {
        "steps reached": "pass",
        "no stop alert": "unknown",  # the guards do not run in four updates
        "TD error of Q1 small": "pass",
    } == {c["name"]: c["verdict"] for c in report["gate"]["criteria"]}
    for name in ("held-out-roads.png", "learned-policy.gif"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 100
    page = (out / "run" / "run.html").read_text()
    assert "critic/loss over gradient updates" in page
    assert "What the policy would do" in page
    assert (out / "table.md").read_text().count("\n") == 5

    audited = avtd3_json("replay-inspect", out / "data")
    assert audited["verdict"] == "ok"
    assert audited["steps"] >= 400

    _, learn, evaluate = (shlex.split(line) for line, _ in next_commands(out))
    assert learn[:2] == ["avtd3", "learn"]
    code, _, err = avtd3(*learn[1:], *SMALL[4:7], "--updates", "4")
    assert code == 0, err
    code, _, err = avtd3(*evaluate[1:], *SMALL[7:])
    assert code == 0, err

    code, _, err = avtd3("demo", "--out", out)
    assert code == 2
    assert "not an empty directory" in err


def test_the_quick_demo_runs_every_step_without_carla(tmp_path):
    """As on Python 3.13, for which there is no package carla."""
    out = tmp_path / "out"
    amounts = ("--set=demo.steps=400", "--set=demo.more_steps=50", "--set=learn.updates=20")
    words = ("demo", "--quick", "--out", str(out), *amounts, "--set=evaluate.episodes=1")
    code = f"""if __name__ == "__main__":
        import sys; sys.modules["carla"] = None
        from avtd3.cli import main; main({words!r})"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "needs the package carla" in done.stderr
    assert "one bare road without traffic" in done.stderr
    assert "too short to learn to drive" in done.stdout
    assert f"evaluate {out}/run-2/policies --config demo --world {BARE_ROAD}" in done.stdout
    report = json.loads((out / "report.json").read_text())
    assert report["gate"]["stage"] == "smoke"
    assert "the scores mean nothing" in report["note"]
    towns = {str(e.attributes["town"]) for e in Dataset.open(out / "data").episodes()}
    assert towns == {"bare road"}


def test_the_quick_demo_drives_in_the_built_in_simulator_where_it_can():
    settings = load_quick(None, ["demo.steps=7"])
    assert (settings.collect.world, settings.evaluate.world) == ("road", "road")
    assert (settings.demo.steps, settings.demo.gate) == (7, "smoke")
    assert DemoSettings.load(None, ()).demo.note == "", "the real demo says nothing of the kind"
    with pytest.raises(ConfigError, match="--config mine"):
        load_quick("mine", ())


@pytest.mark.parametrize(
    "setting", ["gate=none", "film_episode=-1", "steps=0", "more_steps=0", "steps=1.5"]
)
def test_a_wrong_setting_ends_the_demo_before_it_begins(setting):
    with pytest.raises(ConfigError, match=rf"demo\.{setting.partition('=')[0]} "):
        DemoSettings.load(None, [f"demo.{setting}"])
