"""The files of a policy directory, with no knowledge of what is inside a policy.

::

    POLICIES/policy-00000012.safetensors   weights, never changed once it has its name
    POLICIES/policy-00000012.json          its size and SHA-256
    POLICIES/LATEST.json                   version, file and SHA-256 of the newest, replaced

Each file is written aside, flushed to the disk and renamed, in this order, so whoever copies or
polls the directory sees a policy whole or not at all.
"""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

from avtd3.store import files
from avtd3.store.errors import CheckpointError

LATEST = "LATEST.json"
MAX_POLICY_BYTES = 1 << 30
"""Largest policy file that is read at all."""
MAX_SIDECAR_BYTES = 1 << 16
_NAME = re.compile(r"policy-(\d{8,18})\.safetensors")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A policy file as its sidecar or `LATEST.json` describes it."""

    version: int
    """Number of the policy, counted up from 0 in each directory."""
    file: str
    """Name of the weights file."""
    sha256: str
    """SHA-256 of the whole weights file, in hexadecimal."""


def policy_name(version: int) -> str:
    """Name of the weights file of a version."""
    return f"policy-{version:08d}.safetensors"


def versions(directory: Path) -> list[int]:
    """Versions whose weights file exists, ascending; empty for a missing directory."""
    with files.storage_errors(directory):
        try:
            names = [path.name for path in directory.iterdir()]
        except FileNotFoundError:
            return []
    return sorted(int(match[1]) for name in names if (match := _NAME.fullmatch(name)))


def publish(directory: Path, encode: Callable[[int], bytes]) -> Published:
    """Publish a policy under the next free version.

    Args:
        directory: The policy directory; created if need be.
        encode: Makes the file's bytes, given the version.

    Raises:
        StorageError: The directory cannot be written.
    """
    with files.storage_errors(directory):
        directory.mkdir(parents=True, exist_ok=True)
        for stale in directory.glob(".policy-*.tmp"):  # of a learner that was killed
            stale.unlink(missing_ok=True)
    version = max(versions(directory), default=-1) + 1
    while True:
        data = encode(version)
        path = directory / policy_name(version)
        if files.create_exclusive(path, data, aside=path.with_name(f".{path.name}.tmp")):
            break
        version += 1
    published = Published(version=version, file=path.name, sha256=files.sha256(data))
    document = dataclasses.asdict(published)
    sidecar = files.canonical_json(document | {"size_bytes": len(data)})
    files.write_aside(path.with_suffix(".json"), sidecar)
    files.write_aside(directory / LATEST, files.canonical_json(document))
    return published


def prune(directory: Path, keep: int) -> None:
    """Remove all but the newest `keep` policies, oldest first, sidecars last."""
    for version in versions(directory)[: -max(keep, 1)]:
        path = directory / policy_name(version)
        path.unlink(missing_ok=True)
        path.with_suffix(".json").unlink(missing_ok=True)


def read_latest(directory: Path) -> Published | None:
    """What `LATEST.json` names; None if there is none yet.

    Raises:
        CheckpointError: The file is torn or names something outside the directory.
    """
    path = directory / LATEST
    return _read_published(path) if path.exists() else None


def read_verified(path: Path) -> tuple[bytes, str]:
    """Read a weights file whose bytes are those that its sidecar promises.

    Returns:
        The file's bytes and their SHA-256 in hexadecimal.

    Raises:
        CheckpointError: The file or its sidecar is missing, too large, torn or altered.
    """
    data = _read_bounded(path, MAX_POLICY_BYTES)
    sidecar = path.with_suffix(".json")
    expected = _read_published(sidecar).sha256
    actual = files.sha256(data)
    if actual != expected:
        raise CheckpointError(
            f"policy {path} has SHA-256 {actual}, expected {expected} ({sidecar.name}); the file "
            "is torn or altered: copy it again or publish a new one"
        )
    return data, actual


def _read_published(path: Path) -> Published:
    data = _read_bounded(path, MAX_SIDECAR_BYTES)
    try:
        document = files.parse_json(data, path)
    except ValueError as error:
        raise CheckpointError(f"{error}; torn file: copy it again") from error
    fields = document if isinstance(document, dict) else {}
    version, file, sha256 = (fields.get(key) for key in ("version", "file", "sha256"))
    if not (
        isinstance(version, int)
        and isinstance(sha256, str)
        and isinstance(file, str)
        and _NAME.fullmatch(file)
    ):
        raise CheckpointError(
            f"{path} names no policy, expected the keys version, file and sha256; copy it again "
            "or publish a new policy"
        )
    return Published(version=version, file=file, sha256=sha256)


def _read_bounded(path: Path, limit: int) -> bytes:
    try:
        return files.read_bytes(path, limit)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is missing; copy the policy together with its .json file"
        ) from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read a policy: {error}; copy it again") from error
