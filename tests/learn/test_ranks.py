"""Several ranks train as one rank with the whole batch, and end together."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.numpy

from avtd3.learn.checkpoints import CHECKPOINTS, TENSORS, list_checkpoints
from avtd3.store.spec import ImageSpec
from avtd3.tests.learn.ranks_worker import train_case

WORKER = Path(__file__).with_name("ranks_worker.py")
NETWORK = {"hidden": [16, 16], "features": 8}
LEARN = {"updates": 100, "network": NETWORK}
VECTOR = {
    "bc-priorities": {
        "td3": {"bc_alpha": 2.5},
        "network": NETWORK | {"vector_statistics": True},
        "replay": {"prioritised": True},
    },
}
MORE_VECTOR = {
    "td3": {},
    "bc-mask": {"td3": {"bc_alpha": 2.5}, "replay": {"imitate": ["seed=0..1"]}},
    "cloning": {"algorithm": "bc"},
    "n-step": {"replay": {"n_step": 3}},
    "target-range": {"td3": {"target_clip_every": 10}},
    "sequences": {"replay": {"sequence_length": 4}},
}
IMAGE = {
    "image": {"image_shift": 2},
    "image-bc-priorities": {"td3": {"bc_alpha": 2.5}, "replay": {"prioritised": True, "n_step": 2}},
    "image-shared": {"network": NETWORK | {"shared_encoder": True}},
}


def torchrun(*arguments, ranks=2, **options):
    """Start ranks; return the process of ``torchrun``."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(ranks), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=env, **pipes, **options)


@pytest.fixture
def dataset(tmp_path, publish_episodes, make_spec):
    def make(*, image):
        spec = make_spec(image=ImageSpec(height=36, width=36, stack=2) if image else None)
        return publish_episodes(tmp_path / "data", spec, episodes=6).path

    return make


def newest(run):
    """Return the tensors of the newest checkpoint of a run."""
    path = list_checkpoints(run / CHECKPOINTS)[-1]
    return path.name, safetensors.numpy.load_file(path / TENSORS)


def check_equal(tmp_path, data, cases):
    """Raise if two ranks with batches of 8 and one rank with batches of 16 differ."""
    learn = {name: LEARN | case for name, case in cases.items()}
    plan = [
        {"data": str(data), "run": str(tmp_path / "two" / name), "learn": case, "batch_size": 8}
        for name, case in learn.items()
    ]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    process = torchrun(WORKER, tmp_path / "plan.json")
    for name, case in learn.items():
        train_case(data, tmp_path / "one" / name, case, 16)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    for name in cases:
        (alone, expected), (together, found) = (newest(tmp_path / n / name) for n in ("one", "two"))
        assert alone == together == "update-000000100"
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            difference = abs(found[key].astype(float) - value.astype(float)).max(initial=0.0)
            limit = 1e-6 if key == "sampler/priority" else 1e-9  # stored in float32
            assert difference <= limit, (name, key, difference)


@pytest.mark.parametrize("cases", [pytest.param(VECTOR, id="vector")])
def test_two_ranks_equal_one_with_twice_the_batch(tmp_path, dataset, cases):
    check_equal(tmp_path, dataset(image=False), cases)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "cases"), [(False, MORE_VECTOR), (True, IMAGE)], ids=["vector", "image"]
)
def test_two_ranks_equal_one_with_every_loss_and_replay(tmp_path, dataset, image, cases):
    check_equal(tmp_path, dataset(image=image), cases)
