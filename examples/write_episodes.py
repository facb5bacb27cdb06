"""Write episodes from your own simulator."""

import numpy as np

from avtd3.store import Dataset, EpisodeSpec, ImageSpec, Observation, SegmentWriter

spec = EpisodeSpec(
    image=ImageSpec(height=48, width=48),
    vector_names=("speed_mps",),
    action_names=("steer", "throttle"),
)
rng = np.random.default_rng(0)


def observe():
    """Return random values; read your camera and your sensors here."""
    image = rng.integers(0, 256, (1, 48, 48), np.uint8)
    return Observation(image=image, vector=rng.random(1, np.float32))


with SegmentWriter(Dataset.create("data", spec)) as writer:
    for seed in range(8):
        writer.begin(observe(), seed=seed, driver="random")
        for step in range(1, 51):
            action = rng.uniform(-1.0, 1.0, 2).astype(np.float32)
            writer.step(action, reward=1.0, observation=observe(), terminated=step == 50)

print(Dataset.open("data").snapshot())
