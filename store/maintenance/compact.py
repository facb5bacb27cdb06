"""What an episode is, in one digest: the same in whichever segment it lies, however encoded."""

import dataclasses
import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from avtd3.store.dataset import Dataset
from avtd3.store.episode_table import OWN_ATTRIBUTES, EpisodeTable
from avtd3.store.errors import ConfigError, SegmentCorruptError, SegmentNotFoundError, SpecError
from avtd3.store.files import canonical_json, sha256
from avtd3.store.format.codec import FrameCodec
from avtd3.store.format.layout import EPISODE_STRINGS, MANIFEST_FILE
from avtd3.store.format.manifest import FRAMES_CHECKSUMS, Limits
from avtd3.store.maintenance.pins import read_pins
from avtd3.store.maintenance.removal import (
    MaintenanceProgress,
    clear_staging,
    empty_trash,
    exclusive,
    find_leftovers,
    remove_leftovers,
    remove_segments,
)
from avtd3.store.render.text import file_size, plural
from avtd3.store.replaced import ORIGIN, RELABEL, REPLACES, origins, replaced_ids
from avtd3.store.seal import (
    OBSERVATION_COLUMNS,
    STEP_COLUMNS,
    EndedEpisode,
    FrameBuffer,
    StepColumns,
    base_provenance,
    seal_files,
)
from avtd3.store.segment import Segment
from avtd3.store.staging import publish

_FRAMES_AT_ONCE = 512
_OFFSET = "episode_offset"
"""The one column that says where an episode lies, not what it is."""


def episode_digests(segment: Segment) -> Iterator[str]:
    """SHA-256 of each episode of a segment, in order, in hexadecimal.

    It covers the decoded bytes of the episode's rows of every array, frames and wall time
    included, with names, dtypes and row shapes, the strings, the attributes and the events; not
    where in the segment they lie.

    Raises:
        SegmentNotFoundError: The segment was removed.
        SegmentCorruptError: Its bytes are not those that were published.
    """
    table = segment.episode_table()
    names = [name for name in sorted(segment.names) if name not in (_OFFSET, "frames")]
    arrays = {name: segment.read(name) for name in names if name not in EPISODE_STRINGS}
    events = segment.events()
    strings = {name: segment.read_strings(name) for name in names if name in EPISODE_STRINGS}
    for number in range(segment.episodes):
        digest = hashlib.sha256()
        for name, values in arrays.items():
            rows = values[_rows(segment, name, len(values), table, number)]
            digest.update(f"{name} {rows.dtype.str} {rows.shape}\n".encode())
            digest.update(rows.tobytes())
        for name, texts in strings.items():
            text = texts[number].encode("utf-8", "surrogatepass")
            digest.update(f"{name} {len(text)}\n".encode() + text)
        for name, value in sorted(table.attributes_of(number).items()):
            if name not in OWN_ATTRIBUTES:
                number_or_text = value if isinstance(value, str) else float(value)
                digest.update(f"{name} {number_or_text!r}\n".encode())
        for event in () if events is None else events.of_episode(number):
            digest.update(f"{event}\n".encode("utf-8", "surrogatepass"))
        for frames in _frames(segment, table, number):
            digest.update(frames.data)
        yield digest.hexdigest()


def _rows(segment: Segment, name: str, rows: int, table: EpisodeTable, number: int) -> slice:
    """An episode's rows of an array, told by the array's name and length."""
    if name.startswith("episode_"):
        return slice(number, number + 1)
    start, length = int(table.offset[number]), int(table.length[number])
    if rows == segment.steps:
        return slice(start, start + length)
    return slice(start + number, start + number + length + 1)  # observations: always more


def _frames(segment: Segment, table: EpisodeTable, number: int) -> Iterator[NDArray[Any]]:
    if segment.spec.image is None:
        return
    start = int(table.observation_offset[number])
    stop = start + int(table.length[number]) + 1
    for first in range(start, stop, _FRAMES_AT_ONCE):
        yield segment.read_frames(first, min(first + _FRAMES_AT_ONCE, stop))


COLLECTOR = "compact"
"""What stands in a merged segment's provenance as its collector."""
_OWN_KEYS = frozenset(
    ("avtd3", "python", "host", "collector", "sealed_at", FRAMES_CHECKSUMS, REPLACES, ORIGIN)
)
"""Keys of the provenance that say who sealed a segment, not what its data are."""


def data_provenance(segment: Segment) -> dict[str, Any]:
    """The part of a segment's provenance that merged segments must share: config, plan, codec.

    Of a relabelling that is the weights and the dataset, not which segment was relabelled.
    """
    shared = {key: value for key, value in segment.provenance.items() if key not in _OWN_KEYS}
    if RELABEL in shared:
        shared[RELABEL] = _without_segment(shared[RELABEL])
    return shared


def _without_segment(told: Any) -> Any:  # noqa: ANN401 - any JSON value
    if not isinstance(told, dict):
        return told
    return {
        key: _without_segment(value) if key == "before" else value
        for key, value in told.items()
        if key not in ("segment_id", "digest")
    }


def merge(dataset: Dataset, sources: Sequence[Segment], segment_id: str, *, now_s: float) -> int:
    """Publish one segment in place of several, whose readers then leave those out.

    What was written is read again, and each episode's digest compared, before anyone can see it.

    Args:
        dataset: Where they lie.
        sources: At least one, in order, of equal `data_provenance`.
        segment_id: Name of the new segment.
        now_s: Seconds since 1970.

    Returns:
        Bytes of the new segment.

    Raises:
        SegmentNotFoundError: A source was removed meanwhile.
        SegmentCorruptError: A source is damaged, or what was written is not what was read.
        SpecError: A source holds what no writer would take in.
        StorageError: The disk is full or not writable.
    """
    expected = [digest for source in sources for digest in episode_digests(source)]
    codec = _codec(sources[0].provenance)
    files = seal_files(
        segment_id,
        dataset,
        _join_columns(dataset, sources),
        [episode for source in sources for episode in _episodes(source)],
        chunks=_join_frames(sources, codec),
        codec=codec,
        provenance=_provenance(sources, now_s),
    )

    def check(staging: Path) -> None:
        written = Segment(staging, dataset.spec, dataset.spec_digest, Limits())
        written.verify()
        if list(episode_digests(written)) != expected:
            raise SegmentCorruptError(
                f"{staging} does not read back as the episodes of {_names(sources)}, nothing was "
                "changed; check the memory and the disk of this machine, then try again"
            )
        for source in sources:
            if not source.path.is_dir():
                raise SegmentCorruptError(
                    f"segment {source.id} was removed while it was merged; try again"
                )

    clear_staging(dataset, segment_id)
    publish(
        dataset.staging_path / segment_id,
        dataset.segments_path / segment_id,
        files,
        MANIFEST_FILE,
        check=check,
    )
    return sum(map(len, files.values()))


def _names(sources: Sequence[Segment]) -> str:
    return ", ".join(source.id for source in sources)


def _codec(provenance: Mapping[str, Any]) -> FrameCodec:
    """The codec that the sources were written with, if this version knows it."""
    settings = provenance.get("codec")
    known = {field.name for field in dataclasses.fields(FrameCodec)}
    if not isinstance(settings, dict) or not settings.keys() <= known:
        return FrameCodec()
    try:
        return FrameCodec(**settings)
    except ConfigError:
        return FrameCodec()


def _provenance(sources: Sequence[Segment], now_s: float) -> dict[str, Any]:
    replaced: dict[str, str] = {}
    for source in sources:
        earlier = source.provenance.get(REPLACES)
        replaced |= earlier if isinstance(earlier, dict) else {}
        replaced[source.id] = source.manifest_digest
    given = {
        **data_provenance(sources[0]),
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


def _join_frames(sources: Sequence[Segment], codec: FrameCodec) -> list[bytes] | None:
    image = sources[0].spec.image
    if image is None:
        return None
    frames = FrameBuffer(codec, image.frame_shape)
    for source in sources:
        for start in range(0, source.observations, _FRAMES_AT_ONCE):
            stop = min(start + _FRAMES_AT_ONCE, source.observations)
            for frame in source.read_frames(start, stop):
                frames.append(frame)
    return frames.encoded(sum(source.observations for source in sources))


def _episodes(segment: Segment) -> Iterator[EndedEpisode]:
    table, events = segment.episode_table(), segment.events()
    for n in range(segment.episodes):
        yield EndedEpisode(
            info=table.info(n),
            length=int(table.length[n]),
            episode_return=float(table.episode_return[n]),
            end_reason=table.end_reason[n],
            wall_time=float(table.wall_time[n]),
            events=() if events is None else events.of_episode(n),
        )


MAX_TARGET_STEPS = 131_072
"""Largest target: a merged segment is put together in memory, some 4 kB a step of 84x84 frames."""
MAX_ORIGINS = 1000
"""Most segments that one is merged from, so that its manifest stays small."""
_RANDOM = re.compile(r"(.+)-[0-9a-f]{8}")
_ATTEMPTS = 64


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CompactReport:
    """What a compaction did, or would do."""

    dataset: str
    dry_run: bool
    segments_before: int
    """Segments that readers saw."""
    segments_after: int
    """Segments that they see now."""
    merged_segments: int
    """Segments that were merged."""
    merged_steps: int
    """Steps in them."""
    bytes_before: int
    """Bytes of the segments that were merged."""
    bytes_after: int
    """Bytes of what they became; 0 in a dry run."""
    leftovers: int
    """Segments that an earlier compaction had replaced and not yet removed."""
    pinned: int
    """Segments left alone because they are pinned."""
    problems: tuple[str, ...]
    """Runs that could not be merged, and why."""
    stopped: bool
    """Whether it was interrupted; what was done is done."""

    def document(self) -> dict[str, Any]:
        """The report as a JSON document."""
        return dataclasses.asdict(self) | {"problems": list(self.problems)}

    def summary(self) -> str:
        """The report in a few lines."""
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
        lines += [f"not merged: {problem}" for problem in self.problems]
        if self.stopped:
            lines.append("stopped early; run it again to go on")
        return "\n".join(lines)


def compact(
    path: Path,
    *,
    target_steps: int = 16_384,
    dry_run: bool = False,
    clock: Callable[[], float] = time.time,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[MaintenanceProgress], None] = lambda _: None,
) -> CompactReport:
    """Merge runs of small neighbouring segments; the same episodes stay in the same order.

    Small is a segment of at most half of ``target_steps``, so that a growing dataset is not
    written anew each time. Neighbours are merged if nothing lies between them (a pinned or an
    unreadable segment does), and if they have the same config, plan and codec in their provenance.

    Args:
        path: The dataset; collectors may add to it and learners read it meanwhile.
        target_steps: Most steps of a merged segment.
        dry_run: Only say what would be done.
        clock: Seconds since 1970.
        should_stop: Asked before each merge.
        on_progress: Told after each merge.

    Raises:
        DatasetError: There is no dataset, or its pins cannot be read.
        ConfigError: ``target_steps`` is out of range.
        StorageError: The disk is full, or another housekeeper is at work.
    """
    if not 2 <= target_steps <= MAX_TARGET_STEPS:
        raise ConfigError(f"target_steps is {target_steps}, expected 2..{MAX_TARGET_STEPS}")
    dataset = Dataset.open(path)
    if dry_run:
        return _Compaction(dataset, target_steps).report(dry_run=True, stopped=False)
    with exclusive(dataset):
        empty_trash(dataset)
        work = _Compaction(dataset, target_steps)
        stopped = work.run(clock, should_stop, on_progress)
        return work.report(dry_run=False, stopped=stopped)


class _Compaction:
    """One pass over a dataset."""

    def __init__(self, dataset: Dataset, target_steps: int) -> None:
        self._dataset = dataset
        self._pins = read_pins(dataset).keys()
        self._snapshot = dataset.snapshot()
        self._names = sorted([*dataset.segment_ids(), *dataset.unsealed_ids()])
        self._leftovers = find_leftovers(dataset, self._snapshot)
        self._runs = list(self._plan(target_steps))
        self._done: list[Sequence[Segment]] = []
        self._bytes_after = 0
        self._problems: list[str] = []
        self._removed = 0

    def _plan(self, target_steps: int) -> Iterator[list[Segment]]:
        """Runs of at least two segments to merge."""
        visible = {segment.id: segment for segment in self._snapshot.segments}
        hidden = replaced_ids(visible.values()) - visible.keys()
        run: list[Segment] = []
        for name in self._names:
            if name in hidden:
                continue
            segment = visible.get(name)
            is_small = segment is not None and 2 * segment.steps <= target_steps
            if segment is None or name in self._pins or not is_small:
                if len(run) > 1:
                    yield run
                run = []
                continue
            if run and not _fits(run, segment, target_steps):
                if len(run) > 1:
                    yield run
                run = []
            run.append(segment)
        if len(run) > 1:
            yield run

    def run(
        self,
        clock: Callable[[], float],
        should_stop: Callable[[], bool],
        on_progress: Callable[[MaintenanceProgress], None],
    ) -> bool:
        """Remove leftovers and merge; returns whether it was stopped early."""
        removed, problems = remove_leftovers(self._dataset, self._snapshot, self._pins)
        self._removed += len(removed)
        self._problems += problems
        total = sum(map(len, self._runs))
        done = 0
        for run in self._runs:
            if should_stop():
                return True
            try:
                self._merge(run, clock())
            except (SegmentCorruptError, SegmentNotFoundError, SpecError) as error:
                self._problems.append(str(error))
            done += len(run)
            on_progress(MaintenanceProgress(verb="merged", done=done, total=total))
        return False

    def _merge(self, run: Sequence[Segment], now_s: float) -> None:
        name = merged_name(run, self._names)
        if name is None:
            raise SpecError(f"segment {run[0].id}: no name would keep its place in the order")
        size = merge(self._dataset, run, name, now_s=now_s)
        self._bytes_after += size
        self._done.append(run)
        remove_segments(self._dataset, [segment.id for segment in run])

    def report(self, *, dry_run: bool, stopped: bool) -> CompactReport:
        """What was done; in a dry run, what would be."""
        runs = self._runs if dry_run else self._done
        merged = [segment for run in runs for segment in run]
        before = len(self._snapshot.segments)
        return CompactReport(
            dataset=str(self._dataset.path),
            dry_run=dry_run,
            segments_before=before,
            segments_after=before - len(merged) + len(runs),
            merged_segments=len(merged),
            merged_steps=sum(segment.steps for segment in merged),
            bytes_before=sum(segment.size_bytes for segment in merged),
            bytes_after=self._bytes_after,
            leftovers=len(self._leftovers) if dry_run else self._removed,
            pinned=sum(segment.id in self._pins for segment in self._snapshot.segments),
            problems=tuple(self._problems),
            stopped=stopped,
        )


def _fits(run: Sequence[Segment], segment: Segment, target_steps: int) -> bool:
    """Whether a run may go on with this segment."""
    steps = sum(member.steps for member in run) + segment.steps
    listed = sum(len(origins(member)) for member in run) + len(origins(segment))
    return (
        steps <= target_steps
        and listed <= MAX_ORIGINS
        and data_provenance(run[0]) == data_provenance(segment)
    )


def merged_name(run: Sequence[Segment], names: Sequence[str]) -> str | None:
    """A name that sorts where the run lies, and follows from what is merged alone.

    Two machines that merge the same segments of two copies so make the same segment, of which a
    later copying keeps one.

    Args:
        run: The segments to merge, in order.
        names: All names in the dataset, sorted.

    Returns:
        The name, or None if none of those tried keeps the order.
    """
    content = canonical_json([[segment.id, segment.manifest_digest] for segment in run])
    mine = {segment.id for segment in run}
    others = [name for name in names if name not in mine]
    before = max((name for name in others if name < run[0].id), default="")
    behind = min((name for name in others if name > run[0].id), default=None)
    match = _RANDOM.fullmatch(run[0].id)
    for attempt in range(_ATTEMPTS):
        tail = sha256(content + str(attempt).encode())[:8]
        # At last behind the whole name, which always sorts behind the segment itself.
        base = match[1] if match and attempt + 1 < _ATTEMPTS else run[0].id
        name = f"{base}-{tail}"
        if before < name and (behind is None or name < behind) and name not in mine:
            return name
    return None
