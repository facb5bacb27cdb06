"""Show a training run as one HTML page, ``RUN/run.html``.

The page is made of the files of the run alone, so it is the same during the run and afterwards:
curves with the alerts of the guards, what the policy looks at, and what it would do in episodes
that it has not learned from.
"""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray

from avtd3.learn.analysis.event_log import RunLog, read_log
from avtd3.learn.analysis.pages import curve_line, metric_card
from avtd3.learn.callbacks import TrainCallback
from avtd3.learn.checkpoints import (
    CHECKPOINTS,
    EMERGENCY,
    list_checkpoints,
    load_checkpoint,
    updates_of,
)
from avtd3.learn.config import LearnConfig
from avtd3.learn.evaluation import discounted_returns
from avtd3.learn.guards.alerts import ALERTS_FILE, NOTE, Alert, read_alerts
from avtd3.learn.guards.config import LEVELS
from avtd3.learn.networks import (
    ObservationBatch,
    evaluating,
    to_pixels,
)
from avtd3.learn.report import LearnReport
from avtd3.learn.run_settings import read_settings, stored_config
from avtd3.learn.saliency import ActionGradients, heat_maps
from avtd3.learn.td3 import TD3State, create_state, scale_reward
from avtd3.store.dataset import Dataset
from avtd3.store.episode import Episode, SegmentReader
from avtd3.store.errors import SEGMENT_ERRORS, Avtd3Error, describe
from avtd3.store.files import show_path, write_aside
from avtd3.store.remote.background import mirror_path
from avtd3.store.render.episode_view import FRAME_PX, ShownEpisode, frame_of
from avtd3.store.render.html import render_page
from avtd3.store.render.media import filmstrip, heat_frame
from avtd3.store.render.plots import Line, Moment, curves
from avtd3.store.render.text import duration, integer, number, percent, plural, shorten
from avtd3.store.replay.tracker import SegmentTracker
from avtd3.store.settings import differences
from avtd3.store.spec import EpisodeSpec

PAGE = "run.html"
LEAD = (
    "critic/loss",
    "critic/q1_mean",
    "actor/loss",
    "actor/imitation",
    "actor/saturation",
    "episode/return",
    "offline/fitted_value",
    "offline/q_correlation",
    "offline/td_error",
    "offline/action_distance",
    "critic_cnn/feature_norm",
    "rate/actor_mlp",
)
"""Metrics that are drawn first, if the run has them; the others are folded away."""
MAX_CURVES = 250
"""Curves of a page: a run of avtd3 has about a hundred, any directory may have more."""
MAX_SEGMENTS = 48
"""Segments that episodes are chosen from, evenly spread."""
EACH = 2
"""Episodes of largest return, and of smallest, that are shown."""
POINTS = 32
"""Steps of an episode at which the networks are asked."""
LOOKS = 6
"""Observations whose gradients are drawn."""
MAX_ACTIONS = 3
"""Actions that are drawn, the first ones."""
MAX_COMPONENTS = 12
"""Components of the vector that are listed, the most important ones."""
RATIO = 50.0
"""A page at a checkpoint waits until the run has taken so many times as long as the last page."""
LEVEL_KINDS = {NOTE: "info", **dict(zip(LEVELS, ("warning", "error", "error"), strict=True))}
"""Classes of the levels of alerts in the style sheet."""


class RunPageCallback(TrainCallback):
    """Write the page of a run: at its end, and at checkpoints, of which it skips most.

    Args:
        run: The run's directory.

    Example:
        >>> callback = RunPageCallback(Path("run"))
        >>> callback.message
        ''
    """

    def __init__(self, run: Path) -> None:
        self.message = ""
        """Where the newest page is, or why it could not be written; the run continues then."""
        self._run, self._next_s = run, float("-inf")

    def on_checkpoint(self, path: Path) -> None:
        """Write the page, if this takes a small part of the time since the last one."""
        if time.monotonic() >= self._next_s:
            self._write()

    def on_end(self, report: LearnReport) -> None:
        """Write the page of the whole run, if it has made an update."""
        if report.updates:
            self._write()

    def _write(self) -> None:
        started_s = time.monotonic()
        try:
            self.message = f"wrote {write_run_page(self._run)}"
        except (Avtd3Error, OSError) as error:
            self.message = f"cannot write the page of the run: {describe(error)}"
        ended_s = time.monotonic()
        self._next_s = ended_s + RATIO * (ended_s - started_s)


def write_run_page(
    run: Path, path: Path | None = None, datasets: Sequence[Path] | None = None
) -> Path:
    """Write the page of a run, as ``RUN/run.html`` unless another path is given; return the path.

    Args:
        run: The run's directory.
        path: The file to write.
        datasets: Where the datasets are now; None for where the run read them.

    Raises:
        ConfigError: If there is no such run, or it has logged nothing yet.
    """
    path = run / PAGE if path is None else path
    write_aside(path, run_page(run, datasets).encode())
    return path


def run_page(run: Path, datasets: Sequence[Path] | None = None) -> str:
    """Return the page of a run as HTML; see `write_run_page`."""
    document, config, log = read_settings(run), stored_config(run), read_log(run / "events")
    alerts = read_alerts(run / ALERTS_FILE)
    notices = [*log.notices, *log.damaged]
    paths = [Path(str(path)) for path in document.get("datasets", ())]
    examples = Examples()
    try:
        read = [mirror_path(run, path) for path in paths]
        places, limit = read if datasets is None else datasets, _newest(log, "run/action_limit")
        examples = find_examples(run, config, places, action_limit=1.0 if limit is None else limit)
    except (Avtd3Error, OSError) as error:
        notices.append(f"No episodes are shown: {describe(error)}")
    return render_page(
        "run.html.j2",
        title=f"Run {shorten(str(run))}",
        state=_state(run, config, log),
        about=_about(paths, document, alerts),
        key_figures=[*_key_figures(log, config, alerts, examples)],
        alerts=_alert_rows(alerts),
        **_curves(log, alerts),
        examples=examples,
        settings=[
            (d.setting, _value(d.after), _value(d.before))
            for d in differences(
                dataclasses.asdict(LearnConfig()), dataclasses.asdict(config), "learn."
            )
        ],
        changes=_changes(document),
        notices=notices,
    )


def _state(run: Path, config: LearnConfig, log: RunLog) -> tuple[str, str]:
    """Return in a few words how far a run is, and the class of the verdict."""
    saved, emergencies = (
        max(map(updates_of, list_checkpoints(run / name)), default=-1)
        for name in (CHECKPOINTS, EMERGENCY)
    )
    done = max(saved, log.last_step or 0)
    if emergencies > saved:
        return f"halted by a guard at update {emergencies:,}", "error"
    if done >= config.updates:
        return f"complete: {plural(done, 'update')}", "ok"
    return f"{done:,} of {plural(config.updates, 'update')}", "info"


def _about(paths: Sequence[Path], document: Mapping[str, Any], alerts: Sequence[Alert]) -> str:
    names = ", ".join(shorten(show_path(path)) for path in paths) or "unknown datasets"
    follow = ", with new episodes of collectors" if document.get("follow") else ""
    count = sum(alert.level != NOTE for alert in alerts)
    guards = f"The guards reported {plural(count, 'alert')}." if count else "No guard raised alarm."
    return f"Learned from {names}{follow}. {guards}"


def _key_figures(
    log: RunLog, config: LearnConfig, alerts: Sequence[Alert], examples: "Examples"
) -> Iterator[tuple[str, str, str]]:
    newest = functools.partial(_newest, log)
    yield "Updates", integer(log.last_step or 0), f"of {integer(config.updates)}"
    counts = {level: sum(alert.level == level for alert in alerts) for level in LEVELS}
    listed = ", ".join(f"{count} {level}" for level, count in counts.items() if count)
    yield "Alerts", integer(sum(counts.values())), listed or "of the guards"
    yield "Critic loss", number(newest("critic/loss")), f"mean Q {number(newest('critic/q1_mean'))}"
    if (value := newest("offline/fitted_value")) is not None:
        low, high = (newest(f"offline/fitted_value_{end}") for end in ("low", "high"))
        yield "Estimated value", number(value), f"{number(low)} to {number(high)}, held out"
    if (value := newest("episode/return")) is not None:
        yield "Return", number(value), "of the newest episodes"
    if examples.seconds:
        speed = number(newest("run/updates_per_second"))
        yield "Time", duration(examples.seconds), f"{speed} updates/s at the end"


def _newest(log: RunLog, name: str) -> float | None:
    """Return the newest value of a metric; None if the run has none."""
    curve = log.curves.get(name)
    return None if curve is None or not len(curve.values) else float(curve.values[-1])


def _alert_rows(alerts: Sequence[Alert]) -> list[tuple[str, str, str, str, tuple[str, ...]]]:
    """Return a row for each guard: its highest level, how often, when, and its newest alert."""
    order = [NOTE, *LEVELS]
    rows = []
    for name in dict.fromkeys(alert.name for alert in reversed(alerts)):
        own = [alert for alert in alerts if alert.name == name]
        level = max((alert.level for alert in own), key=order.index)
        first, last = min(alert.update for alert in own), max(alert.update for alert in own)
        when = integer(first) if first == last else f"{integer(first)} to {integer(last)}"
        text = own[-1].reason
        text += f"; {own[-1].fix}" if own[-1].fix and level != NOTE else ""
        cells = (integer(len(own)), when, text)
        rows.append((order.index(level), (name, "", level, LEVEL_KINDS[level], cells)))
    return [row for _, row in sorted(rows, key=lambda pair: -pair[0])]


def _curves(log: RunLog, alerts: Sequence[Alert]) -> dict[str, Any]:
    """Return the cards of the leading metrics, and those of the others by group."""
    ordered = sorted(alerts, key=lambda a: [NOTE, *LEVELS].index(a.level))
    moments = [
        Moment(step=a.update, kind=a.level, text=f"{a.level} {a.name} at {a.update:,}")
        for a in ordered
    ]
    drawn = {tag: curve for tag, curve in log.curves.items() if len(curve.updates)}
    names = [name for name in LEAD if name in drawn]
    names += [name for name in drawn if name not in LEAD]
    groups: dict[str, list[dict[str, object]]] = {}
    for name in names[:MAX_CURVES]:
        line = curve_line("run", drawn[name])
        plot = curves(
            [line], name=name, axis="gradient updates", end=log.last_step, moments=moments
        )
        group = "" if name in LEAD else name.partition("/")[0]
        groups.setdefault(group, []).append(metric_card(name, plot))
    return {
        "lead": groups.pop("", []),
        "groups": groups,
        "curves_left_out": max(0, len(names) - MAX_CURVES),
        "folded": sum(map(len, groups.values())),
        "has_moments": bool(moments),
    }


def _value(value: object) -> str:
    return shorten(str(value), 80)


def _changes(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the settings that a resume changed: the last update before it, and the change."""
    changes = document.get("changes", [])
    found = [change for change in changes if isinstance(change, dict)]
    return [
        (f"after update {c.get('from_update')}", f"{c.get('setting')}: {_pair(c)}") for c in found
    ]


def _pair(change: Mapping[str, Any]) -> str:
    return f"{_value(change.get('before'))} → {_value(change.get('after'))}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Drive:
    """An episode, and what the networks say about it."""

    shown: ShownEpisode
    verdict: str
    """How far the policy agrees with what was done, and what the critic expected."""
    plots: tuple[tuple[str, Markup], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """An observation, and the gradient of each action over its newest frame."""

    name: str
    images: tuple[str, ...]
    size: tuple[int, int]
    """Width and height of the images, in pixels."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """What the newest checkpoint does with a few episodes."""

    updates: int = 0
    """Updates of the checkpoint."""
    seconds: float = 0.0
    """Time that the run had trained for, in seconds."""
    is_held_out: bool = False
    """Whether the run has not learned from the episodes."""
    episodes: int = 0
    """Episodes that these were chosen from."""
    drives: tuple[Drive, ...] = ()
    actions: tuple[str, ...] = ()
    """Names of the actions that are drawn."""
    looks: tuple[Look, ...] = ()
    frames: Sequence[tuple[str, float]] = ()
    """Share of each frame of the stack in the gradients, in all streams together."""
    components: Sequence[tuple[str, float]] = ()
    """Share of the most important components of the vector in the gradients."""


def find_examples(
    run: Path, config: LearnConfig, datasets: Sequence[Path], *, action_limit: float = 1.0
) -> Examples:
    """Choose episodes, and ask the newest checkpoint of a run about them.

    `action_limit` is the share of each half range that published policies use.
    """
    saved = list_checkpoints(run / CHECKPOINTS)
    if not saved:
        return Examples()
    opened = [Dataset.open(path) for path in datasets]
    spec = config.replay.view(opened[0].spec)
    episodes, is_held_out = choose_episodes(opened, config)
    state = create_state(spec, config.network, config.td3, torch.device("cpu"), 0)
    metadata = load_checkpoint(saved[-1], state, None)
    ranked = sorted(episodes, key=lambda episode: episode.episode_return)
    best = ranked[::-1][: min(EACH, len(ranked) - len(ranked) // 2)]
    worst = ranked[: min(EACH, len(ranked) // 2)]
    ask = functools.partial(_ask, state, spec, config, action_limit)
    asked = [*ask(best, "best"), *ask(worst, "worst")]
    found = Examples(
        updates=metadata.updates,
        seconds=metadata.seconds,
        is_held_out=is_held_out,
        episodes=len(episodes),
        drives=tuple(one.drive() for one in asked),
        actions=opened[0].spec.action_names[:MAX_ACTIONS],
    )
    looks = _saliency(state, spec, asked, config.replay.stack_stride) if asked else {}
    return dataclasses.replace(found, **looks)


def choose_episodes(datasets: Sequence[Dataset], config: LearnConfig) -> tuple[list[Episode], bool]:
    """Return the held-out episodes of a run, or without any those that it samples.

    Of many, only those in `MAX_SEGMENTS` segments are returned. The second value is whether they
    are held out.
    """
    tracker = SegmentTracker(datasets, config.replay)
    wanted = tracker.wanted()
    held_out = [(segment, number) for _, number, segment in tracker.held_out()]
    found = held_out or [
        (segment, number)
        for key, segment in wanted.items()
        for number in np.arange(segment.episodes)[tracker.eligibility.eligible(key)].tolist()
    ]
    segments = list({segment.path: segment for segment, _ in found}.values())
    places = np.linspace(0, len(segments) - 1, min(len(segments), MAX_SEGMENTS)).astype(np.int64)
    readers: dict[Path, SegmentReader] = {}
    for place in places.tolist():
        with contextlib.suppress(*SEGMENT_ERRORS):
            readers[segments[place].path] = SegmentReader(segments[place])
    chosen = [Episode(readers[s.path], number) for s, number in found if s.path in readers]
    return [e for e in chosen if np.isfinite(e.episode_return)], bool(held_out)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """An episode, and the answers of the networks at N of its steps."""

    why: str
    episode: Episode
    steps: NDArray[np.int64]
    """int64 (N,)."""
    observation: ObservationBatch
    action: NDArray[np.float32]
    """float32 (N, A): what the policy would do."""
    q: NDArray[np.float32]
    """float32 (N,): the critic's value of what was done."""
    returns: NDArray[np.float32] | None
    """float32 (N,): discounted return that followed; None if the episode was cut off."""

    def drive(self) -> Drive:
        """Draw the episode."""
        spec, done = self.episode.spec, self.episode.actions[self.steps]
        half = (np.array(spec.action_high) - np.array(spec.action_low)) / 2.0
        apart = float((np.abs(self.action - done) / half).mean())
        text = f"The policy's actions differ by {percent(apart)} of half their range on average"
        text += f"; the critic expects {number(float(self.q[0]))} at the start"
        plots = [
            (name, self._plot(name, done[:, column], self.action[:, column]))
            for column, name in enumerate(spec.action_names[:MAX_ACTIONS])
        ]
        if self.returns is None:
            plots.append(("value", self._plot("value", None, self.q)))
        else:
            plots.append(("value", self._plot("value", self.returns, self.q)))
            text += f", and {number(float(self.returns[0]))} followed"
        shown = ShownEpisode.of(self.episode, self.why)
        return Drive(shown=shown, verdict=f"{text}.", plots=tuple(plots))

    def _plot(
        self, name: str, done: NDArray[np.float32] | None, asked: NDArray[np.float32]
    ) -> Markup:
        both = (("data", "before", done), ("policy or critic", "after", asked))
        lines = [
            Line(label=label, steps=self.steps, values=values.astype(np.float64), kind=kind)
            for label, kind, values in both
            if values is not None
        ]
        return curves(lines, name=name, axis="steps of the episode")


def _ask(
    state: TD3State,
    spec: EpisodeSpec,
    config: LearnConfig,
    limit: float,
    episodes: Sequence[Episode],
    word: str,
) -> Iterator[_Asked]:
    """Yield the answers of the networks for each episode that can be read."""
    for rank, episode in enumerate(episodes):
        count = min(POINTS, episode.length)
        steps = np.linspace(0, episode.length - 1, count).round().astype(np.int64)
        try:
            stride, actions = config.replay.stack_stride, episode.load().actions[steps]
            observation = _observe(episode, spec, steps, stride)
        except SEGMENT_ERRORS:
            continue
        with torch.no_grad(), evaluating(state.actor, state.critic):
            centre = state.actor.action_centre
            action = centre + limit * (state.actor(observation) - centre)
            encoded = state.critic.encode(observation)
            q = state.critic.first(encoded, torch.from_numpy(actions))
        returns = None
        if episode.terminated[-1]:  # the return of a truncated episode is not known
            reward = scale_reward(torch.from_numpy(episode.rewards), config.td3).numpy()
            returns = discounted_returns(reward, config.replay.gamma)[steps]
        yield _Asked(
            why=f"the {word} return" if not rank else f"the next {word}",
            episode=episode,
            steps=steps,
            observation=observation,
            action=action.numpy(),
            q=q.numpy(),
            returns=returns,
        )


def _observe(
    episode: Episode, spec: EpisodeSpec, steps: NDArray[np.int64], stride: int
) -> ObservationBatch:
    streams = []
    for name in spec.images:
        read = functools.partial(episode.observations, None, stride=stride, stream=name)
        stacks = np.concatenate([read(start=t, stop=t + 1) for t in steps.tolist()])
        streams.append(to_pixels(torch.from_numpy(stacks), torch.float32))
    vector = torch.from_numpy(episode.vectors[steps]) if spec.vector_names else None
    return ObservationBatch(pixels=tuple(streams), vector=vector)


def _saliency(
    state: TD3State, spec: EpisodeSpec, asked: Sequence[_Asked], stride: int
) -> dict[str, Any]:
    """Return the fields of `Examples` about the gradients at every fourth step."""
    steps = [(one, n) for one in asked for n in range(0, len(one.steps), 4)]
    pixels = zip(*(one.observation.pixels for one in asked), strict=True)
    streams = tuple(torch.cat([part[::4] for part in parts]) for parts in pixels)
    vectors = [one.observation.vector for one in asked]
    rows = [vector[::4] for vector in vectors if vector is not None]
    few = ObservationBatch(pixels=streams, vector=torch.cat(rows) if rows else None)
    gradients = ActionGradients.of(state.actor, few, spec.images.values())
    found: dict[str, Any] = {}
    if gradients.vector is not None and few.vector is not None:
        spread = few.vector.std(dim=0, correction=0).nan_to_num(0.0).numpy()
        shares = _shares(spec.vector_names, gradients.vector.mean(axis=(0, 1)) * spread)
        found["components"] = sorted(shares, key=lambda pair: -pair[1])[:MAX_COMPONENTS]
    if not spec.images:
        return found
    names: list[str] = []
    sizes: list[float] = []
    for (stream, image), parts in zip(spec.images.items(), gradients.pixels, strict=True):
        prefix = f"{stream}, " if spec.streams else ""
        ages = [image.stride * stride * (image.stack - 1 - n) for n in range(image.stack)]
        ago = [f"{plural(age, 'frame')} earlier" if age else "newest" for age in ages]
        names += [prefix + name for name in ago[::-1]]
        sizes += parts.sum(axis=(3, 4)).mean(axis=(0, 1)).tolist()[::-1]
    found["frames"] = _shares(names, np.array(sizes, np.float32))
    maps = [heat_maps(parts)[:, :MAX_ACTIONS] for parts in gradients.pixels]
    places = np.linspace(0, len(steps) - 1, min(len(steps), LOOKS) + 2).round().astype(np.int64)
    looks = []
    for place in dict.fromkeys(places[1:-1].tolist()):
        one, n = steps[place]
        at_s = one.steps[n] * spec.control_period_s
        for stream, heats in zip(spec.images, maps, strict=True):
            frame = frame_of(one.episode, int(one.steps[n]), stream)
            drawn = [frame, *(heat_frame(frame, heat) for heat in heats[place])]
            name = f"{one.why}, after {at_s:.1f} s" + (f": {stream}" if spec.streams else "")
            looks.append(Look(name, *filmstrip(drawn, FRAME_PX)))
    return found | {"looks": tuple(looks)}


def _shares(names: Sequence[str], sizes: NDArray[np.float32]) -> list[tuple[str, float]]:
    """Return names and their shares of the sum."""
    shares = (sizes / max(float(sizes.sum()), 1e-30)).tolist()
    return list(zip(names, shares, strict=True))
