"""`Session`: one sitting of a run, and what happens between its updates."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from avtd3.learn.batch import Batch, Shifting
from avtd3.learn.checkpoint import Bookmark
from avtd3.learn.config import LearnConfig
from avtd3.learn.draw import Draw
from avtd3.learn.graph import updater
from avtd3.learn.guards.limits import Finding
from avtd3.learn.guards.rollback import go_back, keep_aside
from avtd3.learn.guards.watch import Watch
from avtd3.learn.journal import Journal
from avtd3.learn.keeping import Keeper
from avtd3.learn.offline import Judge
from avtd3.learn.pace import Pace
from avtd3.learn.policy import PolicyDirectory
from avtd3.learn.precision import autocast_type, pick_device
from avtd3.learn.report import LearnProgress
from avtd3.learn.ring import open_ring
from avtd3.learn.source import Source
from avtd3.learn.state import create_state
from avtd3.learn.td3 import Update
from avtd3.store.errors import TrainingHalted
from avtd3.store.spec import EpisodeSpec


class Session:
    """Networks, their optimisers, and where they are logged, published and saved."""

    def __init__(
        self,
        spec: EpisodeSpec,
        run: Path,
        policies: Path,
        config: LearnConfig,
        *,
        resume: bool,
        rollback: int | None = None,
    ) -> None:
        """Make fresh networks, or take those of the run's newest checkpoint.

        Args:
            spec: The data's spec.
            run: The run's directory, prepared by `prepare_run`.
            policies: Where policies are published.
            config: Settings.
            resume: Go on from the newest checkpoint, if there is one.
            rollback: Go back to the checkpoint of so many updates; later ones are set aside.

        Raises:
            CheckpointError: The checkpoint is torn, of other networks, or not there.
            SpecError: The checkpoint is of other data.
        """
        self.spec, self.config = spec, config
        self.policy_version: int | None = None
        self.pace = Pace()
        self._run = run
        self._device = pick_device(config.device)
        self._autocast = autocast_type(config.precision, self._device)
        self._state = create_state(spec, config.network, config.td3, self._device, config.seed)
        self._noise = torch.Generator(self._device).manual_seed(config.seed)
        pad = config.image_shift
        ring = open_ring(spec.image, self._device, wanted=config.device_frames)
        self.gathers = ring is None  # else the frames are on the device
        self._draw = Draw(
            replay=config.replay,
            device=self._device,
            dtype=self._autocast or torch.float32,
            shifting=Shifting(pad=pad, generator=self._noise) if pad else None,
            ring=ring,
            pace=self.pace,
        )
        self._keeper = Keeper(run, config)
        self._policies = PolicyDirectory(policies)
        features, delay = config.network.features if spec.image else 0, config.td3.policy_delay
        self.watch = Watch(run, config.guards, features=features, policy_delay=delay)
        self._saved_at = self._published_at = -1
        self._is_rolled_back = rollback is not None
        self.resumed_from = self._load(rollback) if resume or self._is_rolled_back else None
        self._update = self._updater()
        self._journal = Journal(
            run / "events",
            features=features,
            first_step=self.updates + 1,
            gathered={} if self.resumed_from is None else self.resumed_from.gathered,
        )

    @property
    def updates(self) -> int:
        """Updates so far, those before a resume included."""
        return self._state.updates

    @property
    def skipped(self) -> int:
        """Updates left out because something was not finite."""
        return int(self._state.skipped.item())

    @property
    def alerts(self) -> tuple[str, ...]:
        """The newest alerts, in words; another object once there is a new one."""
        return self.watch.alerts.newest

    def describe(self, progress: LearnProgress) -> LearnProgress:
        """Fill in what is known of the learning."""
        shown = self._journal.newest
        return dataclasses.replace(
            progress,
            updates=self.updates,
            updates_per_second=shown.get("run/updates_per_second", self.pace.updates_per_second),
            critic_loss=shown.get("critic/loss"),
            actor_loss=shown.get("actor/loss"),
            q=shown.get("critic/q1_mean"),
            policy_version=self.policy_version,
            alerts=self.alerts,
        )

    def restore_sampler(self, source: Source) -> bool:
        """Let the draws go on where the checkpoint left them.

        Returns:
            Whether the sampler holds the very segments that it held then.
        """
        assert self.resumed_from is not None
        bookmark = self.resumed_from
        exact = source.sampler.restore(dict(bookmark.sampler), bookmark.arrays)
        if exact and bookmark.episodes_told:
            source.episodes.forget()
        return exact

    def step(self, source: Source) -> None:
        """One update, and whatever is due after it.

        Raises:
            TrainingHalted: A stop alert ended the run.
        """
        self.pace.begin()
        batch, index = self._draw(source.sampler)
        noise = torch.randn(batch.action.shape, generator=self._noise, device=self._device)
        if self.config.decay_from:
            self._state.scale_rates(self.config.rate_share(self.updates))
        self.watch.before(self._state)
        done = self._update(batch, noise)
        self.pace.done += 1
        self._journal.add(done)
        if index is not None:  # waits for the device
            td_error = done.critic.td_error().float().cpu().numpy()
            source.sampler.update_priorities(index, td_error)
        if self.updates % self.config.log_every == 0:
            self.log(source)
        self._guard(source, batch, done)
        if self.config.replay.held_out and self.updates % self.config.evaluate_every == 0:
            self.evaluate(source)
        if self.updates % self.config.publish_every == 0:
            self.publish()
        if self.config.saves_at(self.updates):
            self.save(source)

    def _updater(self) -> Callable[[Batch, Tensor], Update]:
        td3, graphs = self.config.td3, self.config.cuda_graphs
        return updater(self._state, td3, self._autocast, graphs=graphs)

    def log(self, source: Source) -> None:
        """Write a line of metrics."""
        scalars = self._state.rates() | source.episodes.scalars(self.policy_version)
        scalars |= self.pace.line() | {
            "critic/skipped": float(self.skipped),
            "run/replay_ratio": self.updates / max(source.steps_seen, 1),
            "run/steps": float(source.sampler.steps),
        }
        self._journal.line(self.updates, scalars)

    def _guard(self, source: Source, batch: Batch, done: Update) -> None:
        """Let the guards look at an update, and do what they ask for."""
        length = source.episodes.newest_length
        found = self.watch.after(self._state, done, batch, length)
        self._journal.write(self.updates, found.scalars)
        if found.stop is not None and self.config.guards.on_stop != "continue":
            self._stop(source, found.stop)

    def _stop(self, source: Source, finding: Finding) -> None:
        """Keep the state aside; then go back to the last good checkpoint, or end the run."""
        guards, good = self.config.guards, self.watch.last_good
        path = keep_aside(self._run, self._state, self._noise, self._bookmark(source))
        reason = f"{finding.name} at update {finding.update}: {finding.reason}; {finding.mend}; "
        reason += f"the state is kept in {path}"
        back = f"the last good checkpoint is of update {good}" if good is not None else ""
        if guards.on_stop == "rollback":
            back = f"it went back {self.watch.rollbacks} times already (guards.max_rollbacks)"
            if self.watch.rollbacks < guards.max_rollbacks:
                if good is not None and (bookmark := self._go_back(good)) is not None:
                    self._go_on_from(source, bookmark, reason)
                    return
                back = "there is no good checkpoint to go back to"
        raise TrainingHalted("; ".join(filter(None, (reason, back))))

    def _go_back(self, updates: int) -> Bookmark | None:
        bookmark = go_back(self._run, updates, self._state, self._noise)
        if bookmark is not None:
            self._keeper.restore(bookmark)
        return bookmark

    def _go_on_from(self, source: Source, bookmark: Bookmark, reason: str) -> None:
        self.watch.rolled_back(bookmark.guards, self._state)
        self._update = self._updater()
        text = f"went back to update {self.updates} after {reason}"
        number, most = float(self.watch.rollbacks), float(self.config.guards.max_rollbacks)
        self.watch.alerts.note("rollback", self.updates, text, value=number, limit=most)
        self._journal.go_back(self.updates + 1)
        self._saved_at = self._published_at = -1
        self.save(source)  # the next time it goes back to a checkpoint that knows of this one
        self.publish()  # collectors may drive with one of those that went wrong

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
        self._journal.write(self.updates, judge(self._state, episodes))

    def publish(self) -> None:
        """Publish the actor, unless it was just published."""
        if self._published_at != self.updates:
            self.policy_version = self._policies.publish(
                self._state.actor,
                self.spec,
                self.config.network,
                updates=self.updates,
                action_limit=self.watch.action_limit.share,
            )
            self._published_at = self.updates
            if self.config.keep_policies:
                self._policies.prune(self.config.keep_policies)

    def publish_first(self) -> None:
        """Publish the actor where collectors wait for one, or drive with one it went back from."""
        self.policy_version = self._policies.newest_version()
        if self.policy_version is None or self._is_rolled_back:
            self.publish()

    def save(self, source: Source) -> None:
        """Write a checkpoint, unless this very state was just written."""
        if self._saved_at == self.updates:
            return
        self.watch.mark(self.updates)
        self._journal.flush()  # a run that goes on from here has all lines before
        self._keeper.save(
            self._state,
            self._noise,
            self._bookmark(source),
            newest=self._journal.newest,
            good=self.watch.last_good,
        )
        self._saved_at = self.updates

    def _bookmark(self, source: Source) -> Bookmark:
        earlier_s = 0.0 if self.resumed_from is None else self.resumed_from.seconds
        return Bookmark(
            updates=self.updates,
            spec_digest=self.spec.digest,
            sampler=source.sampler.state(),
            arrays=source.sampler.arrays(),
            config=dataclasses.asdict(self.config),
            seconds=earlier_s + self.pace.seconds,
            guards=self.watch.state(),
            gathered=self._journal.gathered(),
            episodes_told=source.episodes.are_told,
        )

    def finish(self, source: Source, *, halted: bool) -> None:
        """Say what was only counted; save and publish, unless a guard ended the run."""
        self.watch.alerts.flush(self.updates)
        if not halted:
            self.save(source)
            self.publish()

    def close(self) -> None:
        """Close the event file."""
        self._journal.close()

    def _load(self, rollback: int | None) -> Bookmark | None:
        path = self._keeper.find(rollback)
        if path is None:
            return None
        bookmark = self._keeper.load(path, self._state, self._noise, self.spec)
        self.watch.resumed(bookmark.guards, self._state)
        if rollback is not None and (aside := self._keeper.set_aside(rollback)) is not None:
            text = f"went back to update {rollback} as asked; later checkpoints are in {aside}"
            self.watch.alerts.note("rollback", rollback, text, value=0.0, limit=0.0)
        self._saved_at = self.updates
        return bookmark
