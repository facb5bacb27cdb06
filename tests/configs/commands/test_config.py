"""`avtd3 config` on the command line."""

import contextlib
import dataclasses
import functools
import json
import re

import pytest
import yaml

from avtd3.collect.maps import scenarios
from avtd3.configs.commands.config import reference_page
from avtd3.configs.commands.options import SCENARIOS, describe_presets
from avtd3.configs.load import SECTIONS, flat, json_schema, load_section, plain, presets
from avtd3.learn.config import LearnConfig
from avtd3.tests.project.source import ROOT


@pytest.fixture
def run(avtd3):
    """Run a command; returns its exit code, standard output and standard error."""
    return functools.partial(avtd3, "config")


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


def test_each_setting_that_is_not_a_default_says_where_it_comes_from(run, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("learn: {updates: 7, replay: {mix: [{weight: 0.3}, {weight: 0.7}]}}")
    code, out, _ = run("show", "learn", "--config", str(file), "--set", "learn.td3.tau=0.25")
    assert code == 0
    marked = dict(re.findall(r"^ *(\w+):.*?  # (.*)$", out, re.MULTILINE))
    assert marked == {"updates": f"file {file}", "mix": f"file {file}", "tau": "--set"}
    out = run("show", "learn", "--config", "demo", "--set", "learn.updates=5")[1]
    assert "  updates: 5  # --set\n" in out
    assert "    bc_alpha: 1.0  # preset demo\n" in out
    assert "#" not in run("show")[1]


def test_texts_of_several_lines_stay_valid(run):
    name = "one two " * 40 + "three"
    code, out, _ = run("show", "collect", "--set", f"collect.name={name}")
    assert code == 0
    assert yaml.safe_load(out)["collect"]["name"] == name


def test_presets_and_scenarios_are_listed_with_a_sentence_each(run):
    code, out, _ = run("list")
    assert code == 0
    for name, text in describe_presets().items():
        assert f" {name} {text}" in " ".join(out.split())
        assert re.fullmatch(r"[A-Z].{10,97}\.", text), f"configs/{name}.yaml has no first sentence"
    assert list(describe_presets()) == presets()
    assert tuple(scenario.name for scenario in scenarios.SCENARIOS) == SCENARIOS
    assert re.search(r"^  1 +Empty country roads\.$", out, re.MULTILINE)
    assert max(map(len, out.splitlines())) <= 80


def test_a_valid_file_is_ok(run, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("learn: {updates: 7}\naudit: {}\n")
    code, out, err = run("check", str(file), "demo", "rally")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"{file}: ok (learn, audit)"
    assert out.splitlines()[2] == "rally: ok (learn)"


def test_all_problems_of_a_file_are_reported(run, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("learn: {updats: 7}\ncollect: {workers: 0}\ndemo: {steps: x}\n")
    code, out, err = run("check", "demo", str(file))
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    for problem in ("did you mean learn.updates?", "workers is 0", "demo.steps must be a whole"):
        assert problem in line
    file.write_text("lern: {updates: 7}\n")
    assert "did you mean learn?" in run("check", str(file))[2]


def test_differences_between_configurations_are_listed(run, tmp_path):
    code, out, _ = run("diff", "rally", "lane_keeping_ddpg")
    assert code == 0
    heads, *rows = [line.split() for line in out.splitlines()]
    assert heads == ["setting", "rally", "lane_keeping_ddpg"]
    names = ("actor_max_norm", "critic_max_norm")
    assert rows == [[f"learn.td3.clip.{name}", "40.0", "1.0"] for name in names]
    assert run("diff", "rally", "rally")[1] == "no differences\n"
    assert run("diff", "defaults")[1] == "no differences\n"
    run_directory = tmp_path / "run"
    run_directory.mkdir()
    run_directory.with_name("rally").mkdir()
    with contextlib.chdir(tmp_path):
        assert run("diff", "rally", "rally")[1] == "no differences\n"
    settings = dataclasses.asdict(LearnConfig(updates=77))
    (run_directory / "config.json").write_text(json.dumps({"learn": settings}))
    out = run("diff", str(run_directory))[1]
    assert [line.split() for line in out.splitlines()][1:] == [["learn.updates", "77", "1000000"]]
    assert run("diff", str(tmp_path))[0] == 2


def test_the_reference_page_is_current():
    is_current = (ROOT / "docs" / "config.md").read_text("utf-8") == f"{reference_page()}\n"
    assert is_current, "write it again: avtd3 config reference > docs/config.md"


def test_the_reference_page_has_every_setting():
    page = reference_page()
    tables = dict(re.findall(r"^## (.*)\n((?:.|\n)*?)(?=^## |\Z)", page, re.MULTILINE))
    by_place = {
        place: text for head, text in tables.items() for place in re.findall(r"`(.*?)`", head)
    }
    for name in SECTIONS:
        for key, value in flat({name: plain(load_section(name))}):
            place, _, setting = key.rpartition(".")
            shown = json.dumps(value).replace("|", r"\|").replace("<", "&lt;")
            assert re.search(
                rf"^\| `{setting}` \| .+? \| .*{re.escape(shown)}.* \| .+ \|$",
                by_place[place],
                re.MULTILINE,
            ), key


def test_no_setting_lacks_a_docstring():
    for name, definition in json_schema()["$defs"].items():
        for key, found in definition["properties"].items():
            assert len(found.get("description", "")) > 8, f"{name}.{key} needs a docstring"
