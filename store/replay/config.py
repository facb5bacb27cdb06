"""`ReplayConfig`: what a sampler keeps for replay and how it samples."""

import dataclasses
import math

from avtd3.store.errors import ConfigError, check_integers
from avtd3.store.filters import parse_filter
from avtd3.store.spec import EpisodeSpec


def _require(correct: bool, name: str, value: object, expected: str) -> None:
    if not correct:
        raise ConfigError(f"replay.{name} is {value!r}, expected {expected}")


def _is_whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


MOST_AT_ONCE = 1 << 20
"""Most transitions in a batch; a quarter of them with 84x84 frames take 9 GB."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MixPart:
    """A part of a mix: a share of the samples, and the episodes that it is sampled from."""

    filter: tuple[str, ...] = ()
    """Filters, see `avtd3.store.filters`; empty selects all episodes."""
    weight: float = 1.0
    """Share of the samples, relative to the weights of the other parts."""

    def __post_init__(self) -> None:
        parse_filter(self.filter)
        _require(0.0 <= self.weight < math.inf, "mix weight", self.weight, "a number >= 0")


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
        check_integers(self, "replay.priority.")
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            _require(0.0 <= value <= 1.0, f"priority.{name}", value, "a number in [0, 1]")
        _require(self.beta_batches >= 1, "priority.beta_batches", self.beta_batches, "1 or more")
        is_above_zero = 0.0 < self.epsilon < math.inf
        _require(is_above_zero, "priority.epsilon", self.epsilon, "a number > 0")


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
    """Transitions per batch, at most 2^20. Under ``torchrun``, those of each rank."""
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
    imitate_expert: bool = False
    """Whether to imitate what the expert would have done, where that is stored, in place of the
    action that was taken (DAgger, Ross et al. 2011). Such steps are imitated whatever `imitate`
    says; all others are imitated as before."""
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

    streams: tuple[str, ...] = ()
    """Names of the streams to read, see docs/streams.md; empty: all. Nothing of the others is read,
    decoded or cached. The only stream of a dataset without named ones is ``image``."""

    action_repeat: int = 1
    """Stored steps per decision: see data that were collected with held actions as if only every
    N-th step had been a decision. Rewards of a decision are summed, and `gamma`, `n_step`,
    `sequence_length` and `batch_size` count decisions; `capacity` counts stored steps. Policies
    are trained for this rate. See docs/timing.md."""
    stack_stride: int = 1
    """Decisions between two frames of a stack: 2 takes every second frame, so that the same number
    of frames shows twice the time. Policies stack their frames in the same way."""
    sequence_length: int = 0
    """Number of consecutive steps that are sampled together, see `Sampler.sample_sequences`; 0
    samples single transitions. The learner uses ``batch_size / sequence_length`` sequences as a
    batch."""

    def __post_init__(self) -> None:
        for name in ("capacity", "batch_size", "n_step", "action_repeat", "stack_stride"):
            value = getattr(self, name)
            _require(_is_whole(value, 1), name, value, "a whole number > 0")
        fits = self.batch_size <= MOST_AT_ONCE
        _require(fits, "batch_size", self.batch_size, f"at most {MOST_AT_ONCE:,} transitions")
        choices_of = {"mode": ("cache", "direct", "auto"), "fill": ("whole", "while")}
        for name, choices in choices_of.items():
            value, expected = getattr(self, name), f"{', '.join(choices[:-1])} or {choices[-1]}"
            _require(value in choices, name, value, expected)
        _require(0.0 <= self.gamma <= 1.0, "gamma", self.gamma, "a number in [0, 1]")
        is_finite = all(0.0 <= weight < math.inf for weight in self.weights)
        _require(is_finite, "weights", self.weights, "numbers >= 0")
        if self.weights and sum(self.weights) <= 0.0:
            raise ConfigError("replay.weights are all 0, expected at least one > 0")
        if self.mix and sum(part.weight for part in self.mix) <= 0.0:
            raise ConfigError("replay.mix has only weights of 0, expected at least one > 0")
        for texts in (self.filter, self.imitate):
            parse_filter(texts)
        self._check_lags()
        self._check_sequences()

    def view(self, spec: EpisodeSpec) -> EpisodeSpec:
        """Return the spec of the decisions that are sampled from data of a spec."""
        spec = spec.select(self.streams)
        if self.action_repeat == 1:
            return spec
        period_s = spec.control_period_s * self.action_repeat
        return dataclasses.replace(spec, control_period_s=period_s)

    def _check_lags(self) -> None:
        _require(0.0 <= self.held_out < 1.0, "held_out", self.held_out, "a share in [0, 1)")
        lag, half_life = self.max_policy_lag, self.policy_lag_half_life
        is_lag = lag is None or _is_whole(lag, 0)
        _require(is_lag, "max_policy_lag", lag, "a whole number >= 0, or null")
        is_finite = 0.0 <= half_life < math.inf
        _require(is_finite, "policy_lag_half_life", half_life, "a number >= 0")

    def _check_sequences(self) -> None:
        length = self.sequence_length
        _require(_is_whole(length, 0), "sequence_length", length, "a whole number >= 0")
        multiple = f"a multiple of replay.sequence_length, which is {length}"
        is_multiple = not length or self.batch_size % length == 0
        _require(is_multiple, "batch_size", self.batch_size, multiple)
        single = (
            "0 if n_step or stack_stride is above 1, or prioritised or imitate_expert is set, "
            "which apply to single transitions"
        )
        is_single = self.n_step > 1 or self.prioritised or self.stack_stride > 1
        is_single |= self.imitate_expert
        _require(not (length and is_single), "sequence_length", length, single)
