"""`StepLabels`: optional facts about each step: the expert's action, who drove, and delays.

A segment stores them in optional arrays, which docs/format.md describes. Readers that do not know
them ignore them.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import SpecError
from avtd3.store.format.arrays import ArrayFiles
from avtd3.store.format.layout import ArrayLayout
from avtd3.store.spec import EpisodeSpec

EXPERT_ACTION, STEP_DRIVER = "expert_action", "step_driver"
CAMERA_DELAY, ACTION_DELAY = "camera_delay", "action_delay"
"""Names of the arrays, two in each line."""
_ABSENT = {EXPERT_ACTION: np.nan, STEP_DRIVER: 0, CAMERA_DELAY: 0.0, ACTION_DELAY: 0.0}
"""Value of an array where nothing is known of the step."""
_DTYPES = {STEP_DRIVER: "uint8"}
OWN_DROVE, EXPERT_DROVE = 1, 2
"""Values of `STEP_DRIVER`: the episode's driver drove, or the expert in its place."""
LABELS = tuple(_ABSENT)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StepLabels:
    """What else is known of the T steps of an episode; None is what was not recorded.

    `Episode.labels` returns it, and `SegmentWriter.end` stores it.

    Example:
        >>> import numpy as np
        >>> StepLabels(expert_drove=np.array([False, True])).expert_drove.mean()
        np.float64(0.5)
    """

    expert_action: NDArray[np.float32] | None = None
    """float32 (T, A): what the expert would have done; NaN in steps where that is not known."""
    expert_drove: NDArray[np.bool_] | None = None
    """bool (T,): whether the expert drove instead of the episode's driver, or was that driver."""
    camera_delay_s: NDArray[np.float32] | None = None
    """float32 (T + 1,): simulated seconds between each observation and its camera frame."""
    action_delay_s: NDArray[np.float32] | None = None
    """float32 (T,): simulated seconds between each action and its effect."""

    def first(self, steps: int, spec: EpisodeSpec) -> Self:
        """Return the labels of the first steps; raise SpecError if they cannot be stored."""
        shapes = {
            "expert_action": (steps, spec.action_size),
            "expert_drove": (steps,),
            "camera_delay_s": (steps + 1,),
            "action_delay_s": (steps,),
        }
        found = {}
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values is None:
                continue
            dtype = np.dtype(np.bool_ if name == "expert_drove" else np.float32)
            found[name] = values = values[: shape[0]]
            if values.shape != shape or values.dtype != dtype:
                raise SpecError(
                    f"label {name} is {values.dtype} {values.shape}, expected {dtype} {shape}"
                )
            if problem := _problem(name, values, spec):
                raise SpecError(f"label {name} {problem}")
        return dataclasses.replace(self, **found)

    def columns(self) -> dict[str, NDArray[Any]]:
        """Return the arrays of these labels by name, without those of which nothing is known."""
        drove = self.expert_drove
        driver = (
            None if drove is None else np.where(drove, EXPERT_DROVE, OWN_DROVE).astype(np.uint8)
        )
        values = (self.expert_action, driver, self.camera_delay_s, self.action_delay_s)
        named = zip(LABELS, values, strict=True)
        known = {name: column for name, column in named if column is not None}
        return {name: column for name, column in known.items() if _is_known(name, column).any()}

    def to_bytes(self) -> bytes:
        """Return bytes that are equal for equal labels, whatever was stored beside them."""
        return b"".join(
            name.encode() + np.where(np.isnan(column), np.nan, column).tobytes()
            for name, column in self.columns().items()
        )

    @classmethod
    def of(cls, columns: Mapping[str, NDArray[Any]]) -> Self | None:
        """Return the labels that arrays hold; None if they hold none."""
        known = {name: each for name, each in columns.items() if _is_known(name, each).any()}
        if not known:
            return None
        driver = known.get(STEP_DRIVER)
        return cls(
            expert_action=known.get(EXPERT_ACTION),
            expert_drove=None if driver is None else driver == EXPERT_DROVE,
            camera_delay_s=known.get(CAMERA_DELAY),
            action_delay_s=known.get(ACTION_DELAY),
        )


def _is_known(name: str, column: NDArray[Any]) -> NDArray[np.bool_]:
    known: NDArray[np.bool_] = ~np.isnan(column) if name == EXPERT_ACTION else column != 0
    return known


def _problem(name: str, values: NDArray[Any], spec: EpisodeSpec) -> str:
    """Return what is wrong with the values of a label, or an empty string."""
    if name == "expert_action":
        low, high = np.asarray((spec.action_low, spec.action_high), np.float32)
        unknown = np.isnan(values).all(axis=1, keepdims=True)
        is_right = (unknown | ((values >= low) & (values <= high))).all()
        return "" if is_right else "is outside the bounds of the action"
    if name == "expert_drove":
        return ""
    is_right = (np.isfinite(values) & (values >= 0.0)).all()
    return "" if is_right else "has a delay that is not a finite number of 0 or more"


def label_layout(name: str, spec: EpisodeSpec, *, steps: int, episodes: int) -> ArrayLayout:
    """Return the layout of one of the arrays, which has a row for every step of a segment."""
    rows = steps + episodes if name == CAMERA_DELAY else steps
    is_action = name == EXPERT_ACTION
    return ArrayLayout(
        name=name,
        shape=(rows, spec.action_size) if is_action else (rows,),
        dtype=_DTYPES.get(name, "float32"),
        dimensions=(
            "observation" if name == CAMERA_DELAY else "step",
            *(("action_component",) if is_action else ()),
        ),
        is_packed=True,
    )


def label_layouts(
    files: ArrayFiles, spec: EpisodeSpec, *, steps: int, episodes: int
) -> dict[str, ArrayLayout]:
    """Return the arrays of labels that a segment has."""
    present = set(files.names())
    return {
        name: label_layout(name, spec, steps=steps, episodes=episodes)
        for name in LABELS
        if name in present
    }


def label_columns(
    labels: Sequence[StepLabels | None], lengths: Sequence[int], spec: EpisodeSpec
) -> dict[str, tuple[ArrayLayout, NDArray[Any]]]:
    """Return layout and values of the arrays of a segment's episodes; none without labels."""
    parts = [{} if each is None else each.columns() for each in labels]
    found = {}
    for name in LABELS:
        if any(name in part for part in parts):
            layout = label_layout(name, spec, steps=sum(lengths), episodes=len(lengths))
            column = np.full(layout.shape, _ABSENT[name], layout.dtype)
            for rows, part in zip(_rows(name, lengths), parts, strict=True):
                column[rows] = part.get(name, _ABSENT[name])
            found[name] = (layout, column)
    return found


def read_labels(
    files: ArrayFiles, layouts: Mapping[str, ArrayLayout], lengths: Sequence[int], spec: EpisodeSpec
) -> list[StepLabels | None]:
    """Read the labels of a segment's episodes; raise ValueError if a value is impossible."""
    columns = {name: files.read(layout) for name, layout in layouts.items()}
    if (columns.get(STEP_DRIVER, np.zeros(1)) > EXPERT_DROVE).any():
        raise ValueError(f"{STEP_DRIVER} has a value above {EXPERT_DROVE}")
    found: list[StepLabels | None] = []
    for rows in zip(*(_rows(name, lengths) for name in columns), strict=True):
        named = zip(columns.items(), rows, strict=True)
        labels = StepLabels.of({name: column[part] for (name, column), part in named})
        if labels is not None:
            try:
                labels = labels.first(lengths[len(found)], spec)
            except SpecError as error:
                raise ValueError(str(error)) from error
        found.append(labels)
    return found


def _rows(name: str, lengths: Iterable[int]) -> list[slice]:
    """Return the rows of each episode in an array."""
    counts = [length + (name == CAMERA_DELAY) for length in lengths]
    ends = np.cumsum(counts).tolist()
    return [slice(end - count, end) for end, count in zip(ends, counts, strict=True)]
