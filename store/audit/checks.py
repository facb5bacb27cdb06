"""Whether a segment's numbers make sense: pure functions over its arrays.

Each check takes the arrays and the spec and yields at most one fault per episode, which tells the
first bad row and how many there are. `episode_bounds` comes first: all others rely on it.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.evidence import (
    CheckLimits,
    Evidence,
    FrameFeatures,
    SemanticCheck,
    first_rows,
    runs,
    speed_mps,
)
from avtd3.store.audit.findings import Fault
from avtd3.store.spec import EpisodeSpec, ImageSpec

SUM_TOLERANCE = 1e-3
"""Rewards and returns may differ from their sums by this, times the summed magnitude or 1."""
TIME_TOLERANCE = 0.01
"""Share of a control period by which one may be longer or shorter."""
BOUND_TOLERANCE = 1e-6
"""Share of an action's range by which float32 may round past its bound."""

_Named = dict[str, NDArray[np.floating] | None]


def episode_bounds(
    offset: NDArray[np.int64], length: NDArray[np.int64], *, steps: int, observations: int
) -> Iterator[Fault]:
    """Episodes follow each other without gaps and fill the arrays.

    Args:
        offset: int64 (E,), row of each episode's first step.
        length: int64 (E,), steps.
        steps: Rows held along ``step``.
        observations: Rows held along ``observation``.
    """
    check = "episode-bounds"
    for episode in np.flatnonzero(length < 1).tolist():
        yield Fault(check=check, episode=episode, message=f"length {length[episode]}, expected 1+")
    expected = np.concatenate([[0], np.cumsum(length)])
    for episode in np.flatnonzero(offset != expected[:-1]).tolist()[:1]:
        message = f"offset {offset[episode]}, expected {expected[episode]}, the lengths before it"
        yield Fault(check=check, episode=episode, message=message)
    if expected[-1] != steps:
        message = f"lengths add up to {expected[-1]}, expected the {steps} steps held"
        yield Fault(check=check, message=message)
    if observations != steps + len(length):
        message = f"{observations} observations, expected {steps} steps + {len(length)} episodes"
        yield Fault(check=check, message=message)


def step_after_end(evidence: Evidence, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Nothing follows a step that is terminated or truncated."""
    ends = evidence.terminated | evidence.truncated
    ends[_last_steps(evidence)] = False
    for episode, row, _ in first_rows(ends, evidence.step_episode):
        step, length = row - evidence.episodes.offset[episode], evidence.episodes.length[episode]
        message = f"step {step} is an end, expected only step {length - 1} to be one"
        yield Fault(check="step-after-end", episode=episode, message=message)


def end_unmarked(evidence: Evidence, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """The last step of an episode is terminated or truncated."""
    last = _last_steps(evidence)
    marked = evidence.terminated[last] | evidence.truncated[last]
    for episode in np.flatnonzero(~marked).tolist():
        step = evidence.episodes.length[episode] - 1
        message = f"last step {step} is neither terminated nor truncated, expected one of them"
        yield Fault(check="end-unmarked", episode=episode, message=message)


def end_twice(evidence: Evidence, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """No step is both terminated and truncated."""
    both = evidence.terminated & evidence.truncated
    for episode, row, _ in first_rows(both, evidence.step_episode):
        step = row - evidence.episodes.offset[episode]
        message = f"step {step} is both terminated and truncated, expected one of them"
        yield Fault(check="end-twice", episode=episode, message=message)


def not_finite(evidence: Evidence, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """All numbers are finite."""
    by_observation: _Named = {"vector": evidence.vector, "sim_time": evidence.sim_time}
    by_step: _Named = {
        "action": evidence.action,
        "reward": evidence.reward,
        "reward_terms": evidence.reward_terms,
    }
    by_episode: _Named = {
        "episode_return": evidence.episodes.episode_return,
        "episode_exploration_noise": evidence.episodes.exploration_noise,
    }
    episodes = np.arange(len(evidence.episodes.length))
    for arrays, episode_of, starts in (
        (by_observation, evidence.observation_episode, evidence.observation_start),
        (by_step, evidence.step_episode, evidence.episodes.offset),
        (by_episode, episodes, episodes),
    ):
        for name, values in arrays.items():
            if values is None:
                continue
            bad = np.asarray((~np.isfinite(values)).reshape(len(values), -1).any(axis=1))
            for episode, row, count in first_rows(bad, episode_of):
                message = (
                    f"{name} holds NaN or infinity in {count} rows, first {row - starts[episode]};"
                    " expected finite numbers"
                )
                yield Fault(check="not-finite", episode=episode, message=message)


def action_bounds(evidence: Evidence, spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Actions lie within the spec's bounds."""
    low, high = np.asarray(spec.action_low), np.asarray(spec.action_high)
    slack = BOUND_TOLERANCE * (high - low)
    outside = (evidence.action < low - slack) | (evidence.action > high + slack)
    for episode, row, count in first_rows(outside.any(axis=1), evidence.step_episode):
        part = int(np.flatnonzero(outside[row])[0])
        message = (
            f"{spec.action_names[part]} is {evidence.action[row, part]:.6g} at step "
            f"{row - evidence.episodes.offset[episode]}, expected {low[part]:g}..{high[part]:g} "
            f"({count} such steps)"
        )
        yield Fault(check="action-bounds", episode=episode, message=message)


def reward_sum(evidence: Evidence, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Each reward is the sum of its terms."""
    if evidence.reward_terms is None:
        return
    terms = evidence.reward_terms.astype(np.float64)
    sums = terms.sum(axis=1)
    wrong = _differs(evidence.reward, sums, np.abs(terms).sum(axis=1))
    for episode, row, count in first_rows(wrong, evidence.step_episode):
        message = (
            f"reward {evidence.reward[row]:.6g} at step {row - evidence.episodes.offset[episode]}, "
            f"expected {sums[row]:.6g}, the sum of its terms ({count} such steps)"
        )
        yield Fault(check="reward-sum", episode=episode, message=message)


def return_sum(evidence: Evidence, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Each episode's return is the sum of its rewards."""
    rewards = evidence.reward.astype(np.float64)
    sums = np.add.reduceat(rewards, evidence.episodes.offset)
    magnitudes = np.add.reduceat(np.abs(rewards), evidence.episodes.offset)
    for episode in np.flatnonzero(
        _differs(evidence.episodes.episode_return, sums, magnitudes)
    ).tolist():
        message = (
            f"return {evidence.episodes.episode_return[episode]:.6g}, "
            f"expected {sums[episode]:.6g}, the sum of its rewards"
        )
        yield Fault(check="return-sum", episode=episode, message=message)


def frame_order(evidence: Evidence, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Frame numbers increase within an episode."""
    advance, inside = _advances(evidence.frame_id, evidence)
    for episode, row, count in first_rows(inside & (advance <= 0), evidence.observation_episode):
        message = (
            f"frame {evidence.frame_id[row]} after {evidence.frame_id[row - 1]} at observation "
            f"{row - evidence.observation_start[episode]}, expected a higher one ({count} such)"
        )
        yield Fault(check="frame-order", episode=episode, message=message)


def frame_gap(evidence: Evidence, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Frame numbers advance as they usually do in the episode: simulators may tick in between."""
    advance, inside = _advances(evidence.frame_id, evidence)
    episode_of = evidence.observation_episode
    usual = np.zeros(len(evidence.episodes.length))
    for episode, start in enumerate(evidence.observation_start.tolist()):
        usual[episode] = np.median(
            advance[start + 1 : start + 1 + evidence.episodes.length[episode]]
        )
    gaps = inside & (advance > np.maximum(usual, 1)[episode_of])
    for episode, row, count in first_rows(gaps, episode_of):
        message = (
            f"frame {evidence.frame_id[row]} after {evidence.frame_id[row - 1]} at observation "
            f"{row - evidence.observation_start[episode]}, expected steps of {usual[episode]:g} "
            f"({count} gaps)"
        )
        yield Fault(check="frame-gap", episode=episode, message=message)


def sim_time(evidence: Evidence, spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Simulated time advances by the control period."""
    period = spec.control_period_s
    advance, inside = _advances(evidence.sim_time, evidence)
    # Half an ulp of the clock on either side: a world that ran for months still ticks exactly.
    with np.errstate(invalid="ignore"):
        slack = TIME_TOLERANCE * period + np.spacing(np.abs(evidence.sim_time))
        wrong = inside & (np.abs(advance - period) > slack)
    for episode, row, count in first_rows(wrong, evidence.observation_episode):
        message = (
            f"{advance[row]:.6g} s pass before observation "
            f"{row - evidence.observation_start[episode]}, expected {period:g} s ({count} such)"
        )
        yield Fault(check="sim-time", episode=episode, message=message)


def policy_digest(evidence: Evidence, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """An episode driven by a policy names the digest of the policy's file."""
    for episode, version in enumerate(evidence.episodes.policy_version.tolist()):
        if version >= 0 and not evidence.episodes.policy_digest[episode]:
            message = f"policy version {version} without a digest, expected the file's SHA-256"
            yield Fault(check="policy-digest", episode=episode, message=message)


def _last_steps(evidence: Evidence) -> NDArray[np.int64]:
    return evidence.episodes.offset + evidence.episodes.length - 1


def _differs(
    values: NDArray[np.floating], sums: NDArray[np.float64], magnitudes: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether finite values differ from their sums; `not_finite` tells the others."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(values.astype(np.float64) - sums)
        wrong: NDArray[np.bool_] = apart > SUM_TOLERANCE * np.maximum(magnitudes, 1.0)
    return wrong & np.isfinite(apart)


def _advances(
    values: NDArray[np.int64] | NDArray[np.float64], evidence: Evidence
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Difference to the row before, and where that row belongs to the same episode."""
    inside = np.ones(len(values), np.bool_)
    inside[evidence.observation_start] = False
    with np.errstate(invalid="ignore"):  # inf - inf; `not_finite` tells it
        advance = np.diff(values, prepend=values[:1])
    return advance.astype(np.float64), inside


NUMBER_CHECKS: tuple[SemanticCheck, ...] = (
    step_after_end,
    end_unmarked,
    end_twice,
    not_finite,
    action_bounds,
    reward_sum,
    return_sum,
    frame_order,
    frame_gap,
    sim_time,
    policy_digest,
)
"""The checks of everything but the pictures; they rely on `episode_bounds` finding nothing."""


MOVING_MPS = 0.5
"""Speed above which a picture must change."""
FAST_MPS = 3.0
"""Speed above which two pictures in a row must differ: 15 cm apart at 20 Hz."""
UNIFORM_SPREAD = 1
"""Largest difference between two pixels of a frame that shows nothing."""
BLOCK_BYTES = 1 << 20
"""Raw frames held at a time: small enough for the cache, large enough to cost no calls."""


def scan_frames(
    read: Callable[[int, int, NDArray[np.uint8]], object], frames: int, image: ImageSpec
) -> FrameFeatures:
    """Reduce frames to what the checks need, in bounded memory.

    Args:
        read: Decodes frames ``start`` to ``stop`` into a uint8 (n, C, H, W) buffer.
        frames: Number of frames, N_obs.
        image: Their shape.
    """
    # Whole chunks, so that none is decoded twice.
    block = max(4, BLOCK_BYTES // image.frame_bytes // 16 * 16)
    # One row more in front: the last frame of the block before.
    buffer = np.empty((min(block, frames) + 1, *image.frame_shape), np.uint8)
    # Twice as fast as 64 bits, and enough for frames of up to 16 MiB.
    total = np.uint32 if image.frame_bytes <= 2**24 else np.uint64
    mean = np.empty(frames, np.float32)
    spread = np.empty(frames, np.uint8)
    repeated = np.zeros(frames, np.bool_)
    for start in range(0, frames, block):
        stop = min(frames, start + block)
        read(start, stop, buffer[1 : 1 + stop - start])
        flat = buffer[: 1 + stop - start].reshape(1 + stop - start, -1)
        mean[start:stop] = flat[1:].sum(axis=1, dtype=total) / image.frame_bytes
        spread[start:stop] = flat[1:].max(axis=1) - flat[1:].min(axis=1)
        repeated[start:stop] = (flat[1:] == flat[:-1]).all(axis=1)
        buffer[0] = buffer[stop - start]
    repeated[:1] = False
    return FrameFeatures(mean=mean, spread=spread, repeated=repeated)


def black_frames(evidence: Evidence, _spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Frames have light in them."""
    if evidence.frames is None:
        return
    message = f"mean grey below {limits.black_level:g} of 255"
    yield from _by_episode("black-frames", evidence, _is_black(evidence.frames, limits), message)


def uniform_frames(evidence: Evidence, _spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Frames that are not black show more than one grey."""
    if evidence.frames is None:
        return
    uniform = (evidence.frames.spread <= UNIFORM_SPREAD) & ~_is_black(evidence.frames, limits)
    message = f"all pixels within {UNIFORM_SPREAD} grey of each other"
    yield from _by_episode("uniform-frames", evidence, uniform, message)


def frozen_frames(evidence: Evidence, spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """The picture changes while the car moves, or at all where no speed is known."""
    if evidence.frames is None:
        return
    still = evidence.frames.repeated & ~_is_black(evidence.frames, limits)
    still[evidence.observation_start] = False
    speed = speed_mps(evidence, spec)
    if speed is not None:
        still &= np.abs(speed) > MOVING_MPS
    episode_of = evidence.observation_episode
    reported: set[int] = set()
    for start, stop in runs(still):
        # A run of n repetitions is n + 1 equal frames; an episode's first frame splits runs.
        frames, episode = stop - start + 1, int(episode_of[start])
        if frames >= limits.frozen_frames and episode not in reported:
            reported.add(episode)
            moving = "" if speed is None else " while the car moves"
            first = start - 1 - evidence.observation_start[episode]
            message = (
                f"{frames} equal frames from observation {first}{moving}, "
                f"expected less than {limits.frozen_frames}"
            )
            yield Fault(check="frozen-frames", episode=episode, message=message)


def _is_black(frames: FrameFeatures, limits: CheckLimits) -> NDArray[np.bool_]:
    black: NDArray[np.bool_] = frames.mean < limits.black_level
    return black


def _by_episode(
    check: str, evidence: Evidence, bad: NDArray[np.bool_], says: str
) -> Iterator[Fault]:
    for episode, row, count in first_rows(bad, evidence.observation_episode):
        held = evidence.episodes.length[episode] + 1
        where = row - evidence.observation_start[episode]
        message = f"{says} in {count} of {held} frames, first at observation {where}; expected none"
        yield Fault(check=check, episode=episode, message=message)


def frame_stutter(evidence: Evidence, spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Most frames of a car that moves are new."""
    speed = speed_mps(evidence, spec)
    if evidence.frames is None or speed is None:
        return
    moving = np.abs(speed) > FAST_MPS
    moving &= ~_is_black(evidence.frames, limits)
    moving[evidence.observation_start] = False
    repeated = moving & evidence.frames.repeated
    for episode, row, count in first_rows(repeated, evidence.observation_episode):
        start = int(evidence.observation_start[episode])
        among = int(moving[start : start + 1 + int(evidence.episodes.length[episode])].sum())
        if among >= limits.frozen_frames and count > limits.stutter_share * among:
            message = (
                f"{count} of {among} frames of the moving car repeat the one before, first at "
                f"observation {row - start}; expected at most {limits.stutter_share:.0%}"
            )
            yield Fault(check="frame-stutter", episode=episode, message=message)


def frame_stale(evidence: Evidence, _spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """An episode does not begin with the picture that the one before ended with."""
    if evidence.frames is None:
        return
    frames = evidence.frames
    shown = (frames.spread > UNIFORM_SPREAD) & ~_is_black(frames, limits)
    stale = frames.repeated & shown
    for episode in np.flatnonzero(stale[evidence.observation_start]).tolist():
        message = "its first frame is the last of the episode before, expected a new picture"
        yield Fault(check="frame-stale", episode=episode, message=message)


def frame_flash(evidence: Evidence, _spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """No single frame differs far from two neighbours that are alike: it is another picture."""
    if evidence.frames is None:
        return
    frames, flash = evidence.frames, np.zeros(len(evidence.frames.mean), np.bool_)
    before, here, after = frames.mean[:-2], frames.mean[1:-1], frames.mean[2:]
    apart = np.minimum(np.abs(here - before), np.abs(here - after))
    flash[1:-1] = (apart > limits.flash_level) & (np.abs(after - before) < apart / 3.0)
    # Those at either end of an episode have one neighbour only.
    flash[evidence.observation_start] = False
    flash[evidence.observation_start + evidence.episodes.length] = False
    flash &= (frames.spread > UNIFORM_SPREAD) & ~_is_black(frames, limits)
    says = f"more than {limits.flash_level:g} greys off both neighbours"
    yield from _by_episode("frame-flash", evidence, flash, says)


FRAME_CHECKS: tuple[SemanticCheck, ...] = (
    black_frames,
    uniform_frames,
    frozen_frames,
    frame_stutter,
    frame_stale,
    frame_flash,
)
"""The checks of the pictures; they rely on `episode_bounds` finding nothing."""


FEW_STEPS = 100
"""Steps of a segment below which rewards of zero say nothing."""


def timeout_unmarked(
    evidence: Evidence, _spec: EpisodeSpec, limits: CheckLimits
) -> Iterator[Fault]:
    """An episode that ran out of time is truncated: its last state has a future."""
    table = evidence.episodes
    terminated = evidence.terminated[table.offset + table.length - 1]
    for episode in np.flatnonzero(terminated).tolist():
        if table.end_reason[episode] in limits.truncated_reasons:
            message = f"ends by {table.end_reason[episode]} as terminated, expected truncated"
            yield Fault(check="timeout-unmarked", episode=episode, message=message)


def label_missing(evidence: Evidence, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Yield the episodes without an end reason, or without a label that others have."""
    table = evidence.episodes
    attributes = {name: table.texts(name) for name in ("world", "driver")}
    columns = {name: column for name, column in attributes.items() if any(column)}
    columns["end_reason"] = table.end_reason
    for episode, labels in enumerate(zip(*columns.values(), strict=True)):
        if missing := [name for name, label in zip(columns, labels, strict=True) if not label]:
            message = f"no {', '.join(missing)}, expected a name"
            yield Fault(check="label-missing", episode=episode, message=message)


def episode_short(evidence: Evidence, _spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Episodes have steps enough to be of use."""
    length = evidence.episodes.length
    for episode in np.flatnonzero(length < limits.shortest_episode).tolist():
        message = f"{length[episode]} steps, expected {limits.shortest_episode} or more"
        yield Fault(check="episode-short", episode=episode, message=message)


def noise_negative(evidence: Evidence, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """A standard deviation is 0 or more."""
    noise = evidence.episodes.exploration_noise
    for episode in np.flatnonzero(noise < 0.0).tolist():
        message = f"exploration noise {noise[episode]:g}, expected 0 or more"
        yield Fault(check="noise-negative", episode=episode, message=message)


def vector_range(evidence: Evidence, spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Normalised components are of the size of 1; where all scales are 1, none is normalised."""
    if evidence.vector is None or all(scale == 1.0 for scale in spec.vector_scales):
        return
    # NaN and infinity are told by `not_finite`.
    size = np.where(np.isfinite(evidence.vector), np.abs(evidence.vector), 0.0)
    far = np.asarray(size > limits.vector_limit)
    for episode, row, count in first_rows(
        np.asarray(far.any(axis=1)), evidence.observation_episode
    ):
        part = int(np.argmax(size[row]))
        message = (
            f"{spec.vector_names[part]} is {evidence.vector[row, part]:.6g} scales at observation "
            f"{row - evidence.observation_start[episode]}, expected at most "
            f"{limits.vector_limit:g} ({count} such)"
        )
        yield Fault(check="vector-range", episode=episode, message=message)


def vector_frozen(evidence: Evidence, spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """All components together change while the car moves."""
    speed = speed_mps(evidence, spec)
    if evidence.vector is None or speed is None:
        return
    still = np.zeros(len(evidence.vector), np.bool_)
    still[1:] = (evidence.vector[1:] == evidence.vector[:-1]).all(axis=1)
    still[evidence.observation_start] = False
    still &= np.abs(speed) > MOVING_MPS
    yield from _first_run(
        "vector-frozen",
        "equal vectors from observation",
        still,
        evidence.observation_episode,
        evidence.observation_start,
        limits.frozen_frames,
    )


def speed_jump(evidence: Evidence, spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """The speed changes no faster than a car's can, a crash included."""
    speed = speed_mps(evidence, spec)
    if speed is None:
        return
    with np.errstate(invalid="ignore"):  # inf - inf; `not_finite` tells it
        change = np.abs(np.diff(speed.astype(np.float64), prepend=speed[:1]))
    change[evidence.observation_start] = 0.0
    most = limits.acceleration_mps2 * spec.control_period_s
    jumps = np.isfinite(change) & (change > most)
    for episode, row, count in first_rows(jumps, evidence.observation_episode):
        message = (
            f"speed changes by {change[row]:.3g} m/s before observation "
            f"{row - evidence.observation_start[episode]}, expected at most {most:g} "
            f"({count} such)"
        )
        yield Fault(check="speed-jump", episode=episode, message=message)


def action_frozen(evidence: Evidence, spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """A driver of a moving car acts anew."""
    speed = speed_mps(evidence, spec)
    if speed is None:
        return
    same = np.zeros(len(evidence.action), np.bool_)
    same[1:] = (evidence.action[1:] == evidence.action[:-1]).all(axis=1)
    same[evidence.episodes.offset] = False
    # Step t acts on observation t; there is one observation more per episode.
    same &= np.abs(speed[np.arange(len(same)) + evidence.step_episode]) > MOVING_MPS
    yield from _first_run(
        "action-frozen",
        "equal actions from step",
        same,
        evidence.step_episode,
        evidence.episodes.offset,
        limits.frozen_actions,
    )


def reward_impossible(
    evidence: Evidence, _spec: EpisodeSpec, limits: CheckLimits
) -> Iterator[Fault]:
    """No reward is larger than the task can give, so no return is above the possible."""
    size = np.abs(evidence.reward)
    far = np.isfinite(size) & (size > limits.reward_limit)
    for episode, row, count in first_rows(far, evidence.step_episode):
        message = (
            f"reward {evidence.reward[row]:.6g} at step {row - evidence.episodes.offset[episode]}, "
            f"expected at most {limits.reward_limit:g} in size ({count} such steps)"
        )
        yield Fault(check="reward-impossible", episode=episode, message=message)


def reward_missing(evidence: Evidence, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Something is rewarded; the same for every step may be: balancing is paid by the step."""
    if len(evidence.reward) >= FEW_STEPS and not evidence.reward.any():
        message = f"all {len(evidence.reward)} rewards are 0, expected some that are not"
        yield Fault(check="reward-missing", message=message)


def policy_conflict(
    evidence: Evidence, _spec: EpisodeSpec, _limits: CheckLimits
) -> Iterator[Fault]:
    """A policy's version stands for one file."""
    known: dict[int, str] = {}
    table = evidence.episodes
    for episode, (version, digest) in enumerate(
        zip(table.policy_version.tolist(), table.policy_digest, strict=True)
    ):
        if version >= 0 and digest and known.setdefault(version, digest) != digest:
            message = (
                f"policy version {version} has digest {digest[:16]}, "
                f"expected {known[version][:16]} as before"
            )
            yield Fault(check="policy-conflict", episode=episode, message=message)


def _first_run(
    check: str,
    says: str,
    same: NDArray[np.bool_],
    episode_of: NDArray[np.int64],
    start_of: NDArray[np.int64],
    most: int,
) -> Iterator[Fault]:
    """The first run of repetitions in each episode that is too long."""
    reported: set[int] = set()
    for start, stop in runs(same):
        rows, episode = stop - start + 1, int(episode_of[start])
        if rows >= most and episode not in reported:
            reported.add(episode)
            first = start - 1 - start_of[episode]
            message = f"{rows} {says} {first} while the car moves, expected less than {most}"
            yield Fault(check=check, episode=episode, message=message)


PLAUSIBILITY_CHECKS: tuple[SemanticCheck, ...] = (
    timeout_unmarked,
    label_missing,
    episode_short,
    noise_negative,
    vector_range,
    vector_frozen,
    speed_jump,
    action_frozen,
    reward_impossible,
    reward_missing,
    policy_conflict,
)
"""The checks by threshold and label; they rely on `episode_bounds` finding nothing."""
