"""Collecting the same plan twice with two workers gives the same data and the same policy."""

from safetensors.numpy import load_file

from avtd3.store.dataset import Dataset
from avtd3.tests.pipeline.conftest import QUICK_WORLD, avtd3_json


def contents(path):
    return sorted(s.content_digest for s in Dataset.open(path).snapshot().segments)


def test_collecting_and_learning_twice_gives_the_same_result(tmp_path):
    weights = []
    for name in ("a", "b"):
        data, run = tmp_path / name, tmp_path / f"run-{name}"
        mixture = "0.5:expert+noise=0.2,0.5:random"
        plan = ("--steps", 500, "--workers", 2, "--driver", mixture, "--seed", 4)
        avtd3_json("collect", data, *plan, *QUICK_WORLD)
        small = ("--set=learn.replay.batch_size=8", "--set=learn.network.features=16")
        avtd3_json("learn", data, "--run", run, "--updates", 4, *small)
        weights.append(load_file(run / "policies" / "policy-00000001.safetensors"))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert (tensor == weights[1][name]).all(), f"{name} differs"
