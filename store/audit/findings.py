"""What an audit can say: the catalogue of checks, `Finding`, and the log that counts them.

Every finding is counted; only the first few of each check are kept, so a dataset with a million
bad episodes costs no more memory than one with ten.
"""

import dataclasses
import heapq
from collections import Counter
from typing import Literal, Self

Severity = Literal["error", "warning", "info"]
"""An error makes data wrong to learn from, a warning may, an info is worth knowing."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that an audit looks for."""

    severity: Severity
    """How bad it is."""
    title: str
    """What was found, in a few words."""
    fix: str
    """What to do about it."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One violation as a check sees it, before it is put into its place."""

    check: str
    """Name in `CHECKS`."""
    episode: int | None = None
    """Number of the episode in its segment, or None if it is not about one episode."""
    message: str
    """Expected and found."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One violation, with the place at which it was found."""

    check: str
    """Name in `CHECKS`."""
    severity: Severity
    """That of the check."""
    dataset: str
    """Path of the dataset."""
    segment: str
    """Segment id, or an empty string if it is about the dataset."""
    episode: int | None
    """Number of the episode in its segment, or None."""
    message: str
    """Expected and found."""

    def document(self) -> dict[str, object]:
        """The finding as a JSON object, its fix included."""
        return {**dataclasses.asdict(self), "fix": CHECKS[self.check].fix}


@dataclasses.dataclass(slots=True, kw_only=True)
class FindingLog:
    """Counts of all findings and the first few of each check; logs add up."""

    limit: int
    """Findings kept per check."""
    counts: dict[str, int] = dataclasses.field(default_factory=dict)
    """Findings per check, the dropped ones included."""
    kept: dict[str, list[Finding]] = dataclasses.field(default_factory=dict)
    """At most `limit` findings per check, in the order of the segments."""

    def add(self, fault: Fault, *, dataset: str, segment: str = "") -> None:
        """Count a fault, and keep it while there is room."""
        self.counts[fault.check] = self.counts.get(fault.check, 0) + 1
        kept = self.kept.setdefault(fault.check, [])
        if len(kept) < self.limit:
            kept.append(
                Finding(
                    check=fault.check,
                    severity=CHECKS[fault.check].severity,
                    dataset=dataset,
                    segment=segment,
                    episode=fault.episode,
                    message=fault.message,
                )
            )

    def merge(self, other: Self) -> None:
        """Take over another log's counts and, while there is room, its findings."""
        for check, count in other.counts.items():
            self.counts[check] = self.counts.get(check, 0) + count
            kept = self.kept.setdefault(check, [])
            kept.extend(other.kept[check][: self.limit - len(kept)])

    def count(self, severity: Severity) -> int:
        """Number of findings of one severity."""
        return sum(n for check, n in self.counts.items() if CHECKS[check].severity == severity)

    def findings(self) -> tuple[Finding, ...]:
        """The kept findings, errors first, then in the catalogue's order."""
        return tuple(
            finding
            for severity in ("error", "warning", "info")
            for check, entry in CHECKS.items()
            if entry.severity == severity
            for finding in self.kept.get(check, ())
        )


_QUARANTINE = "move it away with `avtd3 replay-inspect --quarantine`, or copy it again"
_COLLECT_AGAIN = "quarantine the segment, and fix the world or task that wrote it"


def _error(title: str, fix: str) -> Check:
    return Check(severity="error", title=title, fix=fix)


def _warning(title: str, fix: str) -> Check:
    return Check(severity="warning", title=title, fix=fix)


def _info(title: str, fix: str) -> Check:
    return Check(severity="info", title=title, fix=fix)


CHECKS: dict[str, Check] = {
    # The dataset as a whole.
    "dataset-unreadable": _error(
        "the dataset's own zarr.json is damaged", "copy zarr.json again from where it came from"
    ),
    "empty": _warning("no segment is published", "run `avtd3 collect` into it"),
    "stray": _warning("something that is no segment lies in segments/", "move it elsewhere"),
    "manifest-missing": _warning(
        "a segment without MANIFEST.json does not exist as data",
        "copy the segment again; where no copy is under way, delete the directory",
    ),
    "staging": _info(
        "unpublished segments in .staging/",
        "delete them once no collector is running: they hold what a crash lost",
    ),
    "quarantined": _info("segments in quarantine/", "delete them when nobody needs them"),
    "replaced": _info(
        "segments that were merged into others and not yet removed",
        "run avtd3 store compact, which removes them; readers leave them out",
    ),
    # The bytes of a segment.
    "segment-gone": _info("a segment was removed during the audit", "none is needed"),
    "manifest": _error("MANIFEST.json is torn or altered", _QUARANTINE),
    "format-version": _error("a segment of another format version", "read it with its own avtd3"),
    "spec-digest": _error(
        "a segment written for another spec", "move it to the dataset it was collected for"
    ),
    "file-missing": _error("a file of the segment is missing", _QUARANTINE),
    "file-size": _error("a file of the segment is torn", _QUARANTINE),
    "file-digest": _error("a file of the segment was altered", _QUARANTINE),
    "file-unexpected": _warning(
        "a sealed segment holds a file its manifest does not name", "move the file elsewhere"
    ),
    "array-metadata": _error("an array does not have the shape that the spec asks", _QUARANTINE),
    "array-unreadable": _error("an array cannot be decoded", _QUARANTINE),
    # The meaning of the data.
    "episode-bounds": _error("episodes do not tile their segment", _COLLECT_AGAIN),
    "event-bounds": _error("events contradict their episodes", _COLLECT_AGAIN),
    "step-after-end": _error("steps go on after an episode's end", _COLLECT_AGAIN),
    "end-unmarked": _error("an episode ends without terminated or truncated", _COLLECT_AGAIN),
    "end-twice": _warning(
        "an end is both terminated and truncated",
        "it is learned as terminated; fix the task if the time limit alone ended it",
    ),
    "not-finite": _error("a number is NaN or infinite", _COLLECT_AGAIN),
    "action-bounds": _error("an action lies outside the spec's bounds", _COLLECT_AGAIN),
    "reward-sum": _error("a reward is not the sum of its terms", _COLLECT_AGAIN),
    "return-sum": _error("a return is not the sum of its episode's rewards", _COLLECT_AGAIN),
    "frame-order": _error("frame numbers do not increase", _COLLECT_AGAIN),
    "frame-gap": _warning(
        "frames were lost", "look for an overloaded simulator; the data can be learned from"
    ),
    "sim-time": _warning(
        "simulated time does not advance by the control period",
        "run the simulator in synchronous mode with a fixed time step",
    ),
    "policy-digest": _warning(
        "an episode names a policy version without its digest",
        "update the collector; staleness of these episodes cannot be checked",
    ),
    "black-frames": _warning(
        "frames are black", "check the camera, its warm-up, and the world's light"
    ),
    "uniform-frames": _warning(
        "frames show one single grey", "check the camera's exposure and its place on the car"
    ),
    "frozen-frames": _warning(
        "the picture stands still while the car moves", "check that the camera is still running"
    ),
    "frame-stutter": _warning(
        "many frames of a moving car repeat the one before",
        "have the camera tick with every control step",
    ),
    "frame-stale": _warning(
        "an episode begins with the last frame of the one before",
        "wait for a new frame after a reset, in the world's adapter",
    ),
    "frame-flash": _warning(
        "a single frame shows another picture than its neighbours",
        "check the camera's queue for frames of another sensor or episode",
    ),
    "timeout-unmarked": _error(
        "a time-out is stored as terminated",
        "collect it as truncated: else the critic learns that time is a crash",
    ),
    "label-missing": _warning(
        "an episode does not say its world, driver or end", "fill them in the collector"
    ),
    "episode-short": _warning(
        "an episode is too short to be of use", "look for a world that ends at its start"
    ),
    "noise-negative": _error("an exploration noise is negative", _COLLECT_AGAIN),
    "vector-range": _warning(
        "a component of the vector is far out of range", "check its unit and scale in the task"
    ),
    "vector-frozen": _warning(
        "the vector stands still while the car moves", "check that its sensors are still read"
    ),
    "speed-jump": _warning(
        "the speed changes faster than a car can", "look for a reset or a respawn in an episode"
    ),
    "action-frozen": _warning(
        "the same action for long while the car moves",
        "check that the driver still answers: a hung one repeats its last action",
    ),
    "reward-impossible": _error(
        "a reward is larger than possible", "check the task; raise audit.limits.reward_limit"
    ),
    "reward-missing": _warning(
        "all rewards of a segment are zero", "check that the task's reward is stored"
    ),
    "policy-conflict": _warning(
        "one policy version with two digests",
        "give each training run its own policies: staleness is wrong otherwise",
    ),
    "reward-dominated": _info(
        "one reward term makes up over 90 % of the total",
        "check the weights of the task's terms: the others can hardly be learned",
    ),
    # Segments against each other.
    "segment-twice": _warning(
        "the same segment lies in two datasets", "remove one copy, or name one dataset only"
    ),
    "segment-conflict": _error(
        "two different segments have the same id", "find out which is right; quarantine the other"
    ),
    "episode-copy": _warning(
        "two episodes hold the same steps", "look for a seed that is used twice; quarantine one"
    ),
    "episode-alike": _info(
        "two episodes look nearly the same", "vary seeds, towns or noise: they teach little more"
    ),
    "index-gap": _info(
        "episodes of a plan are missing", "finish it with `avtd3 collect --resume`, or go on"
    ),
    "episode-twice": _warning(
        "the same planned episode was collected twice", "quarantine one of the two segments"
    ),
}
"""Every check by name, in the order in which reports show them."""


KEPT = 10
"""Episodes told."""
ERROR_WEIGHT = 1000
"""One error outweighs this many warnings."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorstEpisode:
    """An episode, and the checks that found something in it."""

    dataset: str
    segment: str
    episode: int
    errors: int
    warnings: int
    checks: tuple[str, ...]
    """Names, errors first."""

    @property
    def weight(self) -> tuple[int, str, int]:
        """Larger is worse; the place decides between equals."""
        return ERROR_WEIGHT * self.errors + self.warnings, self.segment, self.episode

    def document(self) -> dict[str, object]:
        """The episode as a JSON object."""
        return {**dataclasses.asdict(self), "checks": list(self.checks)}


def worst_episodes(known: tuple[WorstEpisode, ...], log: FindingLog) -> tuple[WorstEpisode, ...]:
    """The `KEPT` worst of those known and those of one more segment's log, worst first."""
    checks: dict[tuple[str, str, int], list[str]] = {}
    severities: Counter[tuple[tuple[str, str, int], str]] = Counter()
    for finding in log.findings():
        if finding.episode is not None and finding.severity != "info":
            place = (finding.dataset, finding.segment, finding.episode)
            checks.setdefault(place, []).append(finding.check)
            severities[place, finding.severity] += 1
    found = (
        WorstEpisode(
            dataset=place[0],
            segment=place[1],
            episode=place[2],
            errors=severities[place, "error"],
            warnings=severities[place, "warning"],
            checks=tuple(dict.fromkeys(names)),
        )
        for place, names in checks.items()
    )
    return tuple(heapq.nlargest(KEPT, (*known, *found), key=lambda worst: worst.weight))
