"""`LearnConfig`: the settings of a training run."""

import dataclasses

from avtd3.learn.device import PRECISIONS
from avtd3.learn.guards.config import GuardConfig
from avtd3.learn.metrics import metric
from avtd3.learn.networks import NetworkConfig
from avtd3.learn.td3 import ALGORITHMS, TD3Config
from avtd3.learn.threads import AUTO
from avtd3.store.errors import ConfigError, check_settings
from avtd3.store.replay.config import ReplayConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LearnConfig:
    """Settings of a training run, the section ``learn`` of a configuration file.

    Example:
        >>> from avtd3.store import ReplayConfig
        >>> config = LearnConfig(updates=10_000, replay=ReplayConfig(n_step=3))
        >>> config.td3.policy_delay
        2
    """

    updates: int = 1_000_000
    """Total number of gradient updates, including those before a resume (1M for production)."""
    seed: int = 0
    """Seed of the weights, the target noise and the sampling."""
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    precision: str = "auto"
    """Type of the matrix products: ``fp32``, ``bf16``, or ``auto`` for bf16 on hardware that
    multiplies it natively."""
    cuda_graphs: bool = False
    """On a GPU, record the kernels of an update and replay them with one launch instead of
    hundreds. Off by default, and always under ``torchrun`` with several ranks."""
    device_frames: bool = False
    """Keep a copy of the replay's frames in GPU memory (7 GB for a million frames of 84x84), and
    gather batches there. Off by default. It has no effect without a
    GPU, with sequences or with direct replay."""
    threads: int | str = "auto"
    """CPU threads of torch: a fixed number, 0 for torch's default, or ``auto`` to follow the
    fastest number while other processes come and go (see `avtd3.learn.threads`). Other numbers of
    threads round sums differently, so a run repeats exactly only with a fixed number. Under
    ``torchrun``, ``auto`` is torch's default of rank 0."""
    algorithm: str = "td3"
    """``td3``, with imitation if `td3.bc_alpha` is set, or ``bc``: behaviour cloning, a baseline
    whose actor only imitates. The critics then learn the value of its policy."""
    learning_starts: int = 1_000
    """With --follow: number of collected steps to wait for before the first update (1 000 for
    tests, 25 000 for production). Steps count whether or not they may be sampled."""
    updates_per_step: float = 1.0
    """With --follow: largest number of updates per collected step after the first
    `learning_starts`; 0 is no limit (1 in Fujimoto et al. 2018)."""
    mirror_bytes: int = 50_000_000_000
    """Of a dataset that is a URL: largest size of its copy in the run's directory, in bytes. The
    newest `replay.capacity` steps are copied, and old segments removed to make room."""
    refresh_seconds: float = 2.0
    """With --follow: seconds between two checks for new segments."""
    log_every: int = 100
    """Updates between two log lines."""
    publish_every: int = 1_000
    """Updates between two published policies. With --follow, a policy is also published if no new
    steps arrive during 20 `refresh_seconds`: a collector may wait for it."""
    keep_policies: int = 0
    """Number of newest policies to keep in the policy directory; 0 keeps all."""
    checkpoint_every: int = 5_000
    """Updates between two checkpoints."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints to keep, in addition to milestones."""
    keep_best: str = ""
    """Metric by which the best checkpoint is kept, in addition to the others: for example
    ``offline/fitted_value`` with held-out episodes, or ``episode/return`` with --follow. It needs a
    preferred direction (see docs/metrics.md); empty for none."""
    milestones: tuple[int, ...] = (50_000, 100_000, 250_000, 500_000, 750_000, 1_000_000)
    """Updates at which a checkpoint is saved and kept forever."""
    evaluate_every: int = 5_000
    """Updates between two evaluations on held-out episodes, if `replay.held_out` is above 0."""
    evaluate_episodes: int = 8
    """Largest number of held-out episodes to evaluate. They stay the same unless new data add
    episodes before them in the split."""
    decay_from: int = 0
    """Update at which all learning rates start to decrease linearly, to `decay_to` at the last
    update; 0 keeps them constant."""
    decay_to: float = 0.1
    """Factor on the learning rates at the last update, in (0, 1]."""
    image_shift: int = 0
    """Largest random shift of images, in pixels, with repeated border (4 in DrQ-v2, Yarats et al.
    2021, for 84x84); 0 is none."""
    td3: TD3Config = dataclasses.field(default_factory=TD3Config)
    """Settings of the updates."""
    network: NetworkConfig = dataclasses.field(default_factory=NetworkConfig)
    """Shape of the networks."""
    replay: ReplayConfig = dataclasses.field(default_factory=ReplayConfig)
    """What is sampled, and how."""
    guards: GuardConfig = dataclasses.field(default_factory=GuardConfig)
    """Limits of the guards, and how they react."""

    def rate_share(self, updates: int) -> float:
        """Return the factor on the learning rates for the update after `updates` updates."""
        if not self.decay_from or updates <= self.decay_from:
            return 1.0
        passed = (updates - self.decay_from) / max(self.updates - self.decay_from, 1)
        return 1.0 + (self.decay_to - 1.0) * min(passed, 1.0)

    def saves_at(self, updates: int) -> bool:
        """Return whether a checkpoint is due after `updates` updates."""
        return updates % self.checkpoint_every == 0 or updates in self.milestones

    def __post_init__(self) -> None:
        above_zero = (
            *("updates", "log_every", "publish_every", "checkpoint_every", "keep_checkpoints"),
            *("evaluate_every", "evaluate_episodes", "mirror_bytes"),
        )
        others = ("seed", "learning_starts", "updates_per_step", "keep_policies")
        least = dict.fromkeys(above_zero, 1)
        least |= dict.fromkeys((*others, "decay_from", "image_shift"), 0)
        known, best = metric(self.keep_best), self.keep_best
        has_direction = known is not None and bool(known.better)
        is_measured = bool(self.replay.held_out) or not best.startswith("offline/")
        check_settings(
            self,
            "learn.",
            *((name, getattr(self, name) >= low, f"{low} or above") for name, low in least.items()),
            ("seed", self.seed < 1 << 64, "0..2^64 - 1"),
            ("decay_to", 0.0 < self.decay_to <= 1.0, "above 0, at most 1"),
            ("refresh_seconds", self.refresh_seconds > 0.0, "above 0 seconds"),
            ("precision", self.precision in PRECISIONS, f"one of {PRECISIONS}"),
            ("algorithm", self.algorithm in ALGORITHMS, f"one of {ALGORITHMS}"),
            (
                "threads",
                self.threads == AUTO or (type(self.threads) is int and self.threads >= 0),
                f"{AUTO}, or a number, 0 or above",
            ),
            (
                "keep_best",
                not best or has_direction,
                "a metric with a preferred direction, for example episode/return",
            ),
            (
                "keep_best",
                is_measured,
                "another metric, or learn.replay.held_out above 0 (such as 0.05) to measure it",
            ),
        )
        network, is_own = self.network, self.td3.critic_features == "own"
        is_same = network.actor_inputs == network.critic_inputs
        other = "own with different learn.network.actor_inputs and critic_inputs"
        shared = "own with learn.network.shared_encoder"
        check_settings(
            self.td3,
            "learn.td3.",
            ("critic_features", is_own or not network.shared_encoder, shared),
            ("critic_features", is_own or is_same, other),
        )
        for name in ("imitate", "imitate_expert"):
            value = getattr(self.replay, name)
            if value and not self.td3.bc_alpha and self.algorithm == "td3":
                raise ConfigError(
                    f"learn.replay.{name} is {value}, but learn.td3.bc_alpha is 0, so nothing is "
                    f"imitated; set bc_alpha (2.5 in TD3+BC), or remove {name}"
                )
        fits = self.network.conv_norm != "batch" or self.replay.batch_size >= 2
        expected = "2 or above with learn.network.conv_norm batch"
        check_settings(self.replay, "learn.replay.", ("batch_size", fits, expected))
