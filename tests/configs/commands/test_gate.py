"""`avtd3 gate` and `avtd3 compare` on the command line, with the files that ship with avtd3."""

import json
from pathlib import Path

import pytest

from avtd3.cli import main
from avtd3.configs import load
from avtd3.configs.commands.gate import STAGES, load_directions, load_gate, load_names
from avtd3.configs.load import load_section
from avtd3.learn.analysis.statistics import FEWEST_FOR_TREND
from avtd3.learn.logging import EventWriter
from avtd3.learn.metrics import metric
from avtd3.store.errors import ConfigError

SMOKE = {
    "critic/loss": 1.0,
    "actor/loss": -1.0,
    "critic/q_max": 2.0,
    "critic/q_min": 1.0,
    "actor_mlp/grad_norm_before": 0.1,
    "critic_mlp/grad_norm_before": 0.1,
    "critic/skipped": 0.0,
    "alerts/stop": 0.0,
    "run/updates_per_second": 1.0,
}


@pytest.fixture
def write(tmp_path):
    def make(name, **changes):
        writer = EventWriter(tmp_path / name / "events", first_step=1)
        for step in range(2, 51, 2):
            writer.write(step, SMOKE | changes)
        writer.close()
        return str(tmp_path / name)

    return make


def call(*words):
    with pytest.raises(SystemExit) as stop:
        main(words)
    return stop.value.code or 0


def test_the_stages_that_ship_with_avtd3():
    files = Path(load.__file__).parent.joinpath("gates").glob("*.yaml")
    assert {file.stem for file in files} == set(STAGES)
    for stage in STAGES:
        config = load_gate(stage, None)
        assert config.stage == stage
        for criterion in config.criteria:
            assert metric(criterion.metric) is not None, criterion.name
            assert criterion.source, criterion.name


@pytest.mark.parametrize("stage", ["50k", "100k", "200k", "1m"])
def test_fixed_data_and_new_episodes_have_criteria_of_their_own(stage):
    by_data: dict[str, set[str]] = {"any": set(), "online": set(), "offline": set()}
    for criterion in load_gate(stage, None).criteria:
        by_data[criterion.data].add(criterion.metric.split("/")[0])
    assert by_data["online"] in ({"episode"}, {"episode", "critic"})
    assert by_data["offline"] == {"offline"}
    assert not by_data["any"] & {"episode", "offline"}


@pytest.mark.parametrize("stage", ["50k", "100k", "200k", "1m"])
def test_no_stage_asks_fixed_data_for_an_error_that_falls(stage):
    """Values start at 0, so the errors of sampled batches grow with them until they settle."""
    for criterion in load_gate(stage, None).criteria:
        assert criterion.data == "online" or criterion.rule not in ("falling", "rising")


@pytest.mark.parametrize(
    ("preset", "stage"),
    [("stability_50k", "50k"), ("extended_200k", "200k"), ("production_1m", "1m")],
)
def test_a_preset_measures_what_its_offline_stage_asks(preset, stage):
    learn, gate = load_section("learn", preset), load_gate(stage, None)
    assert learn.replay.held_out > 0.0
    assert learn.updates == gate.steps
    for criterion in gate.criteria:
        if criterion.data == "offline":
            steps = learn.updates * criterion.window.last_share
            least = FEWEST_FOR_TREND if criterion.is_trend else 3
            assert steps / learn.evaluate_every >= least, criterion.name


def test_names_and_directions_that_ship_with_avtd3():
    book = load_names()
    assert [names.name for names in book.sets] == ["avtd3", "cleanrl", "sb3"]
    for names in book.sets:
        assert all(metric(name) is not None for name in names.tags)
    others = load_directions().others
    tags = [*others.lower, *others.higher, *others.neither]
    assert [tag for tag in tags if metric(tag) is not None] == []


def test_go_and_no_go_are_exit_codes(write, capsys):
    assert call("gate", write("good"), "--stage", "smoke") == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("GO: stage smoke")
    assert call("gate", write("bad", **{"critic/skipped": 1.0}), "--stage", "smoke", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["verdict"] == "NO-GO"
    assert [c["name"] for c in document["criteria"] if c["blocks"]] == ["nothing skipped"]


def test_a_gate_writes_files(write, tmp_path):
    page, text = tmp_path / "page.html", tmp_path / "text.md"
    run = write("run")
    assert call("gate", run, "--stage", "smoke", "--html", str(page), "--markdown", str(text)) == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert text.read_text().startswith("# GO: stage smoke")


def test_criteria_from_a_file(write, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("criteria: [{name: loss, metric: critic/loss, below: 0.5}]")
    assert call("gate", write("run"), "--criteria", str(file)) == 1
    assert "NO-GO: stage mine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "criteria is empty"),
        ("[1]", "must be a mapping"),
        ("a: [", "not valid YAML"),
        ("[" * 5000, "nested too deep"),
        ("when: 2001-99-99", "not valid YAML"),
        ("criteria: [{name: a, metric: b, belw: 1}]", "below"),
        ("criteria: [{name: a, metric: b}]", "needs a bound"),
    ],
)
def test_invalid_criteria_are_rejected(tmp_path, text, says):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_gate(None, file)


@pytest.mark.parametrize(
    "words",
    [
        ("gate", "RUN"),
        ("gate", "RUN", "--stage", "6k"),
        ("gate", "missing", "--stage", "smoke"),
        ("gate", "RUN", "--criteria", "missing.yaml"),
        ("gate", "RUN", "--stage", "smoke", "--map", "critic/loss"),
        ("gate", "RUN", "--stage", "smoke", "--map", "critic/loss=nothing"),
        ("gate", "RUN", "--stage", "smoke", "--names", "unknown"),
        ("gate", "RUN", "--stage", "smoke", "--optional", "nothing"),
        ("compare", "RUN", "missing"),
        ("compare", "RUN", "RUN", "--window", "0"),
        ("compare", "RUN", "RUN", "--metric", "nothing"),
        ("compare", "RUN", "RUN", "--directions", "missing.yaml"),
    ],
)
def test_invalid_use_prints_one_line(write, capsys, words):
    run = write("run")
    assert call(*(run if word == "RUN" else word for word in words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("avtd3: ")


def test_compare_writes_files_and_fails_on_demand(write, tmp_path, capsys):
    before, after = write("before"), write("after", **{"critic/loss": 2.0})
    page, text = tmp_path / "page.html", tmp_path / "text.md"
    files = ("--html", str(page), "--markdown", str(text))
    assert call("compare", before, after, "--json", *files) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["metrics"][0]["metric"] == "critic/loss"
    assert document["counts"]["worse"] == 1
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert "| **worse** | `critic/loss` |" in text.read_text()
    assert call("compare", before, after, "--fail-on", "worse") == 1
    assert call("compare", before, after, "--metric", "actor/*", "--fail-on", "worse") == 0


def test_directions_from_a_file(write, tmp_path, capsys):
    file = tmp_path / "mine.yaml"
    file.write_text("higher: [critic/loss]")
    before, after = write("before"), write("after", **{"critic/loss": 2.0})
    assert call("compare", before, after, "--directions", str(file), "--json") == 0
    assert json.loads(capsys.readouterr().out)["counts"]["better"] == 1
