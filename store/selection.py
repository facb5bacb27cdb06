"""Which segments are replayed: how many transitions are kept, and of which datasets."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, SpecError
from avtd3.store.replay import Key
from avtd3.store.segment import Segment


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
    scratch: str = ""
    """Directory for the replay's scratch files (7.06 GB per million 84x84 frames); empty: the
    run's own, or the system's temporary directory."""
    weights: tuple[float, ...] = ()
    """Share of draws from each dataset, and of the capacity for it, so that none pushes out
    another; they need not add up to 1. Empty: all transitions are equally likely."""

    def __post_init__(self) -> None:
        for name in ("capacity", "batch_size", "n_step"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"replay.{name} is {value!r}, expected a whole number above 0")
        if not 0.0 <= self.gamma <= 1.0:
            raise ConfigError(f"replay.gamma is {self.gamma!r}, expected a number in [0, 1]")
        if not all(0.0 <= weight < math.inf for weight in self.weights):
            raise ConfigError(f"replay.weights is {self.weights}, expected numbers from 0 up")
        if self.weights and sum(self.weights) <= 0.0:
            raise ConfigError("replay.weights are all 0, expected at least one above 0")


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


def select_segments(segments: Mapping[Key, Segment], config: ReplayConfig) -> dict[Key, Segment]:
    """The newest segments that the capacity holds, by age over all datasets or, weighted, in each.

    Which ones depends on nothing but the arguments, so a resumed run finds the same again.
    """
    if not config.weights:
        return _newest(segments, config.capacity)
    total = sum(config.weights)
    selected: dict[Key, Segment] = {}
    for number, weight in enumerate(config.weights):
        if weight > 0.0:
            own = {key: segment for key, segment in segments.items() if key[0] == number}
            selected |= _newest(own, int(config.capacity * weight / total))
    return selected


def _newest(segments: Mapping[Key, Segment], capacity: int) -> dict[Key, Segment]:
    """The newest segments whose steps fit, oldest first; at least one if there is any."""
    kept: list[Key] = []
    steps = 0
    for key in sorted(segments, key=lambda key: (key[1], key[0]), reverse=True):
        steps += segments[key].steps
        if kept and steps > capacity:
            break
        kept.append(key)
    return {key: segments[key] for key in reversed(kept)}
