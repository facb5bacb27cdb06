"""`EpisodeInfo` and `EpisodeTable`: what is known about an episode as a whole.

An episode has a few columns that every dataset knows (seed, length, end reason, ...) and attributes
that the writer chooses: ``writer.begin(observation, town="Town01", lap=3)``. Format 1 has columns
of its own for the attributes in `OWN_ATTRIBUTES`; the others are optional arrays.
"""

import dataclasses
import importlib
import math
import numbers
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import MissingPackageError, SpecError, abbreviate
from avtd3.store.events import MAX_TEXT
from avtd3.store.format.arrays import ArrayFiles
from avtd3.store.format.layout import EPISODE_NUMBERS, ArrayLayout

if TYPE_CHECKING:
    import pandas
    import xarray

OWN_ATTRIBUTES: Mapping[str, str | int] = {
    "scenario": -1,
    "world": "",
    "town": "",
    "weather": "",
    "driver": "",
}
"""Attributes that format 1 stores in its own columns, and the value that means "not given"."""
MAX_ATTRIBUTES = 64
"""Most attributes of an episode, and most different ones of a writer."""

Attribute: TypeAlias = str | int | float
AttributeColumn: TypeAlias = list[str] | NDArray[np.int64] | NDArray[np.float64]

_PREFIX = "attribute_"
_ATTRIBUTE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_INT64 = range(-(2**63), 2**63)
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_MAX_WHOLE = 2**53
"""Whole numbers up to this size are exact in float64, too."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeInfo:
    """What is known of an episode when it begins."""

    index: int = -1
    """Position in the collector's plan, -1 if unknown."""
    seed: int = 0
    """Seed of the episode's world."""
    policy_version: int = -1
    """Version of the driving policy, -1 if there is none."""
    policy_digest: str = ""
    """SHA-256 of the policy's file, or an empty string."""
    exploration_noise: float = 0.0
    """Standard deviation of the noise on the actions."""
    attributes: Mapping[str, Attribute] = dataclasses.field(default_factory=dict)
    """Anything else, by name: texts of at most `MAX_TEXT` characters and finite numbers."""

    def __post_init__(self) -> None:
        for field in ("index", "seed", "policy_version"):
            _check_int64(field, getattr(self, field))
        check_text("policy_digest", self.policy_digest)
        if not 0.0 <= self.exploration_noise <= _MAX_FLOAT32:
            raise SpecError(
                f"episode exploration_noise is {abbreviate(self.exploration_noise)}, expected >= 0 "
                "and a number of float32"
            )
        if len(self.attributes) > MAX_ATTRIBUTES:
            raise SpecError(
                f"episode has {len(self.attributes)} attributes, expected at most {MAX_ATTRIBUTES}"
            )
        checked = {name: _check_attribute(name, v) for name, v in self.attributes.items()}
        object.__setattr__(self, "attributes", checked)


def check_text(field: str, value: object) -> None:
    """Raise if a value is not a short string."""
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise SpecError(
            f"episode {field} is {abbreviate(value)}, expected at most {MAX_TEXT} characters"
        )


def _check_int64(field: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in _INT64:
        raise SpecError(f"episode {field} is {abbreviate(value)}, expected a 64-bit whole number")
    return value


def _check_attribute(name: str, value: object) -> Attribute:
    """Return the value as a plain string, int or float."""
    if name in OWN_ATTRIBUTES:
        if isinstance(OWN_ATTRIBUTES[name], str):
            check_text(name, value)
            return str(value)
        return _check_int64(name, value)
    if not _is_free(name):
        raise SpecError(
            f"{abbreviate(name)} cannot name an attribute: expected letters, digits and '_', at "
            f"most 64, and none of {', '.join(sorted(_RESERVED))}"
        )
    if isinstance(value, str):
        check_text(name, value)
        return value
    if isinstance(value, numbers.Integral) and abs(int(value)) <= _MAX_WHOLE:
        return int(value)
    if isinstance(value, numbers.Real) and math.isfinite(value):
        return float(value)
    raise SpecError(
        f"episode attribute {name} is {abbreviate(value)}, expected a string or a finite number"
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeTable:
    """What is known about each of E episodes, as columns of length E.

    `Segment.episode_table` returns that of a segment, `Dataset.episode_table` that of all segments.

    Example:
        >>> import tempfile
        >>> import numpy as np
        >>> from avtd3.store import Dataset, EpisodeSpec, Observation, SegmentWriter
        >>> spec = EpisodeSpec(vector_names=("x_m",), action_names=("push",))
        >>> dataset = Dataset.create(tempfile.mkdtemp(), spec)
        >>> at = Observation(vector=np.zeros(1, np.float32))
        >>> with SegmentWriter(dataset) as writer:
        ...     writer.begin(at, seed=7, lap=3)
        ...     writer.step(np.ones(1, np.float32), 2.0, at, terminated=True)
        >>> table = dataset.episode_table()
        >>> table.seed.tolist(), table.texts("lap"), table.end_reason
        ([7], ['3'], ['terminated'])
    """

    segment: list[str]
    """Name of the segment."""
    number: NDArray[np.int64]
    """Number of the episode in its segment, from 0."""
    offset: NDArray[np.int64]
    """Row of its first step in the segment's arrays of steps."""
    length: NDArray[np.int64]
    """Number of steps."""
    index: NDArray[np.int64]
    """Position in the collector's plan, -1 if unknown."""
    seed: NDArray[np.int64]
    """Seed of the episode's world."""
    episode_return: NDArray[np.float64]
    """Sum of the stored rewards."""
    policy_version: NDArray[np.int64]
    """Version of the driving policy, -1 if there was none."""
    exploration_noise: NDArray[np.float32]
    """Standard deviation of the noise on the actions."""
    wall_time: NDArray[np.float64]
    """Start of the episode, in seconds since 1970, by the collector's clock."""
    end_reason: list[str]
    """Why the episode ended."""
    policy_digest: list[str]
    """SHA-256 of the policy's file, or an empty string."""
    attributes: Mapping[str, AttributeColumn] = dataclasses.field(default_factory=dict)
    """Column of each attribute. An empty text, NaN, or scenario -1 means "not given"."""

    @property
    def observation_offset(self) -> NDArray[np.int64]:
        """int64 (E,): row of each episode's first observation in its segment's arrays."""
        return self.offset + self.number

    def __len__(self) -> int:
        return len(self.length)

    @classmethod
    def join(cls, tables: Sequence["EpisodeTable"]) -> Self:
        """Return one table of the episodes of several.

        An attribute that is a text in one table and a number in another becomes a text.
        """
        fixed = {name: _join([getattr(t, name) for t in tables], name) for name in _FIXED}
        names = dict.fromkeys(name for table in tables for name in table.attributes)
        columns: dict[str, Any] = {}
        for name in names:
            is_text = any(isinstance(t.attributes.get(name), list) for t in tables)
            parts = [t.texts(name) if is_text else t.numbers(name) for t in tables]
            columns[name] = _join(parts, name)
        return cls(**fixed, attributes=columns)

    def to_pandas(self) -> "pandas.DataFrame":
        """Return the table as a pandas DataFrame; `MissingPackageError` if pandas is missing."""
        frame: pandas.DataFrame = _import("pandas").DataFrame(self._columns())
        return frame

    def to_xarray(self) -> "xarray.Dataset":
        """Return the table as an xarray Dataset of dimension ``episode``, if xarray is there."""
        columns = {name: ("episode", np.asarray(c)) for name, c in self._columns().items()}
        data: xarray.Dataset = _import("xarray").Dataset(columns)
        return data

    def _columns(self) -> dict[str, AttributeColumn]:
        return {name: getattr(self, name) for name in _FIXED} | dict(self.attributes)

    def texts(self, name: str) -> list[str]:
        """Return an attribute of each episode as text, empty for episodes that do not have it."""
        column = self.attributes.get(name)
        if column is None:
            return [""] * len(self)
        return column if isinstance(column, list) else [_text(v) for v in column.tolist()]

    def numbers(self, name: str) -> NDArray[np.int64] | NDArray[np.float64]:
        """Return a numeric attribute of each episode, NaN for episodes that do not have it."""
        column = self.attributes.get(name)
        if column is None or isinstance(column, list):
            return np.full(len(self), OWN_ATTRIBUTES.get(name, np.nan))
        return column

    def select(self, chosen: NDArray[np.bool_]) -> Self:
        """Return the table of the episodes chosen by bool (E,); offsets stay as they are."""
        rows = np.flatnonzero(chosen)
        taken: dict[str, Any] = {
            name: [column[n] for n in rows] if isinstance(column, list) else column[rows]
            for name, column in self._columns().items()
        }
        fixed = {name: taken.pop(name) for name in _FIXED}
        return dataclasses.replace(self, attributes=taken, **fixed)

    def attributes_of(self, number: int) -> dict[str, Attribute]:
        """Return the attributes that were given for an episode."""
        found: dict[str, Attribute] = {}
        for name, column in self.attributes.items():
            value = column[number] if isinstance(column, list) else column[number].item()
            if value not in ("", OWN_ATTRIBUTES.get(name)) and value == value:
                found[name] = value
        return found

    def info(self, number: int) -> EpisodeInfo:
        """Return what was known of an episode when it began."""
        return EpisodeInfo(
            index=int(self.index[number]),
            seed=int(self.seed[number]),
            policy_version=int(self.policy_version[number]),
            policy_digest=self.policy_digest[number],
            exploration_noise=float(self.exploration_noise[number]),
            attributes=self.attributes_of(number),
        )

    def row(self, number: int) -> dict[str, Attribute]:
        """Return the value of each stored column for an episode, attributes included."""
        return {
            name: column[number] if isinstance(column, list) else column[number].item()
            for name, column in self._columns().items()
            if name not in _PLACE
        }


_PLACE = ("segment", "number")
_FIXED = tuple(f.name for f in dataclasses.fields(EpisodeTable) if f.name != "attributes")
STORED_COLUMNS = tuple(name for name in _FIXED if name not in _PLACE)
"""Columns of `EpisodeTable` that every segment stores in an array."""
_RESERVED = frozenset((*_FIXED, "return", "attributes"))


def _is_free(name: str) -> bool:
    """Return whether an attribute that format 1 does not know may have this name."""
    return _ATTRIBUTE_NAME.fullmatch(name) is not None and name not in _RESERVED


def _text(value: float) -> str:
    return "" if value != value else str(value).removesuffix(".0")


def _join(parts: Sequence[Any], name: str) -> Any:  # noqa: ANN401 - a column of either kind
    if any(isinstance(part, list) for part in parts):
        return [text for part in parts for text in part]
    if parts:
        return np.concatenate(parts)
    dtype = EPISODE_NUMBERS.get(f"episode_{name.removeprefix('episode_')}")
    return np.zeros(0, dtype or np.int64) if dtype or name == "number" else []


def _import(name: str) -> Any:  # noqa: ANN401 - a module
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingPackageError(f"{name} is not installed; pip install {name}") from error


def attribute_columns(infos: Sequence[EpisodeInfo]) -> dict[str, AttributeColumn]:
    """Return a column for each attribute of these episodes, those of format 1 first.

    Numbers are int64 if every episode has a whole number, else float64 with NaN for "not given".
    """
    given = dict.fromkeys(name for info in infos for name in info.attributes)
    found: dict[str, AttributeColumn] = {}
    for name in (*OWN_ATTRIBUTES, *sorted(given.keys() - OWN_ATTRIBUTES.keys())):
        values = [info.attributes.get(name, OWN_ATTRIBUTES.get(name)) for info in infos]
        present = [value for value in values if value is not None]
        if all(isinstance(value, str) for value in present):
            found[name] = ["" if value is None else str(value) for value in values]
        elif any(isinstance(value, str) for value in present):
            raise SpecError(
                f"attribute {name} is a text in one episode and a number in another; "
                "expected one kind in all episodes of a segment"
            )
        elif all(isinstance(value, int) for value in values):
            found[name] = np.array(values, np.int64)
        else:
            found[name] = np.array([np.nan if v is None else v for v in values], np.float64)
    return found


def array_name(attribute: str) -> str:
    """Return the name of the array that holds an attribute."""
    return f"episode_{attribute}" if attribute in OWN_ATTRIBUTES else _PREFIX + attribute


_ARRAYS = {array_name(name): name for name in OWN_ATTRIBUTES}


def _attribute_of(array: str) -> str:
    """Return the attribute that an array holds, or an empty string."""
    name = array.removeprefix(_PREFIX)
    if name == array:
        return _ARRAYS.get(array, "")
    return name if _is_free(name) and name not in OWN_ATTRIBUTES else ""


def stored_attributes(files: ArrayFiles, *, episodes: int) -> dict[str, ArrayLayout]:
    """Return the optional arrays of attributes that a segment has, by array name."""
    return {
        array: ArrayLayout(
            name=array,
            shape=(episodes,),
            dtype=files.dtype(array, ("int32", "int64", "float64")),
            dimensions=("episode",),
        )
        for array in files.names()
        if array not in _ARRAYS and _attribute_of(array)
    }


def read_attributes(
    files: ArrayFiles, layouts: Mapping[str, ArrayLayout]
) -> dict[str, AttributeColumn]:
    """Read the columns of attributes."""
    return {
        name: files.texts(layout) if layout.dtype == "int32" else files.read(layout)
        for array, layout in layouts.items()
        if (name := _attribute_of(array))
    }
