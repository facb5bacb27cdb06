"""`Session`: one sitting of a run, and what happens between its updates."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from avtd3.learn.batch import Batch, flatten_sequences, to_batch
from avtd3.learn.checkpoint import (
    Bookmark,
    list_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
)
from avtd3.learn.config import LearnConfig
from avtd3.learn.events import EventWriter
from avtd3.learn.meter import Meter
from avtd3.learn.offline import Judge
from avtd3.learn.policy import PolicyDirectory
from avtd3.learn.precision import autocast_type, pick_device
from avtd3.learn.report import LearnProgress
from avtd3.learn.source import Source
from avtd3.learn.state import create_state
from avtd3.learn.td3 import update
from avtd3.store import files
from avtd3.store.errors import ConfigError, SpecError, TrainingHalted
from avtd3.store.spec import EpisodeSpec

CONFIG_FILE = "config.json"


class Session:
    """Networks, their optimisers, and where they are logged, published and saved."""

    def __init__(
        self, spec: EpisodeSpec, run: Path, policies: Path, config: LearnConfig, *, resume: bool
    ) -> None:
        """Make fresh networks, or take those of the run's newest checkpoint.

        Args:
            spec: The data's spec.
            run: The run's directory, prepared by `prepare_run`.
            policies: Where policies are published.
            config: Settings.
            resume: Go on from the newest checkpoint, if there is one.

        Raises:
            CheckpointError: The newest checkpoint is torn or of other networks.
            SpecError: The checkpoint is of other data.
        """
        self.spec, self.config = spec, config
        self.policy_version: int | None = None
        self._device = pick_device(config.device)
        self._autocast = autocast_type(config.precision, self._device)
        self._state = create_state(spec, config.network, config.td3, self._device, config.seed)
        self._noise = torch.Generator(self._device).manual_seed(config.seed)
        self._checkpoints = run / "checkpoints"
        self._policies = PolicyDirectory(policies)
        self.resumed_from = self._load() if resume else None
        self._writer = EventWriter(run / "events", first_step=self.updates + 1)
        self._meter = Meter(features=0 if spec.image is None else config.network.features)
        self._started_s = time.monotonic()
        self._first_update = self._logged_updates = self.updates
        self._paced_from_s: float | None = None
        self._logged_s = self._started_s
        self._shown: dict[str, float] = {}
        self._sampling_s = 0.0
        self._saved_at = self._published_at = -1

    @property
    def updates(self) -> int:
        """Updates so far, those before a resume included."""
        return self._state.updates

    @property
    def skipped(self) -> int:
        """Updates left out because something was not finite."""
        return int(self._state.skipped.item())

    @property
    def seconds(self) -> float:
        """Wall time of this session, in seconds."""
        return time.monotonic() - self._started_s

    @property
    def pace(self) -> float | None:
        """Updates per second of this session, from its first one on; None before that."""
        done = self.updates - self._first_update
        if self._paced_from_s is None or not done:
            return None
        return done / max(time.monotonic() - self._paced_from_s, 1e-9)

    def leave_out(self, seconds: float) -> None:
        """Take a wait for data out of the pace."""
        if self._paced_from_s is not None:
            self._paced_from_s += seconds

    def describe(self, progress: LearnProgress) -> LearnProgress:
        """Fill in what is known of the learning."""
        shown = self._shown
        return dataclasses.replace(
            progress,
            updates=self.updates,
            updates_per_second=shown.get("run/updates_per_second", self.pace),
            critic_loss=shown.get("critic/loss"),
            actor_loss=shown.get("actor/loss"),
            q=shown.get("critic/q1_mean"),
            policy_version=self.policy_version,
        )

    def restore_sampler(self, source: Source) -> bool:
        """Let the draws go on where the checkpoint left them.

        Returns:
            Whether the sampler holds the very segments that it held then.
        """
        assert self.resumed_from is not None
        bookmark = self.resumed_from
        return source.sampler.restore(dict(bookmark.sampler), bookmark.arrays)

    def step(self, source: Source) -> None:
        """One update, and whatever is due after it.

        Raises:
            TrainingHalted: Too many updates in a row were not finite.
        """
        before_s = time.monotonic()
        if self._paced_from_s is None:
            self._paced_from_s = self._logged_s = before_s
        batch, index = self._draw(source)
        noise = torch.randn(batch.action.shape, generator=self._noise, device=self._device)
        if self.config.decay_from:
            self._state.scale_rates(self.config.rate_share(self.updates))
        done = update(self._state, batch, noise, self.config.td3, self._autocast)
        self._meter.add(done)
        if index is not None:  # waits for the device
            td_error = done.critic.td_error().float().cpu().numpy()
            source.sampler.update_priorities(index, td_error)
        if self.updates % self.config.log_every == 0:
            self.log(source)
        if self.config.replay.held_out and self.updates % self.config.evaluate_every == 0:
            self.evaluate(source)
        if self.updates % self.config.publish_every == 0:
            self.publish()
        if self.updates % self.config.checkpoint_every == 0 or (
            self.updates in self.config.milestones
        ):
            self.save(source)

    def _draw(self, source: Source) -> tuple[Batch, NDArray[np.int64] | None]:
        """A batch on the device, and what names its transitions if draws are prioritised."""
        replay, dtype = self.config.replay, self._autocast or torch.float32
        before_s = time.monotonic()
        if replay.sequence_length:
            sequences = source.sampler.sample_sequences()
            self._sampling_s += time.monotonic() - before_s
            return flatten_sequences(sequences, replay.gamma, self._device, dtype), None
        transitions = source.sampler.sample()
        self._sampling_s += time.monotonic() - before_s
        return to_batch(transitions, self._device, dtype), transitions.index

    def log(self, source: Source) -> None:
        """Write a line of metrics, and look whether the run should go on."""
        now_s = time.monotonic()
        passed_s = max(now_s - self._logged_s, 1e-9)
        scalars = self._meter.read()
        scalars |= self._rates() | source.episodes.scalars(self.policy_version)
        scalars |= {
            "critic/skipped": float(self.skipped),
            "run/updates_per_second": (self.updates - self._logged_updates) / passed_s,
            "run/sampler_wait": self._sampling_s / passed_s,
            "run/replay_ratio": self.updates / max(source.steps_seen, 1),
            "run/steps": float(source.sampler.steps),
        }
        self._writer.write(self.updates, scalars)
        self._shown |= scalars
        self._logged_s, self._logged_updates, self._sampling_s = now_s, self.updates, 0.0
        in_a_row = int(self._state.skipped_in_a_row.item())
        if in_a_row >= self.config.max_skipped:
            raise TrainingHalted(
                f"{in_a_row} updates in a row had a loss or gradient that is not finite, expected "
                f"fewer than {self.config.max_skipped}; lower the learning rates or inspect the "
                "data with avtd3 replay-inspect"
            )

    def evaluate(self, source: Source) -> None:
        """Look at held-out episodes, and write what they say into the log."""
        judge = Judge(
            spec=self.spec,
            config=self.config.td3,
            gamma=self.config.replay.gamma,
            device=self._device,
            autocast=self._autocast,
        )
        episodes = source.sampler.held_out(self.config.evaluate_episodes)
        if scalars := judge(self._state, episodes):
            self._writer.write(self.updates, scalars)

    def publish(self) -> None:
        """Publish the actor, unless it was just published."""
        if self._published_at != self.updates:
            self.policy_version = self._policies.publish(
                self._state.actor, self.spec, self.config.network, updates=self.updates
            )
            self._published_at = self.updates
            if self.config.keep_policies:
                self._policies.prune(self.config.keep_policies)

    def publish_first(self) -> None:
        """Publish the actor if the directory has no policy: collectors may wait for one."""
        self.policy_version = self._policies.newest_version()
        if self.policy_version is None:
            self.publish()

    def save(self, source: Source) -> None:
        """Write a checkpoint, unless this very state was just written."""
        if self._saved_at == self.updates:
            return
        earlier_s = 0.0 if self.resumed_from is None else self.resumed_from.seconds
        bookmark = Bookmark(
            updates=self.updates,
            spec_digest=self.spec.digest,
            sampler=source.sampler.state(),
            arrays=source.sampler.arrays(),
            config=dataclasses.asdict(self.config),
            seconds=earlier_s + self.seconds,
        )
        save_checkpoint(self._checkpoints, self._state, self._noise, bookmark)
        self._saved_at = self.updates
        self._writer.flush()
        prune_checkpoints(self._checkpoints, self.config.keep_checkpoints, self.config.milestones)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()

    def _load(self) -> Bookmark | None:
        found = list_checkpoints(self._checkpoints)
        if not found:
            return None
        bookmark = load_checkpoint(found[-1], self._state, self._noise)
        if bookmark.spec_digest != self.spec.digest:
            raise SpecError(
                f"checkpoint {found[-1]} was trained on data of spec {bookmark.spec_digest[:12]}, "
                f"expected {self.spec.digest[:12]} as the datasets have; resume with its own data"
            )
        return bookmark

    def _rates(self) -> dict[str, float]:
        rates: dict[str, float] = {}
        state = self._state
        for name, optimizer in (
            ("actor", state.actor_optimizer),
            ("critic", state.critic_optimizer),
        ):
            for part, group in zip(("mlp", "cnn"), optimizer.param_groups, strict=False):
                rates[f"rate/{name}_{part}"] = group["lr"]
        return rates


def prepare_run(run: Path, document: Mapping[str, Any], *, resume: bool) -> None:
    """Make the run's directory and write down its settings.

    Raises:
        ConfigError: There is a run already and `resume` is not set, or the other way round.
        StorageError: The directory cannot be written.
    """
    if run.exists() and not run.is_dir():
        raise ConfigError(f"--run {run} is a file, expected a directory; choose another")
    if not resume and list_checkpoints(run / "checkpoints"):
        raise ConfigError(
            f"--run {run} already holds a run; add --resume to go on, or choose another directory"
        )
    if resume and not (run / CONFIG_FILE).exists():
        raise ConfigError(f"--run {run} holds no run to resume; start it without --resume")
    with files.storage_errors(run):
        run.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    files.write_aside(run / CONFIG_FILE, text.encode())


@contextlib.contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads meanwhile; 0 leaves it alone."""
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
