"""Whether a segment's numbers make sense: pure functions over its arrays.

Each check takes the arrays and the spec and yields at most one fault per episode, which tells the
first bad row and how many there are. `episode_bounds` comes first: all others rely on it.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.evidence import CheckLimits, Evidence, SemanticCheck, first_rows
from avtd3.store.audit.findings import Fault
from avtd3.store.spec import EpisodeSpec

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
