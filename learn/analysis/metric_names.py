"""Which tag of a writer is which of avtd3's metrics: `NameSet`, and `NameBook`, which picks one.

configs/gates/names/ has a set for each writer that is known.
"""

import dataclasses
import difflib
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from avtd3.learn.metrics import HIGHER, LOWER, metric
from avtd3.store.errors import ConfigError

ALIKE = 0.75
"""How well the words of a suggestion fit, in [0, 1]."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NameSet:
    """How one writer names what avtd3 knows."""

    name: str = ""
    """What the set is called."""
    about: str = ""
    """Which writer it is, and which version was looked at."""
    axis: str = "steps"
    """What its steps count."""
    marks: tuple[str, ...] = ()
    """Tags by which a run of this writer is known."""
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Metric to tag; a metric that is not in it has its own name as tag."""

    def __post_init__(self) -> None:
        if not self.name:
            raise ConfigError("names without a name; write what the set is called, as 'name: sb3'")
        tags = list(self.tags.values())
        twice = sorted({tag for tag in tags if tags.count(tag) > 1})
        if twice:
            raise ConfigError(f"tag {twice[0]!r} is given to two metrics, expected one")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NameMap:
    """The names of one run."""

    source: NameSet
    """The set that was picked."""
    own: Mapping[str, str]
    """Metric to tag, from the command line; before those of the set."""

    def tag(self, metric: str) -> str:
        """The tag of a metric."""
        return self.own.get(metric) or self.source.tags.get(metric, metric)

    def metric(self, tag: str) -> str:
        """The metric of a tag; a tag that stands for none is its own name."""
        known = {**self.source.tags, **self.own}
        return {tag: metric for metric, tag in known.items()}.get(tag, tag)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NameBook:
    """All sets that are known, and what the command line says."""

    sets: tuple[NameSet, ...]
    """The sets, avtd3's first: a run that none of them knows is read by it."""
    own: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Metric to tag, from the command line."""
    chosen: NameSet | None = None
    """The set to use; None picks by the run's tags."""

    def candidates(self, metrics: Iterable[str]) -> set[str]:
        """Every tag that one of the metrics may have."""
        maps = [NameMap(source=each, own=self.own) for each in self._choice()]
        return {names.tag(metric) for metric in metrics for names in maps}

    def pick(self, tags: Collection[str]) -> NameMap:
        """The set that knows most of a run's tags by its marks, avtd3's if none does.

        Raises:
            ConfigError: The command line maps a metric to a tag that the run does not have.
        """
        for name, tag in self.own.items():
            if tag not in tags:
                raise ConfigError(
                    f"--map {name}={tag}: the run has no tag {tag!r}{did_you_mean(tag, tags)}"
                )
        here = set(tags)
        best = max(self._choice(), key=lambda each: len(here.intersection(each.marks)))
        return NameMap(source=best, own=self.own)

    def _choice(self) -> tuple[NameSet, ...]:
        return self.sets if self.chosen is None else (self.chosen,)


def nearest(name: str, tags: Collection[str]) -> str | None:
    """The tag most like a metric's name, or None if none is much like it.

    Words are compared one by one, where ``len`` is as good as ``length``; what stands behind the
    last slash must fit by itself, so that ``critic/q_gap`` is not taken for ``critic/loss``.
    """
    whole, last = _words(name), _words(name.rpartition("/")[2])
    if not last:
        return None
    scores = {tag: _fit(whole, _words(tag)) for tag in sorted(tags)}
    scores = {tag: score for tag, score in scores.items() if _fit(last, _words(tag)) >= ALIKE}
    return max(scores, key=lambda tag: scores[tag]) if scores else None


def did_you_mean(name: str, tags: Collection[str]) -> str:
    """The end of a message about a tag that is not there."""
    found = nearest(name, tags)
    return f"; did you mean {found}?" if found else f"; it has {len(tags)} others"


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+|[0-9]+", name.lower())


def _fit(words: Sequence[str], others: Sequence[str]) -> float:
    """How well each word is found among others, mean, in [0, 1]."""
    return sum(max((_alike(word, other) for other in others), default=0.0) for word in words) / len(
        words
    )


def _alike(word: str, other: str) -> float:
    short, long = sorted((word, other), key=len)
    if len(short) > 1 and long.startswith(short):
        return 1.0
    return difflib.SequenceMatcher(None, word, other).ratio()


Direction = Literal["lower", "higher", "neither"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Directions:
    """Patterns of metrics by what is better; ``*`` stands for anything, ``neither`` goes first."""

    lower: tuple[str, ...] = ()
    """Metrics that are better when they are low."""
    higher: tuple[str, ...] = ()
    """Metrics that are better when they are high."""
    neither: tuple[str, ...] = ()
    """Metrics of which neither is better."""

    def of(self, name: str) -> Direction | None:
        """The direction of a metric; None if no pattern fits."""
        named: tuple[tuple[Direction, tuple[str, ...]], ...] = (
            ("neither", self.neither),
            ("lower", self.lower),
            ("higher", self.higher),
        )
        for direction, patterns in named:
            if any(fnmatchcase(name, pattern) for pattern in patterns):
                return direction
        return None


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DirectionBook:
    """All that is known of directions. Those of avtd3's own metrics are in learn/metrics.py."""

    own: Directions = dataclasses.field(default_factory=Directions)
    """A person's own, asked first."""
    others: Directions = dataclasses.field(default_factory=Directions)
    """Those of tags that other writers have beside avtd3's metrics, asked last."""

    def of(self, name: str) -> Direction | None:
        """The direction of a metric; None if nobody knows it."""
        known: Direction | None = None
        ours = metric(name)
        if ours is not None:
            known = "higher" if ours.better == HIGHER else "lower"
            known = known if ours.better in (HIGHER, LOWER) else "neither"
        return self.own.of(name) or known or self.others.of(name)
