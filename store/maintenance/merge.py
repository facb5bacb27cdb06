"""Several segments into one: the same episodes in the same order, byte for byte.

Frames are decoded and encoded again, because an episode rarely begins at a chunk's first frame in
both segments. All else is copied, column by column, into what a writer hands to the sealing.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from avtd3.store.columns import OBSERVATION_COLUMNS, STEP_COLUMNS, FrameBuffer, StepColumns
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, SegmentCorruptError
from avtd3.store.format.binding import BINDING
from avtd3.store.format.codec import FrameCodec
from avtd3.store.format.layout import MANIFEST_FILE
from avtd3.store.format.limits import Limits
from avtd3.store.maintenance.identity import episode_digests
from avtd3.store.maintenance.removal import clear_staging
from avtd3.store.replaced import ORIGIN, RELABEL, REPLACES, origins
from avtd3.store.seal import EndedEpisode, EpisodeInfo, base_provenance, seal_files
from avtd3.store.segment import Segment
from avtd3.store.staging import publish

COLLECTOR = "compact"
"""What stands in a merged segment's provenance as its collector."""
_OWN_KEYS = frozenset(
    ("avtd3", "python", "host", "collector", "sealed_at", BINDING, REPLACES, ORIGIN)
)
"""Keys of the provenance that say who sealed a segment, not what its data are."""
_FRAMES_AT_ONCE = 512


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
            info=EpisodeInfo(
                index=int(table.index[n]),
                seed=int(table.seed[n]),
                scenario=int(table.scenario[n]),
                world=table.world[n],
                town=table.town[n],
                weather=table.weather[n],
                driver=table.driver[n],
                policy_version=int(table.policy_version[n]),
                policy_digest=table.policy_digest[n],
                exploration_noise=float(table.exploration_noise[n]),
            ),
            length=int(table.length[n]),
            episode_return=float(table.episode_return[n]),
            end_reason=table.end_reason[n],
            wall_time=float(table.wall_time[n]),
            events=() if events is None else events.of_episode(n),
        )
