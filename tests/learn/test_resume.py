"""Kill ``avtd3 learn`` with SIGKILL at random moments, resume it, and compare with a whole run.

Everything must be equal to the bit: weights, targets, Adam's moments, the states of the noise and
of the sampler (all part of the checkpoint's digest), the state of the guards, and every metric that
does not depend on wall-clock time.
"""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml

from avtd3.configs.load import load_section
from avtd3.learn.analysis.event_log import read_log
from avtd3.learn.checkpoints import list_checkpoints
from avtd3.learn.trainer import train
from avtd3.store.spec import ImageSpec

UPDATES = 60
CLOCK = {"run/updates_per_second", "run/sampler_wait"}
COMMON = {
    "updates": UPDATES,
    "threads": 1,
    "device": "cpu",
    "precision": "fp32",
    "log_every": 11,
    "publish_every": 9,
    "checkpoint_every": 10,
    "keep_checkpoints": 2,
    "decay_from": 25,
    "guards": {"every": 8, "layers_every": 11},
    "network": {"hidden": [16, 16], "features": 24},
}
VECTOR = {
    # the actor's turn before the line at 11 is the ninth update, before the checkpoint at 10
    "td3": {"policy_delay": 3, "target_clip_every": 7, "clip": {"critic_max_norm": 1.0}},
    "replay": {"batch_size": 8, "prioritised": True},
}
PIXELS = {
    "image_shift": 2,
    "evaluate_every": 13,
    "network": {"hidden": [16, 16], "features": 24, "conv_norm": "batch"},
    "td3": {
        "bc_alpha": 2.5,
        "bc_fade_from": 5,
        "bc_fade_until": 50,
        "weight_decay_kind": "decoupled",
        "cnn_weight_decay": 0.01,
    },
    "replay": {"batch_size": 8, "n_step": 3, "held_out": 0.4},
}

KILLER = """
import os, signal, sys
from avtd3.cli import main
from avtd3.learn import device
from avtd3.learn.logging import EventWriter
left, place = int(sys.argv[1]), sys.argv[2]

def plant(owner, name):
    real = getattr(owner, name)
    def counted(*args, **kwargs):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)
    setattr(owner, name, counted)

places = {"update": device, "fsync": os, "write": EventWriter}
plant(places[place], place)
main(sys.argv[3:])
"""


def learn_and_die(words, calls, place):
    """Run the command until it is killed at a call of `place`; return whether it was."""
    command = [sys.executable, "-c", KILLER, str(calls), place, *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def document_of(checkpoint):
    document = json.loads((checkpoint / "checkpoint.json").read_text())
    del document["seconds"]
    return document


def assert_same_run(whole, parts):
    one, other = (list_checkpoints(run / "checkpoints") for run in (whole, parts))
    assert [path.name for path in one] == [path.name for path in other]
    for mine, theirs in zip(one, other, strict=True):
        assert document_of(mine) == document_of(theirs)  # the tensors' digest included
    curves, again = (read_log(run / "events").curves for run in (whole, parts))
    assert curves.keys() == again.keys()
    for name in curves.keys() - CLOCK:
        assert curves[name].updates.tolist() == again[name].updates.tolist(), name
        np.testing.assert_array_equal(curves[name].values, again[name].values, err_msg=name)


def compare(tmp_path, spec, publish_episodes, settings, kills):
    data, config = tmp_path / "data", tmp_path / "config.yaml"
    publish_episodes(data, spec, episodes=6)
    config.write_text(yaml.safe_dump({"learn": COMMON | settings}))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(load_section("learn", str(config), []), datasets=[data], run=whole)
    words = ["learn", data, "--run", parts, "--config", config]
    died = 0
    for calls, place in kills:
        resume = ["--resume"] if (parts / "config.json").exists() else []
        died += learn_and_die([*words, *resume], calls, place)
    assert died >= 2
    train(load_section("learn", str(config), []), datasets=[data], run=parts, resume=True)
    assert_same_run(whole, parts)


def random_kills(count, seed):
    rng = np.random.default_rng(seed)
    places = {"update": 25, "fsync": 40, "write": 20}
    names = rng.choice(list(places), count)
    return [(int(rng.integers(places[name])), str(name)) for name in names]


def test_a_run_killed_twice_equals_one_left_alone(tmp_path, make_spec, publish_episodes):
    compare(tmp_path, make_spec(), publish_episodes, VECTOR, [(15, "update"), (9, "fsync")])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("settings", [VECTOR, PIXELS])
def test_a_run_killed_anywhere_equals_one_left_alone(
    tmp_path, make_spec, publish_episodes, settings, seed
):
    image = ImageSpec(height=36, width=36, stack=2) if settings is PIXELS else None
    kills = random_kills(6, seed)
    compare(tmp_path, make_spec(image=image), publish_episodes, settings, kills)
