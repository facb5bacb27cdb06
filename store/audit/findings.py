"""The catalogue of checks, the findings of an audit, and the log that counts them.

Every finding is counted, but only the first few of each check are kept, so the memory that an audit
needs does not grow with the number of findings.
"""

import dataclasses
import functools
import heapq
from collections import Counter
from typing import Literal, Self, get_args

Severity = Literal["error", "warning", "info"]
"""How bad a problem is. Do not train on data with an ``error``; an ``info`` is harmless."""


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One kind of problem that an audit looks for, in a few words, and what to do about it."""

    severity: Severity
    title: str
    fix: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One problem that a check reports, without the dataset and segment."""

    check: str
    """Name in `CHECKS`."""
    episode: int | None = None
    """Number of the episode in its segment; None if the problem is not in one episode."""
    message: str
    """What was found and what was expected."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A `Fault` with the place where it was found."""

    check: str
    severity: Severity
    dataset: str
    segment: str
    """Id of the segment; empty if the problem is in the dataset."""
    episode: int | None
    message: str

    def document(self) -> dict[str, object]:
        """Return the finding as a JSON object, with its fix."""
        return {**dataclasses.asdict(self), "fix": CHECKS[self.check].fix}


@dataclasses.dataclass(slots=True, kw_only=True)
class FindingLog:
    """Counts of all findings, and the first few findings of each check."""

    limit: int
    """Largest number of findings to keep per check."""
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    """Findings per check, including those that were not kept."""
    kept: dict[str, list[Finding]] = dataclasses.field(default_factory=dict)
    """At most `limit` findings per check, in the order of the segments."""

    def add(self, fault: Fault, *, dataset: str, segment: str = "") -> None:
        """Count a fault, and keep it if the limit of its check is not reached."""
        self.counts[fault.check] += 1
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
        """Add the counts of another log and, up to the limit, its findings."""
        for check, count in other.counts.items():
            self.counts[check] += count
            kept = self.kept.setdefault(check, [])
            kept.extend(other.kept[check][: self.limit - len(kept)])

    def count(self, severity: Severity) -> int:
        """Return the number of findings of a severity."""
        return sum(n for check, n in self.counts.items() if CHECKS[check].severity == severity)

    def findings(self) -> tuple[Finding, ...]:
        """Return the kept findings: errors first, then in the order of `CHECKS`."""
        return tuple(
            finding
            for severity in ("error", "warning", "info")
            for check, entry in CHECKS.items()
            if entry.severity == severity
            for finding in self.kept.get(check, ())
        )


_QUARANTINE = "run `avtd3 replay-inspect --quarantine`, or copy the segment again"
_FIX_THE_SOURCE = "quarantine the segment, and fix the simulator or task that wrote it"

_error, _warning, _info = (functools.partial(Check, kind) for kind in get_args(Severity))

_FILE_CHECKS = ("manifest", "spec-digest", "file-missing", "file-size", "file-digest")
BYTE_CHECKS = frozenset((*_FILE_CHECKS, "array-metadata", "array-unreadable"))
"""Errors of the bytes of a segment, which a bad disk, mount or copy may cause in many segments."""

CHECKS: dict[str, Check] = {
    # A dataset as a whole: audit.py.
    "dataset-unreadable": _error(
        "the dataset's zarr.json is damaged", "restore zarr.json from its source"
    ),
    "empty": _warning("the dataset has no published segments", "collect with `avtd3 collect`"),
    "stray": _warning("segments/ contains an entry that is not a segment", "move it elsewhere"),
    "segment-link": _warning(
        "segments/ contains a symbolic link, which readers do not follow",
        "move the segment itself there in place of the link",
    ),
    "manifest-missing": _warning(
        "a segment has no MANIFEST.json, so readers ignore it",
        "copy the segment again; if no copy is in progress, delete the directory",
    ),
    "staging": _info(
        "there are unpublished segments in .staging/",
        "delete them when no collector is running; they contain what a crashed collector did not "
        "publish",
    ),
    "quarantined": _info("there are segments in quarantine/", "delete them when nobody needs them"),
    "replaced": _info(
        "segments that were merged into others are not yet removed",
        "run `avtd3 store compact`, which removes them; readers ignore them",
    ),
    "replaces-unproven": _error(
        "a segment claims to replace another one without its episodes; the claim is ignored",
        "find out where the named segment comes from; move it elsewhere, or copy it again",
    ),
    "unreadable": _warning(
        "a file or directory cannot be read now, which says nothing about its data",
        "check the disk, the mount, the permissions and `ulimit -n`, then audit again",
    ),
    # The files of a segment: integrity.py.
    "segment-gone": _info("a segment was removed during the audit", "no action is needed"),
    "manifest": _error("a segment's MANIFEST.json is truncated or altered", _QUARANTINE),
    "format-version": _error(
        "a segment has an unsupported format version",
        "read it with the avtd3 version that wrote it",
    ),
    "spec-digest": _error(
        "a segment was written for another spec", "move it to the dataset that it was collected for"
    ),
    "file-missing": _error("a file of a segment is missing", _QUARANTINE),
    "file-size": _error("a file of a segment is truncated or too long", _QUARANTINE),
    "file-digest": _error("a file of a segment was altered", _QUARANTINE),
    "file-unexpected": _warning(
        "a segment contains a file that its manifest does not list", "move the file elsewhere"
    ),
    "array-metadata": _error(
        "an array does not have the shape or type that the spec requires", _QUARANTINE
    ),
    "array-unreadable": _error("an array cannot be decoded", _QUARANTINE),
    # The values in a segment: checks.py.
    "episode-bounds": _error(
        "episodes overlap, leave gaps or do not fill their segment", _FIX_THE_SOURCE
    ),
    "event-bounds": _error("events do not fit their episodes", _FIX_THE_SOURCE),
    "state-bounds": _error("states of the world do not fit their episodes", _FIX_THE_SOURCE),
    "label-bounds": _error("labels of steps are impossible", _FIX_THE_SOURCE),
    "map-text": _warning(
        "the text of a road network is missing or damaged",
        "copy maps/ from the dataset that the segments were copied from; only "
        "`avtd3 store render` needs it",
    ),
    "step-after-end": _error("an episode continues after a step that ends it", _FIX_THE_SOURCE),
    "end-unmarked": _error(
        "the last step of an episode is neither terminated nor truncated", _FIX_THE_SOURCE
    ),
    "end-twice": _warning(
        "a step is both terminated and truncated",
        "training treats it as terminated; fix the task if only the time limit ended the episode",
    ),
    "not-finite": _error("a value is NaN or infinite", _FIX_THE_SOURCE),
    "action-bounds": _error("an action is outside the bounds of the spec", _FIX_THE_SOURCE),
    "reward-sum": _error("a reward is not the sum of its terms", _FIX_THE_SOURCE),
    "return-sum": _error("a return is not the sum of the episode's rewards", _FIX_THE_SOURCE),
    "frame-order": _error("frame numbers do not increase", _FIX_THE_SOURCE),
    "frame-gap": _warning(
        "frames were lost",
        "check whether the simulator is overloaded; the data can be used for training",
    ),
    "other-control": _warning(
        "the simulator drove steps with another action than the stored one",
        "send controls acknowledged; exclude the episodes in which it happened often",
    ),
    "sim-time": _warning(
        "simulated time does not advance by the control period",
        "run the simulator in synchronous mode with a fixed time step",
    ),
    "policy-digest": _warning(
        "an episode names a policy version without a digest",
        "update the collector; the staleness of these episodes cannot be checked",
    ),
    "black-frames": _warning("frames are black", "check the camera, its warm-up and the lighting"),
    "uniform-frames": _warning(
        "frames show a single grey level", "check the camera's exposure and its position on the car"
    ),
    "frozen-frames": _warning(
        "the image does not change while the car moves", "check that the camera is still running"
    ),
    "frame-stutter": _warning(
        "many frames repeat the previous one while the car moves",
        "make the camera tick with every control step",
    ),
    "frame-stale": _warning(
        "an episode begins with the last frame of the previous episode",
        "make the simulator adapter wait for a new frame after a reset",
    ),
    "frame-flash": _warning(
        "a single frame differs strongly from both its neighbours",
        "check the camera's queue for frames of another sensor or episode",
    ),
    "timeout-unmarked": _error(
        "a timeout is stored as terminated",
        "mark timeouts as truncated; otherwise the critic learns that timeouts are failures",
    ),
    "label-missing": _warning(
        "an episode lacks its world, driver or end reason", "set these fields in the collector"
    ),
    "episode-short": _warning(
        "an episode is too short to be useful",
        "check for a simulator that ends episodes at the start",
    ),
    "noise-negative": _error("an exploration noise is negative", _FIX_THE_SOURCE),
    "vector-range": _warning(
        "a component of the vector is far out of range",
        "check the unit and scale of the component in the task",
    ),
    "vector-frozen": _warning(
        "the vector does not change while the car moves", "check that the sensors are still read"
    ),
    "speed-jump": _warning(
        "the speed changes faster than a car can", "check for a reset or respawn within an episode"
    ),
    "action-frozen": _warning(
        "the action does not change for a long time while the car moves",
        "check that the driver still responds; a driver that hangs repeats its last action",
    ),
    "reward-impossible": _error(
        "a reward is larger than the task can give",
        "check the task, or raise `audit.limits.reward_limit`",
    ),
    "reward-missing": _warning(
        "all rewards of a segment are zero", "check that the task's reward is stored"
    ),
    "policy-conflict": _warning(
        "one policy version has two digests",
        "give each training run its own policy directory; otherwise staleness is wrong",
    ),
    "collision-streak": _info(
        "the episodes of a driver end in a collision again and again",
        "check where it collides (`--episode`), the start positions and the collision sensor; "
        "exclude the driver, or weight it with `learn.replay.mix`",
    ),
    # Segments and datasets together: audit.py and duplicates.py.
    "reward-dominated": _info(
        "one reward term makes up over 90 % of the total",
        "check the weights of the reward terms; the other terms have almost no effect",
    ),
    "reward-scale": _info(
        "the scale of the rewards changes in the course of a dataset",
        "check whether the reward's weights were changed; `store relabel` makes them equal",
    ),
    "segment-twice": _warning(
        "two datasets contain the same segment", "remove one copy, or name only one of the datasets"
    ),
    "segment-conflict": _error(
        "two different segments have the same id",
        "find out which one is correct, and quarantine the other",
    ),
    "episode-copy": _warning(
        "two episodes have the same actions and rewards",
        "check for a seed that is used twice; quarantine one copy",
    ),
    "episode-alike": _info(
        "two episodes look nearly the same",
        "vary seeds, towns or noise; such episodes add little",
    ),
    "index-gap": _info(
        "episodes of a plan are missing",
        "finish the plan with `avtd3 collect --resume`, or accept the gap",
    ),
    "episode-twice": _warning(
        "the same planned episode was collected twice", "quarantine one of the two segments"
    ),
}
"""Every check by name, in the order of reports; the comments name the module of the check."""


MAX_WORST = 10
"""Largest number of episodes that a report lists as the worst."""
ERROR_WEIGHT = 1000
"""An error counts as much as this many warnings."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WorstEpisode:
    """An episode and the checks that found a problem in it."""

    dataset: str
    segment: str
    episode: int
    errors: int
    warnings: int
    checks: tuple[str, ...]
    """Names of the checks, errors first."""

    @property
    def weight(self) -> tuple[int, str, int]:
        """Return a sort key that is larger for a worse episode; ties are broken by place."""
        return ERROR_WEIGHT * self.errors + self.warnings, self.segment, self.episode

    def document(self) -> dict[str, object]:
        """Return the episode as a JSON object."""
        return dataclasses.asdict(self)


def worst_episodes(known: tuple[WorstEpisode, ...], log: FindingLog) -> tuple[WorstEpisode, ...]:
    """Return the `MAX_WORST` worst of known episodes and those of one more log, worst first."""
    by_place: dict[tuple[str, str, int], list[Finding]] = {}
    for finding in log.findings():
        if finding.episode is not None and finding.severity != "info":
            place = (finding.dataset, finding.segment, finding.episode)
            by_place.setdefault(place, []).append(finding)
    found = (
        WorstEpisode(
            dataset=dataset,
            segment=segment,
            episode=episode,
            errors=sum(finding.severity == "error" for finding in findings),
            warnings=sum(finding.severity == "warning" for finding in findings),
            checks=tuple(dict.fromkeys(finding.check for finding in findings)),
        )
        for (dataset, segment, episode), findings in by_place.items()
    )
    return tuple(heapq.nlargest(MAX_WORST, (*known, *found), key=lambda worst: worst.weight))
