"""Options of the command line reach the learner, and it writes the page of the run."""

import json

import pytest

from avtd3.cli import main
from avtd3.configs.load import load_section
from avtd3.learn import trainer as learner
from avtd3.store.replay.config import MixPart
from avtd3.tests.learn.pictured_run import pictured_dataset


@pytest.fixture
def settings_of(monkeypatch, tmp_path):
    seen = []

    def train(*arguments, **_):
        seen.append(arguments[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(learner, "train", train)

    def parse(*options):
        with pytest.raises(SystemExit):
            main(["learn", "data", "--run", str(tmp_path / "run"), *options])
        return seen.pop()

    return parse


def test_filters_on_the_command_line_replace_those_of_the_configuration(settings_of):
    config = ["--set", "learn.replay.filter=['end=goal']"]
    assert settings_of(*config).replay.filter == ("end=goal",)
    given = ["--filter", "end=collision", "--filter", "policy=3..7"]
    assert settings_of(*config, *given).replay.filter == ("end=collision", "policy=3..7")


def test_an_invalid_filter_exits_with_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["learn", "data", "--run", str(tmp_path / "run"), "--filter", "ending=goal"])
    assert ended.value.code == 2
    assert "expected KEY=VALUE with a KEY of scenario" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_mix_can_be_set_in_an_option_and_in_a_file(tmp_path):
    mix = "[{filter: ['end=collision'], weight: 0.3}, {weight: 0.7}]"
    expected = (MixPart(filter=("end=collision",), weight=0.3), MixPart(weight=0.7))
    config = load_section("learn", None, [f"learn.replay.mix={mix}"])
    assert config.replay.mix == expected
    file = tmp_path / "c.yaml"
    file.write_text(f"learn:\n  replay:\n    mix: {mix}\n    max_policy_lag: 3\n")
    config = load_section("learn", str(file), ["learn.replay.held_out=0.1"])
    assert config.replay.mix == expected
    assert (config.replay.max_policy_lag, config.replay.held_out) == (3, 0.1)


def test_learn_writes_the_page_of_the_run_and_run_page_writes_it_again(tmp_path, avtd3):
    data, run = pictured_dataset(tmp_path / "data"), tmp_path / "run"
    small = ["network={hidden: [8, 8], features: 8}", "replay.batch_size=8", "threads=1"]
    options = [word for setting in small for word in ("--set", f"learn.{setting}")]
    code, _, err = avtd3("learn", data, "--run", run, "--updates", 2, *options)
    assert code == 0, err
    assert f"wrote {run / 'run.html'}" in err
    page = (run / "run.html").read_text()
    code, out, err = avtd3("run-page", run, "--out", tmp_path / "pages" / "a.html", "--json")
    assert code == 0, err
    assert json.loads(out) == {"run": str(run), "page": str(tmp_path / "pages" / "a.html")}
    assert (tmp_path / "pages" / "a.html").read_text() == page
    data.rename(tmp_path / "moved")
    assert avtd3("run-page", run, "--data", tmp_path / "moved")[0] == 0
    assert (run / "run.html").read_text() == page
    code, _, err = avtd3("run-page", tmp_path)
    assert code == 2
    assert "contains no run" in err
