"""Import the episodes of another tool's dataset.

Every imported episode has two attributes: ``imported``, which begins the SHA-256 of the source, and
``imported_episode``, its number there. A run skips the episodes that the dataset already has, so an
interrupted import continues, and importing twice adds nothing.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, SpecError
from avtd3.store.exchange.hdf5 import Hdf5Source
from avtd3.store.exchange.minari import MinariSource
from avtd3.store.exchange.npz import NpzSource
from avtd3.store.exchange.record import (
    EpisodeRecord,
    ImportConfig,
    Source,
)
from avtd3.store.files import canonical_json, check_local, exists
from avtd3.store.locks import LOCK_FILE, ExclusiveLock
from avtd3.store.render.text import WorkProgress, join_lines, plural
from avtd3.store.seal import MAX_PROVENANCE_BYTES
from avtd3.store.spec import EpisodeSpec, ImageSpec
from avtd3.store.step import Observation
from avtd3.store.writer import SegmentWriter

SOURCES: Mapping[str, type[Source]] = {
    "hdf5": Hdf5Source,
    "minari": MinariSource,
    "npz": NpzSource,
}
"""The sources by name of their layout."""
IMPORTED, IMPORTED_EPISODE = "imported", "imported_episode"
_DIGITS = 16


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImportReport:
    """What `import_episodes` wrote."""

    source: str
    layout: str
    digest: str
    dataset: str
    episodes: int
    steps: int
    already_there: int
    """Episodes that the dataset had."""
    notices: tuple[str, ...]
    """What was changed or guessed."""
    stopped: bool
    """Whether the import was interrupted; the episodes until then are in the dataset."""

    def summary(self) -> str:
        """Format the report for a terminal."""
        made = f"{plural(self.episodes, 'episode')} of {self.steps:,} steps"
        lines = [f"imported {made} from {self.source} ({self.layout}) into {self.dataset}"]
        if self.already_there:
            lines.append(f"{plural(self.already_there, 'episode')} imported before")
        lines += [f"note: {text}" for text in self.notices]
        if self.stopped:
            lines.append("stopped early; run the command again to continue")
        return join_lines(lines)

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return dataclasses.asdict(self)


def import_episodes(
    source: Path,
    target: Path,
    layout: str,
    config: ImportConfig | None = None,
    *,
    should_stop: Callable[[], bool] = lambda: False,
    on_progress: Callable[[WorkProgress], None] = lambda _: None,
) -> ImportReport:
    """Import episodes into a new dataset or one of the same spec, or continue an import.

    Args:
        source: Path of the foreign dataset; nothing in it is executed or unpickled.
        target: Path of the dataset; created if missing.
        layout: One of `SOURCES`.
        config: How to read what the source does not state; None for the defaults.
        should_stop: Called before each episode; True ends the run.
        on_progress: Called after each episode.

    Raises:
        SpecError: The source is not of the layout, damaged, or does not fit the dataset.
        UnreadableError: A file cannot be read now.

    Example:
        >>> rows = {"observation": np.zeros((5, 2)), "action": np.zeros((5, 1))}
        >>> rows |= {"reward": np.zeros((5, 1)), "discount": np.ones((5, 1))}
        >>> Path("buffer").mkdir()
        >>> np.savez("buffer/20240101T000000_0_4.npz", **rows)
        >>> import_episodes(Path("buffer"), Path("data"), "npz").steps
        4
    """
    check_local(source, target)
    if layout not in SOURCES:
        raise ConfigError(f"--from is {layout!r}, expected one of: {', '.join(SOURCES)}")
    if not exists(source):
        raise ConfigError(f"{source} does not exist; give the path of a dataset to import")
    opened = SOURCES[layout](source, config or ImportConfig())
    try:
        digest = opened.digest()
        spec = _spec_of(opened)
        dataset = Dataset.create(target, spec)
        with ExclusiveLock(target, purpose="avtd3 import", name=f".import{LOCK_FILE}"):
            there = _imported(dataset, digest[:_DIGITS])
            with SegmentWriter(
                dataset, collector="import", provenance=_provenance(opened, layout, digest)
            ) as writer:
                work = _Import(opened, writer, digest[:_DIGITS], there)
                stopped = work.run(should_stop, on_progress)
    finally:
        opened.close()
    return ImportReport(
        source=str(source),
        layout=layout,
        digest=digest,
        dataset=str(target),
        episodes=work.episodes,
        steps=work.steps,
        already_there=len(there),
        notices=tuple(sorted(opened.notices)),
        stopped=stopped,
    )


def _imported(dataset: Dataset, tag: str) -> set[int]:
    """Return the numbers of the source's episodes that the dataset has."""
    table = dataset.episode_table(skip_damaged=True)
    numbers = table.numbers(IMPORTED_EPISODE)
    return {int(n) for n, text in zip(numbers, table.texts(IMPORTED), strict=True) if text == tag}


def _provenance(source: Source, layout: str, digest: str) -> dict[str, Any]:
    about = {"source": str(source.path.resolve()), "layout": layout, "sha256": digest}
    whole = {"import": {**about, "export": dict(source.document)}}
    if len(canonical_json(whole)) <= MAX_PROVENANCE_BYTES // 2:
        return whole
    source.notices.add("the provenance in the source is too long to be stored with each segment")
    return {"import": about}


def _spec_of(source: Source) -> EpisodeSpec:
    """Return the spec that the source states, or one from its first episode and its actions."""
    config = source.config
    if "spec" in source.document and not (config.image or config.vectors):
        return EpisodeSpec.from_json(source.document["spec"])
    record = _first(source)
    stack = config.stack or source.stack or 4

    def image_of(frames: NDArray[np.uint8]) -> ImageSpec:
        _, channels, height, width = frames.shape
        return ImageSpec(channels=channels, height=height, width=width, stack=stack)

    low, high = _bounds(source)
    terms = 0 if record.reward_terms is None else record.reward_terms.shape[1]
    return EpisodeSpec(
        image=None if record.frames is None else image_of(record.frames),
        streams={name: image_of(frames) for name, frames in record.streams.items()},
        vector_names=source.vector_names,
        action_names=tuple(f"action_{n}" for n in range(record.actions.shape[1])),
        action_low=tuple(low),
        action_high=tuple(high),
        reward_terms=tuple(f"term_{n}" for n in range(terms)),
        control_period_s=config.period_s,
    )


def _first(source: Source) -> EpisodeRecord:
    for number in range(source.count):
        with _naming(source, number):
            record = source.read(number)
        if record is not None:
            return record
    raise SpecError(f"{source.path} has no episode with a step")


@contextlib.contextmanager
def _naming(source: Source, number: int) -> Iterator[None]:
    """Say in errors which episode is concerned."""
    try:
        yield
    except SpecError as error:
        raise SpecError(f"{source.path}, episode {number}: {error}") from error


def _bounds(source: Source) -> tuple[list[float], list[float]]:
    """Return the bounds of the actions: as stated, else -1 to 1, else those of the data."""
    if source.bounds is not None:
        low, high = (np.asarray(bound, np.float32) for bound in source.bounds)
        return low.tolist(), high.tolist()
    parts = [actions for n in range(source.count) if len(actions := source.actions(n))]
    sizes = {part.shape[1] for part in parts}
    if len(sizes) != 1 or 0 in sizes:
        found = f"actions of {sorted(sizes)} numbers"
        raise SpecError(f"{source.path}: the episodes have {found}, expected one size above 0")
    low = np.min([part.min(axis=0) for part in parts], axis=0)
    high = np.max([part.max(axis=0) for part in parts], axis=0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise SpecError(f"{source.path}: an action is not finite")
    if low.min() >= -1.0 and high.max() <= 1.0:
        return [-1.0] * len(low), [1.0] * len(high)
    source.notices.add("the source states no action bounds: those of the data are used")
    return low.tolist(), np.where(low < high, high, np.nextafter(high, np.inf)).tolist()


class _Import:
    """One run of an import."""

    def __init__(self, source: Source, writer: SegmentWriter, tag: str, there: set[int]) -> None:
        self._source, self._writer, self._tag, self._there = source, writer, tag, there
        self.episodes = self.steps = 0

    def run(
        self,
        should_stop: Callable[[], bool],
        on_progress: Callable[[WorkProgress], None],
    ) -> bool:
        """Write the episodes that the dataset does not have; return whether it was interrupted."""
        total = self._source.count
        for number in range(total):
            if should_stop():
                return True
            is_new = number not in self._there
            with _naming(self._source, number):
                if is_new and (record := self._source.read(number)) is not None:
                    self._write(number, record)
            if is_new:  # what costs no time would spoil the estimate of the time left
                on_progress(
                    WorkProgress(verb="imported", done=number + 1, total=total, noun="episode")
                )
        return False

    def _write(self, number: int, record: EpisodeRecord) -> None:
        info, terms = record.info, record.reward_terms
        attributes = {**info.attributes, IMPORTED: self._tag, IMPORTED_EPISODE: number}
        if taken := attributes.keys() & {"self", "observation"}:
            raise SpecError(f"{min(taken)} cannot name an attribute")
        self._writer.begin(
            _observation(record, 0),
            index=info.index,
            seed=info.seed,
            policy_version=info.policy_version,
            policy_digest=info.policy_digest,
            exploration_noise=info.exploration_noise,
            **attributes,
        )
        for t in range(record.length):
            is_last = t + 1 == record.length
            self._writer.step(
                record.actions[t],
                float(record.rewards[t]) if terms is None else None,
                _observation(record, t + 1),
                terminated=is_last and record.terminated,
                truncated=is_last and record.truncated,
                reward_terms=None if terms is None else terms[t],
            )
        self._writer.end(record.end_reason or None, record.events, labels=record.labels)
        self.episodes += 1
        self.steps += record.length


def _observation(record: EpisodeRecord, row: int) -> Observation:
    return Observation(
        image=None if record.frames is None else record.frames[row],
        streams={name: frames[row] for name, frames in record.streams.items()} or None,
        vector=None if record.vectors is None else record.vectors[row],
        frame_id=None if record.frame_ids is None else int(record.frame_ids[row]),
        sim_time_s=None if record.sim_times_s is None else float(record.sim_times_s[row]),
    )
