"""`avtd3 replay-inspect --episode` on the command line."""

import json

import pytest

from avtd3.cli import main
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset


@pytest.fixture
def dataset(tmp_path):
    spec = make_spec(height=12, width=10)
    episodes = [make_episode(spec, length, seed=length) for length in (3, 8)]
    return write_dataset(tmp_path / "data", spec, episodes)


def test_an_episode_is_drawn_and_its_files_are_written(dataset, tmp_path, capsys):
    files = [tmp_path / "a.png", tmp_path / "a.gif"]
    main_ok("replay-inspect", dataset.path, "--episode", "longest", *options(files))
    out, err = capsys.readouterr()
    assert "8 steps" in out
    for file in files:
        assert file.stat().st_size > 100
        assert f"wrote {file}" in err


def test_an_episode_as_json(dataset, capsys):
    main_ok("replay-inspect", dataset.path, "--episode", "shortest", "--json")
    document = json.loads(capsys.readouterr().out)
    assert document["length"] == 3
    assert document["files"] == []


@pytest.mark.parametrize("option", ["--sheet", "--gif", "--mp4"])
def test_a_picture_without_an_episode_is_rejected(dataset, tmp_path, capsys, option):
    with pytest.raises(SystemExit) as stop:
        main(["replay-inspect", str(dataset.path), option, str(tmp_path / "a.gif")])
    assert stop.value.code == 2
    assert "--episode worst" in capsys.readouterr().err


def options(files):
    for file, option in zip(files, ("--sheet", "--gif"), strict=True):
        yield from (option, file)


def main_ok(*words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    assert not stop.value.code


@pytest.mark.parametrize("name", ["9" * 5000, f"segment:{'9' * 5000}"])
def test_the_number_of_an_episode_has_few_digits(dataset, capsys, name):
    with pytest.raises(SystemExit) as stop:
        main(["replay-inspect", str(dataset.path), "--episode", name])
    assert stop.value.code == 2
    assert "expected SEGMENT:NUMBER" in capsys.readouterr().err


def test_a_page_is_written_beside_the_report(dataset, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["replay-inspect", str(dataset.path), "--html", str(tmp_path / "a.html"), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert stop.value.code == (0 if document["verdict"] == "ok" else 1)
    assert (tmp_path / "a.html").read_text("utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--html", "a.html", "--episode", "worst"], "give one of them"),
        (["--filter", "end=goal"], "add --episode worst"),
    ],
)
def test_options_of_two_tools_are_rejected(dataset, tmp_path, capsys, options, words):
    with pytest.raises(SystemExit) as stop:
        main(["replay-inspect", str(dataset.path), *options])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
