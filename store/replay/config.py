"""`ReplayConfig`: what a sampler keeps for replay and how it samples."""

import dataclasses
import math

from avtd3.store.errors import ConfigError
from avtd3.store.filters import parse_filter


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MixPart:
    """A part of a mix: a share of the samples, and the episodes that it is sampled from."""

    filter: tuple[str, ...] = ()
    """Filters, see `avtd3.store.filters`; empty selects all episodes."""
    weight: float = 1.0
    """Share of the samples, relative to the weights of the other parts."""

    def __post_init__(self) -> None:
        parse_filter(self.filter)
        if not 0.0 <= self.weight < math.inf:
            raise ConfigError(f"replay.mix weight is {self.weight!r}, expected a number >= 0")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PriorityConfig:
    """Settings of prioritised replay (Schaul et al. 2016, table 3, proportional variant)."""

    alpha: float = 0.6
    """How strongly the priorities count: 0 is not at all, 1 is in proportion."""
    beta: float = 0.4
    """How much of the bias the importance weights correct at first; they correct all of it in the
    end."""
    beta_batches: int = 1_000_000
    """Number of batches over which `beta` rises to 1."""
    epsilon: float = 1e-3
    """Added to each |TD error|, in reward, so that every transition can be sampled again."""

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(
                    f"replay.priority.{name} is {getattr(self, name)!r}, expected a number in "
                    "[0, 1]"
                )
        if self.beta_batches < 1:
            raise ConfigError(
                f"replay.priority.beta_batches is {self.beta_batches}, expected 1 or more"
            )
        if not 0.0 < self.epsilon < math.inf:
            raise ConfigError(f"replay.priority.epsilon is {self.epsilon!r}, expected a number > 0")


_CHOICES = {"mode": ("cache", "direct", "auto"), "fill": ("whole", "while")}


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ReplayConfig:
    """Which transitions a sampler keeps, and how it samples batches of them.

    Example:
        >>> config = ReplayConfig(batch_size=64, n_step=3, filter=("end=goal",))
        >>> config.gamma
        0.99
    """

    capacity: int = 1_000_000
    """Maximum number of transitions (1e6 as in Fujimoto et al. 2018). Whole segments are dropped,
    the oldest first. The newest segment is kept even if it alone is larger."""
    batch_size: int = 256
    """Transitions per batch."""
    n_step: int = 1
    """Number of rewards summed before bootstrapping; fewer where the episode ends sooner."""
    gamma: float = 0.99
    """Discount per step, in [0, 1]."""
    mode: str = "auto"
    """``cache`` decodes every frame once into a scratch file, which is the fastest. ``direct``
    decodes frames from the dataset for each batch, for datasets that do not fit on the disk.
    ``auto`` uses the cache if it fits."""
    fill: str = "whole"
    """``whole`` samples after all frames are in the cache, so that a seed always gives the same
    batches. ``while`` samples from the first segment on, uniformly from the segments decoded so
    far; until all are decoded, the batches depend on the speed of decoding. Mode ``direct`` ignores
    it."""
    scratch: str = ""
    """Directory for the scratch files (7.06 GB per million 84x84 frames). Empty: next to the run
    directory, or the system's temporary directory."""
    weights: tuple[float, ...] = ()
    """Share of each dataset in the samples and in the capacity, so that no dataset displaces
    another. The values are relative. Empty: all transitions are equally likely."""
    filter: tuple[str, ...] = ()
    """Use only episodes that match all filters, such as ``end=collision`` or ``policy=3..7``; see
    `avtd3.store.filters`. Steps of other episodes do not count towards the capacity."""
    mix: tuple[MixPart, ...] = ()
    """Shares of the samples by filter, such as ``[{filter: ["end=collision"], weight: 0.3},
    {weight: 0.7}]``. Episodes in no part are not sampled. `weights` apply within each part."""
    imitate: tuple[str, ...] = ()
    """Mark only steps of episodes that match all filters for imitation, such as ``policy=none``;
    empty: all steps. The other steps are sampled, too."""
    held_out: float = 0.0
    """Share of the episodes that is never sampled, in [0, 1); see `avtd3.store.replay.eligibility`.
    """
    max_policy_lag: int | None = None
    """Maximum number of versions by which the policy of an episode may be older than the newest;
    None: no limit. Episodes without a policy are kept."""
    policy_lag_half_life: float = 0.0
    """Number of versions after which an episode is sampled half as often; 0: never. Episodes
    without a policy are sampled like the newest."""

    prioritised: bool = False
    """Whether to sample by TD error; see `avtd3.store.replay.draws`. Weights, mix and decay are
    then factors of the priorities, and no longer exact shares."""
    priority: PriorityConfig = dataclasses.field(default_factory=PriorityConfig)
    """Settings of prioritised replay."""

    sequence_length: int = 0
    """Number of consecutive steps that are sampled together, see `Sampler.sample_sequences`; 0
    samples single transitions. The learner uses ``batch_size / sequence_length`` sequences as a
    batch."""

    def __post_init__(self) -> None:
        for name in ("capacity", "batch_size", "n_step"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"replay.{name} is {value!r}, expected a whole number > 0")
        self._check_choices()
        if not 0.0 <= self.gamma <= 1.0:
            raise ConfigError(f"replay.gamma is {self.gamma!r}, expected a number in [0, 1]")
        if not all(0.0 <= weight < math.inf for weight in self.weights):
            raise ConfigError(f"replay.weights is {self.weights}, expected numbers >= 0")
        if self.weights and sum(self.weights) <= 0.0:
            raise ConfigError("replay.weights are all 0, expected at least one > 0")
        if self.mix and sum(part.weight for part in self.mix) <= 0.0:
            raise ConfigError("replay.mix has only weights of 0, expected at least one > 0")
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
            raise ConfigError(f"replay.sequence_length is {length!r}, expected a whole number >= 0")
        if length and self.batch_size % length:
            raise ConfigError(
                f"replay.batch_size is {self.batch_size}, expected a multiple of "
                f"replay.sequence_length, which is {length}"
            )
        if length and (self.n_step > 1 or self.prioritised):
            raise ConfigError(
                f"replay.sequence_length is {length}, expected 0 if n_step is above 1 or "
                "prioritised is set, which apply to single transitions"
            )

    def _check_lags(self) -> None:
        if not 0.0 <= self.held_out < 1.0:
            raise ConfigError(f"replay.held_out is {self.held_out!r}, expected a share in [0, 1)")
        lag = self.max_policy_lag
        if lag is not None and (isinstance(lag, bool) or not isinstance(lag, int) or lag < 0):
            raise ConfigError(
                f"replay.max_policy_lag is {lag!r}, expected a whole number >= 0, or null"
            )
        if not 0.0 <= self.policy_lag_half_life < math.inf:
            raise ConfigError(
                f"replay.policy_lag_half_life is {self.policy_lag_half_life!r}, expected a number "
                ">= 0"
            )
