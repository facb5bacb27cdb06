"""`PolicyStore`: the directory through which a learner passes policies to collectors.

`avtd3.learn.policy` describes the files. Each one is written to a temporary name, flushed to disk
and
renamed: first the policy, then its sidecar, then `LATEST`. A process that copies or polls the
directory
sees complete policies only.
"""

import dataclasses
from pathlib import Path

from avtd3.learn.networks import Actor, NetworkConfig
from avtd3.learn.policy import (
    LATEST,
    Policy,
    PublishedFile,
    encode_policy,
    list_versions,
    policy_name,
    read_latest,
)
from avtd3.store import files
from avtd3.store.errors import Avtd3Error, CheckpointError, FormatVersionError
from avtd3.store.spec import EpisodeSpec


class PolicyStore:
    """A directory of published policies. One learner publishes; any number of collectors read.

    Args:
        path: The directory; created when the first policy is published.

    Example:
        >>> store = PolicyStore("policies-that-do-not-exist")
        >>> print(store.newest_version())
        None
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        """The directory."""
        self.warning = ""
        """Why the newest policy could not be read; empty unless the last call found a new
        reason."""
        self._last_warning = ""

    def publish(
        self,
        actor: Actor,
        spec: EpisodeSpec,
        config: NetworkConfig,
        *,
        updates: int,
        action_limit: float = 1.0,
    ) -> int:
        """Publish an actor as the next version.

        Args:
            actor: The network.
            spec: Spec of its data.
            config: Shape of the network.
            updates: Number of gradient updates of its training.
            action_limit: Share of each half range of the action that it may use, in (0, 1].

        Returns:
            The version.

        Raises:
            StorageError: If the directory cannot be written.
        """
        with files.storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            for stale in self.path.glob(".policy-*.tmp"):  # left by a process that was killed
                stale.unlink(missing_ok=True)
        version = max(list_versions(self.path), default=-1) + 1
        while True:
            path = self.path_of(version)
            data = encode_policy(
                actor, spec, config, version=version, updates=updates, action_limit=action_limit
            )
            if files.create_exclusive(path, data, aside=path.with_name(f".{path.name}.tmp")):
                break
            version += 1
        published = PublishedFile(version=version, file=path.name, sha256=files.sha256(data))
        document = dataclasses.asdict(published)
        sidecar = files.canonical_json(document | {"size_bytes": len(data)})
        files.write_aside(path.with_suffix(".json"), sidecar)
        files.write_aside(self.path / LATEST, files.canonical_json(document))
        return version

    def path_of(self, version: int) -> Path:
        """Return the path of a policy file."""
        return self.path / policy_name(version)

    def versions(self) -> list[int]:
        """Return all versions in the directory, ascending."""
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

    def latest(self, spec: EpisodeSpec | None) -> Policy | None:
        """Return the newest policy that can be read; None if there is none.

        Args:
            spec: The spec that the policy must have; None for any.

        Raises:
            SpecError: If the newest policy was trained for another spec.
        """
        policy = self.poll(None, spec)
        if policy is not None:
            return policy
        for version in reversed(self.versions()):
            try:
                return Policy.load(self.path_of(version), spec=spec)
            except (CheckpointError, FormatVersionError) as error:
                self._warn(error)
        return None

    def poll(self, current: Policy | None, spec: EpisodeSpec | None) -> Policy | None:
        """Return the newest policy, or `current` if it is the newest one.

        This reads one small file, so call it between episodes. If the newest policy cannot be read,
        it returns `current`, and sets `warning` once.

        Args:
            current: The policy in use; None if there is none.
            spec: The spec that the policy must have; None for any.

        Raises:
            SpecError: If the newest policy was trained for another spec.
        """
        self.warning = ""
        try:
            latest = read_latest(self.path)
            if latest is not None and (current is None or latest.sha256 != current.digest):
                current = Policy.load(self.path / latest.file, spec=spec)
            self._last_warning = ""
        except (CheckpointError, FormatVersionError) as error:
            self._warn(error)
        return current

    def _warn(self, error: Avtd3Error) -> None:
        if str(error) != self._last_warning:
            self.warning = self._last_warning = str(error)
