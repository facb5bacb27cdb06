"""`EpisodeRecord`: one whole episode between avtd3 and a foreign layout; and what layouts share."""

import abc
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from avtd3.store.episode import Episode
from avtd3.store.episode_table import EpisodeInfo
from avtd3.store.errors import SpecError, UnreadableError, abbreviate, advice
from avtd3.store.events import Event
from avtd3.store.files import (
    MAX_JSON_BYTES,
    canonical_json,
    exists,
    is_passing,
    parse_json,
    read_json,
)
from avtd3.store.spec import IMAGE, EpisodeSpec
from avtd3.store.step_labels import LABELS, StepLabels

MAX_EPISODE_BYTES = 4 * 1024**3
"""Largest size in memory that an array of a foreign episode may claim."""
MAX_FACTS_BYTES = 16 * 1024**2
MAX_RATIO = 1032
"""Largest ratio by which deflate compresses; a claim beyond it is untrue."""
FACTS = "avtd3"
"""Name of the array, uint8 JSON, that holds what a layout has no place for."""
DOCUMENT = "avtd3.json"
"""File that describes an export as a whole."""
NO_IMAGE = "none"
"""What the user gives instead of the name of an image."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeRecord:
    """An episode of T steps and T + 1 observations."""

    frames: NDArray[np.uint8] | None
    """uint8 (T + 1, C, H, W); None without a camera, and with `streams`."""
    streams: Mapping[str, NDArray[np.uint8]] = dataclasses.field(default_factory=dict)
    """uint8 (T + 1, C, H, W) of each named stream."""
    vectors: NDArray[np.float32] | None
    """float32 (T + 1, V); None without a vector."""
    actions: NDArray[np.float32]
    """float32 (T, A)."""
    rewards: NDArray[np.float32]
    """float32 (T,)."""
    reward_terms: NDArray[np.float32] | None = None
    """float32 (T, R); None if the reward has no parts."""
    terminated: bool
    """Whether the last step ended the episode in a state without a future."""
    truncated: bool
    """Whether it was cut after the last step."""
    frame_ids: NDArray[np.int64] | None = None
    """int64 (T + 1,); None if unknown."""
    sim_times_s: NDArray[np.float64] | None = None
    """float64 (T + 1,); None if unknown."""
    expert_action: NDArray[np.float32] | None = None
    """float32 (T, A), as `avtd3.store.step_labels` stores it, like the next three; None if
    unknown."""
    step_driver: NDArray[np.uint8] | None = None
    """uint8 (T,)."""
    camera_delay: NDArray[np.float32] | None = None
    """float32 (T + 1,)."""
    action_delay: NDArray[np.float32] | None = None
    """float32 (T,)."""
    info: EpisodeInfo = dataclasses.field(default_factory=EpisodeInfo)
    """What was known when it began."""
    end_reason: str = ""
    """Why it ended; empty if unknown."""
    events: tuple[Event, ...] = ()
    """What happened in it."""

    def __post_init__(self) -> None:
        observed = self.length + 1
        arrays: list[tuple[str, NDArray[Any] | None, int, int, str]] = [
            ("frames", self.frames, observed, 4, "u"),
            *((name, frames, observed, 4, "u") for name, frames in self.streams.items()),
            ("vectors", self.vectors, observed, 2, "f"),
            ("actions", self.actions, self.length, 2, "f"),
            ("rewards", self.rewards, self.length, 1, "f"),
            ("reward_terms", self.reward_terms, self.length, 2, "f"),
            ("frame_ids", self.frame_ids, observed, 1, "i"),
            ("sim_times_s", self.sim_times_s, observed, 1, "f"),
            ("expert_action", self.expert_action, self.length, 2, "f"),
            ("step_driver", self.step_driver, self.length, 1, "u"),
            ("camera_delay", self.camera_delay, observed, 1, "f"),
            ("action_delay", self.action_delay, self.length, 1, "f"),
        ]
        for name, values, rows, axes, kinds in arrays:
            if values is None:
                continue
            if values.ndim != axes or len(values) != rows or values.dtype.kind not in kinds:
                raise SpecError(
                    f"{name} is {values.dtype} {values.shape}, expected {rows} rows and {axes} axes"
                )

    @property
    def length(self) -> int:
        """Number of steps, T."""
        return len(self.actions)

    @property
    def images(self) -> dict[str, NDArray[np.uint8]]:
        """The frames by the names that they have as observations, see `image_key`."""
        named = {image_key(name): frames for name, frames in self.streams.items()}
        return named if self.frames is None else {IMAGE: self.frames}

    @property
    def ends(self) -> NDArray[np.bool_]:
        """Whether each step is terminated, and whether it is truncated: bool (2, T)."""
        ends = np.zeros((2, self.length), np.bool_)
        ends[:, -1] = self.terminated, self.truncated
        return ends

    @property
    def extra(self) -> dict[str, NDArray[Any]]:
        """The arrays of `EXTRA` that are known, by name."""
        arrays = {name: getattr(self, field) for name, field in EXTRA.items()}
        return {name: values for name, values in arrays.items() if values is not None}

    @property
    def labels(self) -> StepLabels | None:
        """What else is known of its steps."""
        return StepLabels.of({name: each for name, each in self.extra.items() if name in LABELS})


EXTRA = {"reward_terms": "reward_terms", "frame_id": "frame_ids", "sim_time": "sim_times_s"}
EXTRA |= {name: name for name in LABELS}
"""Arrays of avtd3's own in a layout, and their fields in an `EpisodeRecord`."""
LISTED = "reward_terms, frame_id, sim_time, labels of steps"
"""Those arrays, for people."""


def image_key(stream: str) -> str:
    """Return the name of a named stream among observations, as robomimic names its cameras."""
    return f"{stream}_image"


def record_of(episode: Episode, spec: EpisodeSpec) -> EpisodeRecord:
    """Read a stored episode; of its streams only those of ``spec``."""
    table, labels = episode.segment.episode_table(), episode.labels
    return EpisodeRecord(
        frames=None if spec.image is None else episode.frames,
        streams={name: episode.streams[name] for name in spec.streams},
        vectors=episode.vectors if spec.vector_size else None,
        actions=episode.actions,
        rewards=episode.rewards,
        reward_terms=episode.reward_terms if spec.reward_terms else None,
        terminated=bool(episode.terminated[-1]),
        truncated=bool(episode.truncated[-1]),
        frame_ids=episode.frame_ids,
        sim_times_s=episode.sim_times_s,
        **({} if labels is None else labels.columns()),
        info=table.info(episode.number),
        end_reason=episode.end_reason,
        events=episode.events,
    )


def facts_of(episode: Episode, record: EpisodeRecord) -> bytes:
    """Return what is known of an episode besides its arrays, as JSON."""
    started_at = episode.started_at if math.isfinite(episode.started_at) else 0.0
    document = {
        "episode": episode.name,
        "started_at": started_at,
        "end_reason": record.end_reason,
        "terminated": record.terminated,
        "truncated": record.truncated,
        "info": dataclasses.asdict(record.info),
        "events": [dataclasses.asdict(event) for event in record.events],
    }
    try:
        return canonical_json(document)
    except ValueError as error:
        raise SpecError(f"episode {episode.name} has a number that is not finite") from error


def text_of(values: NDArray[Any]) -> bytes:
    """Return the text in an array of uint8; raise `SpecError` if it is none or too long."""
    if values.dtype != np.uint8 or values.nbytes > MAX_FACTS_BYTES:
        raise SpecError(f"{FACTS} is {values.dtype} {values.shape}, expected a short text")
    return values.tobytes()


def parse_facts(data: bytes) -> dict[str, Any]:
    """Return the fields of an `EpisodeRecord` that `facts_of` wrote; the text is untrusted.

    Raises:
        SpecError: It is not such a document, or a value is invalid.
    """
    try:
        document = parse_json(data, FACTS)
        return {
            "info": EpisodeInfo(**document["info"]),
            "end_reason": document["end_reason"],
            "events": tuple(map(_parse_event, document["events"])),
            "truncated": document["truncated"] is True,
        }
    except SpecError:
        raise
    except (ValueError, OverflowError, KeyError, TypeError, AttributeError) as error:
        raise SpecError(f"{FACTS} is not what avtd3 wrote: {abbreviate(str(error))}") from error


def _parse_event(fields: Mapping[str, Any]) -> Event:
    return Event(
        step=int(fields["step"]),
        kind=str(fields["kind"]),
        subject=str(fields["subject"]),
        value=float(fields["value"]),
        x_m=float(fields["x_m"]),
        y_m=float(fields["y_m"]),
    )


class Layout(abc.ABC):
    """A layout to export to: every episode becomes a file first, so that a run can be resumed."""

    kept: ClassVar[tuple[str, ...]]
    """What is in fields that only avtd3 reads."""
    lost: ClassVar[tuple[str, ...]] = (
        "division into segments, their names and checksums",
        "compression of the frames",
        "pins, quarantine and claims between segments",
        "wall-clock time of an episode: exported as a fact, but not set by an import",
    )
    """What is not exported."""
    suffix: ClassVar[str] = ".hdf5"
    """End of the name of an episode's file."""

    def __init__(self, spec: EpisodeSpec) -> None:
        self.spec = spec

    def part_name(self, number: int, episode: Episode) -> str:
        """Return the name of an episode's file."""
        return f"episode-{number:08d}{self.suffix}"

    @abc.abstractmethod
    def write_part(self, path: Path, number: int, record: EpisodeRecord, facts: bytes) -> None:
        """Write an episode into a new file."""

    @abc.abstractmethod
    def finish(
        self, folder: Path, parts: Sequence[Path], out: Path, document: Mapping[str, Any]
    ) -> Path:
        """Make the whole export in a folder; return the path to rename to ``out``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ImportConfig:
    """How to read episodes whose meaning the source does not state.

    Example:
        >>> ImportConfig(image="agentview_image", period_s=0.1).stack is None
        True
    """

    image: str = ""
    """Name of the observation to store as image, or ``none``; empty for the only image, or for all
    of several as named streams."""
    vectors: tuple[str, ...] = ()
    """Names of the observations to join into the vector; empty for all vectors."""
    stack: int | None = None
    """Frames per observation, K. None: as the source states; else found from npz files, or 4."""
    period_s: float = 0.05
    """Simulated seconds per step, if the source does not state them."""


class Source(abc.ABC):
    """A foreign dataset to import from; everything in it is untrusted."""

    def __init__(self, path: Path, config: ImportConfig) -> None:
        self.path, self.config = path, config
        self.notices: set[str] = set()
        """What the import changes or guesses."""
        self.document: Mapping[str, Any] = {}
        """What `avtd3 export` wrote about the whole; empty if it did not write the source."""
        self.vector_names: tuple[str, ...] = ()
        """Names of the vector's numbers; known after an episode was read."""
        self.stack: int | None = None
        """Frames per observation, if the source shows it."""
        self.bounds: tuple[NDArray[Any], NDArray[Any]] | None = None
        """Smallest and largest action, each (A,), if the source states them."""

    count: int
    """Number of episodes."""

    def stated_streams(self) -> list[str]:
        """Return the named streams that avtd3 exported, unless the user chose something else."""
        if self.config.image or self.config.vectors:
            return []
        spec = self.document.get("spec")
        streams = spec.get("streams") if isinstance(spec, dict) else None
        return [str(name) for name in streams] if isinstance(streams, dict) else []

    @abc.abstractmethod
    def digest(self) -> str:
        """Return a SHA-256 over the bytes of the source, in hexadecimal."""

    @abc.abstractmethod
    def actions(self, number: int) -> NDArray[np.float32]:
        """Return the actions of an episode, float32 (T, A)."""

    @abc.abstractmethod
    def read(self, number: int) -> EpisodeRecord | None:
        """Read an episode; return None if it has no step that can be stored.

        Raises:
            SpecError: It is not of the layout, damaged, or claims too much memory.
            UnreadableError: It cannot be read now.
        """

    def close(self) -> None:  # noqa: B027 - most sources hold nothing open
        """Close the files."""


def cannot_read(path: Path, error: Exception, text: str = "") -> SpecError | UnreadableError:
    """Return the error for a file of a source; an I/O error says nothing about its bytes."""
    passing = isinstance(error, OSError) and bool(error.errno) and is_passing(error)
    return (UnreadableError if passing else SpecError)(f"{path} cannot be read: {text or error}")


def _reason(error: Exception) -> str:
    return advice(error, reads=True) if isinstance(error, OSError) and error.errno else str(error)


def read_object(path: Path, expected: str, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON object of a source; ``expected`` says in errors what it should be."""
    try:
        document = read_json(path, max_bytes)
    except (OSError, ValueError) as error:
        raise cannot_read(path, error, f"{_reason(error)}; expected {expected}") from error
    if not isinstance(document, dict):
        raise SpecError(f"{path} is not a JSON object, expected {expected}")
    return document


def read_document(folder: Path) -> dict[str, Any]:
    """Read the file in which avtd3 has described an export; empty if there is none."""
    path = folder / DOCUMENT
    return read_object(path, "what avtd3 export wrote") if exists(path) else {}


def check_size(name: str, shape: Sequence[int], itemsize: int) -> None:
    """Raise if an array claims more memory than allowed."""
    claimed = math.prod(shape) * itemsize
    if claimed > MAX_EPISODE_BYTES:
        raise SpecError(
            f"{name} claims {claimed} bytes of memory, expected at most {MAX_EPISODE_BYTES}"
        )


def check_ratio(name: str, claimed: int, stored: int) -> None:
    """Raise if an array claims more bytes than its stored bytes can give."""
    if claimed > MAX_RATIO * stored + 4096:
        raise SpecError(
            f"{name} claims {claimed} bytes of memory, but only {stored} bytes are stored"
        )


def to_float32(values: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Return real numbers as float32."""
    if values.dtype.kind not in "iufb":
        raise SpecError(f"{name} is {values.dtype}, expected numbers")
    with np.errstate(over="ignore"):  # the writer refuses what becomes infinite
        return np.ascontiguousarray(values, np.float32)


def to_vectors(values: NDArray[Any], name: str) -> NDArray[np.float32]:
    """Return an array (N,) or (N, V) as float32 (N, V)."""
    if values.ndim not in (1, 2):
        raise SpecError(f"{name} has shape {values.shape}, expected (steps, size)")
    return to_float32(values.reshape(len(values), -1), name)


class Chosen(NamedTuple):
    """What the observations of a source become."""

    image: str | None
    """The image; None without one, and with named streams."""
    streams: dict[str, str]
    """The named streams by name."""
    vectors: list[str]
    """Parts of the vector."""


def choose_observations(
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any]]], source: Source
) -> Chosen:
    """Choose which of a source's observations become the image or named streams, and the vector.

    ``arrays`` has shape, rows first, and dtype of each.
    """
    config, stated = source.config, {name: image_key(name) for name in source.stated_streams()}
    if lacking := sorted(set(stated.values()) - arrays.keys()):
        raise SpecError(f"there is no {lacking[0]}, which avtd3 exported; the source was changed")
    if stated:
        return Chosen(None, stated, [key for key in arrays if key not in stated.values()])
    pictures = {k for k, (shape, d) in arrays.items() if d == np.uint8 and len(shape) in (3, 4)}
    numbers = [k for k, (shape, d) in arrays.items() if len(shape) < 3 and d.kind in "iufb"]
    allowed = pictures | {NO_IMAGE, ""}
    wrong = [config.image] * (config.image not in allowed)
    wrong += [name for name in config.vectors if name not in numbers]
    listed = ", ".join(f"{k} {d} {shape[1:]}" for k, (shape, d) in sorted(arrays.items()))
    if wrong:
        raise SpecError(f"{abbreviate(wrong[0])} cannot be used so; the observations are: {listed}")
    vectors = list(config.vectors) or numbers
    if len(pictures) > 1 and not config.image:
        return Chosen(None, _named(pictures, source), vectors)
    image = config.image or next(iter(pictures), NO_IMAGE)
    if image == NO_IMAGE and not vectors:
        raise SpecError(f"expected an observation of uint8 images or of numbers, found: {listed}")
    return Chosen(None if image == NO_IMAGE else image, {}, vectors)


def _named(pictures: set[str], source: Source) -> dict[str, str]:
    """Return images as named streams: ``pixels/left_image`` becomes ``pixels_left``."""
    streams: dict[str, str] = {}
    for key in sorted(pictures):
        name = re.sub(r"[^a-z0-9]+", "_", key.removesuffix("_image").lower()).strip("_")
        if streams.setdefault(name, key) != key:
            raise SpecError(
                f"{key} and {streams[name]} would both be the stream {name}; choose one with "
                "--image"
            )
        source.notices.add(f"the image {key} became the stream {name}; --image chooses only one")
    return streams
