"""`PolicyStore`: the directory through which a learner passes policies to collectors.

`avtd3.learn.policy` describes the files. Each one is written to a temporary name, flushed to disk
and renamed: first the sidecar, then the policy, then `LATEST`. A policy exists once both its files
do, so a learner that is killed in between leaves no policy without its sidecar. Readers compare a
policy with its sidecar, because a copy of the directory may be incomplete.
"""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

from avtd3.learn.networks import Actor, NetworkConfig, actor_spec
from avtd3.learn.policy import (
    LATEST,
    MAX_COUNT,
    Policy,
    PolicyHeader,
    PublishedFile,
    encode_policy,
    list_versions,
    policy_name,
    read_latest,
    read_published,
)
from avtd3.store import files
from avtd3.store.errors import (
    CheckpointError,
    FormatVersionError,
    InUseError,
    SpecError,
    UnreadableError,
)
from avtd3.store.spec import EpisodeSpec

_REPORTED = 3
"""Files that a warning names."""

Problem = CheckpointError | FormatVersionError | SpecError | UnreadableError


@dataclasses.dataclass(frozen=True, slots=True)
class _Refusal:
    """Why a file was skipped, and under which circumstances it need not be read again."""

    error: Problem | None
    """None if the policy was rejected."""
    spec: EpisodeSpec | None
    stamp: tuple[tuple[int, ...], ...]
    """Sizes, times and inodes of the files of the policy; empty to read them again in any case."""


class PolicyStore:
    """A directory of published policies. One learner publishes; any number of collectors read.

    Args:
        path: The directory; created when the first policy is published.
        run: Id of the run that publishes, by which two learners in one directory are recognised.

    Example:
        >>> store = PolicyStore("policies-that-do-not-exist")
        >>> print(store.newest_version())
        None
    """

    def __init__(self, path: Path | str, *, run: str = "") -> None:
        files.check_local(path)
        self.path = Path(path)
        """The directory."""
        self.warning = ""
        """Why newer policies were skipped; empty unless the last call found a new reason."""
        self._refused: dict[str, _Refusal] = {}
        self._rejected: set[str] = set()
        self._unreported: list[str] = []
        self._run, self._runs = run, dict[str, None]()
        self._has_published = False

    def publish(
        self,
        actor: Actor,
        spec: EpisodeSpec,
        config: NetworkConfig,
        *,
        updates: int,
        action_limit: float = 1.0,
        stack_stride: int = 1,
    ) -> int:
        """Publish an actor, trained for the spec, as the next version; return the version.

        Args:
            actor: The network.
            spec: Spec of its data.
            config: Shape of the network.
            updates: Number of gradient updates of its training.
            action_limit: Share of each half range of the action that it may use, in (0, 1].
            stack_stride: Decisions between two frames of its stack.

        Raises:
            CheckpointError: If a file in the directory has the largest version that is possible.
            InUseError: If another run has published there since this one did.
            StorageError: If the directory cannot be written.
        """
        self._check_alone()
        with files.storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        version = max(list_versions(self.path, whole=False), default=-1)
        created = False
        while not created:
            version += 1
            if version > MAX_COUNT:
                raise CheckpointError(
                    f"{self.path} contains a policy of version {MAX_COUNT}, the largest possible "
                    "one; move it away"
                )
            path = self.path_of(version)
            header = PolicyHeader(
                version=version,
                updates=updates,
                action_limit=action_limit,
                stack_stride=stack_stride,
                spec=actor_spec(spec, config),
                network=config,
            )
            data = encode_policy(actor, header)
            published = PublishedFile(
                version=version, file=path.name, sha256=files.sha256(data), run=self._run
            )
            document = dataclasses.asdict(published) | {"size_bytes": len(data)}
            created = all(
                files.create_exclusive(file, content, files.aside_of(file))
                for file, content in (
                    (path.with_suffix(".json"), files.canonical_json(document)),
                    (path, data),
                )
            )
        self._write_latest(published)
        self._has_published = True
        return version

    def _check_alone(self) -> None:
        """Raise if the newest policy is of another run, although this one has published."""
        latest = self._read_latest() if self._run and self._has_published else None
        if latest is not None and latest.run not in ("", self._run):
            raise InUseError(
                self.path, f"another learner, run {latest.run}, which published {latest.file}"
            )

    def repair(self, spec: EpisodeSpec) -> int | None:
        """Complete or remove what a killed learner left; only the learner may call this.

        Return the version of the newest policy that can be used with the spec, which `LATEST` then
        names; None if there is none.

        Raises:
            StorageError: If the directory cannot be written.
            UnreadableError: If it cannot be read now.
        """
        whole = self.versions()
        with files.storage_errors(self.path):
            for pattern in (".policy-*.tmp", f".{LATEST}.*.tmp"):
                for stale in self.path.glob(pattern):
                    stale.unlink(missing_ok=True)
            for version in set(list_versions(self.path, whole=False)).difference(whole):
                if not self.path_of(version).exists():
                    self.path_of(version).with_suffix(".json").unlink(missing_ok=True)
        names = (policy_name(version) for version in reversed(whole))
        policy, problem = self._first_that_loads(names, spec)
        if isinstance(problem, UnreadableError):
            raise problem
        if policy is None:
            return None
        if (latest := self._read_latest()) is None or latest.sha256 != policy.digest:
            self._write_latest(read_published(self.path_of(policy.version).with_suffix(".json")))
        return policy.version

    def path_of(self, version: int) -> Path:
        """Return the path of a policy file."""
        return self.path / policy_name(version)

    def versions(self) -> list[int]:
        """Return all versions, ascending; raise `UnreadableError` if it cannot be read now."""
        return list_versions(self.path)

    def newest_version(self) -> int | None:
        """Return the highest version in the directory; None if there is no policy."""
        return max(self.versions(), default=None)

    def prune(self, keep: int) -> None:
        """Remove all policies except the newest `keep`, oldest first, sidecars last."""
        for version in self.versions()[: -max(keep, 1)]:
            path = self.path_of(version)
            path.unlink(missing_ok=True)
            path.with_suffix(".json").unlink(missing_ok=True)

    def reject(self, policy: Policy, reason: str) -> None:
        """Skip a loaded policy that does not act, from now on; the next `poll` says the reason."""
        self._rejected.add(policy.digest)
        self._unreported.append(f"policy {policy.version} in {self.path} is skipped: {reason}")

    def latest(self, spec: EpisodeSpec | None) -> Policy | None:
        """Return the newest policy that can be used; None if there is none.

        Args:
            spec: The spec of the observations to act on; None for any.

        Raises:
            SpecError: If there is none, but one that was trained for another spec.
            UnreadableError: If there is none, but one that cannot be read now.
        """
        policy, problem = self._find(None, spec)
        if policy is None and isinstance(problem, SpecError | UnreadableError):
            raise problem
        return policy

    def poll(self, current: Policy | None, spec: EpisodeSpec | None) -> Policy | None:
        """Return the newest policy that can be used, or `current` if none is newer.

        This reads one small file if nothing has changed, so call it between episodes. Policies that
        cannot be used set `warning` once, and are not read again before their files change.

        Args:
            current: The policy in use; None if there is none.
            spec: The spec of the observations to act on; None for any.

        Raises:
            SpecError: If there is no policy at all, but one that was trained for another spec.
        """
        policy, problem = self._find(current, spec)
        if policy is None and isinstance(problem, SpecError):
            raise problem
        return policy

    def _find(
        self, current: Policy | None, spec: EpisodeSpec | None
    ) -> tuple[Policy | None, Problem | None]:
        """Return the policy to use; if there is none, the first reason to skip one."""
        if current is not None and current.digest in self._rejected:
            current = None
        found, problem = current, None
        try:
            latest = self._read_latest()
            self._note_run(latest)
            if current is None or latest is None or latest.sha256 != current.digest:
                found, problem = self._first_that_loads(self._newer(latest, current), spec)
            else:  # everything is readable again: report the next failure
                self._refused = {name: r for name, r in self._refused.items() if r.stamp}
        except UnreadableError as error:
            problem = error
            self._refuse(self.path.name, _Refusal(error, spec, ()))
        more = len(self._unreported) - _REPORTED
        parts = [*self._unreported[:_REPORTED], *([f"and {more} more"] if more > 0 else [])]
        self.warning, self._unreported = "; ".join(parts), []
        return found or current, problem

    def _note_run(self, latest: PublishedFile | None) -> None:
        """Report when two runs take turns in publishing here; one after the other may."""
        if latest is None or not latest.run or latest.run == next(reversed(self._runs), ""):
            return
        if latest.run in self._runs:
            others = ", ".join(run for run in self._runs if run != latest.run)
            self._unreported.append(
                f"two learners publish in {self.path} in turn, runs {latest.run} and {others}; "
                "stop one of them, or give it another --policies"
            )
        self._runs.pop(latest.run, None)
        self._runs = dict.fromkeys((*list(self._runs)[1 - _REPORTED :], latest.run))

    def _newer(self, latest: PublishedFile | None, current: Policy | None) -> Iterator[str]:
        """Yield the names of the policy files that may replace `current`, best first."""
        if latest is not None:
            yield latest.file
        for version in reversed(self.versions()):
            if current is not None and version <= current.version:
                return
            if latest is None or version != latest.version:
                yield policy_name(version)

    def _first_that_loads(
        self, names: Iterable[str], spec: EpisodeSpec | None
    ) -> tuple[Policy | None, Problem | None]:
        problem = None
        for name in names:
            stamp, known = _stamp(self.path / name), self._refused.get(name)
            if known is None or not stamp or (known.stamp, known.spec) != (stamp, spec):
                try:
                    policy = Policy.load(self.path / name, spec=spec)
                except UnreadableError as error:
                    known = _Refusal(error, spec, ())
                except (CheckpointError, FormatVersionError, SpecError) as error:
                    known = _Refusal(error, spec, stamp)
                else:
                    if policy.digest not in self._rejected:
                        return policy, None
                    known = _Refusal(None, spec, stamp)
                self._refuse(name, known)
            problem = problem or known.error
        return None, problem

    def _read_latest(self) -> PublishedFile | None:
        try:
            return read_latest(self.path)
        except CheckpointError as error:
            self._refuse(LATEST, _Refusal(error, None, ()))
            return None

    def _refuse(self, name: str, refusal: _Refusal) -> None:
        """Remember why a file was skipped, and report it unless it was reported already."""
        known = self._refused.get(name)
        if refusal.error:  # whose traceback would keep the content of the file in memory
            refusal.error.__cause__ = refusal.error.__context__ = refusal.error.__traceback__ = None
        if refusal.error and (known is None or str(known.error) != str(refusal.error)):
            self._unreported.append(str(refusal.error))
        self._refused[name] = refusal

    def _write_latest(self, published: PublishedFile) -> None:
        document = dataclasses.asdict(published)
        files.write_aside(self.path / LATEST, files.canonical_json(document))


def _stamp(path: Path) -> tuple[tuple[int, ...], ...]:
    """Return what changes when a policy file or its sidecar does; empty if one is missing."""
    try:
        found = [each.stat() for each in (path, path.with_suffix(".json"))]
    except OSError:
        return ()
    return tuple((s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for s in found)
