"""Check the values in a segment: pure functions over its arrays.

Each check takes the data of a segment and the limits, and yields at most one fault per episode,
which names the first bad row and the number of bad rows. The function ``reward_sum`` is the check
``reward-sum`` of `avtd3.store.audit.findings.CHECKS`. All checks in `SEGMENT_CHECKS` require that
`episode_bounds` found nothing; `check_values` runs them all.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from avtd3.store.audit.findings import Fault
from avtd3.store.audit.segment_data import SPEED, FrameFeatures, Places, SegmentData
from avtd3.store.errors import abbreviate, check_settings
from avtd3.store.events import EventTable
from avtd3.store.step import STOP_REASON

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
"""Steps of a segment below which rewards of zero, or their scale, mean nothing."""
COLLISION = "collision"
"""End reason of an episode in which the car hit something."""


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
    collision_streak: int = 5
    """Number of episodes of one driver in a row that end in a collision and are a pattern."""
    truncated_reasons: tuple[str, ...] = ("time_limit",)
    """End reasons of episodes that must be truncated, not terminated."""

    def __post_init__(self) -> None:
        check_settings(
            self,
            "audit.limits.",
            ("black_level", 0.0 <= self.black_level <= 255.0, "0 to 255"),
            ("frozen_frames", self.frozen_frames >= 2, "2 or more"),
            ("flash_level", 0.0 < self.flash_level <= 255.0, "above 0 and at most 255"),
            ("stutter_share", 0.0 < self.stutter_share <= 1.0, "above 0 and at most 1"),
            ("frozen_actions", self.frozen_actions >= 2, "2 or more"),
            ("vector_limit", self.vector_limit > 0.0, "above 0"),
            ("reward_limit", self.reward_limit > 0.0, "above 0"),
            ("acceleration_mps2", self.acceleration_mps2 > 0.0, "above 0"),
            ("shortest_episode", self.shortest_episode >= 1, "1 or more"),
            ("collision_streak", self.collision_streak >= 2, "2 or more"),
        )


Faults = Iterator[tuple[int | None, str]]
"""Number of the episode, or None, and what was found and expected."""
SegmentCheck = Callable[[SegmentData, CheckLimits], Faults]
FrameCheck = Callable[[FrameFeatures, SegmentData, CheckLimits], Faults]
"""A check: yields the faults of one kind in a segment; its name is that of the kind."""


def episode_bounds(
    offset: NDArray[np.int64], length: NDArray[np.int64], *, steps: int, observations: int
) -> Faults:
    """Check that episodes follow each other without gaps and fill the arrays."""
    impossible = np.flatnonzero((length < 1) | (length > steps)).tolist()
    for episode in impossible:
        yield episode, f"length {length[episode]}, expected 1 to {steps}"
    if impossible:
        return  # sums of such lengths may overflow
    expected = np.concatenate([[0], np.cumsum(length)])
    for episode in np.flatnonzero(offset != expected[:-1]).tolist()[:1]:
        found = f"offset {offset[episode]}"
        yield episode, f"{found}, expected {expected[episode]}, the lengths before it"
    if expected[-1] != steps:
        yield None, f"lengths add up to {expected[-1]}, expected the {steps} steps of the segment"
    if observations != steps + len(length):
        yield None, f"{observations} observations, expected {steps} steps + {len(length)} episodes"


def other_control(events: EventTable | None) -> Faults:
    """Find episodes with an event that says that the simulator drove with another action."""
    if events is None:
        return
    for row in (row for row, kind in enumerate(events.kind) if kind == "other_control"):
        text = f"{events.value[row]:.0f} steps driven with another action than the stored one"
        yield int(events.episode[row]), f"{text}, the first step {events.step[row]}; expected none"


def step_after_end(data: SegmentData, _limits: CheckLimits) -> Faults:
    """Find steps that follow a terminated or truncated step."""
    ends = data.terminated | data.truncated
    ends[_last_steps(data)] = False
    for episode, _, step, _ in _bad_rows(ends, data.step_places):
        last = data.episodes.length[episode] - 1
        yield episode, f"step {step} is an end, expected only step {last} to be one"


def end_unmarked(data: SegmentData, _limits: CheckLimits) -> Faults:
    """Find episodes whose last step is neither terminated nor truncated."""
    last = _last_steps(data)
    for episode in np.flatnonzero(~(data.terminated[last] | data.truncated[last])).tolist():
        step = data.episodes.length[episode] - 1
        yield episode, f"last step {step} is neither terminated nor truncated, expected one of them"


def end_twice(data: SegmentData, _limits: CheckLimits) -> Faults:
    """Find steps that are both terminated and truncated."""
    for episode, _, step, _ in _bad_rows(data.terminated & data.truncated, data.step_places):
        yield episode, f"step {step} is both terminated and truncated, expected one of them"


def not_finite(data: SegmentData, _limits: CheckLimits) -> Faults:
    """Find values that are NaN or infinite."""
    table, seen, steps = data.episodes, data.observation_places, data.step_places
    episodes = (np.arange(len(table)), np.arange(len(table)))
    for name, values, places in (
        ("vector", data.vector, seen),
        ("sim_time", data.sim_time, seen),
        ("action", data.action, steps),
        ("reward", data.reward, steps),
        ("reward_terms", data.reward_terms, steps),
        ("episode_return", table.episode_return, episodes),
        ("episode_exploration_noise", table.exploration_noise, episodes),
    ):
        if values is None:
            continue
        bad = np.asarray((~np.isfinite(values)).reshape(len(values), -1).any(axis=1))
        for episode, _, first, count in _bad_rows(bad, places):
            text = f"{name} has NaN or infinity in {count} rows, first {first}"
            yield episode, f"{text}; expected finite numbers"


def action_bounds(data: SegmentData, _limits: CheckLimits) -> Faults:
    """Find actions outside the bounds of the spec."""
    low, high = np.asarray(data.spec.action_low), np.asarray(data.spec.action_high)
    slack = BOUND_TOLERANCE * (high - low)
    outside = (data.action < low - slack) | (data.action > high + slack)
    for episode, row, step, count in _bad_rows(outside.any(axis=1), data.step_places):
        part = int(np.flatnonzero(outside[row])[0])
        text = f"{data.spec.action_names[part]} is {data.action[row, part]:.6g} at step {step}"
        yield episode, f"{text}, expected {low[part]:g}..{high[part]:g} ({count} such steps)"


def reward_sum(data: SegmentData, _limits: CheckLimits) -> Faults:
    """Find rewards that are not the sum of their terms."""
    if data.reward_terms is None:
        return
    terms = data.reward_terms.astype(np.float64)
    sums = terms.sum(axis=1)
    wrong = _differs(data.reward, sums, np.abs(terms).sum(axis=1))
    for episode, row, step, count in _bad_rows(wrong, data.step_places):
        expected = f"{sums[row]:.6g}, the sum of its terms ({count} such steps)"
        yield episode, f"reward {data.reward[row]:.6g} at step {step}, expected {expected}"


def return_sum(data: SegmentData, _limits: CheckLimits) -> Faults:
    """Find episodes whose return is not the sum of the rewards."""
    rewards, returns = data.reward.astype(np.float64), data.episodes.episode_return
    sums = np.add.reduceat(rewards, data.episodes.offset)
    magnitudes = np.add.reduceat(np.abs(rewards), data.episodes.offset)
    for episode in np.flatnonzero(_differs(returns, sums, magnitudes)).tolist():
        expected = f"{sums[episode]:.6g}, the sum of its rewards"
        yield episode, f"return {returns[episode]:.6g}, expected {expected}"


def frame_order(data: SegmentData, _limits: CheckLimits) -> Faults:
    """Find frame numbers that do not increase within an episode."""
    advance, inside = _advances(data.frame_id, data)
    for episode, row, seen, count in _bad_rows(inside & (advance <= 0), data.observation_places):
        text = f"frame {data.frame_id[row]} after {data.frame_id[row - 1]} at observation {seen}"
        yield episode, f"{text}, expected a higher one ({count} such)"


def frame_gap(data: SegmentData, _limits: CheckLimits) -> Faults:
    """Find frame numbers that advance by more than is usual in the episode.

    Simulators may tick several times per step, so the usual advance need not be 1.
    """
    advance, inside = _advances(data.frame_id, data)
    usual = np.zeros(len(data.episodes.length))
    for episode, start in enumerate(data.observation_start.tolist()):
        usual[episode] = np.median(advance[start + 1 : start + 1 + data.episodes.length[episode]])
    gaps = inside & (advance > np.maximum(usual, 1)[data.observation_episode])
    for episode, row, seen, count in _bad_rows(gaps, data.observation_places):
        text = f"frame {data.frame_id[row]} after {data.frame_id[row - 1]} at observation {seen}"
        yield episode, f"{text}, expected steps of {usual[episode]:g} ({count} gaps)"


def sim_time(data: SegmentData, _limits: CheckLimits) -> Faults:
    """Find steps over which simulated time does not advance by the control period.

    The last step of an episode may be shorter: it may end within a decision of several steps.
    """
    period = data.spec.control_period_s
    advance, inside = _advances(data.sim_time, data)
    # Allow for rounding of the clock: half an ulp on either side, which is large after months.
    with np.errstate(invalid="ignore"):
        slack = TIME_TOLERANCE * period + np.spacing(np.abs(data.sim_time))
        wrong = inside & (np.abs(advance - period) > slack)
        last = data.observation_start + data.episodes.length
        wrong[last] &= ~((advance[last] > 0.0) & (advance[last] < period))
    for episode, row, seen, count in _bad_rows(wrong, data.observation_places):
        text = f"{advance[row]:.6g} s pass before observation {seen}"
        yield episode, f"{text}, expected {period:g} s ({count} such)"


def policy_digest(data: SegmentData, _limits: CheckLimits) -> Faults:
    """Find episodes that name a policy version without the digest of the policy's file."""
    for episode, version in enumerate(data.episodes.policy_version.tolist()):
        if version >= 0 and not data.episodes.policy_digest[episode]:
            yield episode, f"policy version {version} without a digest, expected the file's SHA-256"


def timeout_unmarked(data: SegmentData, limits: CheckLimits) -> Faults:
    """Find episodes that ran out of time but are terminated instead of truncated."""
    for episode in np.flatnonzero(data.terminated[_last_steps(data)]).tolist():
        reason = data.episodes.end_reason[episode]
        if reason in limits.truncated_reasons:
            yield episode, f"ends by {reason} as terminated, expected truncated"


def collision_streak(data: SegmentData, limits: CheckLimits) -> Faults:
    """Find drivers whose episodes end in a collision again and again."""
    episodes_of: dict[str, list[int]] = {}
    for episode, driver in enumerate(data.episodes.texts("driver")):
        episodes_of.setdefault(driver, []).append(episode)
    for driver, episodes in episodes_of.items():
        for reason, group in itertools.groupby(episodes, data.episodes.end_reason.__getitem__):
            streak = list(group)
            if reason == COLLISION and len(streak) >= limits.collision_streak:
                text = f"{len(streak)} episodes of {abbreviate(driver)} in a row, from this one on"
                expected = f"less than {limits.collision_streak}"
                yield streak[0], f"{text}, end in a collision, expected {expected}"


def label_missing(data: SegmentData, _limits: CheckLimits) -> Faults:
    """Find episodes without an end reason, or without a label that other episodes have."""
    table = data.episodes
    attributes = {name: table.texts(name) for name in ("world", "driver")}
    columns = {name: column for name, column in attributes.items() if any(column)}
    columns["end_reason"] = table.end_reason
    for episode, labels in enumerate(zip(*columns.values(), strict=True)):
        if missing := [name for name, label in zip(columns, labels, strict=True) if not label]:
            yield episode, f"no {', '.join(missing)}, expected a name"


def episode_short(data: SegmentData, limits: CheckLimits) -> Faults:
    """Find episodes with too few steps, except those that were cut by a request to stop."""
    length, reasons = data.episodes.length, data.episodes.end_reason
    for episode in np.flatnonzero(length < limits.shortest_episode).tolist():
        if reasons[episode] != STOP_REASON:
            yield episode, f"{length[episode]} steps, expected {limits.shortest_episode} or more"


def noise_negative(data: SegmentData, _limits: CheckLimits) -> Faults:
    """Find episodes whose exploration noise, a standard deviation, is negative."""
    noise = data.episodes.exploration_noise
    for episode in np.flatnonzero(noise < 0.0).tolist():
        yield episode, f"exploration noise {noise[episode]:g}, expected 0 or more"


def vector_range(data: SegmentData, limits: CheckLimits) -> Faults:
    """Find normalised components far above 1; if all scales are 1, none is normalised."""
    if data.vector is None or all(scale == 1.0 for scale in data.spec.vector_scales):
        return
    # `not_finite` reports NaN and infinity.
    size = np.where(np.isfinite(data.vector), np.abs(data.vector), 0.0)
    far = np.asarray((size > limits.vector_limit).any(axis=1))
    for episode, row, seen, count in _bad_rows(far, data.observation_places):
        part = int(np.argmax(size[row]))
        found = f"{data.vector[row, part]:.6g} scales at observation {seen}"
        expected = f"at most {limits.vector_limit:g} ({count} such)"
        yield episode, f"{data.spec.vector_names[part]} is {found}, expected {expected}"


def vector_frozen(data: SegmentData, limits: CheckLimits) -> Faults:
    """Find stretches in which no component of the vector changes although the car moves.

    The speed and the navigation command alone may stay the same for long.
    """
    speed, names = data.speed_mps, data.spec.vector_names
    others = [name for name in names if name != SPEED and not name.startswith("command_")]
    if data.vector is None or speed is None or not others:
        return
    still = _repeats(data.vector, data.observation_start) & (np.abs(speed) > MOVING_MPS)
    text = "equal vectors from observation {} while the car moves"
    yield from _long_repeats(text, still, data.observation_places, limits.frozen_frames)


def action_frozen(data: SegmentData, limits: CheckLimits) -> Faults:
    """Find stretches in which the action does not change although the car moves."""
    speed = data.speed_mps
    if speed is None:
        return
    same = _repeats(data.action, data.episodes.offset)
    # Step t acts on observation t; each episode has one observation more than steps.
    same &= np.abs(speed[np.arange(len(same)) + data.step_episode]) > MOVING_MPS
    text = "equal actions from step {} while the car moves"
    yield from _long_repeats(text, same, data.step_places, limits.frozen_actions)


def speed_jump(data: SegmentData, limits: CheckLimits) -> Faults:
    """Find changes of speed that no car can make, not even in a crash."""
    speed = data.speed_mps
    if speed is None:
        return
    change, inside = _advances(speed.astype(np.float64), data)
    most = limits.acceleration_mps2 * data.spec.control_period_s
    jumps = inside & np.isfinite(change) & (np.abs(change) > most)
    for episode, row, seen, count in _bad_rows(jumps, data.observation_places):
        text = f"speed changes by {abs(change[row]):.3g} m/s before observation {seen}"
        yield episode, f"{text}, expected at most {most:g} ({count} such)"


def reward_impossible(data: SegmentData, limits: CheckLimits) -> Faults:
    """Find rewards that are larger than the task can give."""
    size = np.abs(data.reward)
    far = np.isfinite(size) & (size > limits.reward_limit)
    for episode, row, step, count in _bad_rows(far, data.step_places):
        expected = f"at most {limits.reward_limit:g} in size ({count} such steps)"
        yield episode, f"reward {data.reward[row]:.6g} at step {step}, expected {expected}"


def reward_missing(data: SegmentData, _limits: CheckLimits) -> Faults:
    """Find segments without any reward; a constant reward per step is valid."""
    if len(data.reward) >= FEW_STEPS and not data.reward.any():
        yield None, f"all {len(data.reward)} rewards are 0, expected some that are not"


def policy_conflict(data: SegmentData, _limits: CheckLimits) -> Faults:
    """Find policy versions with more than one digest."""
    known: dict[int, str] = {}
    table = data.episodes
    for episode, version in enumerate(table.policy_version.tolist()):
        digest = table.policy_digest[episode]
        if version >= 0 and digest and known.setdefault(version, digest) != digest:
            text = f"policy version {version} has digest {digest[:16]}"
            yield episode, f"{text}, expected {known[version][:16]} as before"


def black_frames(frames: FrameFeatures, data: SegmentData, limits: CheckLimits) -> Faults:
    """Find black frames."""
    text = f"mean grey below {limits.black_level:g} of 255"
    yield from _bad_frames(text, data, _is_black(frames, limits))


def uniform_frames(frames: FrameFeatures, data: SegmentData, limits: CheckLimits) -> Faults:
    """Find frames of a single grey level that are not black."""
    uniform = (frames.spread <= UNIFORM_SPREAD) & ~_is_black(frames, limits)
    text = f"all pixels within {UNIFORM_SPREAD} grey of each other"
    yield from _bad_frames(text, data, uniform)


def frozen_frames(frames: FrameFeatures, data: SegmentData, limits: CheckLimits) -> Faults:
    """Find stretches of equal frames while the car moves, or at all if its speed is unknown."""
    still = frames.repeated & ~_is_black(frames, limits)
    still[data.observation_start] = False
    speed = data.speed_mps
    if speed is not None:
        still &= np.abs(speed) > MOVING_MPS
    text = "equal frames from observation {}" + ("" if speed is None else " while the car moves")
    yield from _long_repeats(text, still, data.observation_places, limits.frozen_frames)


def frame_stutter(frames: FrameFeatures, data: SegmentData, limits: CheckLimits) -> Faults:
    """Find episodes in which many frames repeat the previous one while the car moves."""
    speed = data.speed_mps
    if speed is None:
        return
    moving = (np.abs(speed) > FAST_MPS) & ~_is_black(frames, limits)
    moving[data.observation_start] = False
    repeated = moving & frames.repeated
    for episode, row, seen, count in _bad_rows(repeated, data.observation_places):
        start = row - seen
        among = int(moving[start : start + 1 + int(data.episodes.length[episode])].sum())
        if among >= limits.frozen_frames and count > limits.stutter_share * among:
            text = f"{count} of {among} frames of the moving car repeat the one before, first at "
            text += f"observation {seen}; expected at most {limits.stutter_share:.0%}"
            yield episode, text


def frame_stale(frames: FrameFeatures, data: SegmentData, limits: CheckLimits) -> Faults:
    """Find episodes that begin with the last frame of the previous episode."""
    stale = frames.repeated & _shows_something(frames, limits)
    for episode in np.flatnonzero(stale[data.observation_start]).tolist():
        yield episode, "its first frame is the last of the episode before, expected a new frame"


def frame_flash(frames: FrameFeatures, data: SegmentData, limits: CheckLimits) -> Faults:
    """Find single frames that differ strongly from two neighbours that are alike."""
    mean, flash = frames.mean, np.zeros(len(frames.mean), np.bool_)
    before, here, after = mean[:-2], mean[1:-1], mean[2:]
    apart = np.minimum(np.abs(here - before), np.abs(here - after))
    flash[1:-1] = (apart > limits.flash_level) & (np.abs(after - before) < apart / 3.0)
    # The first and last frame of an episode have only one neighbour.
    flash[data.observation_start] = False
    flash[data.observation_start + data.episodes.length] = False
    flash &= _shows_something(frames, limits)
    text = f"more than {limits.flash_level:g} greys off both neighbours"
    yield from _bad_frames(text, data, flash)


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
    collision_streak,
)
"""All checks of numbers in a segment, except `episode_bounds`, which must find nothing first."""

FRAME_CHECKS: tuple[FrameCheck, ...] = (
    black_frames,
    uniform_frames,
    frozen_frames,
    frame_stutter,
    frame_stale,
    frame_flash,
)
"""All checks of the frames of a stream."""
_PICTURE_PLANES = (1, 3)


def check_values(data: SegmentData, limits: CheckLimits) -> Iterator[Fault]:
    """Yield the faults that `SEGMENT_CHECKS` and `FRAME_CHECKS` find in a segment.

    Of named streams, only gray and colour pictures are checked: planes of masks may be empty, or
    equal for a long time.
    """
    for check in SEGMENT_CHECKS:
        yield from named_faults(check.__name__, check(data, limits))
    for stream, features in data.streams.items():
        is_named = bool(data.spec.streams)
        if is_named and data.spec.streams[stream].channels not in _PICTURE_PLANES:
            continue
        about = f"stream {stream}: " if is_named else ""
        for look in FRAME_CHECKS:
            yield from named_faults(look.__name__, look(features, data, limits), about)


def named_faults(name: str, found: Faults, about: str = "") -> Iterator[Fault]:
    """Yield what the function of a name found as faults of its check."""
    check = name.replace("_", "-")
    for episode, message in found:
        yield Fault(check=check, episode=episode, message=about + message)


def _bad_rows(bad: NDArray[np.bool_], places: Places) -> Iterator[tuple[int, int, int, int]]:
    """Yield each episode with bad rows: number, first bad row, the same in the episode, count."""
    episode_of, start_of = places
    rows = np.flatnonzero(bad)
    episodes, first, counts = np.unique(episode_of[rows], return_index=True, return_counts=True)
    inside = rows[first] - start_of[episodes]
    columns = (episodes, rows[first], inside, counts)
    yield from zip(*(column.tolist() for column in columns), strict=True)


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
        # A difference that does not fit into int64 has the wrong sign.
        rises = values > np.concatenate([values[:1], values[:-1]])
    wrapped = rises != (advance > 0)
    return np.where(wrapped, np.where(rises, 2.0**63, -(2.0**63)), advance), inside


def _repeats(values: NDArray[np.float32], start_of: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which rows of float32 (N, M) equal the previous row of the same episode."""
    same = np.zeros(len(values), np.bool_)
    same[1:] = (values[1:] == values[:-1]).all(axis=1)
    same[start_of] = False
    return same


def _long_repeats(text: str, same: NDArray[np.bool_], places: Places, most: int) -> Faults:
    """Yield the first stretch of each episode with ``most`` equal rows or more."""
    episode_of, start_of = places
    edges = np.flatnonzero(np.diff(same.astype(np.int8), prepend=0, append=0))
    reported: set[int] = set()
    for start, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        # n repetitions are n + 1 equal rows; no stretch continues into the next episode.
        rows, episode = stop - start + 1, int(episode_of[start])
        if rows >= most and episode not in reported:
            reported.add(episode)
            where = text.format(start - 1 - start_of[episode])
            yield episode, f"{rows} {where}, expected less than {most}"


def _bad_frames(text: str, data: SegmentData, bad: NDArray[np.bool_]) -> Faults:
    for episode, _, first, count in _bad_rows(bad, data.observation_places):
        frames = data.episodes.length[episode] + 1
        where = f"{count} of {frames} frames, first at observation {first}"
        yield episode, f"{text} in {where}; expected none"


def _is_black(frames: FrameFeatures, limits: CheckLimits) -> NDArray[np.bool_]:
    black: NDArray[np.bool_] = frames.mean < limits.black_level
    return black


def _shows_something(frames: FrameFeatures, limits: CheckLimits) -> NDArray[np.bool_]:
    return (frames.spread > UNIFORM_SPREAD) & ~_is_black(frames, limits)
