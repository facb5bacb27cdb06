"""`examine`: can episodes be driven on a CARLA server? What is wrong, and what mends it.

The checks run in a supervised child process, as episodes do. So a server that is absent, hangs or
is none at all costs no more than the time allowed, and a client that crashes is one more finding.
The server is left as it was found; one on which somebody drives is left alone.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.supervised import Child
from avtd3.store.errors import ConfigError, StorageError, WorldError, WorldLost

OK, WARNING, FAILED = "ok", "warning", "failed"
CHECKS = ("connection", "use", "map", "steps", "camera", "speed")
"""The checks in order, each a method of `avtd3.collect.carla.checkup.Checkup`."""
_SILENT = ("server_away", "server_lost", "tick_timeout", "client_crash")
_STATES = {OK: "ok  ", WARNING: "!   ", FAILED: "FAIL"}


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What one check found."""

    check: str
    """Which check."""
    state: str
    """``ok``, ``warning`` (episodes can be driven) or ``failed``."""
    text: str
    """What was found."""
    mend: str = ""
    """What mends it; empty if nothing needs to be mended."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """What an examination has found."""

    server: str
    """``host:port``."""
    findings: tuple[Finding, ...]
    """One for each check that was made, in order."""
    is_reached: bool
    """Whether there was a CARLA server, and it answered to the end."""
    image: str
    """File in which the camera's picture was saved, or an empty string."""

    @property
    def is_well(self) -> bool:
        """Whether episodes can be driven there."""
        return self.is_reached and all(finding.state != FAILED for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "server": self.server,
            "well": self.is_well,
            "reached": self.is_reached,
            "image": self.image or None,
            "checks": [dataclasses.asdict(finding) for finding in self.findings],
        }

    def summary(self) -> str:
        """The report for a person."""
        lines = []
        for finding in self.findings:
            lines.append(f"{_STATES[finding.state]}  {finding.check:<11} {finding.text}")
            if finding.mend:
                lines.append(f"{'':<18}-> {finding.mend}")
        end = "is ready" if self.is_well else "is not ready"
        return "\n".join([*lines, f"CARLA server {self.server} {end}"])


def examine(config: CarlaConfig, port: int, image: Path | None = None) -> DoctorReport:
    """Check a CARLA server.

    Args:
        config: The settings that episodes would be driven with.
        port: RPC port of the server.
        image: Where to save the camera's picture, as PNG; None for nowhere.

    Raises:
        ConfigError: The picture cannot be saved there, or the server lacks what the settings name.
        StorageError: The picture could not be written.
    """
    if image is not None and not image.absolute().parent.is_dir():
        raise ConfigError(
            f"--image {image}: there is no directory {image.absolute().parent}; make it first"
        )
    # A server that is just starting is waited for by collections, and told here.
    config = dataclasses.replace(config, connect_timeout_s=config.timeout_s)
    findings: list[Finding] = []
    picture: NDArray[np.uint8] | None = None
    child = Child(config, port, "checkup")
    is_reached, check = True, CHECKS[0]
    try:
        for check in CHECKS:
            finding, seen = child.ask(check)
            findings.append(finding)
            picture = picture if seen is None else seen
            if finding.state == FAILED:
                break
    except WorldError as error:
        is_reached = not (isinstance(error, WorldLost) and error.reason in _SILENT)
        findings.append(Finding(check, FAILED, *_told(error)))
    finally:
        is_clean = child.end(2.0 * config.timeout_s + config.step_timeout_s)
    if is_reached:
        findings.append(_farewell(is_clean))
    saved = ""
    if image is not None and picture is not None:
        _save(picture, image)
        saved = str(image)
    return DoctorReport(
        server=f"{config.host}:{port}",
        findings=tuple(findings),
        is_reached=is_reached,
        image=saved,
    )


def _told(error: WorldError) -> tuple[str, str]:
    """An error's message as what was found and what mends it."""
    found, _, mend = str(error).partition("; ")
    return found, mend


def _farewell(is_clean: bool) -> Finding:
    if is_clean:
        return Finding("farewell", OK, "our actors are removed, its settings are as they were")
    return Finding(
        "farewell",
        FAILED,
        "the server did not let us remove our actors and put its settings back",
        "start it again",
    )


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    try:
        Image.fromarray(picture[0]).save(path, format="PNG")
    except OSError as error:
        raise StorageError(
            f"the picture cannot be written to {path} ({error.strerror or error}); give another "
            "--image"
        ) from error
