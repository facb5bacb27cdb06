"""`avtd3 export` and `avtd3 import`, through the real command line."""

import json
import os

import pytest

from avtd3.store.dataset import Dataset
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def data(tmp_path):
    spec = make_spec()
    return write_dataset(tmp_path / "data", spec, [make_episode(spec, n) for n in (3, 4)])


@pytest.mark.parametrize("layout", ["hdf5", "minari", "npz"])
def test_there_and_back(avtd3, data, tmp_path, layout):
    out, back = tmp_path / "out", tmp_path / "back"
    code, text, progress = avtd3("export", data.path, out, "--to", layout)
    assert code == 0
    assert text.startswith(f"exported 2 episodes of 7 steps to {out} ({layout})\n")
    assert "not exported:\n" in text
    assert "exported 1 of 2 episodes" in progress
    code, text, _ = avtd3("import", out, back, "--from", layout, "--json")
    assert code == 0
    assert json.loads(text)["steps"] == 7
    assert Dataset.open(back).spec == data.spec


def test_what_the_source_does_not_say_is_an_option(avtd3, data, tmp_path):
    out, back = tmp_path / "out", tmp_path / "back"
    assert avtd3("export", data.path, out, "--to", "npz", "--filter", "town=town-0")[0] == 0
    (out / "avtd3.json").unlink()
    code, _, error = avtd3("import", out, back, "--from", "npz", "--period", 0.2, "--stack", 4)
    assert code == 0, error
    spec = Dataset.open(back).spec
    assert spec.image is not None
    assert (spec.control_period_s, spec.image.stack) == (0.2, 4)
    assert spec.reward_terms == ("term_0", "term_1")
    file, vectors = tmp_path / "h.hdf5", tmp_path / "vectors"
    assert avtd3("export", data.path, file, "--to", "hdf5")[0] == 0
    options = ("--image", "none", "--vector", "vector")
    code, _, error = avtd3("import", file, vectors, "--from", "hdf5", *options)
    assert code == 0, error
    spec = Dataset.open(vectors).spec
    assert spec.image is None
    assert spec.vector_names == ("vector_0", "vector_1", "vector_2")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("export", "data", "out", "--to", "rlds"), "'rlds' is not one of"),
        (("export", "none", "out", "--to", "npz"), "does not exist"),
        (("export", "data", "data", "--to", "npz"), "exists; choose another path"),
        (("import", "none", "new", "--from", "npz"), "does not exist"),
        (("import", "data", "new", "--from", "npz"), "has no npz files"),
        (("import", "data/zarr.json", "new", "--from", "hdf5"), "cannot be read"),
        (("import", "data", "new", "--from", "hdf5"), "not a regular file"),
        (
            ("import", "data", "new", "--from", "minari"),
            "expected the metadata of a Minari dataset",
        ),
    ],
)
def test_a_wrong_use_is_one_line(avtd3, data, monkeypatch, words, says):
    monkeypatch.chdir(data.path.parent)
    code, out, err = avtd3(*words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
