"""What the other side does with its files, written from its documentation and its code."""

import json
import os
import re
import subprocess

import h5py
import numpy as np
import pytest

PYTHON = os.environ.get("AVTD3_LOADERS_PYTHON", "")
"""A Python with LeRobot 0.4, robomimic 0.3 and h5py; LeRobot needs an older torch than avtd3."""
needs_loaders = pytest.mark.skipif(not PYTHON, reason="AVTD3_LOADERS_PYTHON names no Python")
N_STEP, GAMMA = 3, 0.99


def run_there(code, *words, **environment):
    """Run code in the Python with the loaders; return the JSON in the last line that it prints."""
    done = subprocess.run(
        [PYTHON, "-c", code, *words],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


class DrqReplay:
    """How the replay buffer of DrQ-v2 reads a folder (facebookresearch/drqv2, replay_buffer.py)."""

    def __init__(self, folder):
        self.episodes = {}
        for path in sorted(folder.glob("*.npz"), reverse=True):
            number, length = (int(text) for text in path.stem.split("_")[1:])
            with path.open("rb") as file:
                episode = np.load(file)
                episode = {key: episode[key] for key in episode}
            assert len(next(iter(episode.values()))) - 1 == length
            self.episodes[number] = episode

    def transition(self, number, row):
        """The sample that starts at a row, 1 or later."""
        episode = self.episodes[number]
        reward = np.zeros_like(episode["reward"][row])
        discount = np.ones_like(episode["discount"][row])
        for i in range(N_STEP):
            reward += discount * episode["reward"][row + i]
            discount *= episode["discount"][row + i] * GAMMA
        after = episode["observation"][row + N_STEP - 1]
        return episode["observation"][row - 1], episode["action"][row], reward, discount, after


def write_drq(folder, number, episode):
    """Write an episode as DrQ-v2 does."""
    length = len(next(iter(episode.values()))) - 1
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"20240101T000000_{number}_{length}.npz", **episode)


def _number(name):
    match = re.fullmatch(r"demo_(\d+)", name)
    assert match is not None
    return int(match[1])


class RobomimicDataset:
    """The layout of https://robomimic.github.io/docs/datasets/overview.html."""

    def __init__(self, path):
        with h5py.File(path, "r") as file:
            data = file["data"]
            self.env = json.loads(data.attrs["env_args"])
            assert {"env_name", "type", "env_kwargs"} <= self.env.keys()
            self.demos = []
            for name in sorted(data, key=_number):
                demo = data[name]
                length = demo.attrs["num_samples"]
                parts = {key: demo[key][()] for key in ("actions", "rewards", "dones")}
                for group in ("obs", "next_obs"):
                    parts[group] = {key: demo[group][key][()] for key in demo[group]}
                    assert all(len(values) == length for values in parts[group].values())
                assert all(len(parts[key]) == length for key in ("actions", "rewards", "dones"))
                self.demos.append(parts)
            assert data.attrs["total"] == sum(len(demo["actions"]) for demo in self.demos)
