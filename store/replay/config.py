"""Shares of the draws: of parts of a mix, of datasets, and of episodes by the age of their policy.

A draw falls on a part of the mix by the part's weight; within it on a dataset by the dataset's
weight; within that on a step, each as likely as its episode's decay says. Parts, and datasets in a
part, that hold no step leave their share to the others in proportion. Parts may overlap.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, SpecError
from avtd3.store.filters import NO_POLICY, parse_filter
from avtd3.store.replay.shared import Key

_MOST_HALVINGS = 1000
"""Keeps the weight of the oldest policies above 0, so that something can always be drawn."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MixPart:
    """A share of the draws, and the episodes it falls on."""

    filter: tuple[str, ...] = ()
    """Texts as of `avtd3.store.filters`; empty: all episodes."""
    weight: float = 1.0
    """Share of the draws; those of all parts need not add up to 1."""

    def __post_init__(self) -> None:
        parse_filter(self.filter)
        if not 0.0 <= self.weight < math.inf:
            raise ConfigError(f"replay.mix weight is {self.weight!r}, expected a number from 0 up")


def policy_decay(versions: NDArray[np.int64], newest: int, half_life: float) -> NDArray[np.float64]:
    """Weight of each episode by the age of its policy: ``0.5 ** (lag / half_life)``.

    Args:
        versions: int64 (E,); episodes without a policy have weight 1.
        newest: Newest version of all.
        half_life: Versions after which the weight has halved; 0 for no decay.

    Returns:
        float64 (E,), in (0, 1].
    """
    if not half_life:
        return np.ones(len(versions), np.float64)
    halvings = np.minimum((newest - versions) / half_life, _MOST_HALVINGS)
    decay: NDArray[np.float64] = np.where(versions == NO_POLICY, 1.0, np.exp2(-halvings))
    return decay


def episode_shares(
    mass: NDArray[np.float64],
    dataset: NDArray[np.int64],
    parts: NDArray[np.bool_],
    *,
    part_weights: Sequence[float],
    dataset_weights: Sequence[float],
) -> NDArray[np.float64]:
    """Share of the draws that falls on each episode.

    Args:
        mass: float64 (E,), steps of each, times its decay.
        dataset: int64 (E,), number of its dataset.
        parts: bool (P, E), parts of the mix that it belongs to; one of all, if there is no mix.
        part_weights: Weights of the P parts.
        dataset_weights: Weights of the datasets; empty to take them as one.

    Returns:
        float64 (E,), with the sum 1, or 0 where nothing can be drawn.
    """
    shares = np.zeros(len(mass), np.float64)
    for members, weight in zip(parts, part_weights, strict=True):
        within = _within_part(np.where(members, mass, 0.0), dataset, dataset_weights)
        shares += weight * within
    total = shares.sum()
    return shares / total if total > 0.0 else shares


def _within_part(
    mass: NDArray[np.float64], dataset: NDArray[np.int64], weights: Sequence[float]
) -> NDArray[np.float64]:
    """The shares within one part; sum 1, or 0 if it has no mass where there is weight."""
    if weights:
        held = np.bincount(dataset, mass, minlength=len(weights))
        scale = np.divide(weights, held, out=np.zeros(len(weights)), where=held > 0.0)
        mass = mass * scale[dataset]
    total = mass.sum()
    return mass / total if total > 0.0 else mass


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PriorityConfig:
    """Exponents of prioritised draws (Schaul et al. 2016, table 3, proportional variant)."""

    alpha: float = 0.6
    """How much the priorities count: 0 not at all, 1 in proportion."""
    beta: float = 0.4
    """How much of the bias the importance weights take back at first; in the end all of it."""
    beta_batches: int = 1_000_000
    """Batches over which `beta` rises to 1."""
    epsilon: float = 1e-3
    """Added to each |TD error|, in reward, so that nothing is never drawn again."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(
                    f"replay.priority.{name} is {getattr(self, name)!r}, expected a number in "
                    "[0, 1]"
                )
        if self.beta_batches < 1:
            raise ConfigError(
                f"replay.priority.beta_batches is {self.beta_batches}, expected 1 or above"
            )
        if not 0.0 < self.epsilon < math.inf:
            raise ConfigError(f"replay.priority.epsilon is {self.epsilon!r}, expected above 0")


_CHOICES = {"mode": ("cache", "direct", "auto"), "fill": ("whole", "while")}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """What is kept for replay and how it is drawn."""

    capacity: int = 1_000_000
    """Transitions to keep; whole segments, oldest out first (Fujimoto et al. 2018: 1e6). The newest
    segment is kept even if it alone holds more."""
    batch_size: int = 256
    """Transitions per batch."""
    n_step: int = 1
    """Rewards summed before bootstrapping; fewer where the episode ends sooner."""
    gamma: float = 0.99
    """Discount per step, in [0, 1]."""
    mode: str = "auto"
    """``cache``: decode every frame once into a scratch file, fastest; ``direct``: decode from the
    shards at every draw, for datasets that fit no disk; ``auto``: the cache where it fits."""
    fill: str = "whole"
    """``whole``: draw once all frames are in the cache, so that a seed gives the same batches every
    time; ``while``: draw from the first segment on, evenly from those that are decoded so far:
    until all are, the batches depend on how fast that goes. ``direct`` has nothing to fill."""
    scratch: str = ""
    """Directory for the replay's scratch files (7.06 GB per million 84x84 frames); empty: the
    run's own, or the system's temporary directory."""
    weights: tuple[float, ...] = ()
    """Share of draws from each dataset, and of the capacity for it, so that none pushes out
    another; they need not add up to 1. Empty: all transitions are equally likely."""
    filter: tuple[str, ...] = ()
    """Only episodes for which all of these hold, as ``end=collision``, ``policy=3..7``; see
    `avtd3.store.filters`. Steps of other episodes do not count for the capacity."""
    mix: tuple[MixPart, ...] = ()
    """Shares of the draws by filter, as ``[{filter: ["end=collision"], weight: 0.3}, {weight:
    0.7}]``; episodes in no part are not drawn. With `weights`, those hold within each part."""
    imitate: tuple[str, ...] = ()
    """Only steps of episodes for which all of these hold are marked for imitation, as
    ``policy=none``: what others have driven; empty: all steps. Drawn are the others as well."""
    held_out: float = 0.0
    """Share of the episodes that is never drawn, in [0, 1); see `store/replay/eligibility.py`."""
    max_policy_lag: int | None = None
    """Most versions that the policy of an episode may be older than the newest; None: any. Episodes
    without a policy are kept."""
    policy_lag_half_life: float = 0.0
    """Versions after which an episode is drawn half as often; 0: all alike. Episodes without a
    policy are drawn like the newest."""

    prioritised: bool = False
    """Draw by TD error; see `avtd3.store.replay.priority`. Weights, mix and decay then are factors
    of the priorities, no longer exact shares."""
    priority: PriorityConfig = dataclasses.field(default_factory=PriorityConfig)
    """Exponents of that."""

    sequence_length: int = 0
    """Steps in a row that are drawn together, see `avtd3.store.replay.sequences`; 0 draws each
    transition by itself. The learner then takes ``batch_size / sequence_length`` sequences as a
    batch."""

    def __post_init__(self) -> None:
        for name in ("capacity", "batch_size", "n_step"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"replay.{name} is {value!r}, expected a whole number above 0")
        self._check_choices()
        if not 0.0 <= self.gamma <= 1.0:
            raise ConfigError(f"replay.gamma is {self.gamma!r}, expected a number in [0, 1]")
        if not all(0.0 <= weight < math.inf for weight in self.weights):
            raise ConfigError(f"replay.weights is {self.weights}, expected numbers from 0 up")
        if self.weights and sum(self.weights) <= 0.0:
            raise ConfigError("replay.weights are all 0, expected at least one above 0")
        if self.mix and sum(part.weight for part in self.mix) <= 0.0:
            raise ConfigError("replay.mix has only weights of 0, expected at least one above 0")
        for texts in (self.filter, self.imitate):
            parse_filter(texts)
        self._check_lags()
        self._check_sequences()

    def _check_choices(self) -> None:
        for name, allowed in _CHOICES.items():
            if (choice := getattr(self, name)) not in allowed:
                text = f"{', '.join(allowed[:-1])} or {allowed[-1]}"
                raise ConfigError(f"replay.{name} is {choice!r}, expected {text}")

    def _check_sequences(self) -> None:
        length = self.sequence_length
        if isinstance(length, bool) or not isinstance(length, int) or length < 0:
            raise ConfigError(
                f"replay.sequence_length is {length!r}, expected a whole number from 0 up"
            )
        if length and self.batch_size % length:
            raise ConfigError(
                f"replay.batch_size is {self.batch_size}, expected a multiple of "
                f"replay.sequence_length, which is {length}"
            )
        if length and (self.n_step > 1 or self.prioritised):
            raise ConfigError(
                f"replay.sequence_length is {length}, expected 0 where n_step is above 1 or draws "
                "are prioritised: those are of single transitions"
            )

    def _check_lags(self) -> None:
        if not 0.0 <= self.held_out < 1.0:
            raise ConfigError(f"replay.held_out is {self.held_out!r}, expected a share in [0, 1)")
        lag = self.max_policy_lag
        if lag is not None and (isinstance(lag, bool) or not isinstance(lag, int) or lag < 0):
            raise ConfigError(
                f"replay.max_policy_lag is {lag!r}, expected a whole number from 0 up, or null"
            )
        if not 0.0 <= self.policy_lag_half_life < math.inf:
            raise ConfigError(
                f"replay.policy_lag_half_life is {self.policy_lag_half_life!r}, expected versions "
                "above 0, or 0 for none"
            )


def check_datasets(datasets: Sequence[Dataset], config: ReplayConfig) -> list[Dataset]:
    """See that datasets can be drawn from together.

    Raises:
        ConfigError: No dataset, one given twice, or not one weight for each.
        SpecError: They hold different data; the message spells out the difference.
    """
    if not datasets:
        raise ConfigError("a sampler needs at least one dataset, found none")
    if config.weights and len(config.weights) != len(datasets):
        raise ConfigError(
            f"replay.weights has {len(config.weights)} values, expected {len(datasets)}, one for "
            "each dataset"
        )
    first = datasets[0]
    for number, dataset in enumerate(datasets[1:], start=1):
        if difference := first.spec.difference(dataset.spec):
            raise SpecError(
                f"dataset {dataset.path} holds other data than {first.path} ({difference}); "
                "learn from datasets of one spec"
            )
        if dataset.path.resolve() in {other.path.resolve() for other in datasets[:number]}:
            raise ConfigError(f"dataset {dataset.path} is given twice; name it once, with a weight")
    return list(datasets)


def select_segments(steps: Mapping[Key, int], config: ReplayConfig) -> list[Key]:
    """The newest segments that the capacity holds, by age over all datasets or, weighted, in each.

    Which ones depends on nothing but the arguments, so a resumed run finds the same again.

    Args:
        steps: How many steps of each segment may be drawn.
        config: Capacity and weights.
    """
    if not config.weights:
        return _newest(steps, config.capacity)
    total = sum(config.weights)
    selected: list[Key] = []
    for number, weight in enumerate(config.weights):
        if weight > 0.0:
            own = {key: count for key, count in steps.items() if key[0] == number}
            selected += _newest(own, int(config.capacity * weight / total))
    return selected


def _newest(steps: Mapping[Key, int], capacity: int) -> list[Key]:
    """The newest segments whose steps fit, oldest first; at least one if there is any."""
    kept: list[Key] = []
    total = 0
    for key in sorted(steps, key=lambda key: (key[1], key[0]), reverse=True):
        total += steps[key]
        if kept and total > capacity:
            break
        kept.append(key)
    return kept[::-1]
