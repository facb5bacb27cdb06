"""`examine`: check whether episodes can be driven on a CARLA server, and how to fix what is wrong.

The checks run in a supervised child process, like episodes. A server that is absent, hangs or is
not a CARLA server costs at most the timeout, and a client that crashes is one of the findings. The
server is left unchanged; if another client drives on it, the checks stop.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.carla.client_process import ClientProcess
from avtd3.collect.carla.config import CarlaConfig
from avtd3.store.errors import ConfigError, StorageError, WorldError, WorldLost
from avtd3.store.render.text import join_lines

OK, WARNING, FAILED = "ok", "warning", "failed"
CHECKS = ("connection", "use", "map", "steps", "camera", "speed")
"""The checks in order, each a method of `avtd3.collect.carla.session.Checkup`."""
_UNREACHED = ("server_away", "server_lost", "tick_timeout", "client_crash")
_STATES = {OK: "ok  ", WARNING: "!   ", FAILED: "FAIL"}


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    """Name of the check."""
    state: str
    """``ok``, ``warning`` (episodes can be driven) or ``failed``."""
    text: str
    """What was found."""
    fix: str = ""
    """How to fix it; empty if nothing is wrong."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """The result of all checks of a server."""

    server: str
    """``host:port``."""
    findings: tuple[Finding, ...]
    """One for each check that ran, in order."""
    is_reached: bool
    """Whether a CARLA server answered all calls."""
    image: str
    """Path of the saved camera picture, or an empty string."""

    @property
    def is_well(self) -> bool:
        """Return whether episodes can be driven on the server."""
        return self.is_reached and all(finding.state != FAILED for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "server": self.server,
            "well": self.is_well,
            "reached": self.is_reached,
            "image": self.image or None,
            "checks": [dataclasses.asdict(finding) for finding in self.findings],
        }

    def summary(self) -> str:
        """Return the report as text."""
        lines = []
        for finding in self.findings:
            lines.append(f"{_STATES[finding.state]}  {finding.check:<11} {finding.text}")
            if finding.fix:
                lines.append(f"{'':<18}-> {finding.fix}")
        end = "is ready" if self.is_well else "is not ready"
        return join_lines([*lines, f"CARLA server {self.server} {end}"])


def examine(config: CarlaConfig, port: int, image: Path | None = None) -> DoctorReport:
    """Check a CARLA server.

    Args:
        config: The settings that episodes would use.
        port: RPC port of the server.
        image: Where to save the camera's picture as PNG; None to save none.

    Returns:
        The report.

    Raises:
        ConfigError: The directory for the picture does not exist, or the server lacks something
            that the settings name.
        StorageError: The picture could not be written.
    """
    if image is not None and not image.absolute().parent.is_dir():
        raise ConfigError(
            f"--image {image}: there is no directory {image.absolute().parent}; create it first"
        )
    # Collections wait for a server that is starting; the doctor reports it.
    config = dataclasses.replace(config, connect_timeout_s=config.timeout_s)
    findings: list[Finding] = []
    picture: NDArray[np.uint8] | None = None
    child = ClientProcess(config, port, "checkup")
    is_reached, check = True, CHECKS[0]
    try:
        for check in CHECKS:
            finding, image_of_check = child.ask(check)
            findings.append(finding)
            picture = picture if image_of_check is None else image_of_check
            if finding.state == FAILED:
                break
    except WorldError as error:
        is_reached = not (isinstance(error, WorldLost) and error.reason in _UNREACHED)
        text, _, fix = str(error).partition("; ")
        findings.append(Finding(check, FAILED, text, fix))
    finally:
        is_clean = child.end(2.0 * config.timeout_s + config.step_timeout_s)
    if is_reached:
        findings.append(_cleanup(is_clean))
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


def _cleanup(is_clean: bool) -> Finding:
    if is_clean:
        return Finding("cleanup", OK, "our actors are removed and the settings are restored")
    return Finding(
        "cleanup",
        FAILED,
        "our actors could not be removed, or the settings could not be restored",
        "restart the server",
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
