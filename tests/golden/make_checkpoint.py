"""Make the golden checkpoint and policy: ``python tests/golden/make_checkpoint.py``.

Run it once for each new format version and commit what it writes; those of a released format are
never made again. Both come out of a real run on a dataset of formulas.
"""

import dataclasses
import shutil
import tempfile
from pathlib import Path

import numpy as np

from avtd3.learn.checkpoints import FORMAT_VERSION, list_checkpoints
from avtd3.learn.config import LearnConfig
from avtd3.learn.networks import NetworkConfig
from avtd3.learn.policy import FORMAT_VERSION as POLICY_VERSION
from avtd3.learn.td3 import TD3Config
from avtd3.learn.trainer import train
from avtd3.store.dataset import Dataset
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.spec import EpisodeSpec
from avtd3.store.step import Observation
from avtd3.store.writer import SegmentWriter

UPDATES = 7


def golden_config(updates: int = UPDATES) -> LearnConfig:
    """Return the settings of the golden run, or of one that continues it."""
    return LearnConfig(
        updates=updates,
        seed=3,
        device="cpu",
        precision="fp32",
        threads=1,
        log_every=5,
        publish_every=7,
        network=NetworkConfig(hidden=(6, 5)),
        td3=TD3Config(target_clip_every=2),
        replay=ReplayConfig(batch_size=4, prioritised=True),
    )


def write_golden_data(path: Path) -> EpisodeSpec:
    """A dataset of two short episodes; returns its spec."""
    spec = EpisodeSpec(
        image=None,
        vector_names=("speed_mps", "lateral_m", "heading_rad"),
        vector_scales=(10.0, 2.0, 1.0),
        action_names=("steer", "throttle_brake"),
        action_low=(-1.0, -1.0),
        action_high=(1.0, 1.0),
        reward_terms=(),
        control_period_s=0.05,
    )
    with SegmentWriter(Dataset.create(path, spec), collector="golden", provenance={}) as writer:
        for episode in range(2):
            row = np.array([episode, 0.5, -0.25], np.float32)
            writer.begin(
                Observation(vector=row),
                seed=episode,
                scenario=0,
                world="t",
                town="t",
                weather="t",
                driver="random",
            )
            for step in range(1, 9):
                writer.step(
                    np.array([step / 8.0, (-1.0) ** step / 2.0], np.float32),
                    step / 4.0 - episode,
                    Observation(vector=row + np.float32(step / 16.0)),
                    terminated=step == 8 and episode == 1,
                    truncated=step == 8 and episode == 0,
                )
            writer.end("goal")
    return spec


def main() -> None:
    """Write what is missing of the checkpoint and the policy of the newest versions.

    A policy has version 2 only if the frames of its stack are not consecutive.
    """
    golden = Path(__file__).parent
    checkpoint = golden / f"checkpoint-v{FORMAT_VERSION}"
    policy = golden / f"policy-v{POLICY_VERSION}"
    if checkpoint.exists() and policy.exists():
        raise SystemExit(f"{checkpoint} and {policy} exist; they are never made again")
    with tempfile.TemporaryDirectory() as place:
        data, run = Path(place, "data"), Path(place, "run")
        write_golden_data(data)
        config = golden_config()
        replay = dataclasses.replace(config.replay, stack_stride=POLICY_VERSION)
        train(dataclasses.replace(config, replay=replay), datasets=[data], run=run)
        (made,) = list_checkpoints(run / "checkpoints")
        if not checkpoint.exists():
            shutil.copytree(made, checkpoint / made.name)
        if not policy.exists():
            shutil.copytree(run / "policies", policy)


if __name__ == "__main__":
    main()
