"""`avtd3 replay-inspect --episode` on the command line."""

import json

import pytest

from avtd3.tests.store.segments import make_episode, make_spec, write_dataset


@pytest.fixture
def dataset(tmp_path):
    spec = make_spec(height=12, width=10)
    episodes = [make_episode(spec, length, seed=length) for length in (3, 8)]
    return write_dataset(tmp_path / "data", spec, episodes)


def test_an_episode_is_drawn_and_its_files_are_written(dataset, tmp_path, avtd3):
    files = [tmp_path / "a.png", tmp_path / "a.gif"]
    options = ("--sheet", files[0], "--gif", files[1])
    code, out, err = avtd3("replay-inspect", dataset.path, "--episode", "longest", *options)
    assert code == 0
    assert "8 steps" in out
    for file in files:
        assert file.stat().st_size > 100
        assert f"wrote {file}" in err


def test_an_episode_as_json(dataset, avtd3):
    _, out, _ = avtd3("replay-inspect", dataset.path, "--episode", "shortest", "--json")
    document = json.loads(out)
    assert document["length"] == 3
    assert document["files"] == []


@pytest.mark.parametrize("name", ["9" * 5000, f"segment:{'9' * 5000}"])
def test_the_number_of_an_episode_has_few_digits(dataset, avtd3, name):
    code, _, err = avtd3("replay-inspect", dataset.path, "--episode", name)
    assert code == 2
    assert "expected SEGMENT:NUMBER" in err


def test_a_page_is_written_beside_the_report(dataset, tmp_path, avtd3):
    code, out, _ = avtd3("replay-inspect", dataset.path, "--html", tmp_path / "a.html", "--json")
    assert code == (0 if json.loads(out)["verdict"] == "ok" else 1)
    assert (tmp_path / "a.html").read_text("utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--html", "a.html", "--episode", "worst"], "give one of them"),
        (["--filter", "end=goal"], "add --episode worst"),
        (["--sheet", "a.png"], "add --episode worst"),
        (["--gif", "a.gif"], "add --episode worst"),
        (["--mp4", "a.mp4"], "add --episode worst"),
    ],
)
def test_options_of_two_reports_are_rejected(dataset, avtd3, options, words):
    code, _, err = avtd3("replay-inspect", dataset.path, *options)
    assert code == 2
    assert words in err
