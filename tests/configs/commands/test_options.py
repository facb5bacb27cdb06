"""Values of options: amounts, weights, and the defaults that help texts state."""

import contextlib
import math
import re

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from avtd3.cli import make_app
from avtd3.collect.driving.reward import REWARD_TERMS
from avtd3.configs.commands.options import (
    parse_bytes,
    parse_cameras,
    parse_seconds,
    parse_weights,
)
from avtd3.configs.load import load_section
from avtd3.store.errors import ConfigError
from avtd3.store.maintenance.derive import Factor


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0),
        ("1234", 1234),
        ("10GB", 10_000_000_000),
        ("10 gb", 10_000_000_000),
        ("1.5kB", 1500),
        ("2GiB", 2 * 1024**3),
        ("512MiB", 512 * 1024**2),
        ("1TB", 10**12),
        ("7B", 7),
    ],
)
def test_bytes(text, value):
    assert parse_bytes(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("45s", 45.0), ("90m", 5400.0), ("12h", 43_200.0), ("30d", 2_592_000.0), ("2w", 1_209_600.0)],
)
def test_seconds(text, value):
    assert parse_seconds(text) == value


@pytest.mark.parametrize("text", ["", "GB", "ten GB", "-1GB", "1XB", "1e9", "1 0", "nan", "30d"])
def test_invalid_amounts_of_bytes_are_rejected(text):
    with pytest.raises(ConfigError, match="expected an amount of bytes"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["", "30", "d", "-1d", "1y", "1M d", "9" * 400 + "d"])
def test_invalid_times_are_rejected(text):
    with pytest.raises(ConfigError, match="expected a time"):
        parse_seconds(text)


@given(st.text(max_size=8))
def test_any_text_is_an_amount_or_a_config_error(text):
    for parse in (parse_bytes, parse_seconds):
        with contextlib.suppress(ConfigError):
            assert parse(text) >= 0


def test_weights_from_pairs_and_files(tmp_path):
    file = tmp_path / "weights.yaml"
    file.write_text("safety/collision: 3\ncomfort/jerk: 0.5\n")
    assert parse_weights(["a=1.0, b/c=-2e-1"]) == ({"a": 1.0, "b/c": -0.2}, ())
    assert parse_weights([str(file), "comfort/jerk=0"]) == (
        {"safety/collision": 3.0, "comfort/jerk": 0.0},
        (),
    )


def test_factors_from_files(tmp_path):
    file = tmp_path / "weights.yaml"
    file.write_text("a: {weight: 2, factors: {b: {below: -1, factor: 0.5}}}\nb: 0\n")
    expected = (Factor(term="a", where="b", below=-1, factor=0.5),)
    assert parse_weights([str(file)]) == ({"a": 2.0, "b": 0.0}, expected)
    file.write_text("a: {factors: {}}")
    assert parse_weights([str(file), "a=3"]) == ({"a": 3.0}, ())


@pytest.mark.parametrize(
    "text",
    [
        "a: {weights: 2}",
        "a: {weight: [2]}",
        "a: {factors: 2}",
        "a: {factors: {b: 2}}",
        "a: {factors: {b: {below: 2}}}",
        "a: {factors: {b: {below: 2, factor: 1, above: 3}}}",
    ],
)
def test_invalid_factors_are_rejected(tmp_path, text):
    file = tmp_path / "weights.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"weight a.* expected"):
        parse_weights([str(file)])


def test_the_preset_of_route_completion_times_penalties_is_read_by_its_name():
    weights, factors = parse_weights(["carl"])
    assert set(weights) == set(REWARD_TERMS)
    assert {each.term for each in factors} == {"efficiency/progress"}
    assert {each.where for each in factors} <= set(REWARD_TERMS)


def test_a_setting_of_a_camera_is_a_whole_number_a_number_or_a_word():
    texts = ["width=144,pitch_deg=-5", f"height={'9' * 5000}", "rgb=kind=rgb"]
    settings = {"width": 144, "pitch_deg": -5.0, "height": math.inf}
    assert parse_cameras(texts) == (settings, {"rgb": {"kind": "rgb"}})


@pytest.mark.parametrize("text", ["a=", "a=b", "a=1,b", "a=1,,"])
def test_invalid_pairs_are_rejected(text):
    with pytest.raises(ConfigError, match="expected NAME=NUMBER"):
        parse_weights([text])


@pytest.mark.parametrize("text", ["", "[1, 2]", "a: [1]", "a: x", "a: true", "a: {", "- a"])
def test_invalid_files_of_weights_are_rejected(tmp_path, text):
    file = tmp_path / "weights.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match="weight"):
        parse_weights([str(file)])


def test_a_missing_file_of_weights_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match="expected NAME=NUMBER"):
        parse_weights([str(tmp_path / "none.yaml")])


@pytest.mark.parametrize(
    ("command", "option", "section", "key"),
    [
        ("collect", "--world", "collect", "world"),
        ("collect", "--steps", "collect", "steps"),
        ("collect", "--driver", "collect", "driver"),
        ("collect", "--seed", "collect", "seed"),
        ("evaluate", "--episodes", "evaluate", "episodes"),
        ("evaluate", "--seed", "evaluate", "seed"),
        ("evaluate", "--world", "evaluate", "world"),
        ("learn", "--updates", "learn", "updates"),
        ("learn", "--seed", "learn", "seed"),
        ("learn", "--replay", "learn", "replay.mode"),
        ("collect", "--scenario", "collect", "scenario.number"),
        ("collect", "--host", "collect", "carla.host"),
        ("collect", "--walkers", "collect", "carla.walkers"),
        ("collect", "--random-steps", "collect", "lead.random_steps"),
        ("evaluate", "--scenario", "evaluate", "scenario.number"),
    ],
)
def test_help_states_the_default_of_the_configuration(command, option, section, key):
    commands = vars(typer.main.get_command(make_app()))["commands"]
    options = {opt: param for param in commands[command].params for opt in param.opts}
    (stated,) = re.findall(r"Default: ([\w.]+?)(?: steps)?\.(?: |$)", options[option].help)
    value = load_section(section)
    for name in key.split("."):
        value = getattr(value, name)
    assert stated == str(value)


WITHOUT_DEFAULT = {
    *("--config", "--set", "--filter", "--run", "--gif", "--rollback", "--scenario-file"),
    *("--policies", "--server-command"),
}
"""Options of which nothing is the default."""


@pytest.mark.parametrize("command", ["collect", "learn", "evaluate"])
def test_help_states_a_default_of_each_option_with_a_value(command):
    params = vars(typer.main.get_command(make_app()))["commands"][command].params
    for param in params:
        is_amount = command == "collect" and "instead" in (param.help or "")  # of --steps
        is_argument = param.param_type_name == "argument"
        if not (is_argument or is_amount or param.is_flag or param.opts[0] in WITHOUT_DEFAULT):
            assert "Default: " in param.help, param.opts
