import numpy as np
import pytest
import torch

from avtd3.learn.batch import RandomShift, draw_shifts, flatten_sequences, shift_frames, to_batch
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
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
            (batch.observation.pixels[0], drawn.observation_frames),
            (batch.next_observation.pixels[0], drawn.next_observation_frames),
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
        assert isinstance(tensor, torch.Tensor)
        np.testing.assert_array_equal(tensor.numpy(), array)


def test_a_batch_without_images(tmp_path, make_spec, publish_episodes):
    dataset = publish_episodes(tmp_path / "data", make_spec())
    with Sampler([dataset], ReplayConfig(batch_size=4), seed=0, scratch=tmp_path) as sampler:
        batch = to_batch(sampler.sample(), torch.device("cpu"), torch.float32)
    assert batch.observation.pixels == ()
    assert batch.observation.vector is not None
    assert batch.observation.vector.shape == (4, 5)


def shift(seed):
    return RandomShift(pad=2, generator=torch.Generator().manual_seed(seed))


def assert_shifted(tensor, frames, shift):
    assert torch.equal(tensor.to(torch.uint8), shift_frames(torch.from_numpy(frames), shift, 2))


def test_each_stack_is_shifted_by_a_draw_of_its_own(tmp_path, make_spec, publish_episodes):
    image = ImageSpec(height=8, width=10, stack=3)
    dataset = publish_episodes(tmp_path / "data", make_spec(image=image))
    device = torch.device("cpu")
    with Sampler([dataset], ReplayConfig(batch_size=16), seed=0, scratch=tmp_path) as sampler:
        drawn = sampler.sample()
        batch = to_batch(drawn, device, torch.float32, shift(5))
        one, other = draw_shifts(2, 16, torch.Generator().manual_seed(5), device)
        assert_shifted(batch.observation.pixels[0], drawn.observation_frames, one)
        assert_shifted(batch.next_observation.pixels[0], drawn.next_observation_frames, other)
        again = to_batch(drawn, device, torch.float32, shift(5))
    assert torch.equal(batch.observation.pixels[0], again.observation.pixels[0])


def test_the_steps_of_a_sequence_are_shifted_apart(tmp_path, make_spec, publish_episodes):
    image = ImageSpec(height=8, width=10, stack=3)
    dataset = publish_episodes(tmp_path / "data", make_spec(image=image))
    config = ReplayConfig(batch_size=16, sequence_length=4)
    device = torch.device("cpu")
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        drawn = sampler.sample_sequences()
        plain = flatten_sequences(drawn, 0.99, device, torch.float32)
        moved = flatten_sequences(drawn, 0.99, device, torch.float32, shift(5))
    one, other = draw_shifts(2, 16, torch.Generator().manual_seed(5), device)
    before = plain.observation.pixels[0].to(torch.uint8).numpy()
    assert_shifted(moved.observation.pixels[0], before, one)
    after = plain.next_observation.pixels[0].to(torch.uint8).numpy()
    assert_shifted(moved.next_observation.pixels[0], after, other)
