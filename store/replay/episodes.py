"""`EpisodeSummary`: each episode of a segment in a few numbers, whatever its numbers mean."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from avtd3.store.spec import EpisodeSpec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeSummary:
    """Columns over E episodes."""

    returns: NDArray[np.float64]
    """float64 (E,), sum of rewards of each."""
    lengths: NDArray[np.int64]
    """int64 (E,), steps of each."""
    policy_versions: NDArray[np.int64]
    """int64 (E,), version of the policy that drove each, -1 for none."""
    end_reasons: tuple[str, ...]
    """Why each ended, length E."""
    reward_term_sums: NDArray[np.float64]
    """float64 (E, R), sum over the steps of each, in the order of the spec's reward terms."""
    vector_mean_abs: NDArray[np.float64]
    """float64 (E, V), mean size over the observations of each, as stored: divided by the scale."""

    def __len__(self) -> int:
        return len(self.lengths)

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], end_reasons: Sequence[str]) -> Self:
        """Summarise the episodes of a segment.

        Args:
            arrays: Its arrays by name, ``episode_length`` sound and all of it at least 1;
                ``reward_terms`` and ``vector`` only if the spec has them.
            end_reasons: Its column of that name.
        """
        lengths = arrays["episode_length"]
        first_steps = np.cumsum(lengths) - lengths
        rows = lengths + 1
        vector = np.abs(_rows_of(arrays, "vector", int(rows.sum())))
        return cls(
            returns=arrays["episode_return"],
            lengths=lengths,
            policy_versions=arrays["episode_policy_version"],
            end_reasons=tuple(end_reasons),
            reward_term_sums=_sums(
                _rows_of(arrays, "reward_terms", int(lengths.sum())), first_steps
            ),
            vector_mean_abs=_sums(vector, np.cumsum(rows) - rows) / rows[:, None],
        )

    def choose(self, episodes: NDArray[np.bool_] | slice) -> Self:
        """Those of some episodes, bool (E,) or a slice."""
        return type(self)(
            returns=self.returns[episodes],
            lengths=self.lengths[episodes],
            policy_versions=self.policy_versions[episodes],
            end_reasons=tuple(np.array(self.end_reasons, object)[episodes]),
            reward_term_sums=self.reward_term_sums[episodes],
            vector_mean_abs=self.vector_mean_abs[episodes],
        )

    @classmethod
    def join(cls, summaries: Sequence[Self], spec: EpisodeSpec) -> Self:
        """One after the other; `spec` gives the widths where there are none."""

        def stack(name: str, dtype: type[np.generic], *shape: int) -> NDArray[Any]:
            empty = np.zeros((0, *shape), dtype)
            return np.concatenate([empty, *(getattr(summary, name) for summary in summaries)])

        return cls(
            returns=stack("returns", np.float64),
            lengths=stack("lengths", np.int64),
            policy_versions=stack("policy_versions", np.int64),
            end_reasons=tuple(reason for summary in summaries for reason in summary.end_reasons),
            reward_term_sums=stack("reward_term_sums", np.float64, len(spec.reward_terms)),
            vector_mean_abs=stack("vector_mean_abs", np.float64, spec.vector_size),
        )


def _rows_of(arrays: Mapping[str, NDArray[Any]], name: str, rows: int) -> NDArray[np.float32]:
    return arrays[name] if name in arrays else np.zeros((rows, 0), np.float32)


def _sums(values: NDArray[np.float32], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64 (E, ...): sums of the runs of rows that begin at `starts`, none of them empty."""
    return np.add.reduceat(values, starts, axis=0, dtype=np.float64)
