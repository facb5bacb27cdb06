"""The small arrays of a segment, checked for what training could not survive."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import SegmentCorruptError
from avtd3.store.segment import Segment
from avtd3.store.spec import EpisodeSpec


def read_checked(segment: Segment, spec: EpisodeSpec) -> dict[str, NDArray[Any]]:
    """Read the small arrays that replay needs, by name.

    Raises:
        SegmentNotFoundError: The segment was removed since it was opened.
        SegmentCorruptError: It is damaged, a number is not finite, or episodes contradict another.
    """
    names = ["episode_offset", "episode_length", "episode_return", "episode_policy_version"]
    names += ["action", "reward", "terminated", "truncated"]
    if spec.vector_size:
        names.append("vector")
    if spec.reward_terms:
        names.append("reward_terms")
    arrays = {name: segment.read(name) for name in names}
    for name, values in arrays.items():
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            raise _unusable(segment, f"{name!r} row {int(finite.argmin())} is not finite")
    _check_episodes(segment, arrays)
    return arrays


def _check_episodes(segment: Segment, arrays: Mapping[str, NDArray[Any]]) -> None:
    lengths = arrays["episode_length"]
    if not (lengths > 0).all() or int(lengths.sum()) != segment.steps:
        raise _unusable(segment, f"episode lengths do not add up to {segment.steps} steps")
    if (arrays["episode_offset"] != np.cumsum(lengths) - lengths).any():
        raise _unusable(segment, "'episode_offset' does not match 'episode_length'")
    ends = np.flatnonzero(arrays["terminated"] | arrays["truncated"])
    if not np.array_equal(ends, np.cumsum(lengths) - 1):
        raise _unusable(segment, "steps marked as an end are not the last steps of the episodes")


def _unusable(segment: Segment, what: str) -> SegmentCorruptError:
    return SegmentCorruptError(
        f"segment {segment.id} ({segment.path}): {what}; "
        "run `avtd3 replay-inspect --quarantine` to set it aside"
    )
