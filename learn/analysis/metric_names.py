"""Map the tags of other writers to avtd3's metrics, and look up which direction is better.

configs/gates/names/ has a `NameSet` for each known writer.
"""

import dataclasses
import difflib
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from avtd3.learn.metrics import metric
from avtd3.store.errors import ConfigError

ALIKE = 0.75
"""Smallest similarity of the words of a suggestion, in [0, 1]."""
_LONGEST_COMPARED, _MOST_COMPARED = 100, 1_000
"""Longest tag, and most tags, that a suggestion is chosen from."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NameSet:
    """Tags of one writer for avtd3's metrics."""

    name: str = ""
    """Name of the set."""
    about: str = ""
    """The writer, and the version that was examined."""
    axis: str = "steps"
    """What the steps count."""
    marks: tuple[str, ...] = ()
    """Tags by which a run of this writer is recognised."""
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Tags by metric; a metric that is missing here has its own name as tag."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("the set of names has no name; add one, for example 'name: sb3'")
        twice = [tag for tag, count in Counter(self.tags.values()).items() if count > 1]
        if twice:
            raise ConfigError(f"tag {min(twice)!r} is given to two metrics, expected one")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NameMap:
    """Maps between metrics and tags of one run."""

    source: NameSet
    own: Mapping[str, str]
    """Tags by metric, from the command line; they override the set."""

    def tag(self, metric: str) -> str:
        """Return the tag of a metric."""
        return self.own.get(metric) or self.source.tags.get(metric, metric)

    def metric(self, tag: str) -> str:
        """Return the metric of a tag, or the tag itself if it has none."""
        known = {**self.source.tags, **self.own}
        return {tag: metric for metric, tag in known.items()}.get(tag, tag)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NameBook:
    """All known sets of names, and the settings of the command line; picks the set of a run."""

    sets: tuple[NameSet, ...]
    """The sets, avtd3's first: it is used for runs that no set recognises."""
    own: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Tags by metric, from the command line."""
    chosen: NameSet | None = None
    """The set to use; None recognises the writer by its tags."""

    def candidates(self, metrics: Iterable[str]) -> set[str]:
        """Return every tag that one of the metrics may have."""
        maps = [NameMap(source=each, own=self.own) for each in self._choice]
        return {names.tag(metric) for metric in metrics for names in maps}

    def pick(self, tags: Collection[str]) -> NameMap:
        """Return the names of a run: the set with most marks among its tags, else avtd3's."""
        for name, tag in self.own.items():
            if tag not in tags:
                found = nearest(tag, tags)
                hint = f"did you mean {found}?" if found else f"it has {len(tags)} others"
                raise ConfigError(f"--map {name}={tag}: the run has no tag {tag!r}; {hint}")
        best = max(self._choice, key=lambda each: len(set(tags).intersection(each.marks)))
        return NameMap(source=best, own=self.own)

    @property
    def _choice(self) -> tuple[NameSet, ...]:
        return self.sets if self.chosen is None else (self.chosen,)


def nearest(name: str, tags: Collection[str]) -> str | None:
    """Return the tag most similar to a metric's name, or None if none is similar.

    Words are compared one by one, and ``len`` equals ``length``. The part behind the last slash
    must be similar by itself, so that ``critic/loss`` is not suggested for ``critic/q_gap``.
    """
    whole, last = _words(name), _words(name.rpartition("/")[2])
    if not last:
        return None
    short = (tag for tag in sorted(tags) if len(tag) <= _LONGEST_COMPARED)
    scores = {tag: _fit(whole, _words(tag)) for tag in itertools.islice(short, _MOST_COMPARED)}
    scores = {tag: score for tag, score in scores.items() if _fit(last, _words(tag)) >= ALIKE}
    return max(scores, key=lambda tag: scores[tag]) if scores else None


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]+", name.lower())


def _fit(words: Sequence[str], others: Sequence[str]) -> float:
    """Return the mean similarity of each word to the most similar other, in [0, 1]."""
    best = [max((_alike(word, other) for other in others), default=0.0) for word in words]
    return sum(best) / len(words)


def _alike(word: str, other: str) -> float:
    short, long = sorted((word, other), key=len)
    if len(short) > 1 and long.startswith(short):
        return 1.0
    return difflib.SequenceMatcher(None, word, other).ratio()


Direction = Literal["lower", "higher", "neither"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Directions:
    """Patterns of metrics by the direction that is better; ``neither`` is matched first."""

    lower: tuple[str, ...] = ()
    higher: tuple[str, ...] = ()
    neither: tuple[str, ...] = ()

    def of(self, name: str) -> Direction | None:
        """Return the direction of a metric; None if no pattern matches."""
        order: tuple[Direction, ...] = ("neither", "lower", "higher")
        matches = (d for d in order if any(fnmatchcase(name, p) for p in getattr(self, d)))
        return next(matches, None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DirectionBook:
    """Looks up the direction of any metric; learn/metrics.py has those of avtd3's metrics."""

    own: Directions = dataclasses.field(default_factory=Directions)
    """Directions of the user, which have priority."""
    others: Directions = dataclasses.field(default_factory=Directions)
    """Directions of other writers' tags that are not avtd3's metrics, which come last."""

    def of(self, name: str) -> Direction | None:
        """Return the direction of a metric; None if unknown."""
        ours = metric(name)
        known: Direction | None = None if ours is None else ours.better or "neither"
        return self.own.of(name) or known or self.others.of(name)
