"""`avtd3 store`, through the real command line."""

import json
import os
from pathlib import Path

import pytest

from avtd3.store.dataset import Dataset
from avtd3.store.maintenance.pins import read_pins
from avtd3.store.maintenance.removal import exclusive
from avtd3.tests.store.maintenance.datasets import fill, identity


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def dataset(tmp_path):
    return fill(tmp_path / "data", [[4], [5], [6]])[0]


def test_prune_prints_only_json_on_standard_output(avtd3, dataset):
    names = dataset.segment_ids()
    dry = avtd3("store", "prune", dataset.path, "--max-steps", 6, "--dry-run", "--json")
    assert (dry[0], json.loads(dry[1])["removed"]) == (0, names[:2])
    assert dataset.segment_ids() == names
    code, out, err = avtd3("store", "prune", dataset.path, "--max-steps", 6, "--json")
    assert (code, json.loads(out)["removed_steps"]) == (0, 9)
    assert "removed 2 of 2 segments" in err
    code, out, _ = avtd3("store", "prune", dataset.path, "--max-steps", 6)
    assert code == 0
    assert out.startswith("removed 0 segments")


def test_prune_takes_sizes_ages_and_filters(avtd3, dataset):
    assert avtd3("store", "prune", dataset.path, "--max-bytes", "10GB", "--json")[0] == 0
    code, out, _ = avtd3(
        "store", "prune", dataset.path, "--older-than", "30d", "--filter", "policy=100", "--json"
    )
    assert (code, len(json.loads(out)["removed"])) == (0, 1)


def test_a_limit_that_pins_prevent_exits_with_1(avtd3, dataset):
    assert avtd3("store", "pin", dataset.path, *dataset.segment_ids())[0] == 0
    code, out, _ = avtd3("store", "prune", dataset.path, "--max-steps", 1)
    assert code == 1
    assert "kept because pinned" in out


def test_pins_are_set_listed_and_removed(avtd3, dataset):
    name = dataset.segment_ids()[0]
    code, out, _ = avtd3("store", "pin", dataset.path, name, "--note", "reference", "--json")
    assert (code, json.loads(out)["changed"]) == (0, [name])
    assert f"{name}  reference" in avtd3("store", "pins", dataset.path)[1]
    assert avtd3("store", "pin", dataset.path, "--filter", "policy=200")[0] == 0
    assert len(read_pins(dataset)) == 2
    assert avtd3("store", "unpin", dataset.path, name)[0] == 0
    assert len(read_pins(dataset)) == 1
    assert avtd3("store", "unpin", dataset.path, "--filter", "policy=0..", "--json")[0] == 0
    assert read_pins(dataset) == {}


def test_compact_merges(avtd3, dataset):
    before = identity(dataset)
    assert json.loads(avtd3("store", "compact", dataset.path, "--dry-run", "--json")[1])["dry_run"]
    code, out, err = avtd3("store", "compact", dataset.path, "--target-steps", 100)
    assert code == 0
    assert "3 -> 1 segment" in out
    assert "merged 3 of 3 segments" in err
    assert identity(dataset) == before
    assert avtd3("store", "compact", dataset.path)[0] == 0


def test_relabel_reads_pairs_and_files(avtd3, dataset, tmp_path):
    code, out, _ = avtd3("store", "relabel", dataset.path, tmp_path / "a", "--weights", "r0=2,r1=0")
    assert code == 0
    assert "relabelled 3 segments" in out
    (tmp_path / "w.yaml").write_text("r0: 2\nr1: 0\n")
    code, out, _ = avtd3(
        "store", "relabel", dataset.path, tmp_path / "b", "--weights", tmp_path / "w.yaml", "--json"
    )
    assert (code, json.loads(out)["weights"]) == (0, {"r0": 2.0, "r1": 0.0})
    assert identity(Dataset.open(tmp_path / "a")) == identity(Dataset.open(tmp_path / "b"))


def test_the_example_of_the_page_on_rendering_runs(avtd3, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("avtd3.collect.maps.network.check_native", lambda *_: None)
    text = (Path(__file__).parents[3] / "docs/render.md").read_text("utf-8")
    text, _, _ = text.partition("## CARLA")  # tests/collect/carla/test_replay.py
    lines = [line for line in text.splitlines() if line.startswith("avtd3 ")]
    answers = [avtd3(*line.removeprefix("avtd3 ").split()) for line in lines]
    assert [code for code, _, _ in answers] == [0] * 6
    assert "none differs from the stored ones" in answers[1][1]
    wide, night = (next(Dataset.open(name).episodes()) for name in ("wide", "night"))
    assert wide.frames.shape[1:] == (1, 96, 144)
    assert night.frames.shape[1:] == (1, 84, 84)
    assert night.attributes["weather"] == "night"
    assert wide.actions.tobytes() == night.actions.tobytes()
    colour = next(Dataset.open("colour").episodes())
    assert colour.streams["rgb"].shape[1:] == (3, 48, 64)
    assert set(colour.streams) == {"bev", "rgb"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["prune"], "nothing to prune was selected"),
        (["prune", "--max-bytes", "ten"], "expected an amount of bytes"),
        (["prune", "--older-than", "30"], "expected a time"),
        (["prune", "--filter", "colour=red"], "expected KEY=VALUE"),
        (["compact", "--target-steps", "1"], "target_steps is 1"),
        (["pin"], "no segments were selected"),
        (["pin", "no-such-segment"], "there is no segment no-such-segment"),
        (["unpin", "no-such-segment"], "is not pinned"),
        (["relabel", "NEW", "--weights", "r7=1"], "weight of 'r7'"),
        (["relabel", "NEW", "--weights", "r0=x"], "expected NAME=NUMBER"),
        (["render", "NEW"], "stores no states of the world"),
        (["render", "--check"], "stores no states of the world"),
        (["render"], "give either NEW and what to change, or --check alone"),
        (["render", "--check", "--weather", "night"], "give either NEW"),
        (["render", "NEW", "--camera", "width=x"], "camera.width is x, expected a whole number"),
        (["render", "NEW", "--camera", "wdth=9"], "camera has no 'wdth'"),
    ],
)
def test_invalid_use_prints_one_line_and_exits_with_2(avtd3, dataset, tmp_path, argv, message):
    command, *rest = [str(tmp_path / arg) if arg == "NEW" else arg for arg in argv]
    code, out, err = avtd3("store", command, dataset.path, *rest)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", [["prune", "--max-steps", "1"], ["compact"], ["pins"]])
def test_a_missing_dataset_exits_with_2(avtd3, tmp_path, command):
    code, _, err = avtd3("store", command[0], tmp_path / "none", *command[1:])
    assert code == 2
    assert "does not exist" in err


def test_a_second_maintenance_command_exits_with_2(avtd3, dataset):
    with exclusive(dataset):
        code, _, err = avtd3("store", "compact", dataset.path)
    assert code == 2
    assert "is in use by process" in err


def test_damage_is_reported_and_exits_with_1(avtd3, dataset):
    data = dataset.segments_path / dataset.segment_ids()[1] / "reward" / "c" / "0"
    data.write_bytes(bytes([data.read_bytes()[0] ^ 1]) + data.read_bytes()[1:])
    code, out, _ = avtd3("store", "compact", dataset.path)
    assert code == 1
    assert "not merged: segment" in out
