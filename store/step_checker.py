"""The checks at the writer's door: does a step hold what the spec says?"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.store.errors import SpecError
from avtd3.store.spec import EpisodeSpec

_REWARD_TOLERANCE = 1e-5
_INT64 = 2**63
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_WHOLE = (int, np.integer)
_UINT8, _FLOAT32 = np.dtype(np.uint8), np.dtype(np.float32)


class StepChecker:
    """Holds steps against a spec, in a few microseconds each."""

    def __init__(self, spec: EpisodeSpec) -> None:
        self._vector_names = spec.vector_names
        self._frame_shape = None if spec.image is None else spec.image.frame_shape
        self._vector_shape = (spec.vector_size,) if spec.vector_size else None
        self._terms_shape = (len(spec.reward_terms),) if spec.reward_terms else None
        self._action_shape = (spec.action_size,)
        # Compared as float32, because that is what is stored.
        self._low = np.asarray(spec.action_low, np.float32).tolist()
        self._high = np.asarray(spec.action_high, np.float32).tolist()
        self._zeros = np.zeros(spec.vector_size, np.float32)

    def check_action(self, action: NDArray[np.float32]) -> None:
        """Refuse an action that is not float32 (A,) within the bounds.

        Raises:
            SpecError: It is not.
        """
        _check_array("action", action, self._action_shape, _FLOAT32)
        for value, low, high in zip(action.tolist(), self._low, self._high, strict=True):
            if not low <= value <= high:  # also true of NaN
                raise SpecError(f"action {action} leaves its bounds {self._low} to {self._high}")

    def check_reward(self, reward: float | None, reward_terms: NDArray[np.float32] | None) -> float:
        """The reward to store: the sum of its terms, which a given reward must equal.

        Raises:
            SpecError: Not finite, not the sum, or terms that are not float32 (R,).
        """
        _check_array("reward_terms", reward_terms, self._terms_shape, _FLOAT32)
        if reward_terms is None:
            if reward is None:
                raise SpecError("reward is None, and the spec has no reward_terms to add up")
            total = float(reward)
        else:
            total = sum(reward_terms.tolist())
            if reward is not None and not abs(reward - total) <= _REWARD_TOLERANCE * (
                1.0 + abs(total)
            ):
                raise SpecError(f"reward is {reward}, its terms add up to {total}")
        if not abs(total) <= _FLOAT32_MAX:
            raise SpecError(f"reward is {total}, expected a finite number (terms {reward_terms})")
        return total

    def check_observation(
        self,
        frame: NDArray[np.uint8] | None,
        vector: NDArray[np.float32] | None,
        frame_id: int,
        sim_time_s: float,
    ) -> None:
        """Refuse an observation that is not uint8 (C, H, W) and finite float32 (V,).

        Raises:
            SpecError: It is not.
        """
        _check_array("frame", frame, self._frame_shape, _UINT8)
        _check_array("vector", vector, self._vector_shape, _FLOAT32)
        # Zero times anything finite is zero: one product in place of a comparison and a search.
        if vector is not None and vector.dot(self._zeros) != 0.0:
            names = self._vector_names
            wrong = [names[n] for n in np.flatnonzero(~np.isfinite(vector))]
            raise SpecError(f"vector is not finite at {', '.join(wrong)}")
        if not math.isfinite(sim_time_s):
            raise SpecError(f"sim_time_s is {sim_time_s}, expected a finite number")
        if not isinstance(frame_id, _WHOLE) or not -_INT64 <= frame_id < _INT64:
            raise SpecError(f"frame_id is {frame_id!r}, expected a 64-bit whole number")


def _check_array(
    name: str, value: object, shape: tuple[int, ...] | None, dtype: np.dtype[Any]
) -> None:
    if shape is None:
        if value is not None:
            raise SpecError(f"{name} was given, the spec has none")
        return
    if not isinstance(value, np.ndarray):
        raise SpecError(f"{name} is {type(value).__name__}, expected {dtype} {shape}")
    if value.shape != shape or value.dtype != dtype:
        raise SpecError(f"{name} is {value.dtype} {value.shape}, expected {dtype} {shape}")


def as_bool(value: object) -> bool:
    """Take in Python's and numpy's truth values, and nothing else.

    Raises:
        SpecError: Something else.
    """
    if not isinstance(value, bool | np.bool_):
        raise SpecError(f"terminated and truncated are truth values, not {value!r}")
    return bool(value)
