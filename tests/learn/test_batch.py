import numpy as np
import pytest
import torch

from avtd3.learn.batch import to_batch
from avtd3.store.replay.sampler import ReplayConfig, Sampler
from avtd3.store.spec import ImageSpec


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_holds_what_was_drawn(tmp_path, make_spec, publish_episodes, n_step, channels):
    image = ImageSpec(height=8, width=10, stack=4, channels=channels)
    dataset = publish_episodes(tmp_path / "data", make_spec(image=image))
    config = ReplayConfig(batch_size=16, n_step=n_step)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        drawn = sampler.sample()
        batch = to_batch(drawn, torch.device("cpu"), torch.float32)
        pairs = [
            (batch.observation.pixels, drawn.observation_frames),
            (batch.next_observation.pixels, drawn.next_observation_frames),
            (batch.observation.vector, drawn.observation_vector),
            (batch.next_observation.vector, drawn.next_observation_vector),
            (batch.action, drawn.action),
            (batch.reward, drawn.reward),
            (batch.discount, drawn.discount),
        ]
        copies = [np.array(array) for _, array in pairs]
        for _ in range(4):
            sampler.sample()
    for (tensor, _), array in zip(pairs, copies, strict=True):
        assert tensor is not None
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_a_batch_without_images(tmp_path, make_spec, publish_episodes):
    dataset = publish_episodes(tmp_path / "data", make_spec())
    with Sampler([dataset], ReplayConfig(batch_size=4), seed=0, scratch=tmp_path) as sampler:
        batch = to_batch(sampler.sample(), torch.device("cpu"), torch.float32)
    assert batch.observation.pixels is None
    assert batch.observation.vector is not None
    assert batch.observation.vector.shape == (4, 5)
