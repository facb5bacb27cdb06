"""`avtd3 config` on the command line."""

import json

import pytest
import yaml

from avtd3.cli import main
from avtd3.configs.load import json_schema, load_section, presets


@pytest.fixture
def run(capsys):
    """Run a command; returns its exit code, standard output and standard error."""

    def call(*words):
        with pytest.raises(SystemExit) as stop:
            main(["config", *words])
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call


def test_the_schema_is_one_json_document(run):
    code, out, _ = run("schema", "learn")
    assert code == 0
    assert json.loads(out) == json_schema("learn")
    assert json.loads(run("schema")[1])["properties"].keys() >= {"collect", "learn"}


def test_settings_are_shown_with_presets_and_overrides(run):
    code, out, _ = run("show", "learn", "--config", "demo", "--set", "learn.td3.tau=0.25")
    assert code == 0
    shown = yaml.safe_load(out)
    assert list(shown) == ["learn"]
    assert shown["learn"]["td3"]["tau"] == 0.25
    assert shown["learn"]["updates"] == load_section("learn", "demo").updates


@pytest.mark.parametrize("words", [("show", "lern"), ("schema", "lern"), ("show", "--set", "x")])
def test_invalid_use_prints_one_line_and_exits_with_2(run, words):
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("avtd3: ")
    assert err.count("\n") == 1


def test_presets_are_listed(run):
    assert run("presets")[1].split() == presets()
