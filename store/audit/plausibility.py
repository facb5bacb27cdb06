"""Whether a segment's numbers can be true: thresholds and labels, where `checks` proves sums.

Pure functions over its arrays, like those; each threshold is a field of `CheckLimits`.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.evidence import (
    CheckLimits,
    Evidence,
    SemanticCheck,
    first_rows,
    runs,
    speed_mps,
)
from avtd3.store.audit.findings import Fault
from avtd3.store.audit.frame_checks import MOVING_MPS
from avtd3.store.spec import EpisodeSpec

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
    """Each episode names its world, its driver and why it ended."""
    names = ("world", "driver", "end_reason")
    columns = [getattr(evidence.episodes, name) for name in names]
    for episode, labels in enumerate(zip(*columns, strict=True)):
        if missing := [name for name, label in zip(names, labels, strict=True) if not label]:
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
