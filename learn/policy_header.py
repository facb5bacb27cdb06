"""The header of a policy file: what a possibly strange file says of itself, read strictly."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avtd3.learn.networks import NetworkConfig
from avtd3.store.errors import Avtd3Error, CheckpointError, FormatVersionError
from avtd3.store.spec import EpisodeSpec

FORMAT_VERSION = 1
HEADER_KEY = "avtd3_policy"


def read_header(data: bytes, path: Path) -> dict[str, Any]:
    """The document in the header of a policy file.

    Raises:
        CheckpointError: It is no policy file, or its numbers are impossible.
        FormatVersionError: A later avtd3 wrote it.
    """
    size = int.from_bytes(data[:8], "little")
    try:
        document = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][HEADER_KEY])
        known = document["format_version"]
        int(document["version"]), int(document["updates"])
        limit = float(document.get("action_limit", 1.0))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a policy of avtd3: no readable {HEADER_KEY} in its header ({error!r})"
        ) from error
    if not 0.0 < limit <= 1.0:
        raise CheckpointError(
            f"policy {path} has the action limit {limit}, expected above 0, at most 1; go back to "
            "an earlier policy"
        )
    if known != FORMAT_VERSION:
        raise FormatVersionError(
            f"policy {path} has format version {known}, this avtd3 reads {FORMAT_VERSION}; "
            "update avtd3"
        )
    return dict(document)


def read_claims(document: Mapping[str, Any], path: Path) -> tuple[EpisodeSpec, NetworkConfig]:
    """The spec and the shape of the networks that a header claims.

    Raises:
        CheckpointError: They cannot be.
    """
    try:
        spec = EpisodeSpec.from_json(document["spec"])
        fields = dict(document["network"])
        config = NetworkConfig(**fields | {"hidden": tuple(fields["hidden"])})
    except (Avtd3Error, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"policy {path} has an impossible header: {error}") from error
    return spec, config
