"""Fixtures of the learner's tests: specs, batches, datasets and guarded runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from avtd3.learn.batch import Batch
from avtd3.learn.guards.config import GuardConfig
from avtd3.learn.networks import NetworkConfig, ObservationBatch, to_pixels
from avtd3.learn.td3 import TD3Config
from avtd3.store.dataset import Dataset
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import Observation as Seen
from avtd3.store.writer import SegmentWriter
from avtd3.tests.learn.guarded_run import GUARDS, PLAIN, GuardedRun

MakeSpec = Callable[..., EpisodeSpec]
MakeBatch = Callable[..., Batch]


@pytest.fixture
def make_spec() -> MakeSpec:
    def make(
        *,
        image: ImageSpec | None = None,
        vector: int = 5,
        low: tuple[float, ...] = (-1.0, -1.0),
        high: tuple[float, ...] = (1.0, 1.0),
    ) -> EpisodeSpec:
        return EpisodeSpec(
            image=image,
            vector_names=tuple(f"v{i}" for i in range(vector)),
            vector_scales=(1.0,) * vector,
            action_names=tuple(f"a{i}" for i in range(len(low))),
            action_low=low,
            action_high=high,
            reward_terms=(),
            control_period_s=0.05,
        )

    return make


@pytest.fixture
def small_network() -> NetworkConfig:
    return NetworkConfig(hidden=(16, 16), features=24)


@pytest.fixture
def make_batch() -> MakeBatch:
    def make(
        spec: EpisodeSpec, size: int = 8, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> Batch:
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=dtype)

        def observe() -> ObservationBatch:
            pixels: tuple[torch.Tensor, ...] = ()
            if spec.image is not None:
                shape = (size, *spec.image.observation_shape)
                frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
                pixels = (to_pixels(frames, dtype),)
            vector = normal(size, spec.vector_size) if spec.vector_size else None
            return ObservationBatch(pixels=pixels, vector=vector)

        low = torch.tensor(spec.action_low, dtype=dtype)
        high = torch.tensor(spec.action_high, dtype=dtype)
        share = torch.rand(size, spec.action_size, generator=generator, dtype=dtype)
        terminated = torch.rand(size, generator=generator) < 0.3
        return Batch(
            observation=observe(),
            action=low + share * (high - low),
            reward=normal(size),
            discount=0.99 * (1 - terminated.to(dtype)),
            next_observation=observe(),
        )

    return make


@pytest.fixture
def publish_episodes() -> Callable[..., Dataset]:
    """Write a dataset, or append to it: random episodes in one segment."""

    def publish(
        path: Path,
        spec: EpisodeSpec,
        *,
        episodes: int = 3,
        length: int = 20,
        seed: int = 0,
        drivers: tuple[str, ...] = ("random",),
    ) -> Dataset:
        rng = np.random.default_rng(seed)
        dataset = Dataset.create(path, spec)

        def observe() -> Seen:
            image = spec.image
            vector = rng.normal(size=spec.vector_size).astype(np.float32)
            return Seen(
                image=None
                if image is None
                else rng.integers(0, 256, image.frame_shape, dtype=np.uint8),
                vector=vector if spec.vector_size else None,
            )

        with SegmentWriter(dataset, collector="test", provenance={}) as writer:
            for episode in range(episodes):
                labels: dict[str, Any] = {"world": "t", "town": "t", "weather": "t"}
                driver = drivers[episode % len(drivers)]
                writer.begin(observe(), seed=episode, scenario=0, driver=driver, **labels)
                for step in range(1, length + 1):
                    writer.step(
                        rng.uniform(spec.action_low, spec.action_high).astype(np.float32),
                        float(rng.normal()),
                        observe(),
                        terminated=step == length and episode % 2 == 0,
                        truncated=step == length and episode % 2 == 1,
                    )
                writer.end("goal")
        return dataset

    return publish


@pytest.fixture
def make_run(
    tmp_path: Path, make_spec: MakeSpec, make_batch: MakeBatch
) -> Callable[..., GuardedRun]:
    """Return a function that creates a run under the guards."""

    def make(
        *,
        camera: bool = True,
        network: NetworkConfig = PLAIN,
        td3: TD3Config | None = None,
        guards: GuardConfig = GUARDS,
    ) -> GuardedRun:
        image = ImageSpec(height=36, width=36, stack=1) if camera else None
        spec = make_spec(image=image, vector=3)
        td3 = td3 or TD3Config()
        return GuardedRun(tmp_path, spec, make_batch, network=network, td3=td3, guards=guards)

    return make
