"""Compare a reading with the limits: which guard exceeds its limit, and by how much.

Pure functions of numbers. Gradient norms are those before clipping: clipped norms never exceed a
limit.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence

from avtd3.learn.guards.alerts import Alert
from avtd3.learn.guards.config import GUARDS, LEVELS, UPDATE_RATIOS, WEIGHTS, GuardConfig
from avtd3.learn.guards.readings import Reading, Rows


@dataclasses.dataclass(slots=True, kw_only=True)
class History:
    """What the limits need from earlier readings."""

    actor_losses: list[float] = dataclasses.field(default_factory=list)
    """Median absolute loss of the actor in each of the last readings."""
    return_min: float = 0.0
    """Smallest discounted return that the sampled data allow; at most 0, where Q starts."""
    return_max: float = 0.0
    """Largest discounted return that the sampled data allow; at least 0."""
    skipped_in_a_row: int = 0
    actor_skipped_in_a_row: int = 0

    @property
    def largest_return(self) -> float:
        """Largest absolute discounted return that the sampled data allow."""
        return max(self.return_max, -self.return_min)

    def baseline(self) -> float:
        """Return the usual absolute loss of the actor; at least a tenth of `largest_return`."""
        usual = statistics.median(self.actor_losses) if self.actor_losses else 0.0
        return max(usual, self.largest_return / 10.0)

    def after(self, reading: Reading, config: GuardConfig) -> "History":
        """Return the history including a reading."""
        losses = [abs(x) for x in reading.actor.column("loss") if math.isfinite(x)]
        medians = [*self.actor_losses, *([statistics.median(losses)] if losses else [])]
        critic = reading.critic
        finite, actor_finite = critic.column("finite"), reading.actor.column("finite")
        return History(
            actor_losses=medians[-config.baseline_readings :],
            return_min=min([self.return_min, *critic.column("return_min")]),
            return_max=max([self.return_max, *critic.column("return_max")]),
            skipped_in_a_row=_in_a_row(self.skipped_in_a_row, finite)[0],
            actor_skipped_in_a_row=_in_a_row(self.actor_skipped_in_a_row, actor_finite)[0],
        )


def check_reading(reading: Reading, history: History, config: GuardConfig) -> list[Alert]:
    """Return an alert for every guard that exceeds a limit, about its worst update."""
    now = history.after(reading, config)
    return [
        *_gradients(reading, config),
        *_losses(reading, history, now, config),
        *_values(reading, now, config),
        *_last(reading, config),
        *_finite(reading, history, config),
    ]


def _gradients(reading: Reading, config: GuardConfig) -> Iterator[Alert]:
    for network, rows in (("actor", reading.actor), ("critic", reading.critic)):
        norms, what = rows.column("grad_norm"), f"the gradient of the {network} before clipping"
        yield from _over(f"{network}_grad_norm", rows, norms, config.grad_norm, what)


def _losses(
    reading: Reading, history: History, now: History, config: GuardConfig
) -> Iterator[Alert]:
    rows, limit = reading.critic, config.critic_loss_limit
    limits, losses = (limit, 10.0 * limit), rows.column("loss")
    yield from _over("critic_loss", rows, losses, limits, "the critic's loss")
    updates = rows.updates
    if history.actor_losses and updates and updates[-1] > config.warm_up:
        # use the range of returns including this reading: there may be new data
        usual = max(history.baseline(), now.largest_return / 10.0)
        limit = config.actor_loss_ratio * usual
        sizes = [abs(loss) for loss in reading.actor.column("loss")]
        what = f"the absolute loss of the actor, usually {usual:.4g},"
        yield from _over("actor_loss", reading.actor, sizes, (limit, 10.0 * limit), what)


def _values(reading: Reading, now: History, config: GuardConfig) -> Iterator[Alert]:
    low, high = now.return_min, now.return_max
    for name, rows, whose in (
        ("q_bound", reading.critic, "Q"),
        ("actor_q_bound", reading.actor, "Q of the actor's own actions"),
    ):
        q_min, q_max = rows.column("q_min"), rows.column("q_max")
        if math.isfinite(high - low) and high > low:
            beyond = [max(b - high, low - a) for a, b in zip(q_min, q_max, strict=True)]
            limits = tuple((high - low) * share for share in (config.q_margin, 1.0, 10.0))
            what = f"the excess of {whose} over the returns that the data allow, {low:.4g} to "
            yield from _over(name, rows, beyond, limits, f"{what}{high:.4g},")
    rows = reading.critic
    sizes = [max(-a, b) for a, b in zip(rows.column("q_min"), rows.column("q_max"), strict=True)]
    yield from _over("q_size", rows, sizes, (math.inf, config.q_limit), "the absolute value of Q")


def _last(reading: Reading, config: GuardConfig) -> Iterator[Alert]:
    """Yield the alerts of the guards that check the last update of each network."""
    last = reading.last
    for network, rows in (("actor", reading.actor), ("critic", reading.critic)):
        newest = Rows(updates=rows.updates[-1:])
        whose = f"of the {network}'s CNN at the last update"
        dead = f"the share of features {whose} that are 0 for the whole batch"
        for name, limits, what in (
            ("feature_norm", (math.inf, config.feature_norm_limit), f"the feature norm {whose}"),
            ("dead_units", (config.dead_limit,), dead),
        ):
            if (value := last.get(f"{network}_cnn/{name}")) is not None:
                yield from _over(f"{network}_{name}", newest, [value], limits, what)
    newest = Rows(updates=reading.actor.updates[-1:])
    if (share := last.get("actor/saturation")) is not None:
        what = "the share of the actor's actions within 1 % of a bound"
        yield from _over("saturation", newest, [share], (config.saturation_limit,), what)
    spread = last.get("actor/action_std")
    is_warm = newest.updates and newest.updates[0] > config.warm_up
    if spread is not None and is_warm and spread < config.action_std_limit:
        limit, update = config.action_std_limit, newest.updates[0]
        reason = f"the standard deviation of the actions over a batch is {spread:.3g}, expected "
        reason += f"above {limit:.3g}"
        yield _alert("constant_action", "warn", update, value=spread, limit=limit, reason=reason)


def _finite(reading: Reading, history: History, config: GuardConfig) -> Iterator[Alert]:
    for network, rows, before in (
        ("critic", reading.critic, history.skipped_in_a_row),
        ("actor", reading.actor, history.actor_skipped_in_a_row),
    ):
        finite = rows.column("finite")
        bad = [update for update, ok in zip(rows.updates, finite, strict=True) if not ok]
        if not bad:
            continue
        longest = _in_a_row(before, finite)[1]
        is_stop = longest >= config.max_skipped
        yield _alert(
            f"{network}_not_finite",
            "stop" if is_stop else "warn",
            bad[-1],
            value=float(longest),
            limit=float(config.max_skipped) if is_stop else 1.0,
            count=len(bad),
            reason=f"{len(bad)} updates of the {network}, {longest} of them in a row, were skipped "
            "because a loss or gradient was not finite",
        )


def _alert(
    name: str,
    level: str,
    update: int,
    *,
    value: float,
    limit: float,
    reason: str,
    count: int = 1,
) -> Alert:
    alert = Alert(name=name, level=level, update=update, reason=reason, fix=GUARDS[name])
    shown = value if math.isfinite(value) else None
    return dataclasses.replace(alert, value=shown, limit=limit, count=count)


def _over(
    name: str, rows: Rows, values: Sequence[float], limits: Sequence[float], what: str
) -> Iterator[Alert]:
    """Yield an alert for the largest finite value, if it exceeds the lowest limit."""
    known = [(v, u) for v, u in zip(values, rows.updates, strict=True) if math.isfinite(v)]
    value, update = max(known, default=(-math.inf, 0))
    passed = [(limit, level) for limit, level in zip(limits, LEVELS, strict=False) if value > limit]
    for limit, level in passed[-1:]:
        count = sum(v > min(limits) for v, _ in known)
        reason = f"{what} is {value:.4g}, expected at most {limit:.4g}"
        yield _alert(name, level, update, value=value, limit=limit, count=count, reason=reason)


def check_layers(scalars: Mapping[str, float], at: int, config: GuardConfig) -> Iterator[Alert]:
    """Yield an alert for each guard of single layers that exceeds its limit."""
    bad = [layer for layer, size in _family(scalars, WEIGHTS) if not math.isfinite(size)]
    if bad:
        reason = f"weights are not finite: {', '.join(bad[:5])}"
        yield _alert("weights", "stop", at, value=math.nan, limit=0.0, reason=reason)
    family = _family(scalars, UPDATE_RATIOS)
    ratios = [(ratio, layer) for layer, ratio in family if math.isfinite(ratio)]
    ratio, layer = max(ratios, default=(0.0, ""))
    what = f"the norm of one update of {layer} relative to that of its weights"
    limits = (config.update_ratio_limit,)
    yield from _over("update_ratio", Rows(updates=[at]), [ratio], limits, what)


def _family(scalars: Mapping[str, float], prefix: str) -> list[tuple[str, float]]:
    return [(k.removeprefix(prefix), v) for k, v in scalars.items() if k.startswith(prefix)]


def _in_a_row(before: int, finite: Sequence[float]) -> tuple[int, int]:
    """Return the number of consecutive skipped updates at the end, and the largest anywhere."""
    running, longest = before, 0
    for ok in finite:
        running = 0 if ok else running + 1
        longest = max(longest, running)
    return running, longest
