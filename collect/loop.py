"""`Collector`: the loop of one process: act, step, write; a new policy between episodes."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from avtd3.collect.arena import FAULT_REASON, STOP_REASON, Arena
from avtd3.collect.driving.observation import check_frame
from avtd3.collect.lead import LeadConfig
from avtd3.collect.plan import Share, episode_generator, training_seed
from avtd3.collect.pool import Choice, DriverPool
from avtd3.collect.progress import Tally
from avtd3.collect.recovery import Recovery, RecoveryConfig
from avtd3.collect.rollout import Rollout, Transition
from avtd3.store.dataset import Dataset
from avtd3.store.errors import RouteError, StorageError, WorldError, WorldLost
from avtd3.store.seal import EpisodeInfo
from avtd3.store.writer import PublishedSegment, SegmentWriter, WriterConfig

REPORT_PERIOD_S = 0.2
"""Wall clock between two reports."""
POLICY_PERIOD_S = 0.05
"""Wall clock between two looks for a policy that is waited for."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """What the loop needs to know beside its collaborators."""

    seed: int
    """Seed of the plan."""
    lead: LeadConfig
    """How far the collection may run ahead of the learner."""
    recovery: RecoveryConfig
    """What becomes of lost worlds."""
    min_free_bytes: int
    """Free bytes on the disk below which no episode is begun."""
    writer: WriterConfig
    """Codec and size of the segments."""
    name: str
    """Name of the collector, in the names of its segments."""
    provenance: Mapping[str, Any]
    """What every segment says about its origin."""


class Collector:
    """Collects one share of a plan with one arena and one writer.

    Args:
        dataset: Where the segments go.
        arena: Where the episodes happen.
        pool: The drivers.
        settings: Everything else.
        should_stop: Asked before every step; true ends the collection in good order.
        on_tally: Called now and then with what has been collected.
    """

    def __init__(
        self,
        dataset: Dataset,
        arena: Arena,
        pool: DriverPool,
        settings: LoopSettings,
        *,
        should_stop: Callable[[], bool],
        on_tally: Callable[[Tally], None],
    ) -> None:
        self._dataset, self._arena, self._pool = dataset, arena, pool
        self._settings = settings
        self._should_stop, self._on_tally = should_stop, on_tally
        self._tally = Tally()
        self._steps = 0
        self._recovery = Recovery(settings.recovery)
        self._reported_s = -1.0

    def run(self, share: Share) -> Tally:
        """Collect a share of the plan; whatever ends it, what is whole is published.

        A simulator that is lost for good ends the share with `Tally.lost`, not with an error.

        Raises:
            WorldError: The simulator failed, or a driver's action cannot be applied; the
                running episode is kept up to the step before, as truncated.
            StorageError: The disk is full or nearly so.
        """
        settings = self._settings
        writer = SegmentWriter(
            self._dataset,
            collector=settings.name,
            provenance=settings.provenance,
            config=settings.writer,
        )
        with writer:
            try:
                self._collect(writer, share)
            except WorldLost as error:
                self._note(lost=(f"worker {share.worker} gave up: {error}",), warning="")
            self._published(writer.close())
        self._report(force=True)
        return self._tally

    def _collect(self, writer: SegmentWriter, share: Share) -> None:
        for index in share.indices():
            # Begun again until it is driven or skipped: a lost world may be back.
            while not self._is_over(share):
                self._check_disk()
                if self._is_settled(writer, share, index):
                    break
            else:
                return

    def _is_over(self, share: Share) -> bool:
        done = share.steps is not None and self._steps >= share.steps
        return done or self._should_stop()

    def _is_settled(self, writer: SegmentWriter, share: Share, index: int) -> bool:
        """Try an episode; whether there is nothing more to try about it."""
        ended = self._tally.episodes
        try:
            self._collect_episode(writer, share, index)
        except WorldLost as error:
            lost = f"episode {index} lost its world ({error.reason}): {error}"
            self._note(losses=self._tally.losses + 1, warning=lost)
            skipped = self._recovery.lost(index, error, self._steps)
            if self._tally.episodes > ended:
                return True  # cut, and kept up to the step before
            if skipped is None:
                return False
        except RouteError as error:
            skipped = self._recovery.unplanned(index, error, self._steps)
        else:
            return True
        self._note(skipped=(*self._tally.skipped, skipped))
        return True

    def _check_disk(self) -> None:
        free = shutil.disk_usage(self._dataset.path).free
        if free < self._settings.min_free_bytes:
            raise StorageError(
                f"{self._dataset.path} has {free / 1e6:.0f} MB free, less than "
                f"{self._settings.min_free_bytes / 1e6:.0f} MB (collect.min_free_mb); free some "
                "space, then go on with --resume"
            )

    def _collect_episode(self, writer: SegmentWriter, share: Share, index: int) -> None:
        seed = training_seed(self._settings.seed, index)
        rng = episode_generator(seed)
        steps = share.held_steps + share.workers * self._steps
        choice = self._pool.draw(rng, at_random=self._settings.lead.is_random(steps))
        if choice.is_policy and not self._take_policy(writer, steps):
            return  # stopped while waiting
        image = self._dataset.spec.image
        rollout = Rollout(self._arena, seed, index)
        if image is not None:
            check_frame(rollout.start.image, image, self._arena.name)
        if self._should_stop():
            return  # a reset may build a road network; nothing was driven yet
        if self._arena.notices:
            self._note(warning="; ".join(self._arena.notices))
        self._begin(writer, rollout, choice, index)
        self._drive(writer, rollout.drive(choice.driver, choice.spec.name, rng))

    def _take_policy(self, writer: SegmentWriter, steps: int) -> bool:
        """Have a policy that is as new as must be; false if stopped before there was one."""
        while waiting := self._waits_for(steps):
            # A learner may wait for this very data: hold nothing back while waiting for it.
            self._published(writer.flush())
            self._note(waiting=waiting)
            self._report()
            if self._should_stop():
                return False
            time.sleep(POLICY_PERIOD_S)
        warning = self._pool.warning or self._tally.warning
        policy = self._pool.policy
        assert policy is not None, "nothing is waited for any more"
        self._note(
            waiting="",
            warning=warning,
            policy_version=policy.version,
            action_limit=policy.action_limit,
        )
        return True

    def _waits_for(self, steps: int) -> str:
        """What must happen before a policy may drive, or an empty string."""
        policy = self._pool.poll()
        if policy is None:
            return f"waiting for the first policy in {self._pool.path}"
        late = self._settings.lead.waits_for(steps, policy.updates)
        return late and f"waiting for the learner of {self._pool.path}: {late}"

    def _begin(self, writer: SegmentWriter, rollout: Rollout, choice: Choice, index: int) -> None:
        start = rollout.start
        policy = self._pool.policy if choice.is_policy else None
        if policy is not None and policy.action_limit < 1.0:
            self._note(limited_episodes=self._tally.limited_episodes + 1)
        info = EpisodeInfo(
            index=index,
            seed=rollout.seed,
            scenario=self._arena.scenario,
            world=self._arena.name,
            town=start.town,
            weather=start.weather,
            driver=choice.spec.name,
            policy_version=policy.version if policy else -1,
            policy_digest=policy.digest if policy else "",
            exploration_noise=choice.spec.sigma,
        )
        writer.begin_episode(
            info,
            frame=start.image,
            vector=start.vector,
            frame_id=start.frame_id,
            sim_time_s=start.sim_time_s,
        )

    def _drive(self, writer: SegmentWriter, transitions: Iterator[Transition]) -> None:
        episode_return, before = 0.0, self._steps
        try:
            for transition in transitions:
                _write(writer, transition)
                step = transition.step
                episode_return += sum(step.reward_terms.tolist())
                self._steps += 1
                self._report()
                if step.terminated or step.truncated:
                    published = writer.end_episode(step.reason, self._arena.events())
                    self._end(published, step.reason, episode_return)
                elif self._should_stop():
                    published = writer.truncate_episode(STOP_REASON, self._arena.events())
                    self._end(published, STOP_REASON, episode_return)
                    return
        except WorldError as error:
            reason = error.reason if isinstance(error, WorldLost) else FAULT_REASON
            published = writer.truncate_episode(reason, self._arena.events())
            if self._steps > before:  # an episode without a step is dropped
                self._end(published, reason, episode_return)
            raise

    def _end(self, segment: PublishedSegment | None, reason: str, episode_return: float) -> None:
        self._tally = self._tally.with_end(reason, episode_return)
        self._published(segment)

    def _published(self, segment: PublishedSegment | None) -> None:
        if segment is not None:
            self._note(
                segments=self._tally.segments + 1,
                size_bytes=self._tally.size_bytes + segment.size_bytes,
            )

    def _note(self, **changes: Any) -> None:  # noqa: ANN401 - fields of Tally
        changed = dataclasses.replace(self._tally, **changes)
        if changed != self._tally:
            self._tally = changed
            self._report(force=True)

    def _report(self, *, force: bool = False) -> None:
        now_s = time.monotonic()
        if force or now_s - self._reported_s >= REPORT_PERIOD_S:
            self._reported_s = now_s
            self._tally = dataclasses.replace(self._tally, steps=self._steps)
            self._on_tally(self._tally)


def _write(writer: SegmentWriter, transition: Transition) -> None:
    step = transition.step
    writer.step(
        action=transition.action,
        reward=None,
        reward_terms=step.reward_terms,
        frame=step.image,
        vector=step.vector,
        terminated=step.terminated,
        truncated=step.truncated,
        frame_id=step.frame_id,
        sim_time_s=step.sim_time_s,
    )
