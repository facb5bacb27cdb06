"""What is published in the datasets of a sampler, and which segments of it are wanted."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from avtd3.store.dataset import Dataset, Refusal, Snapshot
from avtd3.store.errors import DatasetError, SegmentCorruptError, SegmentNotFoundError
from avtd3.store.replaced import unseen_episodes
from avtd3.store.replay.cache import CachedSegment
from avtd3.store.replay.eligible import Eligibility
from avtd3.store.replay.episodes import EpisodeSummary
from avtd3.store.replay.held_out import HeldOutEpisode, read_episode
from avtd3.store.replay.refresh import Refusals, name_refused
from avtd3.store.replay.rows import Key
from avtd3.store.replay.selection import ReplayConfig, check_datasets, select_segments
from avtd3.store.segment import Segment


class Following:
    """The newest snapshot of each dataset, what may be drawn of it, and what is refused."""

    def __init__(self, datasets: Sequence[Dataset], config: ReplayConfig) -> None:
        """Take a snapshot of each.

        Raises:
            ConfigError: No dataset, one given twice, or not one weight for each.
            SpecError: The datasets hold different data.
        """
        self.datasets = check_datasets(datasets, config)
        self.eligible = Eligibility(config)
        self.refusals = Refusals([dataset.path for dataset in self.datasets])
        self._config = config
        # Files of segments that the capacity leaves out need not be there; see `wanted`.
        check = not self.eligible.takes_all
        self._snapshots = [dataset.snapshot(check_files=check) for dataset in self.datasets]
        self._held: Mapping[Key, Segment] = {}

    def look_again(self) -> tuple[Path, ...]:
        """Take new snapshots; returns the datasets that are absent, whose old ones are kept."""
        numbers = range(len(self.datasets))
        return tuple(self.datasets[n].path for n in numbers if self._is_absent(n))

    def begin(self) -> None:
        """Let the refusals follow the snapshots; before `wanted` is asked for."""
        self.refusals.follow(self._snapshots)

    def wanted(self) -> dict[Key, Segment]:
        """The segments to hold; refuses those of whose episodes nothing can be read."""
        while True:
            segments = self._listed()
            self.refusals.add(unreadable := self.eligible.look(segments))
            readable = {key: segments[key] for key in segments if key not in unreadable}
            chosen = select_segments(self.eligible.steps(readable), self._config)
            found = {key: segments[key] for key in chosen}
            if not self._leave_out_torn(found):
                return found

    def _leave_out_torn(self, found: Mapping[Key, Segment]) -> bool:
        """Let the snapshots refuse what is torn, so that it is tried again once it is whole."""
        torn: dict[Key, Refusal] = {}
        for key, segment in found.items():
            try:
                segment.check_files()
            except (SegmentCorruptError, SegmentNotFoundError) as error:
                torn[key] = Refusal(segment_id=segment.id, reason=str(error))
        for number in {number for number, _ in torn}:
            old = self._snapshots[number]
            self._snapshots[number] = Snapshot(
                segments=tuple(s for s in old.segments if (number, s.id) not in torn),
                refused=(*old.refused, *(torn[key] for key in torn if key[0] == number)),
            )
        if torn:
            self.begin()
        return bool(torn)

    def news(
        self, held: Mapping[Key, Segment], added: Mapping[Key, CachedSegment]
    ) -> list[EpisodeSummary]:
        """The episodes that added segments bring: those that may be drawn and were not held.

        A segment that was merged from others brings nothing that those had brought.

        Args:
            held: All segments that are held from now on.
            added: Those of them that were not held at the last call.

        Returns:
            One for each added segment, sorted by key.
        """
        before, self._held = self._held, held
        found = []
        for key in sorted(added):
            is_new = np.zeros(len(added[key].episodes), np.bool_)
            is_new[self.eligible.drawable(key)] = True
            of_same = (old for (number, _), old in before.items() if number == key[0])
            is_new &= unseen_episodes(held[key], of_same)
            found.append(added[key].episodes.choose(is_new))
        return found

    def held_out(self, lock: threading.Lock, limit: int | None) -> Iterator[HeldOutEpisode]:
        """See `Sampler.held_out`; holds the lock only where it looks up what there is."""
        with lock:
            segments, chosen = self._listed(), self.eligible.held_out()
        found = 0
        for key, number in chosen:
            if found == limit:
                return
            try:
                episode = read_episode(segments[key], number, self.datasets[0].spec)
            except SegmentNotFoundError:
                continue  # pruned or merged since; the next refresh knows
            except (SegmentCorruptError, OSError) as error:
                with lock:
                    self.refusals.add({key: str(error)})
                continue
            found += 1
            yield episode

    def why_empty(self) -> str:
        """For an error where nothing can be drawn: what there is, and the mend."""
        paths = ", ".join(str(dataset.path) for dataset in self.datasets)
        if left_out := self.eligible.describe():
            return f"nothing to draw from {paths}: {left_out}"
        if refused := self.refusals.all():
            return f"nothing to draw from {paths}: {name_refused(refused)}"
        return (
            f"nothing to draw from {paths}: no segment is published yet; "
            "run `avtd3 collect` and refresh"
        )

    def _listed(self) -> dict[Key, Segment]:
        """All published segments that are not refused."""
        return {
            (number, segment.id): segment
            for number, snapshot in enumerate(self._snapshots)
            for segment in snapshot.segments
            if (number, segment.id) not in self.refusals
        }

    def _is_absent(self, number: int) -> bool:
        """Take a new snapshot, unless the dataset is as good as unmounted."""
        old = self._snapshots[number]
        try:
            new = self.datasets[number].refresh(old)
        except DatasetError:
            return True
        if old.segments and not new.segments:
            return True
        self._snapshots[number] = new
        return False
