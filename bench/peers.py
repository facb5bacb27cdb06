"""Other people's replay buffers, each filled with the same transitions: for `replay_bench.py`.

A peer holds what its users would put into it to train from stacks of four frames, and gives whole
batches: observation, next observation, action, reward, end of episode. What a peer does with the
edges of an episode is its own affair (`replay_bench.check` compares what lies inside). A peer that
is not installed raises ImportError.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.dataset import Dataset

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What the peers are filled with."""

    path: Path
    """The dataset."""
    frames: NDArray[np.uint8]
    """uint8 (rows, C, H, W), one row per observation."""
    first: NDArray[np.int64]
    """int64 (E,), row of each episode's first observation."""
    lengths: NDArray[np.int64]
    """int64 (E,), steps of each episode."""
    action: NDArray[np.float32]
    """float32 (steps, A)."""
    reward: NDArray[np.float32]
    """float32 (steps,)."""
    terminated: NDArray[np.bool_]
    """Bool (steps,)."""
    stack: int
    """Frames per observation."""
    batch: int
    """Transitions per batch."""

    @classmethod
    def of(cls, dataset: Dataset, batch: int) -> "Material":
        """Read a whole dataset into memory."""
        segments = dataset.snapshot().segments
        columns = {
            name: np.concatenate([segment.read(name) for segment in segments])
            for name in ("frames", "episode_length", "action", "reward", "terminated")
        }
        lengths = columns["episode_length"]
        assert dataset.spec.image is not None, "the benchmark is about frames"
        return cls(
            path=dataset.path,
            frames=columns["frames"],
            first=(lengths + 1).cumsum() - (lengths + 1),
            lengths=lengths,
            action=columns["action"],
            reward=columns["reward"],
            terminated=columns["terminated"],
            stack=dataset.spec.image.stack,
            batch=batch,
        )

    @property
    def steps(self) -> int:
        """Transitions."""
        return len(self.action)

    def rows(self) -> NDArray[np.int64]:
        """int64 (steps,): row of each step's observation."""
        episode = np.repeat(np.arange(len(self.lengths)), self.lengths)
        return np.arange(self.steps) + episode

    def stacks(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """uint8 (n, K*C, H, W): the observations of rows, clamped to their episode's first."""
        episode = self.first.searchsorted(rows, side="right") - 1
        window = rows[:, None] + np.arange(1 - self.stack, 1)
        frames = self.frames[np.maximum(window, self.first[episode][:, None])]
        return frames.reshape(len(rows), -1, *self.frames.shape[2:])

    def parts(self, size: int = 1000) -> "list[slice]":
        """The steps in parts, so that stacks are never all in memory."""
        return [slice(at, min(at + size, self.steps)) for at in range(0, self.steps, size)]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """One batch as every rival can give it."""

    observation: Array
    """uint8 (B, K*C, H, W)."""
    next_observation: Array
    """uint8 (B, K*C, H, W)."""
    action: Array
    """float32 (B, A)."""
    reward: Array
    """float32 (B,)."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """A filled replay buffer."""

    draw: Callable[[], Any]
    """Gives a batch in its own form."""
    read: Callable[[Any], Drawn]
    """Turns that into ours; not measured."""
    memory_bytes: int
    """Memory that the transitions take."""
    disk_bytes: int = 0
    """Disk that they take."""


def make_sb3(material: Material, _: Path) -> Peer:
    """stable-baselines3, each observation once (`optimize_memory_usage`)."""
    from gymnasium import spaces
    from stable_baselines3.common.buffers import ReplayBuffer

    shape = (material.stack * material.frames.shape[1], *material.frames.shape[2:])
    buffer = ReplayBuffer(
        material.steps,
        spaces.Box(0, 255, shape, np.uint8),
        spaces.Box(-1.0, 1.0, material.action.shape[1:], np.float32),
        device="cpu",
        optimize_memory_usage=True,
        handle_timeout_termination=False,
    )
    rows = material.rows()
    for part in material.parts():
        buffer.observations[part, 0] = material.stacks(rows[part])
    buffer.actions[:, 0], buffer.rewards[:, 0] = material.action, material.reward
    buffer.dones[:, 0], buffer.full = material.terminated, True

    def read(batch: Any) -> Drawn:  # noqa: ANN401 - SB3's named tuple
        return Drawn(
            observation=batch.observations.numpy(),
            next_observation=batch.next_observations.numpy(),
            action=batch.actions.numpy(),
            reward=batch.rewards.numpy()[:, 0],
        )

    arrays = (buffer.observations, buffer.actions, buffer.rewards, buffer.dones)
    return Peer(
        draw=lambda: buffer.sample(material.batch),
        read=read,
        memory_bytes=sum(array.nbytes for array in arrays),
    )


def make_cpprb(material: Material, _: Path) -> Peer:
    """Each frame once, by cpprb (`stack_compress`, `next_of`)."""
    import cpprb

    shape = (*material.frames.shape[2:], material.stack * material.frames.shape[1])
    buffer = cpprb.ReplayBuffer(
        material.steps,
        {
            "obs": {"shape": shape, "dtype": np.uint8},
            "act": {"shape": material.action.shape[1:], "dtype": np.float32},
            "rew": {"dtype": np.float32},
            "done": {"dtype": np.float32},
        },
        next_of="obs",
        stack_compress="obs",
    )
    step = 0
    for first, length in zip(material.first.tolist(), material.lengths.tolist(), strict=True):
        rows, steps = np.arange(first, first + length + 1), slice(step, step + length)
        stacks = np.moveaxis(material.stacks(rows), 1, -1)
        buffer.add(
            obs=stacks[:-1],
            next_obs=stacks[1:],
            act=material.action[steps],
            rew=material.reward[steps],
            done=material.terminated[steps].astype(np.float32),
        )
        buffer.on_episode_end()
        step += length

    def read(batch: dict[str, Array]) -> Drawn:
        return Drawn(
            observation=np.moveaxis(batch["obs"], -1, 1),
            next_observation=np.moveaxis(batch["next_obs"], -1, 1),
            action=batch["act"],
            reward=batch["rew"][:, 0],
        )

    small = material.action.nbytes + material.reward.nbytes * 2
    return Peer(
        draw=lambda: buffer.sample(material.batch),
        read=read,
        memory_bytes=material.frames[: material.steps].nbytes + small,
    )


def make_torchrl(material: Material, scratch: Path) -> Peer:
    """TorchRL, stacks of observation and next observation in a memory map."""
    import torch
    from tensordict import TensorDict
    from torchrl import logger
    from torchrl.data import LazyMemmapStorage, TensorDictReplayBuffer

    logger.setLevel("WARNING")  # it prints a line for every storage
    buffer = TensorDictReplayBuffer(
        storage=LazyMemmapStorage(material.steps, scratch_dir=scratch / "torchrl"),
        batch_size=material.batch,
    )
    rows = material.rows()
    for part in material.parts():
        content: dict[str, NDArray[Any]] = {
            "observation": material.stacks(rows[part]),
            "next_observation": material.stacks(rows[part] + 1),
            "action": material.action[part],
            "reward": material.reward[part],
            "terminated": material.terminated[part],
        }
        tensors = {name: torch.from_numpy(array.copy()) for name, array in content.items()}
        buffer.extend(TensorDict(tensors, batch_size=[len(rows[part])]))

    def read(batch: Any) -> Drawn:  # noqa: ANN401 - a TensorDict
        names = [field.name for field in dataclasses.fields(Drawn)]
        return Drawn(**{name: batch[name].numpy() for name in names})

    frame_bytes = 2 * material.stack * material.frames[0].nbytes
    return Peer(
        draw=buffer.sample,
        read=read,
        memory_bytes=0,
        disk_bytes=material.steps * (frame_bytes + material.action[0].nbytes + 4 + 1),
    )


def make_minari(material: Material, scratch: Path) -> Peer:
    """Minari, uniform transitions: it can only read whole episodes."""
    import minari
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer

    step, episodes = 0, []
    for number, (first, length) in enumerate(
        zip(material.first.tolist(), material.lengths.tolist(), strict=True)
    ):
        steps, step = slice(step, step + length), step + length
        ends = np.zeros(length, bool)
        ends[-1] = not material.terminated[steps][-1]
        episodes.append(
            EpisodeBuffer(
                id=number,
                observations=material.frames[first : first + length + 1],
                actions=material.action[steps],
                rewards=material.reward[steps],
                terminations=material.terminated[steps],
                truncations=ends,
            )
        )
    os.environ["MINARI_DATASETS_PATH"] = str(scratch / "minari")
    dataset = minari.create_dataset_from_buffers(
        "bench/frames-v0",
        episodes,
        observation_space=spaces.Box(0, 255, material.frames.shape[1:], np.uint8),
        action_space=spaces.Box(-1.0, 1.0, material.action.shape[1:], np.float32),
        jpeg_encoding=False,
    )
    rng = np.random.default_rng(0)
    return Peer(
        draw=lambda: _draw_minari(dataset, material, rng),
        read=lambda drawn: drawn,
        memory_bytes=0,
        disk_bytes=directory_bytes(scratch / "minari"),
    )


def _draw_minari(dataset: Any, material: Material, rng: np.random.Generator) -> Drawn:  # noqa: ANN401
    share = material.lengths / material.steps
    observations, following, actions, rewards = [], [], [], []
    for number in rng.choice(len(share), material.batch, p=share).tolist():
        episode = dataset[number]
        t = int(rng.integers(len(episode.rewards)))
        window = np.maximum(np.arange(t - material.stack + 1, t + 2), 0)
        frames = episode.observations[window]
        observations.append(frames[:-1].reshape(-1, *frames.shape[2:]))
        following.append(frames[1:].reshape(-1, *frames.shape[2:]))
        actions.append(episode.actions[t])
        rewards.append(episode.rewards[t])
    return Drawn(
        observation=np.stack(observations),
        next_observation=np.stack(following),
        action=np.stack(actions),
        reward=np.array(rewards, np.float32),
    )


def directory_bytes(path: Path) -> int:
    """Sum of the sizes of all files below a directory."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
