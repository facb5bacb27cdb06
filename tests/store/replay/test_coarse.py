"""Data of held actions, seen as decisions, equal data that were stored once per decision."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import FrameStack, Observation
from avtd3.store.writer import SegmentWriter


def make_spec(stack=2, image=True, period_s=0.05):
    return EpisodeSpec(
        image=ImageSpec(height=3, width=2, stack=stack) if image else None,
        vector_names=("x", "y"),
        action_names=("a", "b"),
        reward_terms=("r", "s"),
        control_period_s=period_s,
    )


@dataclasses.dataclass
class Drive:
    """An episode of held actions: T + 1 observations, T steps."""

    frames: np.ndarray
    vectors: np.ndarray
    actions: np.ndarray
    terms: np.ndarray
    is_terminated: bool


def make_drive(length, repeat, is_terminated, seed):
    rng = np.random.default_rng(seed)
    decided = rng.uniform(-1.0, 1.0, (length // repeat + 1, 2)).astype(np.float32)
    return Drive(
        frames=rng.integers(0, 256, (length + 1, 1, 3, 2), np.uint8),
        vectors=rng.normal(size=(length + 1, 2)).astype(np.float32),
        actions=np.repeat(decided, repeat, axis=0)[:length],
        terms=rng.normal(size=(length, 2)).astype(np.float32),
        is_terminated=is_terminated,
    )


def decided(drive, repeat):
    """The same drive as an environment stores it whose world steps several times per decision."""
    length = len(drive.actions)
    seen, actions, terms = [0], [], []
    for start in range(0, length, repeat):
        stop = min(start + repeat, length)
        seen.append(stop)
        actions.append(drive.actions[start])
        terms.append(sum(drive.terms[t].astype(np.float64) for t in range(start, stop)))
    return dataclasses.replace(
        drive,
        frames=drive.frames[seen],
        vectors=drive.vectors[seen],
        actions=np.array(actions),
        terms=np.array(terms, np.float32),
    )


def write(path, spec, drives):
    dataset = Dataset.create(path, spec)
    with SegmentWriter(dataset) as writer:
        for seed, drive in enumerate(drives):

            def see(t, drive=drive):
                image = drive.frames[t] if spec.image is not None else None
                return Observation(image=image, vector=drive.vectors[t])

            writer.begin(see(0), seed=seed)
            last = len(drive.actions) - 1
            for t, (action, terms) in enumerate(zip(drive.actions, drive.terms, strict=True)):
                writer.step(
                    action,
                    None,
                    see(t + 1),
                    reward_terms=terms,
                    terminated=t == last and drive.is_terminated,
                    truncated=t == last and not drive.is_terminated,
                )
    return dataset


def assert_same(ours, theirs):
    for field in dataclasses.fields(ours):
        one, other = getattr(ours, field.name), getattr(theirs, field.name)
        if field.name in ("frame_rows", "streams", "strides"):
            continue  # the same frames are in other rows
        if one is None or other is None or one.dtype != np.float32:
            np.testing.assert_array_equal(one, other)
        else:
            np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


lengths = st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=4)


@hypothesis.settings(deadline=None, max_examples=25)
@hypothesis.given(
    shapes=lengths,
    repeat=st.integers(2, 4),
    stack=st.integers(1, 3),
    stride=st.integers(1, 3),
    n_step=st.integers(1, 4),
    image=st.booleans(),
    mode=st.sampled_from(["cache", "direct"]),
)
def test_the_view_equals_data_of_that_rate(
    tmp_path_factory, shapes, repeat, stack, stride, n_step, image, mode
):
    path = tmp_path_factory.mktemp("coarse")
    drives = [make_drive(n, repeat, ends, seed) for seed, (n, ends) in enumerate(shapes)]
    fine = write(path / "fine", make_spec(stack, image), drives)
    native = write(
        path / "native",
        make_spec(stack, image, 0.05 * repeat),
        [decided(drive, repeat) for drive in drives],
    )
    common = {"batch_size": 16, "n_step": n_step, "stack_stride": stride, "gamma": 0.9}
    plain = ReplayConfig(**common, mode=mode)
    coarse = dataclasses.replace(plain, action_repeat=repeat)
    with (
        Sampler([fine], coarse, seed=1, scratch=path) as ours,
        Sampler([native], plain, seed=1, scratch=path) as theirs,
    ):
        assert ours.steps == theirs.steps
        assert ours.spec == theirs.spec
        for _ in range(3):
            assert_same(ours.sample(), theirs.sample())


@pytest.mark.parametrize("repeat", [2, 3])
def test_sequences_and_held_out_episodes_are_decisions(tmp_path, repeat):
    drives = [make_drive(11 + n, repeat, n % 2 == 0, n) for n in range(6)]
    fine = write(tmp_path / "fine", make_spec(), drives)
    native = write(
        tmp_path / "native", make_spec(period_s=0.05 * repeat), [decided(d, repeat) for d in drives]
    )
    plain = ReplayConfig(batch_size=16, sequence_length=4, held_out=0.5)
    coarse = dataclasses.replace(plain, action_repeat=repeat)
    with (
        Sampler([fine], coarse, seed=1, scratch=tmp_path) as ours,
        Sampler([native], plain, seed=1, scratch=tmp_path) as theirs,
    ):
        for _ in range(3):
            assert_same(ours.sample_sequences(), theirs.sample_sequences())
        pairs = list(zip(ours.held_out(), theirs.held_out(), strict=True))
        assert pairs
        for one, other in pairs:
            assert one.length == other.length
            for name in ("frames", "vectors", "actions", "terminated", "truncated"):
                np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
            np.testing.assert_allclose(one.rewards, other.rewards, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(one.reward_terms, other.reward_terms, rtol=1e-6)


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("stride", [1, 2, 4])
def test_frames_of_a_stack_are_as_far_apart_as_a_policy_stacks_them(tmp_path, n_step, stride):
    spec = make_spec(stack=3)
    (drive,) = drives = [make_drive(13, 1, True, 0)]
    dataset = write(tmp_path / "data", spec, drives)
    stack = FrameStack(3, stride)
    stacked: list[np.ndarray] = []
    stack.reset(drive.frames[0])
    for frame in drive.frames:
        if stacked:
            stack.push(frame)
        stacked.append(stack.stacked())
    (episode,) = dataset.episodes()
    np.testing.assert_array_equal(episode.observations(stride=stride), stacked)
    config = ReplayConfig(batch_size=64, n_step=n_step, stack_stride=stride)
    with Sampler([dataset], config, seed=0, scratch=tmp_path) as sampler:
        batch = sampler.sample()
    times = [int(np.flatnonzero((drive.actions == a).all(axis=1))[0]) for a in batch.action]
    assert len(set(times)) > 8
    assert batch.observation_frames is not None
    assert batch.next_observation_frames is not None
    for t, seen, following in zip(
        times, batch.observation_frames, batch.next_observation_frames, strict=True
    ):
        np.testing.assert_array_equal(seen, stacked[t])
        np.testing.assert_array_equal(following, stacked[min(t + n_step, 13)])


@pytest.mark.parametrize("fill", ["whole", "while"])
def test_actions_that_change_within_a_decision_are_refused(tmp_path, fill):
    drives = [make_drive(6, 2, True, 0), make_drive(7, 2, True, 1)]
    drives[1].actions[5] += 0.01
    dataset = write(tmp_path / "data", make_spec(), drives)
    config = ReplayConfig(batch_size=4, action_repeat=2, fill=fill)
    with pytest.raises(ConfigError, match=r"first in step 5 of episode 1.*hold_actions=2"):
        Sampler([dataset], config, seed=0, scratch=tmp_path).sample()


def test_a_stride_of_the_stack_is_not_for_sequences():
    with pytest.raises(ConfigError, match="stack_stride"):
        ReplayConfig(sequence_length=8, stack_stride=2)
