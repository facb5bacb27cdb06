"""Make the golden dataset of each format: ``python tests/golden/make_dataset.py``.

Run it once for each new format version and commit what it writes; a dataset of a released format is
never made again. Its values follow from formulas, so that the test needs nothing but the files.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.dataset import Dataset
from avtd3.store.format.layout import FORMAT_VERSION
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import Observation
from avtd3.store.writer import SegmentWriter

LENGTHS = (3, 5)


def golden_images(version: int) -> dict[str, Any]:
    """The images of the golden dataset's spec: one in format 1, two streams in format 2."""
    image = ImageSpec(channels=1, height=4, width=6, stack=2)
    rgb = ImageSpec(channels=3, height=3, width=5, stack=3, stride=2)
    return {"image": image} if version == 1 else {"streams": {"front": image, "rgb": rgb}}


def golden_spec(version: int) -> EpisodeSpec:
    """The golden dataset's spec."""
    return EpisodeSpec(
        **golden_images(version),
        vector_names=("speed_mps", "lateral_deviation_m"),
        vector_scales=(10.0, 2.0),
        action_names=("steer", "throttle_brake"),
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        reward_terms=("efficiency", "safety"),
        control_period_s=0.05,
    )


def golden_frame(episode: int, row: int) -> NDArray[np.uint8]:
    """uint8 (1, 4, 6): the frame of one observation."""
    return (np.arange(24).reshape(1, 4, 6) * (row + 1) + 50 * episode).astype(np.uint8)


def golden_colour(episode: int, row: int) -> NDArray[np.uint8]:
    """uint8 (3, 3, 5): the frame of the stream ``rgb`` of one observation."""
    return (np.arange(45).reshape(3, 3, 5) * (row + 2) + 70 * episode).astype(np.uint8)


def golden_vector(episode: int, row: int) -> NDArray[np.float32]:
    """float32 (2,): the vector of one observation."""
    return np.array([episode + row / 8.0, -row / 4.0], np.float32)


def golden_action(episode: int, row: int) -> NDArray[np.float32]:
    """float32 (2,): the action of one step."""
    return np.array([row / 8.0, (-1.0) ** episode / 2.0], np.float32)


def golden_terms(episode: int, row: int) -> NDArray[np.float32]:
    """float32 (2,): the reward's terms of one step."""
    return np.array([row + 0.5, -50.0 * (episode == 1 and row == LENGTHS[1] - 1)], np.float32)


def golden_observation(version: int, episode: int, row: int) -> Observation:
    """Return one observation."""
    streams = {"front": golden_frame(episode, row), "rgb": golden_colour(episode, row)}
    return Observation(
        image=golden_frame(episode, row) if version == 1 else None,
        streams=None if version == 1 else streams,
        vector=golden_vector(episode, row),
        frame_id=1000 * episode + row,
        sim_time_s=0.05 * row,
    )


def golden_info(episode: int) -> dict[str, Any]:
    """Return what is recorded of one episode."""
    return {
        "index": episode,
        "seed": 2 * episode,
        "scenario": 7,
        "world": "road",
        "town": f"country-{episode:06d}",
        "weather": "rain",
        "driver": ("expert", "policy")[episode],
        "policy_version": (-1, 12)[episode],
        "policy_digest": ("", "ab" * 32)[episode],
        "exploration_noise": (0.0, 0.25)[episode],
    }


def main() -> None:
    """Write the datasets of the formats that have none yet."""
    for version in range(1, FORMAT_VERSION + 1):
        path = Path(__file__).parent / f"dataset-v{version}"
        if not path.exists():  # a golden dataset is never made again
            make(Dataset.create(path, golden_spec(version)))


def make(dataset: Dataset) -> None:
    """Write the golden episodes into a dataset."""
    version = dataset.spec.format_version
    provenance = {"config": {"golden": True}}
    with SegmentWriter(
        dataset, collector="golden", provenance=provenance, clock=lambda: 1_800_000_000.0
    ) as writer:
        for episode, length in enumerate(LENGTHS):
            writer.begin(golden_observation(version, episode, 0), **golden_info(episode))
            for row in range(length):
                writer.step(
                    golden_action(episode, row),
                    None,
                    golden_observation(version, episode, row + 1),
                    terminated=episode == 1 and row == length - 1,
                    truncated=episode == 0 and row == length - 1,
                    reward_terms=golden_terms(episode, row),
                )
            writer.end(("time_limit", "collision")[episode])


if __name__ == "__main__":
    main()
