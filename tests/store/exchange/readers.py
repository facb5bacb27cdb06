"""What the other side does with its files, written from its documentation and its code."""

import json
import re

import h5py
import numpy as np

N_STEP, GAMMA = 3, 0.99


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


class RobomimicDataset:
    """The layout of https://robomimic.github.io/docs/datasets/overview.html."""

    def __init__(self, path):
        with h5py.File(path, "r") as file:
            data = file["data"]
            self.env = json.loads(data.attrs["env_args"])
            assert {"env_name", "type", "env_kwargs"} <= self.env.keys()
            self.demos = []
            for name in sorted(data, key=lambda name: int(re.fullmatch(r"demo_(\d+)", name)[1])):
                demo = data[name]
                length = demo.attrs["num_samples"]
                parts = {key: demo[key][()] for key in ("actions", "rewards", "dones")}
                for group in ("obs", "next_obs"):
                    parts[group] = {key: demo[group][key][()] for key in demo[group]}
                    assert all(len(values) == length for values in parts[group].values())
                assert all(len(parts[key]) == length for key in ("actions", "rewards", "dones"))
                self.demos.append(parts)
            assert data.attrs["total"] == sum(len(demo["actions"]) for demo in self.demos)
