"""Draw the pictures of a dataset again, from the stored states of the world.

`rerender` makes a dataset of the same episodes with the pictures of another camera, of several
named streams, or in another weather; `check_pictures` compares pictures drawn again with the stored
ones.
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.scene import CARLA, CarlaRenderer, CarlaScene
from avtd3.collect.rollout import check_frame
from avtd3.collect.sim.scene import Scene, SceneChanges, SceneRenderer
from avtd3.collect.sim.streams import StreamCamera
from avtd3.collect.workers import run_jobs
from avtd3.store.dataset import Dataset, Refusal
from avtd3.store.errors import SEGMENT_ERRORS, ConfigError, DatasetError, RoadError, SpecError
from avtd3.store.files import canonical_json, sha256
from avtd3.store.format.layout import frames_array, segment_arrays
from avtd3.store.maintenance.derive import (
    Change,
    Derivation,
    DerivedTally,
    NewArrays,
    shared_line,
)
from avtd3.store.maintenance.removal import (
    MaintenanceReport,
    Problems,
    exclusive,
)
from avtd3.store.render.text import WorkProgress, join_lines, plural
from avtd3.store.replaced import RENDER
from avtd3.store.seal import (
    array_files,
    frame_buffers,
    frame_files,
    frames_provenance,
    stored_codecs,
)
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.world_record import SETUP, WorldRecord, record_layout, setup_column

_WEATHER = "episode_weather"
_NOTHING = np.empty(0, np.uint8)
_FAR = 1e9


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RenderReport(MaintenanceReport):
    """What `rerender` made, or what `check_pictures` found."""

    source: str
    """Path of the dataset with the states."""
    segments: int
    """Segments that were made or checked."""
    frames: int
    """Pictures that were drawn."""
    differing: int
    """Pictures that differ from the stored ones, in a check."""
    already_there: int
    """Segments that an earlier run had made."""
    bytes_written: int
    """Size of the files that were written."""
    bytes_shared: int
    """Size of the files that both datasets share through hard links."""
    is_check: bool
    """Whether pictures were compared and nothing was written."""

    def summary(self) -> str:
        """Format the report for a terminal."""
        drawn = f"{self.frames:,} pictures of {plural(self.segments, 'segment')}"
        if self.is_check:
            differing = f"{self.differing:,} differ" if self.differing else "none differs"
            lines = [f"drew {drawn} again: {differing} from the stored ones"]
        else:
            lines = [
                f"drew {drawn} into {self.dataset}",
                shared_line(self.bytes_written, self.bytes_shared),
            ]
        if self.already_there:
            lines.append(f"{plural(self.already_there, 'segment')} made before")
        return join_lines([*lines, *self.notes("skipped")])


class RenderJob(NamedTuple):
    """The work of one process: each `workers`-th of the segments that are missing."""

    source: Path
    target: Path | None
    """New dataset; None to compare with the stored pictures."""
    changes: SceneChanges
    segments: tuple[str, ...]
    servers: CarlaConfig
    """How to reach the CARLA servers that take pictures of states of theirs."""
    port: int = 0
    """Port of the server of this process."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RenderTally:
    """What a process has done so far."""

    derived: DerivedTally = dataclasses.field(default_factory=DerivedTally)
    frames: int = 0
    differing: int = 0


def rerender(
    source: Path,
    target: Path,
    changes: SceneChanges,
    *,
    workers: int = 1,
    servers: CarlaConfig | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[WorkProgress], None] = lambda _: None,
) -> RenderReport:
    """Make a dataset of the same episodes with other pictures, or add what is new to it.

    Files that do not change are shared by hard links. For episodes of CARLA, each of the servers
    takes the pictures of a part of the segments.
    """
    old = Dataset.open(source)
    if target.resolve() == source.resolve():
        raise ConfigError(f"{target} is the source dataset itself; name a new directory")
    spec, scene = _new_spec(old, changes)
    new = Dataset.create(target, spec)
    with exclusive(new):
        work = Derivation(old, new, _change(changes, old.spec, new.spec))
        names = tuple(segment.id for segment in work.missing)
        job = RenderJob(source, target, changes, names, servers or CarlaConfig())
        if isinstance(scene, CarlaScene) and scene.mountings():
            workers = len(job.servers.ports)  # each takes pictures of one state at a time
        report = _run(job, work.refused, workers, should_stop, on_progress)
        return dataclasses.replace(report, already_there=work.already_there)


def check_pictures(
    source: Path,
    *,
    workers: int = 1,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[WorkProgress], None] = lambda _: None,
) -> RenderReport:
    """Draw the pictures of a dataset again, compare them with the stored ones, change nothing."""
    old = Dataset.open(source)
    changes = SceneChanges()
    _, scene = _new_spec(old, changes)
    if isinstance(scene, CarlaScene) and not scene.views():
        raise ConfigError(
            f"the pictures of {source} are of cameras of CARLA, which takes no two equal pictures; "
            "only views from above can be compared"
        )
    snapshot = old.snapshot()
    names = tuple(segment.id for segment in snapshot.segments)
    job = RenderJob(source, None, changes, names, CarlaConfig())
    return _run(job, snapshot.refused, workers, should_stop, on_progress)


def _change(changes: SceneChanges, old: EpisodeSpec, new: EpisodeSpec) -> Change:
    document = changes.document()
    frames = {frames_array(spec, stream) for spec in (old, new) for stream in spec.images}
    tag = sha256(canonical_json(document))[:8]
    return Change(key=RENDER, document=document, tag=tag, arrays=(*frames, SETUP, _WEATHER))


AnyScene = Scene | CarlaScene


def _parse(setup: Mapping[str, Any]) -> AnyScene:
    """Read the setup of a record; raise SpecError if this version cannot draw it."""
    return CarlaScene.parse(setup) if setup.get("world") == CARLA else Scene.parse(setup)


def _new_spec(old: Dataset, changes: SceneChanges) -> tuple[EpisodeSpec, AnyScene]:
    """Return the spec of the new dataset, from the first stored state; and that, changed."""
    for segment in old.snapshot().segments:
        for record in segment.world_records() or ():
            if record is not None and old.spec.images:
                scene = _named(_parse(record.setup), old.spec)
                return _spec_of(old.spec, scene, changes), scene.changed(changes, 0)
    raise DatasetError(
        f"{old.path} stores no states of the world, from which pictures could be drawn; only the "
        "built-in simulator and CARLA store them, unless collect.record_world is false; "
        "collect again with one of them"
    )


def _named(scene: AnyScene, spec: EpisodeSpec) -> AnyScene:
    """Return a scene with the name of its camera, which `store upgrade` gives to it later."""
    if scene.streams or len(spec.streams) != 1:
        return scene
    settings = dataclasses.asdict(scene.camera)
    streams = {
        name: StreamCamera(**settings, stack=image.stack, stride=image.stride)
        for name, image in spec.streams.items()
    }
    return scene._replace(streams=streams)


def _spec_of(old: EpisodeSpec, scene: AnyScene, changes: SceneChanges) -> EpisodeSpec:
    """Return the spec of a scene with changes."""
    streams = changes.apply_to_streams(scene.camera, scene.streams)
    if streams:
        images = {name: camera.image for name, camera in streams.items()}
        return dataclasses.replace(old, image=None, streams=images)
    if old.image is None:
        raise DatasetError(
            "the stored states name no streams, but the dataset has some; it was changed by hand, "
            "expected states as a simulator stores them"
        )
    camera = changes.apply_to_camera(scene.camera)
    size = ImageSpec(channels=1, height=camera.height, width=camera.width, stack=old.image.stack)
    return dataclasses.replace(old, image=size)


def _run(
    whole: RenderJob,
    refused: Sequence[Refusal],
    workers: int,
    should_stop: Callable[[], bool],
    on_progress: Callable[[WorkProgress], None],
) -> RenderReport:
    total, is_check = len(whole.segments), whole.target is None
    count = max(1, min(workers, total))
    jobs = [
        whole._replace(segments=whole.segments[n::count], port=whole.servers.port_of(n))
        for n in range(count)
    ]

    def show(tallies: list[RenderTally | None]) -> None:
        done = sum(tally.derived.done for tally in tallies if tally is not None)
        verb = "compared" if is_check else "drew"
        on_progress(WorkProgress(verb=verb, done=done, total=total))

    tallies, lost = run_jobs(run_job, jobs, should_stop=should_stop, on_reports=show)
    known = [tally or RenderTally() for tally in tallies]
    derived = [tally.derived for tally in known]
    problems = Problems()
    problems.add(*refused, *(problem for tally in derived for problem in tally.problems), *lost)
    return RenderReport(
        source=str(whole.source),
        dataset=str(whole.target or whole.source),
        segments=sum(tally.segments for tally in derived),
        frames=sum(tally.frames for tally in known),
        differing=sum(tally.differing for tally in known),
        already_there=0,
        bytes_written=sum(tally.bytes_written for tally in derived),
        bytes_shared=sum(tally.bytes_shared for tally in derived),
        is_check=is_check,
        problems=tuple(problems.texts),
        unreadable=problems.unreadable + sum(tally.unreadable for tally in derived),
        stopped=sum(tally.done for tally in derived) < total,
    )


def run_job(
    job: RenderJob, should_stop: Callable[[], bool], on_tally: Callable[[RenderTally], None]
) -> RenderTally:
    """Draw the segments of one job."""
    with contextlib.closing(_Drawing(job)) as work:
        if job.target is None:
            return work.compare(should_stop, on_tally)
        return work.make(Dataset.open(job.target), should_stop, on_tally)


class _Drawing:
    """Draws the pictures of some segments."""

    def __init__(self, job: RenderJob) -> None:
        self._old, self._changes = Dataset.open(job.source), job.changes
        self._job = job
        self._renderer = SceneRenderer(job.source)
        self._carla = CarlaRenderer(job.source, job.servers, job.port)
        self._tally = RenderTally()

    def close(self) -> None:
        """Release the server."""
        self._carla.close()

    def make(
        self, new: Dataset, should_stop: Callable[[], bool], on_tally: Callable[[RenderTally], None]
    ) -> RenderTally:
        """Publish the segments with new pictures."""
        work = Derivation(self._old, new, _change(self._changes, self._old.spec, new.spec))
        names = set(self._job.segments)

        def show(derived: DerivedTally) -> None:
            self._tally = dataclasses.replace(self._tally, derived=derived)
            on_tally(self._tally)

        def arrays(segment: Segment) -> NewArrays:
            return self._new_arrays(segment, new.spec)

        segments = [segment for segment in work.segments if segment.id in names]
        work.run(segments, arrays, time.time, should_stop, show)
        return self._tally

    def compare(
        self, should_stop: Callable[[], bool], on_tally: Callable[[RenderTally], None]
    ) -> RenderTally:
        """Compare the pictures of the segments with the stored ones."""
        problems = Problems()
        for name in self._job.segments:
            if should_stop():
                break
            done = self._tally.derived.plus(done=1)
            try:
                segment = self._old.open_segment(name)
                scenes = self._scenes(segment)
                named = scenes[0][0].streams if scenes else {}
                stored = {
                    name: (frame for _, part in segment.frame_parts(name) for frame in part)
                    for name in named or segment.spec.images
                }
                for drawn in self._pictures(segment, scenes):
                    for name, frames in stored.items():
                        same = np.array_equal(next(frames), drawn.get(name, _NOTHING))
                        self._count(differing=not same)
                done = done.plus(segments=1, steps=segment.steps)
            except (*SEGMENT_ERRORS, SpecError) as error:
                problems.add(error)
            derived = dataclasses.replace(
                done, problems=tuple(problems.texts), unreadable=problems.unreadable
            )
            self._tally = dataclasses.replace(self._tally, derived=derived)
            on_tally(self._tally)
        return self._tally

    def _count(self, *, differing: bool = False) -> None:
        tally = self._tally
        self._tally = dataclasses.replace(
            tally, frames=tally.frames + 1, differing=tally.differing + differing
        )

    def _scenes(self, segment: Segment) -> list[tuple[AnyScene, WorldRecord]]:
        """Return the changed scene and the record of each episode of a segment."""
        records = segment.world_records() or [None] * segment.episodes
        seeds = segment.read("episode_seed").tolist()
        scenes = []
        for number, (record, seed) in enumerate(zip(records, seeds, strict=True)):
            where = f"segment {segment.id}, episode {number}"
            if record is None:
                raise SpecError(f"{where} has no state of the world, from which to draw it")
            try:
                scene = _named(_parse(record.setup), segment.spec)
            except SpecError as error:
                raise SpecError(f"{where}: {error}") from error
            if np.abs(record.ego).max(initial=0.0) > _FAR:
                raise SpecError(f"{where} has a car more than {_FAR:g} m away, which is not drawn")
            if self._job.target is None and isinstance(scene, CarlaScene):
                scene = scene._replace(streams=scene.views())
            scenes.append((scene.changed(self._changes, seed), record))
        return scenes

    def _pictures(
        self, segment: Segment, scenes: Sequence[tuple[AnyScene, WorldRecord]]
    ) -> Iterator[dict[str, NDArray[np.uint8]]]:
        """Draw the pictures of all observations of a segment, by stream."""
        for scene, record in scenes:
            try:
                if isinstance(scene, CarlaScene):
                    yield from self._carla.frames(scene, record)
                else:
                    yield from self._renderer.frames(scene, record)
            except (DatasetError, RoadError) as error:
                raise SpecError(f"segment {segment.id}: {error}") from error

    def _new_arrays(self, segment: Segment, spec: EpisodeSpec) -> NewArrays:
        scenes = self._scenes(segment)
        arrays = {stream: frames_array(spec, stream) for stream in spec.images}
        # A new stream has the codec of the first one that there was.
        codec = next(iter(stored_codecs(segment).values()))
        frames = frame_buffers(spec, dict.fromkeys(arrays.values(), codec))
        for pictures in self._pictures(segment, scenes):
            for stream, image in spec.images.items():
                check_frame(pictures.get(stream), image, f"of {segment.id}")
                frames[arrays[stream]].append(pictures[stream])
                self._count()
        layouts = segment_arrays(spec, **segment.counts)
        files: dict[str, bytes] = {}
        about: dict[str, dict[str, Any]] = {}
        for name, buffer in frames.items():
            encoded = buffer.encoded(segment.observations)
            shard, about[name] = frame_files(layouts[name], encoded)
            files |= shard
        provenance = frames_provenance(spec, about)
        setups = setup_column([scene.setup() for scene, _ in scenes])
        files |= array_files(record_layout(SETUP, len(setups)), setups)
        if self._changes.weather:
            files |= array_files(layouts[_WEATHER], [scene.weather.name for scene, _ in scenes])
        return NewArrays(files=files, provenance=provenance)
