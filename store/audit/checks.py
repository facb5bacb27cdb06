"""Check the values in a segment: pure functions over its arrays.

Each check takes the data, the spec and the limits, and yields at most one fault per episode, which
names the first bad row and the number of bad rows. All checks in `SEGMENT_CHECKS` require that
`episode_bounds` found nothing. `avtd3.store.audit.findings.CHECKS` describes each check.
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.findings import Fault
from avtd3.store.audit.segment_data import FrameFeatures, SegmentData
from avtd3.store.errors import ConfigError
from avtd3.store.spec import EpisodeSpec

SUM_TOLERANCE = 1e-3
"""Largest difference of a reward or return from its sum, times the summed magnitude or 1."""
TIME_TOLERANCE = 0.01
"""Share of the control period by which a period may be longer or shorter."""
BOUND_TOLERANCE = 1e-6
"""Share of an action's range by which rounding to float32 may exceed the bound."""
MOVING_MPS = 0.5
"""Speed above which the image, the vector and the action must change."""
FAST_MPS = 3.0
"""Speed above which two consecutive frames must differ: 15 cm apart at 20 Hz."""
UNIFORM_SPREAD = 1
"""Largest difference between two pixels of a frame that shows nothing."""
FEW_STEPS = 100
"""Steps of a segment below which rewards of zero mean nothing."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CheckLimits:
    """Limits of the checks; each field is a setting ``audit.limits.*``."""

    black_level: float = 2.0
    """Mean grey level, of 255, below which a frame is black."""
    frozen_frames: int = 20
    """Number of equal frames or vectors in a row, while the car moves, that is a fault (1 s at
    20 Hz)."""
    flash_level: float = 60.0
    """Grey levels by which a frame may differ from both its neighbours, if those are alike."""
    stutter_share: float = 0.25
    """Share of an episode's frames that may repeat the previous frame while the car moves."""
    frozen_actions: int = 200
    """Number of equal actions in a row, while the car moves, that is a fault."""
    vector_limit: float = 50.0
    """Largest magnitude of a normalised component; beyond it, a unit or a scale is wrong."""
    reward_limit: float = 1000.0
    """Largest magnitude of the reward that the task can give for one step."""
    acceleration_mps2: float = 1000.0
    """Largest change of speed per second: 50 m/s within a step of 50 ms."""
    shortest_episode: int = 2
    """Fewest steps of a useful episode."""
    truncated_reasons: tuple[str, ...] = ("time_limit",)
    """End reasons of episodes that must be truncated, not terminated."""

    def __post_init__(self) -> None:
        for name, is_valid, allowed in (
            ("black_level", 0.0 <= self.black_level <= 255.0, "0 to 255"),
            ("frozen_frames", self.frozen_frames >= 2, "2 or more"),
            ("flash_level", 0.0 < self.flash_level <= 255.0, "above 0 and at most 255"),
            ("stutter_share", 0.0 < self.stutter_share <= 1.0, "above 0 and at most 1"),
            ("frozen_actions", self.frozen_actions >= 2, "2 or more"),
            ("vector_limit", self.vector_limit > 0.0, "above 0"),
            ("reward_limit", self.reward_limit > 0.0, "above 0"),
            ("acceleration_mps2", self.acceleration_mps2 > 0.0, "above 0"),
            ("shortest_episode", self.shortest_episode >= 1, "1 or more"),
        ):
            if not is_valid:
                value = getattr(self, name)
                raise ConfigError(f"audit.limits.{name} is {value!r}, expected {allowed}")


SegmentCheck = Callable[[SegmentData, EpisodeSpec, CheckLimits], Iterator[Fault]]
"""A check: yields the faults of one kind in a segment."""


def episode_bounds(
    offset: NDArray[np.int64], length: NDArray[np.int64], *, steps: int, observations: int
) -> Iterator[Fault]:
    """Check that episodes follow each other without gaps and fill the arrays.

    Args:
        offset: int64 (E,), row of each episode's first step.
        length: int64 (E,), steps.
        steps: Number of rows along ``step``.
        observations: Number of rows along ``observation``.
    """
    check = "episode-bounds"
    for episode in np.flatnonzero(length < 1).tolist():
        yield Fault(check=check, episode=episode, message=f"length {length[episode]}, expected 1+")
    expected = np.concatenate([[0], np.cumsum(length)])
    for episode in np.flatnonzero(offset != expected[:-1]).tolist()[:1]:
        message = f"offset {offset[episode]}, expected {expected[episode]}, the lengths before it"
        yield Fault(check=check, episode=episode, message=message)
    if expected[-1] != steps:
        message = f"lengths add up to {expected[-1]}, expected the {steps} steps of the segment"
        yield Fault(check=check, message=message)
    if observations != steps + len(length):
        message = f"{observations} observations, expected {steps} steps + {len(length)} episodes"
        yield Fault(check=check, message=message)


def step_after_end(data: SegmentData, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Find steps that follow a terminated or truncated step."""
    ends = data.terminated | data.truncated
    ends[_last_steps(data)] = False
    for episode, row, _ in _first_rows(ends, data.step_episode):
        step, length = row - data.episodes.offset[episode], data.episodes.length[episode]
        message = f"step {step} is an end, expected only step {length - 1} to be one"
        yield Fault(check="step-after-end", episode=episode, message=message)


def end_unmarked(data: SegmentData, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Find episodes whose last step is neither terminated nor truncated."""
    last = _last_steps(data)
    for episode in np.flatnonzero(~(data.terminated[last] | data.truncated[last])).tolist():
        step = data.episodes.length[episode] - 1
        message = f"last step {step} is neither terminated nor truncated, expected one of them"
        yield Fault(check="end-unmarked", episode=episode, message=message)


def end_twice(data: SegmentData, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Find steps that are both terminated and truncated."""
    for episode, row, _ in _first_rows(data.terminated & data.truncated, data.step_episode):
        step = row - data.episodes.offset[episode]
        message = f"step {step} is both terminated and truncated, expected one of them"
        yield Fault(check="end-twice", episode=episode, message=message)


def not_finite(data: SegmentData, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Find values that are NaN or infinite."""
    table, episodes = data.episodes, np.arange(len(data.episodes.length))
    seen = data.observation_episode, data.observation_start
    done, each = (data.step_episode, table.offset), (episodes, episodes)
    for name, values, (episode_of, starts) in (
        ("vector", data.vector, seen),
        ("sim_time", data.sim_time, seen),
        ("action", data.action, done),
        ("reward", data.reward, done),
        ("reward_terms", data.reward_terms, done),
        ("episode_return", table.episode_return, each),
        ("episode_exploration_noise", table.exploration_noise, each),
    ):
        if values is None:
            continue
        bad = np.asarray((~np.isfinite(values)).reshape(len(values), -1).any(axis=1))
        for episode, row, count in _first_rows(bad, episode_of):
            message = (
                f"{name} has NaN or infinity in {count} rows, first {row - starts[episode]};"
                " expected finite numbers"
            )
            yield Fault(check="not-finite", episode=episode, message=message)


def action_bounds(data: SegmentData, spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Find actions outside the bounds of the spec."""
    low, high = np.asarray(spec.action_low), np.asarray(spec.action_high)
    slack = BOUND_TOLERANCE * (high - low)
    outside = (data.action < low - slack) | (data.action > high + slack)
    for episode, row, count in _first_rows(outside.any(axis=1), data.step_episode):
        part = int(np.flatnonzero(outside[row])[0])
        message = (
            f"{spec.action_names[part]} is {data.action[row, part]:.6g} at step "
            f"{row - data.episodes.offset[episode]}, expected {low[part]:g}..{high[part]:g} "
            f"({count} such steps)"
        )
        yield Fault(check="action-bounds", episode=episode, message=message)


def reward_sum(data: SegmentData, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Find rewards that are not the sum of their terms."""
    if data.reward_terms is None:
        return
    terms = data.reward_terms.astype(np.float64)
    sums = terms.sum(axis=1)
    wrong = _differs(data.reward, sums, np.abs(terms).sum(axis=1))
    for episode, row, count in _first_rows(wrong, data.step_episode):
        message = (
            f"reward {data.reward[row]:.6g} at step {row - data.episodes.offset[episode]}, "
            f"expected {sums[row]:.6g}, the sum of its terms ({count} such steps)"
        )
        yield Fault(check="reward-sum", episode=episode, message=message)


def return_sum(data: SegmentData, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Find episodes whose return is not the sum of the rewards."""
    rewards, returns = data.reward.astype(np.float64), data.episodes.episode_return
    sums = np.add.reduceat(rewards, data.episodes.offset)
    magnitudes = np.add.reduceat(np.abs(rewards), data.episodes.offset)
    for episode in np.flatnonzero(_differs(returns, sums, magnitudes)).tolist():
        message = (
            f"return {returns[episode]:.6g}, expected {sums[episode]:.6g}, the sum of its rewards"
        )
        yield Fault(check="return-sum", episode=episode, message=message)


def frame_order(data: SegmentData, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Find frame numbers that do not increase within an episode."""
    advance, inside = _advances(data.frame_id, data)
    for episode, row, count in _first_rows(inside & (advance <= 0), data.observation_episode):
        message = (
            f"frame {data.frame_id[row]} after {data.frame_id[row - 1]} at observation "
            f"{row - data.observation_start[episode]}, expected a higher one ({count} such)"
        )
        yield Fault(check="frame-order", episode=episode, message=message)


def frame_gap(data: SegmentData, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Find frame numbers that advance by more than is usual in the episode.

    Simulators may tick several times per step, so the usual advance need not be 1.
    """
    advance, inside = _advances(data.frame_id, data)
    episode_of = data.observation_episode
    usual = np.zeros(len(data.episodes.length))
    for episode, start in enumerate(data.observation_start.tolist()):
        usual[episode] = np.median(advance[start + 1 : start + 1 + data.episodes.length[episode]])
    gaps = inside & (advance > np.maximum(usual, 1)[episode_of])
    for episode, row, count in _first_rows(gaps, episode_of):
        message = (
            f"frame {data.frame_id[row]} after {data.frame_id[row - 1]} at observation "
            f"{row - data.observation_start[episode]}, expected steps of {usual[episode]:g} "
            f"({count} gaps)"
        )
        yield Fault(check="frame-gap", episode=episode, message=message)


def sim_time(data: SegmentData, spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Find steps over which simulated time does not advance by the control period."""
    period = spec.control_period_s
    advance, inside = _advances(data.sim_time, data)
    # Allow for rounding of the clock: half an ulp on either side, which is large after months.
    with np.errstate(invalid="ignore"):
        slack = TIME_TOLERANCE * period + np.spacing(np.abs(data.sim_time))
        wrong = inside & (np.abs(advance - period) > slack)
    for episode, row, count in _first_rows(wrong, data.observation_episode):
        message = (
            f"{advance[row]:.6g} s pass before observation "
            f"{row - data.observation_start[episode]}, expected {period:g} s ({count} such)"
        )
        yield Fault(check="sim-time", episode=episode, message=message)


def policy_digest(data: SegmentData, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Find episodes that name a policy version without the digest of the policy's file."""
    for episode, version in enumerate(data.episodes.policy_version.tolist()):
        if version >= 0 and not data.episodes.policy_digest[episode]:
            message = f"policy version {version} without a digest, expected the file's SHA-256"
            yield Fault(check="policy-digest", episode=episode, message=message)


def timeout_unmarked(data: SegmentData, _spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Find episodes that ran out of time but are terminated instead of truncated."""
    for episode in np.flatnonzero(data.terminated[_last_steps(data)]).tolist():
        reason = data.episodes.end_reason[episode]
        if reason in limits.truncated_reasons:
            message = f"ends by {reason} as terminated, expected truncated"
            yield Fault(check="timeout-unmarked", episode=episode, message=message)


def label_missing(data: SegmentData, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Find episodes without an end reason, or without a label that other episodes have."""
    table = data.episodes
    attributes = {name: table.texts(name) for name in ("world", "driver")}
    columns = {name: column for name, column in attributes.items() if any(column)}
    columns["end_reason"] = table.end_reason
    for episode, labels in enumerate(zip(*columns.values(), strict=True)):
        if missing := [name for name, label in zip(columns, labels, strict=True) if not label]:
            message = f"no {', '.join(missing)}, expected a name"
            yield Fault(check="label-missing", episode=episode, message=message)


def episode_short(data: SegmentData, _spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Find episodes with too few steps."""
    length = data.episodes.length
    for episode in np.flatnonzero(length < limits.shortest_episode).tolist():
        message = f"{length[episode]} steps, expected {limits.shortest_episode} or more"
        yield Fault(check="episode-short", episode=episode, message=message)


def noise_negative(data: SegmentData, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Find episodes whose exploration noise, a standard deviation, is negative."""
    noise = data.episodes.exploration_noise
    for episode in np.flatnonzero(noise < 0.0).tolist():
        message = f"exploration noise {noise[episode]:g}, expected 0 or more"
        yield Fault(check="noise-negative", episode=episode, message=message)


def vector_range(data: SegmentData, spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Find normalised components far above 1; if all scales are 1, none is normalised."""
    if data.vector is None or all(scale == 1.0 for scale in spec.vector_scales):
        return
    # `not_finite` reports NaN and infinity.
    size = np.where(np.isfinite(data.vector), np.abs(data.vector), 0.0)
    far = np.asarray((size > limits.vector_limit).any(axis=1))
    for episode, row, count in _first_rows(far, data.observation_episode):
        part = int(np.argmax(size[row]))
        message = (
            f"{spec.vector_names[part]} is {data.vector[row, part]:.6g} scales at observation "
            f"{row - data.observation_start[episode]}, expected at most "
            f"{limits.vector_limit:g} ({count} such)"
        )
        yield Fault(check="vector-range", episode=episode, message=message)


def vector_frozen(data: SegmentData, spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Find stretches in which no component of the vector changes although the car moves."""
    speed = data.speed_mps(spec)
    if data.vector is None or speed is None:
        return
    still = _repeats(data.vector, data.observation_start) & (np.abs(speed) > MOVING_MPS)
    yield from _long_repeats(
        "vector-frozen",
        "equal vectors from observation {} while the car moves",
        still,
        (data.observation_episode, data.observation_start),
        limits.frozen_frames,
    )


def action_frozen(data: SegmentData, spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Find stretches in which the action does not change although the car moves."""
    speed = data.speed_mps(spec)
    if speed is None:
        return
    same = _repeats(data.action, data.episodes.offset)
    # Step t acts on observation t; each episode has one observation more than steps.
    same &= np.abs(speed[np.arange(len(same)) + data.step_episode]) > MOVING_MPS
    yield from _long_repeats(
        "action-frozen",
        "equal actions from step {} while the car moves",
        same,
        (data.step_episode, data.episodes.offset),
        limits.frozen_actions,
    )


def speed_jump(data: SegmentData, spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Find changes of speed that no car can make, not even in a crash."""
    speed = data.speed_mps(spec)
    if speed is None:
        return
    change, inside = _advances(speed.astype(np.float64), data)
    most = limits.acceleration_mps2 * spec.control_period_s
    jumps = inside & np.isfinite(change) & (np.abs(change) > most)
    for episode, row, count in _first_rows(jumps, data.observation_episode):
        message = (
            f"speed changes by {abs(change[row]):.3g} m/s before observation "
            f"{row - data.observation_start[episode]}, expected at most {most:g} ({count} such)"
        )
        yield Fault(check="speed-jump", episode=episode, message=message)


def reward_impossible(
    data: SegmentData, _spec: EpisodeSpec, limits: CheckLimits
) -> Iterator[Fault]:
    """Find rewards that are larger than the task can give."""
    size = np.abs(data.reward)
    far = np.isfinite(size) & (size > limits.reward_limit)
    for episode, row, count in _first_rows(far, data.step_episode):
        message = (
            f"reward {data.reward[row]:.6g} at step {row - data.episodes.offset[episode]}, "
            f"expected at most {limits.reward_limit:g} in size ({count} such steps)"
        )
        yield Fault(check="reward-impossible", episode=episode, message=message)


def reward_missing(data: SegmentData, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Find segments without any reward; a constant reward per step is valid."""
    if len(data.reward) >= FEW_STEPS and not data.reward.any():
        message = f"all {len(data.reward)} rewards are 0, expected some that are not"
        yield Fault(check="reward-missing", message=message)


def policy_conflict(data: SegmentData, _spec: EpisodeSpec, _limits: CheckLimits) -> Iterator[Fault]:
    """Find policy versions with more than one digest."""
    known: dict[int, str] = {}
    table = data.episodes
    for episode, (version, digest) in enumerate(
        zip(table.policy_version.tolist(), table.policy_digest, strict=True)
    ):
        if version >= 0 and digest and known.setdefault(version, digest) != digest:
            message = (
                f"policy version {version} has digest {digest[:16]}, "
                f"expected {known[version][:16]} as before"
            )
            yield Fault(check="policy-conflict", episode=episode, message=message)


def black_frames(data: SegmentData, _spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Find black frames."""
    if data.frames is not None:
        text = f"mean grey below {limits.black_level:g} of 255"
        yield from _bad_frames("black-frames", text, data, _is_black(data.frames, limits))


def uniform_frames(data: SegmentData, _spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Find frames of a single grey level that are not black."""
    if data.frames is not None:
        uniform = (data.frames.spread <= UNIFORM_SPREAD) & ~_is_black(data.frames, limits)
        text = f"all pixels within {UNIFORM_SPREAD} grey of each other"
        yield from _bad_frames("uniform-frames", text, data, uniform)


def frozen_frames(data: SegmentData, spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Find stretches of equal frames while the car moves, or at all if its speed is unknown."""
    if data.frames is None:
        return
    still = data.frames.repeated & ~_is_black(data.frames, limits)
    still[data.observation_start] = False
    speed = data.speed_mps(spec)
    if speed is not None:
        still &= np.abs(speed) > MOVING_MPS
    yield from _long_repeats(
        "frozen-frames",
        "equal frames from observation {}" + ("" if speed is None else " while the car moves"),
        still,
        (data.observation_episode, data.observation_start),
        limits.frozen_frames,
    )


def frame_stutter(data: SegmentData, spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Find episodes in which many frames repeat the previous one while the car moves."""
    speed = data.speed_mps(spec)
    if data.frames is None or speed is None:
        return
    moving = (np.abs(speed) > FAST_MPS) & ~_is_black(data.frames, limits)
    moving[data.observation_start] = False
    repeated = moving & data.frames.repeated
    for episode, row, count in _first_rows(repeated, data.observation_episode):
        start = int(data.observation_start[episode])
        among = int(moving[start : start + 1 + int(data.episodes.length[episode])].sum())
        if among >= limits.frozen_frames and count > limits.stutter_share * among:
            message = (
                f"{count} of {among} frames of the moving car repeat the one before, first at "
                f"observation {row - start}; expected at most {limits.stutter_share:.0%}"
            )
            yield Fault(check="frame-stutter", episode=episode, message=message)


def frame_stale(data: SegmentData, _spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Find episodes that begin with the last frame of the previous episode."""
    if data.frames is None:
        return
    stale = data.frames.repeated & _shows_something(data.frames, limits)
    for episode in np.flatnonzero(stale[data.observation_start]).tolist():
        message = "its first frame is the last of the episode before, expected a new frame"
        yield Fault(check="frame-stale", episode=episode, message=message)


def frame_flash(data: SegmentData, _spec: EpisodeSpec, limits: CheckLimits) -> Iterator[Fault]:
    """Find single frames that differ strongly from two neighbours that are alike."""
    if data.frames is None:
        return
    mean, flash = data.frames.mean, np.zeros(len(data.frames.mean), np.bool_)
    before, here, after = mean[:-2], mean[1:-1], mean[2:]
    apart = np.minimum(np.abs(here - before), np.abs(here - after))
    flash[1:-1] = (apart > limits.flash_level) & (np.abs(after - before) < apart / 3.0)
    # The first and last frame of an episode have only one neighbour.
    flash[data.observation_start] = False
    flash[data.observation_start + data.episodes.length] = False
    flash &= _shows_something(data.frames, limits)
    text = f"more than {limits.flash_level:g} greys off both neighbours"
    yield from _bad_frames("frame-flash", text, data, flash)


SEGMENT_CHECKS: tuple[SegmentCheck, ...] = (
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
    black_frames,
    uniform_frames,
    frozen_frames,
    frame_stutter,
    frame_stale,
    frame_flash,
)
"""All checks of the values in a segment, except `episode_bounds`, which must find nothing first."""


def _first_rows(
    bad: NDArray[np.bool_], episode_of: NDArray[np.int64]
) -> Iterator[tuple[int, int, int]]:
    """Yield each episode with bad rows: its number, its first bad row, and their count."""
    rows = np.flatnonzero(bad)
    episodes, first, counts = np.unique(episode_of[rows], return_index=True, return_counts=True)
    yield from zip(episodes.tolist(), rows[first].tolist(), counts.tolist(), strict=True)


def _last_steps(data: SegmentData) -> NDArray[np.int64]:
    return data.episodes.offset + data.episodes.length - 1


def _differs(
    values: NDArray[np.floating], sums: NDArray[np.float64], magnitudes: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Return which values differ from their sums; `not_finite` reports those not finite."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(values.astype(np.float64) - sums)
        wrong: NDArray[np.bool_] = apart > SUM_TOLERANCE * np.maximum(magnitudes, 1.0)
    return wrong & np.isfinite(apart)


def _advances(
    values: NDArray[np.int64] | NDArray[np.float64], data: SegmentData
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the difference to the previous row, and whether that is of the same episode."""
    inside = np.ones(len(values), np.bool_)
    inside[data.observation_start] = False
    with np.errstate(invalid="ignore"):  # infinity minus infinity, which `not_finite` reports
        advance = np.diff(values, prepend=values[:1])
    return advance.astype(np.float64), inside


def _repeats(values: NDArray[np.float32], start_of: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows of float32 (N, M) equal the previous row of the same episode."""
    same = np.zeros(len(values), np.bool_)
    same[1:] = (values[1:] == values[:-1]).all(axis=1)
    same[start_of] = False
    return same


def _long_repeats(
    check: str,
    text: str,
    same: NDArray[np.bool_],
    places: tuple[NDArray[np.int64], NDArray[np.int64]],
    most: int,
) -> Iterator[Fault]:
    """Yield the first stretch of each episode with too many equal rows.

    Args:
        check: Name of the check.
        text: What the rows are; ``{}`` becomes the first row of the stretch.
        same: Whether each row equals the previous one.
        places: Episode of each row, and first row of each episode.
        most: Number of equal rows that is too many.
    """
    episode_of, start_of = places
    edges = np.flatnonzero(np.diff(same.astype(np.int8), prepend=0, append=0))
    reported: set[int] = set()
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        # n repetitions are n + 1 equal rows; no stretch continues into the next episode.
        rows, episode = stop - start + 1, int(episode_of[start])
        if rows >= most and episode not in reported:
            reported.add(episode)
            where = text.format(start - 1 - start_of[episode])
            message = f"{rows} {where}, expected less than {most}"
            yield Fault(check=check, episode=episode, message=message)


def _bad_frames(
    check: str, text: str, data: SegmentData, bad: NDArray[np.bool_]
) -> Iterator[Fault]:
    for episode, row, count in _first_rows(bad, data.observation_episode):
        frames = data.episodes.length[episode] + 1
        first = row - data.observation_start[episode]
        message = f"{text} in {count} of {frames} frames, first at observation {first}; "
        yield Fault(check=check, episode=episode, message=message + "expected none")


def _is_black(frames: FrameFeatures, limits: CheckLimits) -> NDArray[np.bool_]:
    black: NDArray[np.bool_] = frames.mean < limits.black_level
    return black


def _shows_something(frames: FrameFeatures, limits: CheckLimits) -> NDArray[np.bool_]:
    return (frames.spread > UNIFORM_SPREAD) & ~_is_black(frames, limits)
