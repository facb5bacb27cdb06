"""Networks, policies and training runs on the streams that they are to read."""

import dataclasses
import os
from typing import Any

import numpy as np
import pytest
import torch

from avtd3.learn.analysis.run_page import run_page
from avtd3.learn.config import LearnConfig
from avtd3.learn.networks import (
    Actor,
    Encoder,
    NetworkConfig,
    ObservationBatch,
    ResidualEncoder,
    StreamEncoders,
    make_encoder,
    residual_stages,
    to_pixels,
)
from avtd3.learn.policy import Policy, PolicyActor, SingleActor
from avtd3.learn.policy_export import export_policy
from avtd3.learn.policy_store import PolicyStore
from avtd3.learn.replay_dataset import ReplayDataset
from avtd3.learn.trainer import train
from avtd3.store.errors import SpecError
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import Observation
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

IMAGES = {
    "bev": ImageSpec(channels=2, height=36, width=36, stack=1),
    "gray": ImageSpec(height=40, width=36, stack=2, stride=2),
    "rgb": ImageSpec(channels=3, height=104, width=40, stack=1),
}
SPEC = dataclasses.replace(make_spec(image=False, vector=2, terms=0), streams=IMAGES)
SMALL = NetworkConfig(hidden=(16, 16), features=8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        episodes = [make_episode(SPEC, length, seed) for seed, length in enumerate((20, 15, 30))]
        return write_dataset(tmp_path_factory.mktemp("learn") / "d", SPEC, episodes)


def observe(spec, count=3, seed=0):
    """Frames by stream, uint8 (B, K*C, H, W), and a vector."""
    generator = torch.Generator().manual_seed(seed)
    frames = {
        name: torch.randint(
            0, 256, (count, *image.observation_shape), generator=generator, dtype=torch.uint8
        )
        for name, image in spec.images.items()
    }
    return frames, torch.randn(count, spec.vector_size, generator=generator)


def test_the_size_of_a_stream_selects_its_cnn():
    encoder = make_encoder(SPEC, SMALL)
    assert isinstance(encoder, StreamEncoders)
    kinds = {name: type(each) for name, each in encoder.streams.items()}
    assert kinds == {"bev": Encoder, "gray": Encoder, "rgb": ResidualEncoder}
    assert isinstance(make_encoder(SPEC.select(["gray"]), SMALL), Encoder)
    large = EpisodeSpec(image=ImageSpec(height=144, width=256), action_names=("a",))
    assert isinstance(make_encoder(large, SMALL), Encoder), "as before there were streams"
    chosen = dataclasses.replace(SMALL, encoder="impala")
    assert isinstance(make_encoder(large, chosen), ResidualEncoder)


@pytest.mark.parametrize(
    ("height", "width", "stages", "inputs"),
    [
        (84, 84, 3, 11 * 11 * 32),
        (128, 128, 3, 16 * 16 * 32),
        (144, 256, 4, 9 * 16 * 32),
        (512, 512, 5, 16 * 16 * 32),
        (40, 104, 3, 5 * 13 * 32),
    ],
)
def test_a_residual_cnn_has_stages_by_size(height, width, stages, inputs):
    image = ImageSpec(channels=3, height=height, width=width, stack=1)
    assert residual_stages(image) == stages
    with torch.device("meta"):
        encoder: Any = ResidualEncoder(image, NetworkConfig())
    assert encoder.linear.in_features == inputs
    channels = [stage.convolution.out_channels for stage in encoder.stages]
    assert channels == [16, *[32] * (stages - 1)]


def test_a_residual_cnn_is_impalas():
    """The textbook formula of Espeholt et al. (2018), figure 3, on a small image."""
    image = ImageSpec(channels=3, height=21, width=18, stack=1)
    config = dataclasses.replace(SMALL, feature_norm=False)
    encoder: Any = ResidualEncoder(image, config).double()
    frames = torch.randint(0, 256, (2, 3, 21, 18), dtype=torch.uint8)
    x = frames.double() / 127.5 - 1.0
    for stage in encoder.stages:
        x = torch.max_pool2d(stage.convolution(x), 3, 2, 1)
        for block in range(2):
            first, second = stage.residual[2 * block : 2 * block + 2]
            x = x + second(torch.relu(first(torch.relu(x))))
    expected = torch.relu(encoder.linear(torch.relu(x).permute(0, 2, 3, 1).flatten(1)))
    torch.testing.assert_close(encoder(to_pixels(frames, torch.float64)), expected)


def test_features_come_in_the_order_of_the_names():
    actor: Any = Actor(SPEC, SMALL)
    assert actor.state_size == 3 * 8 + 2
    frames, vector = observe(SPEC)
    pixels = tuple(to_pixels(each, torch.float32) for each in frames.values())
    state = actor.encode(ObservationBatch(pixels=pixels, vector=vector))
    for number, encoder in enumerate(actor.encoder.streams.values()):
        own = encoder(pixels[number])
        torch.testing.assert_close(state[:, 8 * number : 8 * number + 8], own)
    torch.testing.assert_close(state[:, 24:], vector)


@pytest.mark.parametrize("names", [("bev", "gray", "rgb"), ("rgb",), ("gray",)])
def test_one_observation_at_a_time_gives_the_same_action(names):
    spec = SPEC.select(names)
    actor = Actor(spec, SMALL).eval()
    frames, vector = observe(spec)
    pixels = tuple(to_pixels(each, torch.float32) for each in frames.values())
    batch = ObservationBatch(pixels=pixels, vector=vector)
    single = SingleActor(actor)
    for row in range(3):
        ours = single([each[row] for each in frames.values()], vector[row])
        torch.testing.assert_close(ours, actor(batch)[row], rtol=1e-4, atol=1e-5)


def publish(path, spec):
    torch.manual_seed(0)
    actor = Actor(spec, SMALL)
    version = PolicyStore(path).publish(actor, spec, SMALL, updates=0)
    assert version == 0 or version
    return Policy.load(path)


def test_a_policy_needs_its_streams_and_no_others(tmp_path):
    spec = SPEC.select(["gray", "rgb"])
    publish(tmp_path / "p", spec)
    policy = Policy.load(tmp_path / "p", spec=SPEC)
    assert policy.spec == spec
    with pytest.raises(SpecError, match=r"was trained for another spec .*SECTION\.road\.streams"):
        Policy.load(tmp_path / "p", spec=SPEC.select(["gray", "bev"]))
    with pytest.raises(SpecError, match="was trained for another spec"):
        Policy.load(tmp_path / "p", spec=make_spec(image=False, vector=2, terms=0))


def test_an_actor_stacks_each_stream_by_its_stride(tmp_path):
    policy = publish(tmp_path / "p", SPEC.select(["gray", "rgb"]))
    rng = np.random.default_rng(0)
    seen: list[Any] = [
        Observation(
            streams={
                name: rng.integers(0, 256, image.frame_shape, dtype=np.uint8)
                for name, image in IMAGES.items()
            },
            vector=np.zeros(2, np.float32),
        )
        for _ in range(5)
    ]
    actor = PolicyActor(policy)
    actor.reset()
    for number, observation in enumerate(seen):
        action = actor.act(observation)
        rows = (max(0, number - 2), number)
        gray = np.concatenate([seen[row].streams["gray"] for row in rows])
        stacks = {"gray": gray, "rgb": observation.streams["rgb"]}
        np.testing.assert_array_equal(action, policy.act(stacks, observation.vector))
    with pytest.raises(SpecError, match="observation has gray None"):
        actor.act(Observation(vector=np.zeros(2, np.float32)))


def test_several_streams_are_exported(tmp_path):
    publish(tmp_path / "p", SPEC.select(["bev", "gray"]))
    report = export_policy(tmp_path / "p", tmp_path / "policy.pt2", "torch")
    assert report.difference < 1e-5
    assert "stream gray: uint8, 2 frames of 1 x 40 x 36" in report.summary()


@pytest.mark.parametrize(
    ("streams", "options"),
    [
        ((), {}),
        (("rgb",), {"image_shift": 2}),
        (("bev", "gray"), {"sequence_length": 4}),
    ],
)
def test_a_run_reads_the_streams_that_are_chosen(dataset, tmp_path, streams, options):
    length = options.pop("sequence_length", 0)
    replay = ReplayConfig(batch_size=8, streams=streams, sequence_length=length, held_out=0.3)
    config = LearnConfig(replay=replay, network=SMALL, updates=4, **options)
    report = train(config, datasets=[dataset.path], run=tmp_path / "run")
    assert report.updates == 4
    policy = Policy.load(tmp_path / "run" / "policies")
    assert list(policy.spec.images) == sorted(streams or IMAGES)
    page = run_page(tmp_path / "run")
    assert {f"{name}, newest" in page for name in policy.spec.images} == {True}
    assert {f": {name}</figcaption>" in page for name in policy.spec.images} == {True}
    again = train(
        dataclasses.replace(config, updates=6),
        datasets=[dataset.path],
        run=tmp_path / "run",
        resume=True,
    )
    assert again.updates == 6


def test_a_loader_yields_several_streams(dataset):
    with_streams: Any = next(iter(ReplayDataset(dataset.path, batch_size=4, seed=0)))
    assert with_streams.observation_frames is None
    before, after = with_streams.streams["gray"]
    assert before.shape == after.shape == (4, 2, 40, 36)
    one: Any = next(iter(ReplayDataset(dataset.path, batch_size=4, seed=0, streams=("gray",))))
    assert not one.streams
    torch.testing.assert_close(one.observation_frames, before)
    sequences: Any = next(iter(ReplayDataset(dataset.path, batch_size=8, sequence_length=4)))
    assert sequences.frames is None
    assert sequences.streams["gray"].shape == (2, 2 + 4 + 1, 1, 40, 36)
