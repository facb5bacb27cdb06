"""What a policy looks at: gradients against finite differences, and pictures of them."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from avtd3.learn.networks import Actor, NetworkConfig, ObservationBatch, evaluating
from avtd3.learn.saliency import LARGEST, ActionGradients, batch_pictures, heat_maps, tile
from avtd3.store.render.media import HEAT, heat_frame
from avtd3.store.spec import ImageSpec

IMAGE = ImageSpec(height=36, width=40, stack=2, channels=3)
NETWORK = NetworkConfig(hidden=(16, 16), features=24, conv_norm="batch")


@pytest.fixture
def actor(make_spec):
    torch.manual_seed(0)
    return Actor(make_spec(image=IMAGE, vector=3), NETWORK)


@pytest.fixture
def observation(make_spec, make_batch):
    return make_batch(make_spec(image=IMAGE, vector=3), size=5).observation


def gradients_of(actor, observation):
    found = ActionGradients.of(actor, observation, [IMAGE])
    assert found.vector is not None
    return found.pixels[0], found.vector


def pre_tanh(actor, pixels, vector):
    with torch.no_grad(), evaluating(actor):
        state = actor.encode(ObservationBatch(pixels=(pixels,), vector=vector))
        return actor.head(state)


def test_gradients_are_those_of_finite_differences(actor, observation):
    pixel_gradients, vector_gradients = gradients_of(actor, observation)
    actor.double()
    pixels, vector = observation.pixels[0].double(), observation.vector.double()
    for row, action, frame, y, x in ((0, 0, 0, 9, 20), (3, 1, 1, 30, 2)):
        total = 0.0
        for colour in range(3):
            moved = pixels.clone()
            moved[row, 3 * frame + colour, y, x] += 1e-3
            change = pre_tanh(actor, moved, vector) - pre_tanh(actor, pixels, vector)
            total += abs(change[row, action].item()) / 1e-3
        assert pixel_gradients[row, action, frame, y, x] == pytest.approx(total, rel=1e-2, abs=1e-9)
    moved = vector.clone()
    moved[2, 1] += 1e-5
    change = pre_tanh(actor, pixels, moved) - pre_tanh(actor, pixels, vector)
    expected = change[2].abs().numpy() / 1e-5
    np.testing.assert_allclose(vector_gradients[2, :, 1], expected, rtol=1e-3)


def test_the_actor_is_left_as_it_was(actor, observation):
    before = copy.deepcopy(actor.state_dict())
    random = torch.get_rng_state()
    with torch.no_grad():  # also where gradients are off
        ActionGradients.of(actor, observation, [IMAGE])
        batch_pictures(actor, observation, {"image": IMAGE})
    assert actor.training
    assert all(p.grad is None for p in actor.parameters())
    assert torch.equal(torch.get_rng_state(), random)
    assert observation.pixels[0].requires_grad is False
    for name, value in actor.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_an_actor_that_has_diverged_has_gradients_to_draw(actor, observation):
    with torch.no_grad():
        actor.head.layers[0].weight[:] = float("nan")
    found, _ = gradients_of(actor, observation)
    assert np.isfinite(found).all()
    assert found.max(initial=0.0) <= LARGEST
    pictures = batch_pictures(actor, observation, {"image": IMAGE})
    assert {frame.dtype.name for frame in pictures.values()} == {"uint8"}


def test_maps_have_their_own_scale_and_show_where_the_gradient_is():
    pixels = np.full((2, 1, 2, 50, 50), 1e-6, np.float32)
    pixels[0, 0, 0, 10:20, 30:40] = 1.0
    pixels[1, 0, 1, 40:48, 5:15] = 1e-3
    maps = heat_maps(pixels)
    assert maps.shape == (2, 1, 50, 50)
    assert (maps[0, 0, 13:17, 33:37] == 1.0).all()
    assert (maps[1, 0, 43:45, 8:12] == 1.0).all()
    assert maps[0, 0, :, :20].max() < 0.01


def test_pictures_have_a_row_for_each_observation(actor, observation):
    pictures = batch_pictures(actor, observation, {"image": IMAGE})
    assert pictures["images/observations"].shape == (3, 4 * 36, 2 * 40)
    assert pictures["images/saliency"].shape == (3, 4 * 36, (1 + 2) * 40)
    stack = observation.pixels[0][1].to(torch.uint8).numpy()
    np.testing.assert_array_equal(pictures["images/observations"][:, 36:72, :40], stack[:3])
    np.testing.assert_array_equal(pictures["images/observations"][:, 36:72, 40:], stack[3:])
    np.testing.assert_array_equal(pictures["images/saliency"][:, 36:72, :40], stack[3:])


def test_each_stream_has_gradients_and_pictures(make_spec):
    streams = {"far": IMAGE, "near": ImageSpec(height=36, width=44, stack=3, channels=8)}
    spec = dataclasses.replace(make_spec(vector=3), streams=streams)
    seeing_far = Actor(spec, dataclasses.replace(NETWORK, actor_inputs=("far", "v0")))
    shapes = [image.observation_shape for image in streams.values()]
    observation = ObservationBatch(
        pixels=tuple(255 * torch.rand(5, *shape) for shape in shapes), vector=torch.randn(5, 3)
    )
    for actor, is_seen in ((Actor(spec, NETWORK), True), (seeing_far, False)):
        far, near = ActionGradients.of(actor, observation, streams.values()).pixels
        assert far.shape == (5, 2, 2, 36, 40)
        assert near.shape == (5, 2, 3, 36, 44)
        assert far.any()
        assert near.any() == is_seen
    pictures = batch_pictures(seeing_far, observation, streams)
    assert pictures["images/observations/near"].shape == (3, 4 * 36, 3 * 44)
    assert pictures["images/saliency/far"].shape == (3, 4 * 36, (1 + 2) * 40)


def test_heat_lies_over_a_dark_grey_frame():
    frame = np.full((1, 2, 2), 200, np.uint8)
    heat = np.array([[0.0, 1.0], [0.5, 0.0]], np.float32)
    drawn = heat_frame(frame, heat)
    assert drawn[:, 0, 0].tolist() == [100, 100, 100]
    assert drawn[:, 0, 1].tolist() == list(HEAT)
    assert drawn[:, 1, 0].tolist() == [round((100 + c) / 2) for c in HEAT]
    assert tile([[frame, drawn], [drawn, frame]]).shape == (3, 4, 4)
