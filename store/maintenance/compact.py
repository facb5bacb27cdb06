"""Merge small neighbouring segments of a dataset without changing any episode.

`compact` selects what to merge, writes each merged segment, verifies it, publishes it with one
rename, and removes the segments that it replaces; see docs/decisions/006-housekeeping.md.
"""

import dataclasses
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    SEGMENT_ERRORS,
    Avtd3Error,
    ConfigError,
    SegmentCorruptError,
    SegmentUnreadableError,
    SpecError,
)
from avtd3.store.files import canonical_json, is_directory, sha256
from avtd3.store.format.codec import FrameCodec
from avtd3.store.format.layout import frames_array
from avtd3.store.format.manifest import FRAMES_CHECKSUMS, Limits, read_manifest
from avtd3.store.maintenance.pins import read_pins
from avtd3.store.maintenance.removal import (
    MaintenanceReport,
    Problems,
    exclusive,
    find_leftovers,
    remove,
    remove_leftovers,
)
from avtd3.store.render.text import WorkProgress, file_size, join_lines, plural
from avtd3.store.replaced import (
    ORIGIN,
    RELABEL,
    RENDER,
    REPLACES,
    UPGRADE,
    episode_digests,
    origins,
)
from avtd3.store.seal import (
    OBSERVATION_COLUMNS,
    STEP_COLUMNS,
    EncodedFrames,
    EndedEpisode,
    StepColumns,
    base_provenance,
    frame_buffers,
    seal_files,
    stored_codec,
    stored_codecs,
)
from avtd3.store.segment import Segment
from avtd3.store.staging import publish

MAX_TARGET_STEPS = 131_072
"""Largest target: a merged segment is built in memory, about 4 kB per step of 84x84 frames."""
MAX_RAW_BYTES = 4 * 1024**3
"""Largest decoded size of a merged segment, for the same reason: large streams take more."""
MAX_ORIGINS = 1000
"""Most collected segments in a merged one, so that its manifest stays small."""
COLLECTOR = "compact"
"""Collector in the provenance of merged segments."""
_SEALING_KEYS = frozenset(
    ("avtd3", "python", "host", "collector", "sealed_at", FRAMES_CHECKSUMS, REPLACES, ORIGIN)
)
"""Keys of the provenance that describe how a segment was sealed, not its data."""
_RANDOM = re.compile(r"(.+)-[0-9a-f]{8}")
_ATTEMPTS = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompactReport(MaintenanceReport):
    """What `compact` did, or would do."""

    dry_run: bool
    segments_before: int
    segments_after: int
    merged_segments: int
    merged_steps: int
    bytes_before: int
    """Size of the segments that were merged."""
    bytes_after: int
    """Size of the new segments; 0 in a dry run."""
    leftovers: int
    """Segments that an earlier compaction had replaced but not removed."""
    pinned: int
    """Segments that were not merged because they are pinned."""

    def summary(self) -> str:
        """Format the report for a terminal."""
        verb = "would merge" if self.dry_run else "merged"
        lines = [
            f"{verb} {plural(self.merged_segments, 'segment')} of {self.merged_steps:,} steps: "
            f"{self.segments_before:,} -> {plural(self.segments_after, 'segment')}"
        ]
        if self.bytes_after:
            lines.append(f"{file_size(self.bytes_before)} -> {file_size(self.bytes_after)}")
        if self.leftovers:
            verb = "would remove" if self.dry_run else "removed"
            lines.append(f"{verb} {plural(self.leftovers, 'segment')} merged earlier")
        if self.pinned:
            lines.append(f"{plural(self.pinned, 'segment')} pinned")
        return join_lines([*lines, *self.notes("not merged")])


def compact(
    path: Path,
    *,
    target_steps: int = 16_384,
    dry_run: bool = False,
    clock: Callable[[], float] = time.time,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[WorkProgress], None] = lambda _: None,
) -> CompactReport:
    """Merge groups of small neighbouring segments; all episodes stay in the same order.

    A segment is small if it has at most half of ``target_steps``, so that a growing dataset is not
    rewritten each time. A group ends at a large, pinned or unreadable segment, and where the
    config, plan or codec in the provenance changes.

    Collectors may add to the dataset and learners may read it meanwhile. ``should_stop`` is called
    before each merge; True ends the command.
    """
    if not 2 <= target_steps <= MAX_TARGET_STEPS:
        raise ConfigError(f"target_steps is {target_steps}, expected 2..{MAX_TARGET_STEPS}")
    dataset = Dataset.open(path)
    if dry_run:
        return _Compaction(dataset, target_steps).report(dry_run=True, stopped=False)
    with exclusive(dataset):
        work = _Compaction(dataset, target_steps)
        stopped = work.run(clock, should_stop, on_progress)
        return work.report(dry_run=False, stopped=stopped)


class _Compaction:
    """One compaction of a dataset."""

    def __init__(self, dataset: Dataset, target_steps: int) -> None:
        self._dataset = dataset
        self._pins = read_pins(dataset).keys()
        self._snapshot = dataset.snapshot()
        self._names = sorted([*dataset.segment_ids(), *dataset.unsealed_ids()])
        self._problems = Problems()
        self._leftovers = find_leftovers(self._snapshot)
        self._groups = [group for group in self._plan(target_steps) if len(group) > 1]
        self._done: list[Sequence[Segment]] = []
        self._bytes_after = 0
        self._removed = 0

    def _plan(self, target_steps: int) -> Iterator[list[Segment]]:
        """Yield groups of neighbouring segments that can be merged, some of one segment or none."""
        visible = {segment.id: segment for segment in self._snapshot.segments}
        claimed = self._claimed_by_refused()
        if claimed is None:
            return
        hidden = {segment.id for segment in self._snapshot.replaced}
        group: list[Segment] = []
        for name in self._names:
            if name in hidden:
                continue
            segment = visible.get(name)
            if (
                segment is None
                or name in self._pins
                or name in claimed
                or 2 * segment.steps > target_steps
            ):
                yield group
                group = []
            elif group and not _fits(group, segment, target_steps):
                yield group
                group = [segment]
            else:
                group.append(segment)
        yield group

    def _claimed_by_refused(self) -> frozenset[str] | None:
        """Return the segments that damaged or unreadable ones claim to replace; None if unknown.

        Merged into another segment, their episodes would be there twice once the refused one can be
        read.
        """
        claimed = frozenset[str]()
        is_known = True
        for refusal in self._snapshot.refused:
            listed = None
            try:
                manifest = read_manifest(self._dataset.segments_path / refusal.segment_id)
                listed = manifest.provenance.get(REPLACES)
            except SegmentUnreadableError:
                is_known = False
            except Avtd3Error:
                pass  # no reader can open it
            own = frozenset(listed) if isinstance(listed, dict) else frozenset()
            if refusal.is_unreadable or own.intersection(self._names):
                self._problems.add(refusal)
            claimed |= own
        return claimed if is_known else None

    def run(
        self,
        clock: Callable[[], float],
        should_stop: Callable[[], bool],
        on_progress: Callable[[WorkProgress], None],
    ) -> bool:
        """Remove leftovers and merge all groups; return whether the work was interrupted."""
        wanted = set(self._leftovers) - self._pins
        removed = remove_leftovers(self._dataset, self._snapshot, wanted, self._problems)
        self._removed += len(removed)
        total = sum(map(len, self._groups))
        done = 0
        for group in self._groups:
            if should_stop():
                return True
            try:
                self._merge(group, clock())
            except (*SEGMENT_ERRORS, SpecError) as error:
                self._problems.add(error)
            done += len(group)
            on_progress(WorkProgress(verb="merged", done=done, total=total))
        return False

    def _merge(self, group: Sequence[Segment], now_s: float) -> None:
        name = merged_name(group, self._names)
        if name is None:
            raise SpecError(f"segment {group[0].id}: no id of a merged segment keeps the order")
        visible = {segment.id for segment in self._snapshot.segments}
        self._bytes_after += _merge_segments(self._dataset, group, name, visible, now_s=now_s)
        self._done.append(group)
        remove(self._dataset, group, name)

    def report(self, *, dry_run: bool, stopped: bool) -> CompactReport:
        """Return what was done or, in a dry run, what would be done."""
        groups = self._groups if dry_run else self._done
        merged = [segment for group in groups for segment in group]
        before = len(self._snapshot.segments)
        return CompactReport(
            dataset=str(self._dataset.path),
            dry_run=dry_run,
            segments_before=before,
            segments_after=before - len(merged) + len(groups),
            merged_segments=len(merged),
            merged_steps=sum(segment.steps for segment in merged),
            bytes_before=sum(segment.size_bytes for segment in merged),
            bytes_after=self._bytes_after,
            leftovers=len(self._leftovers) if dry_run else self._removed,
            pinned=sum(segment.id in self._pins for segment in self._snapshot.segments),
            problems=tuple(self._problems.texts),
            unreadable=self._problems.unreadable,
            stopped=stopped,
        )


def _fits(group: Sequence[Segment], segment: Segment, target_steps: int) -> bool:
    """Return whether a segment can be merged with a group."""
    steps = sum(member.steps for member in group) + segment.steps
    raw_bytes = sum(member.raw_bytes for member in group) + segment.raw_bytes
    collected = sum(len(origins(member)) for member in group) + len(origins(segment))
    return (
        steps <= target_steps
        and raw_bytes <= MAX_RAW_BYTES
        and collected <= MAX_ORIGINS
        and _data_provenance(group[0]) == _data_provenance(segment)
    )


def merged_name(group: Sequence[Segment], names: Sequence[str]) -> str | None:
    """Return an id that sorts in place of a group and depends only on what is merged.

    Two machines that merge the same segments in two copies of a dataset thus make the same segment,
    and joining the copies keeps one. It is None if no id that was tried keeps the order.
    """
    content = canonical_json([[segment.id, segment.manifest_digest] for segment in group])
    merged = {segment.id for segment in group}
    others = [name for name in names if name not in merged]
    before = max((name for name in others if name < group[0].id), default="")
    behind = min((name for name in others if name > group[0].id), default=None)
    match = _RANDOM.fullmatch(group[0].id)
    for attempt in range(_ATTEMPTS):
        tail = sha256(content + str(attempt).encode())[:8]
        # The last attempt appends to the whole id, which always sorts behind the segment itself.
        base = match[1] if match and attempt + 1 < _ATTEMPTS else group[0].id
        name = f"{base}-{tail}"
        if before < name and (behind is None or name < behind) and name not in merged:
            return name
    return None


def _merge_segments(
    dataset: Dataset,
    sources: Sequence[Segment],
    segment_id: str,
    visible: Collection[str],
    *,
    now_s: float,
) -> int:
    """Publish a segment that replaces others, after it is read back and compared with them.

    Returns:
        Size of the new segment in bytes.
    """
    expected = [digest for source in sources for digest in episode_digests(source)]
    codecs = stored_codecs(sources[0])
    files = seal_files(
        segment_id,
        dataset,
        _join_columns(dataset, sources),
        [episode for source in sources for episode in _episodes(source)],
        frames=_join_frames(sources, codecs),
        codec=stored_codec(sources[0].provenance),
        provenance=_provenance(sources, visible, now_s),
    )

    def check(staging: Path) -> None:
        written = Segment(staging, dataset.spec, dataset.spec_digest, Limits())
        written.verify()
        if list(episode_digests(written)) != expected:
            names = ", ".join(source.id for source in sources)
            raise SegmentCorruptError(
                f"{staging} does not read back as the episodes of {names}; nothing was changed. "
                "Check the memory and the disk of this machine, then try again"
            )
        for source in sources:
            if not is_directory(source.path):
                raise SegmentCorruptError(
                    f"segment {source.id} was removed while it was merged; try again"
                )

    publish(
        dataset.staging_path / segment_id,
        dataset.segments_path / segment_id,
        files,
        check=check,
    )
    return sum(map(len, files.values()))


def _data_provenance(segment: Segment) -> dict[str, Any]:
    """Return the part of the provenance that merged segments must share: config, plan and codec.

    Of a derived segment it includes the change and the dataset, but not the source segment.
    """
    shared = {key: value for key, value in segment.provenance.items() if key not in _SEALING_KEYS}
    for key in (RELABEL, RENDER, UPGRADE):
        if key in shared:
            shared[key] = _without_segment(shared[key])
    return shared


def _without_segment(change: Any) -> Any:  # noqa: ANN401 - any JSON value
    if not isinstance(change, dict):
        return change
    return {
        key: _without_segment(value) if key == "before" else value
        for key, value in change.items()
        if key not in ("segment_id", "digest")
    }


def _provenance(
    sources: Sequence[Segment], visible: Collection[str], now_s: float
) -> dict[str, Any]:
    replaced: dict[str, Any] = {}
    for source in sources:
        earlier = source.provenance.get(REPLACES)
        if isinstance(earlier, dict):
            replaced |= {name: digest for name, digest in earlier.items() if name not in visible}
    replaced |= {source.id: source.manifest_digest for source in sources}
    given = {
        **_data_provenance(sources[0]),
        REPLACES: replaced,
        ORIGIN: [origin for source in sources for origin in origins(source)],
    }
    return {**base_provenance(given, COLLECTOR), "sealed_at": now_s}


def _join_columns(dataset: Dataset, sources: Sequence[Segment]) -> StepColumns:
    columns = StepColumns(dataset.spec, sum(source.observations for source in sources))
    observations = steps = 0
    for source in sources:
        for names, start, rows in (
            (OBSERVATION_COLUMNS, observations, source.observations),
            (STEP_COLUMNS, steps, source.steps),
        ):
            for name in names:
                if name in source.names:
                    getattr(columns, name)[start : start + rows] = source.read(name)
        observations += source.observations
        steps += source.steps
    return columns


def _join_frames(
    sources: Sequence[Segment], codecs: Mapping[str, FrameCodec]
) -> dict[str, EncodedFrames]:
    spec = sources[0].spec
    frames = frame_buffers(spec, codecs)
    for stream in spec.images:
        buffer = frames[frames_array(spec, stream)]
        for source in sources:
            for _, part in source.frame_parts(stream):
                for frame in part:
                    buffer.append(frame)
    rows = sum(source.observations for source in sources)
    return {name: buffer.encoded(rows) for name, buffer in frames.items()}


def _episodes(segment: Segment) -> Iterator[EndedEpisode]:
    table, events = segment.episode_table(), segment.events()
    worlds, labels = segment.world_records(), segment.labels()
    for n in range(segment.episodes):
        yield EndedEpisode(
            info=table.info(n),
            length=int(table.length[n]),
            episode_return=float(table.episode_return[n]),
            end_reason=table.end_reason[n],
            wall_time=float(table.wall_time[n]),
            events=() if events is None else events.of_episode(n),
            world=None if worlds is None else worlds[n],
            labels=None if labels is None else labels[n],
        )
