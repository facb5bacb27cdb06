"""`avtd3 replay-inspect` on the command line: choice of the tool, drift, quarantine, estimates."""

import json
from pathlib import Path

import pytest

from avtd3.configs.commands.options import parse_share
from avtd3.configs.commands.replay_inspect import Comparison, check_options
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError
from avtd3.tests.store.audit.test_audit import SPEC, write


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("--sample", "--strict", "--quarantine", "--dry-run"),
        ("--against", "--html"),
        ("--window", "--full"),
        ("--scores", "--set"),
        ("--episode", "--filter", "--gif"),
        ("--config", "--estimate"),
    ],
)
def test_options_that_choose_one_report_are_accepted(given):
    check_options(given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--episode", "--scores"), "--episode and --scores exclude each other; give one of them"),
        (("--against", "--estimate"), "--against and --estimate exclude each other"),
        (("--against", "--window"), "--against and --window exclude each other"),
        (("--window", "--scores"), "--window and --scores exclude each other"),
        (("--episode", "--html"), "--html has no effect with --episode; give one of them"),
        (("--sample", "--estimate"), "--sample has no effect with --estimate"),
        (("--config", "--episode"), "--config has no effect with --episode"),
        (("--estimate", "--gif"), "--gif needs an episode"),
        (("--sheet",), "--sheet needs an episode; add --episode worst"),
        (("--filter", "--scores"), "--filter needs an episode"),
        (("--dry-run",), "--dry-run has no effect without --quarantine"),
    ],
)
def test_options_of_two_reports_or_without_effect_are_rejected(given, message):
    with pytest.raises(ConfigError, match=message):
        check_options(given)


def test_an_option_without_effect_exits_with_2(tmp_path, avtd3):
    data = write(tmp_path / "data").path
    code, _, err = avtd3("replay-inspect", data, "--estimate", "--set", "collect.seed=1")
    assert code == 2
    assert "have no effect when --estimate measures a dataset" in err
    code, _, err = avtd3("replay-inspect", data, "--episode", "", "--strict")
    assert code == 2
    assert "--strict has no effect with --episode" in err


@pytest.mark.parametrize(("text", "share"), [("5%", 0.05), ("0.05", 0.05), ("100%", 1.0)])
def test_shares_are_fractions_or_percentages(text, share):
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["0", "101%", "1.5", "five", "", "nan"])
def test_invalid_shares_are_rejected(text):
    with pytest.raises(ConfigError, match="--sample"):
        parse_share(text)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((["a"], [], ["world=x"]), "expected two"),
        ((["a"], ["a"], []), "compared with itself"),
    ],
)
def test_invalid_comparisons_are_rejected(arguments, says):
    with pytest.raises(ConfigError, match=says):
        Comparison.parse(
            [Path(p) for p in arguments[0]], [Path(p) for p in arguments[1]], arguments[2]
        )


def test_drift_between_two_datasets(tmp_path, avtd3):
    write(tmp_path / "one", collector="one")
    write(tmp_path / "two", collector="two", seed=1)
    code, out, _ = avtd3("replay-inspect", tmp_path / "one", "--against", tmp_path / "two")
    assert code == 0
    assert f"drift from {tmp_path / 'one'} to {tmp_path / 'two'}" in out


def test_drift_between_two_windows_as_json(tmp_path, avtd3):
    write(tmp_path / "data")
    windows = ("--window", "scenario=0", "--window", "scenario=1")
    code, out, _ = avtd3("replay-inspect", tmp_path / "data", *windows, "--json")
    assert code == 0
    document = json.loads(out)
    assert {drift["name"] for drift in document["drift"]} >= {"action steer", "episode length"}
    assert [window["returns"]["count"] for window in document["windows"]] == [2, 1]


def test_a_dry_run_lists_damaged_segments_and_moves_nothing(tmp_path, avtd3):
    dataset = write(tmp_path / "data", segments=2)
    bad = dataset.segment_ids()[0]
    (dataset.segments_path / bad / "reward/c/0").unlink()
    code, out, _ = avtd3("replay-inspect", dataset.path, "--quarantine", "--dry-run")
    assert code == 1
    assert f"would move to quarantine: {bad}" in out
    assert bad in {path.name for path in dataset.segments_path.iterdir()}
    code, out, _ = avtd3("replay-inspect", dataset.path, "--quarantine")
    assert f"\nmoved to quarantine: {bad}" in out
    assert avtd3("replay-inspect", dataset.path)[0] == 0
    assert avtd3("replay-inspect", dataset.path, "--dry-run")[0] == 2


def test_an_estimate_adds_up_to_the_files(tmp_path, avtd3):
    dataset = write(tmp_path / "data", segments=2)
    code, out, _ = avtd3("replay-inspect", dataset.path, "--estimate", "--json")
    assert code == 0
    document = json.loads(out)
    files = [file for file in dataset.segments_path.rglob("*") if file.is_file()]
    sizes = sum(file.stat().st_size for file in files)
    assert document["bytes_per_step"] * document["steps"] == pytest.approx(sizes)
    hours = 1e12 / document["bytes_per_step"] * 0.05 / 3600
    assert document["hours_per_terabyte"] == pytest.approx(hours)


def test_an_estimate_of_an_empty_dataset_is_rejected(tmp_path, avtd3):
    Dataset.create(tmp_path / "data", SPEC)
    code, _, err = avtd3("replay-inspect", tmp_path / "data", "--estimate")
    assert code == 2
    assert "has no steps" in err
    assert avtd3("replay-inspect")[0] == 2


@pytest.mark.slow
def test_an_estimate_of_a_configuration_drives_and_leaves_nothing(avtd3):
    code, out, _ = avtd3("replay-inspect", "--estimate", "--set", "collect.driver=random")
    assert code == 0
    assert "hours per terabyte" in out
