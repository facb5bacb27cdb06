"""`LearnConfig`: the settings of ``avtd3 learn``, with those of its parts nested in it."""

import dataclasses

from avtd3.learn.device import PRECISIONS
from avtd3.learn.guards.config import GuardConfig
from avtd3.learn.metrics import metric
from avtd3.learn.networks import NetworkConfig
from avtd3.learn.td3 import TD3Config
from avtd3.store.errors import ConfigError
from avtd3.store.replay.config import ReplayConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LearnConfig:
    """Settings of ``avtd3 learn``."""

    updates: int = 1_000_000
    """Gradient updates in all, those before a resume included (production)."""
    seed: int = 0
    """Seed of the weights, the target noise and the draws."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    precision: str = "auto"
    """Type of the matrix products: ``fp32``, ``bf16``, or ``auto``, which is bf16 on hardware that
    multiplies it natively."""
    cuda_graphs: bool = False
    """Record the update's kernels on a GPU and replay them, one launch instead of hundreds. Off,
    because no GPU was at hand to try it on: its logic is tested on the CPU only."""
    device_frames: bool = False
    """Keep a copy of the replay's frames in the memory of the GPU, 7 GB for a million of 84x84, and
    gather batches there. Off for the same reason; without a GPU, and with sequences or direct
    replay, it does nothing."""
    threads: int = 0
    """Threads of the CPU; 0 leaves the number to torch."""
    learning_starts: int = 1_000
    """With --follow: transitions to wait for before the first update (1 000 quick, 25 000
    production)."""
    updates_per_step: float = 1.0
    """With --follow: updates per transition collected after the first `learning_starts`; 0 is no
    limit (1 as in Fujimoto et al. 2018)."""
    refresh_seconds: float = 2.0
    """With --follow: seconds between two looks for new segments."""
    log_every: int = 100
    """Updates between two lines of metrics."""
    publish_every: int = 1_000
    """Updates between two published policies."""
    keep_policies: int = 0
    """Newest policies to keep in the policy directory; 0 keeps all."""
    checkpoint_every: int = 5_000
    """Updates between two checkpoints."""
    keep_checkpoints: int = 3
    """Newest checkpoints to keep, besides milestones."""
    keep_best: str = ""
    """Metric by whose newest value one more checkpoint, the best, is kept: ``offline/td_error``
    with held-out episodes, ``episode/return`` with --follow, or any other of which higher or lower
    is better; empty for none."""
    milestones: tuple[int, ...] = (50_000, 100_000, 250_000, 500_000, 750_000, 1_000_000)
    """Updates at which a checkpoint is made and kept for ever."""
    evaluate_every: int = 5_000
    """Updates between two looks at the held-out episodes, if `replay.held_out` is above 0."""
    evaluate_episodes: int = 8
    """Most held-out episodes that are looked at; always the same ones, while there are no others
    before them in the split."""
    decay_from: int = 0
    """Update from which all learning rates fall linearly, down to `decay_to` at the last one; 0
    keeps them."""
    decay_to: float = 0.1
    """Share of the learning rates that is left at the end of the decay."""
    image_shift: int = 0
    """Pixels by which images are shifted at random at most, their border repeated: 4 in DrQ-v2
    (Yarats et al. 2021) for 84x84; 0 is none."""
    td3: TD3Config = dataclasses.field(default_factory=TD3Config)
    """The updates."""
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    """Shape of the networks."""
    replay: ReplayConfig = dataclasses.field(default_factory=ReplayConfig)
    """What is drawn, and how."""
    guards: GuardConfig = dataclasses.field(default_factory=GuardConfig)
    """What the run is watched for, and what follows."""

    def rate_share(self, updates: int) -> float:
        """Share of the learning rates that holds for the update after so many."""
        if not self.decay_from or updates <= self.decay_from:
            return 1.0
        passed = (updates - self.decay_from) / max(self.updates - self.decay_from, 1)
        return 1.0 + (self.decay_to - 1.0) * min(passed, 1.0)

    def saves_at(self, updates: int) -> bool:
        """Whether a checkpoint is made after so many updates."""
        return updates % self.checkpoint_every == 0 or updates in self.milestones

    def __post_init__(self) -> None:
        counts = ("updates", "log_every", "publish_every", "checkpoint_every", "keep_checkpoints")
        for name in (*counts, "evaluate_every", "evaluate_episodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"learn.{name} is {getattr(self, name)}, expected 1 or above")
        for name in (
            *("seed", "threads", "learning_starts", "updates_per_step", "keep_policies"),
            *("decay_from", "image_shift"),
        ):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"learn.{name} is {getattr(self, name)}, expected 0 or above")
        if not 0.0 < self.decay_to <= 1.0:
            raise ConfigError(f"learn.decay_to is {self.decay_to}, expected above 0, at most 1")
        _check_keep_best(self.keep_best)
        if not self.refresh_seconds > 0.0:
            raise ConfigError(
                f"learn.refresh_seconds is {self.refresh_seconds}, expected above 0 seconds"
            )
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"learn.precision is {self.precision!r}, expected one of {PRECISIONS}"
            )
        _check_imitation(self.replay, self.td3)


def _check_imitation(replay: ReplayConfig, td3: TD3Config) -> None:
    if replay.imitate and not td3.bc_alpha:
        raise ConfigError(
            f"learn.replay.imitate is {replay.imitate}, but learn.td3.bc_alpha is 0: nothing is "
            "bc_mask; set bc_alpha (TD3+BC: 2.5) or leave imitate out"
        )


def _check_keep_best(name: str) -> None:
    known = metric(name)
    if name and (known is None or not known.better):
        raise ConfigError(
            f"learn.keep_best is {name!r}, expected a metric of which higher or lower is better, "
            "as episode/return or offline/td_error"
        )
