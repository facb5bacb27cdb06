"""`examine`: check whether episodes can be driven on a CARLA server, and how to fix what is wrong.

The checks run in a supervised child process, like episodes. A server that is absent, hangs or is
not a CARLA server costs at most the timeout, and a client that crashes is one of the findings. The
server is left unchanged; if another client drives on it, the checks stop. A minute of driving shows
more, and leaves the map on the server.
"""

import collections
import dataclasses
import itertools
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from avtd3.collect.carla.client_process import ClientProcess
from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.world import CarlaWorld
from avtd3.collect.checks import require_carla
from avtd3.collect.driving.driving_env import DrivingEnvironment
from avtd3.collect.driving.expert import ExpertConfig
from avtd3.collect.driving.task import TaskConfig
from avtd3.collect.environment import SUCCESS_REASON
from avtd3.collect.maps.scenarios import Scenario
from avtd3.store.errors import StorageError, WorldError, WorldLost
from avtd3.store.render.text import join_lines

OK, WARNING, FAILED = "ok", "warning", "failed"
CHECKS = ("connection", "use", "map", "steps", "camera", "speed")
"""The checks in order, each a method of `avtd3.collect.carla.child.Checkup`."""
DRIVE_CHECKS = ("expert", "control", "frames", "height", "lights", "contacts", "memory", "ticks")
"""The checks of a drive, in order."""
_UNREACHED = ("server_away", "server_lost", "tick_timeout", "client_crash")
_STATES = {OK: "ok  ", WARNING: "!   ", FAILED: "FAIL"}
_PICTURE_EVERY_S, _PICTURES, _PICTURE_PX = 5.0, 24, 240
_MOST_Z_ERROR_M, _MOST_GROWTH_MB = 0.5, 200.0
_SETTLED_S = 1.0


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


def examine(
    config: CarlaConfig,
    port: int,
    image: Path | None = None,
    scenario: Scenario | None = None,
    seconds: float = 0.0,
) -> tuple[DoctorReport, list[NDArray[np.uint8]]]:
    """Check a CARLA server; return the report, and pictures uint8 (1, H, W) of the drive.

    Args:
        config: The settings that episodes would use.
        port: RPC port of the server.
        image: Where to save the camera's picture as PNG; None to save none.
        scenario: Where the expert drives.
        seconds: Simulated seconds for which it drives if all else is well; 0 for no drive.

    Raises:
        ConfigError: The package carla is not installed, or the server lacks something that the
            settings name.
        StorageError: The picture could not be written.
    """
    require_carla("the doctor")
    # Collections wait for a server that is starting; the doctor reports it.
    config = dataclasses.replace(config, connect_timeout_s=config.timeout_s)
    findings: list[Finding] = []
    picture: NDArray[np.uint8] | None = None
    client = ClientProcess(config, port, "checkup")
    is_reached, check = True, CHECKS[0]
    try:
        client.start()
        for check in CHECKS:
            finding, image_of_check = client.ask(check)
            findings.append(finding)
            picture = picture if image_of_check is None else image_of_check
            if finding.state == FAILED:
                break
    except WorldError as error:
        is_reached = not (isinstance(error, WorldLost) and error.reason in _UNREACHED)
        findings.append(_failure(check, error))
    finally:
        client.end()
    if is_reached:
        findings.append(_cleanup(client.is_clean))
    saved = ""
    if image is not None and picture is not None:
        _save(picture, image)
        saved = str(image)
    report = DoctorReport(
        server=f"{config.host}:{port}",
        findings=tuple(findings),
        is_reached=is_reached,
        image=saved,
    )
    if scenario is None or not seconds or not report.is_well:
        return report, []
    found, pictures = _drive(config, port, scenario, seconds)
    return dataclasses.replace(report, findings=(*findings, *found)), pictures


def _failure(check: str, error: WorldError) -> Finding:
    text, _, fix = str(error).partition("; ")
    return Finding(check, FAILED, text, fix)


def _cleanup(is_clean: bool) -> Finding:
    if is_clean:
        return Finding("cleanup", OK, "our actors are removed and the settings are restored")
    text = "our actors could not be removed, or the settings could not be restored"
    return Finding("cleanup", FAILED, text, "restart the server")


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    try:
        Image.fromarray(picture[0]).save(path, format="PNG")
    except OSError as error:
        raise StorageError(
            f"the picture cannot be written to {path} ({error.strerror or error}); give another "
            "--image"
        ) from error


@dataclasses.dataclass(slots=True)
class _Seen:
    """What was seen while the expert drove."""

    steps: int = 0
    episodes: int = 0
    other_controls: int = 0
    frame_gaps: int = 0
    early_hits: list[str] = dataclasses.field(default_factory=list)
    """What was hit within the first second of an episode, where nothing is."""
    ends: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    red_lights: int = 0
    vitals: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    rss_mb: list[float] = dataclasses.field(default_factory=list)
    wall_s: float = 0.0
    pictures: list[NDArray[np.uint8]] = dataclasses.field(default_factory=list)


def _drive(
    config: CarlaConfig, port: int, scenario: Scenario, seconds: float
) -> tuple[list[Finding], list[NDArray[np.uint8]]]:
    """Let the expert drive; a server that fails meanwhile is a finding of the first check."""
    world = CarlaWorld(dataclasses.replace(config, server_command=""), port)
    environment = DrivingEnvironment(world, TaskConfig(), (scenario,), ExpertConfig())
    seen = _Seen()
    try:
        while seen.steps * config.control_period_s < seconds:
            _drive_episode(environment, world, seen, seconds)
    except WorldError as error:
        return [_failure("expert", error)], seen.pictures
    finally:
        environment.close()
    return _drive_findings(seen, config.control_period_s), seen.pictures


def _drive_episode(
    environment: DrivingEnvironment, world: CarlaWorld, seen: _Seen, seconds: float
) -> None:
    observation = environment.reset(2 * seen.episodes).observation
    driver = environment.driver("expert")
    driver.reset(np.random.default_rng(seen.episodes))
    seen.episodes += 1
    period_s, task = world.control_period_s, environment.task
    frames, begun_s = [task.frame], time.monotonic()
    while seen.steps * period_s < seconds:
        if seen.steps % round(_PICTURE_EVERY_S / period_s) == 0 and observation.image is not None:
            seen.pictures = [*seen.pictures, observation.image][-_PICTURES:]
        step = environment.step(driver.act(observation))
        observation, frame = step.observation, task.frame
        frames.append(frame)
        seen.steps += 1
        seen.other_controls += frame.other_control
        seen.red_lights += frame.ran_red_light
        if frame.collision and frame.sim_time_s < _SETTLED_S:
            seen.early_hits.append(frame.collision)
        if step.is_last:
            break
    seen.wall_s += time.monotonic() - begun_s
    seen.ends[task.reason or "time over"] += 1
    seen.frame_gaps += sum(b.frame_id - a.frame_id != 1 for a, b in itertools.pairwise(frames))
    seen.vitals.append(world.vitals())
    seen.rss_mb.append(_rss_mb(world.client.pid))


def _drive_findings(seen: _Seen, period_s: float) -> list[Finding]:
    """Return a finding for each of `DRIVE_CHECKS`."""
    ends = ", ".join(f"{count} {reason}" for reason, count in sorted(seen.ends.items()))
    good = seen.ends[SUCCESS_REASON] + seen.ends["time over"]
    z_error_m = max(found["z_error_m"] for found in seen.vitals)
    touched = sum(
        (collections.Counter(found["touched"]) for found in seen.vitals),
        start=collections.Counter[str](),
    )
    grown_mb = seen.rss_mb[-1] - seen.rss_mb[0]
    per_s = seen.steps / max(seen.wall_s, 1e-9)
    lights = sum(found["lights"] for found in seen.vitals)
    wakes = seen.vitals[-1]["wakes"]
    rows = (
        (good == seen.episodes, f"{seen.steps} steps, {seen.episodes} episodes: {ends}",
         "view the pictures; a collision or a car that is stuck at the start is a wrong map"),
        (not seen.other_controls, f"{seen.other_controls} steps drove with another control",
         "stop other clients that control the car; report this with --json"),
        (not seen.frame_gaps, f"{seen.frame_gaps} gaps between frames",
         "stop other clients that tick the server"),
        (z_error_m < _MOST_Z_ERROR_M, f"the car is at most {z_error_m:.2f} m off the road's height",
         "the map's OpenDRIVE text and its meshes differ: choose another map"),
        (not seen.red_lights, f"{lights} stop lines on the routes, {seen.red_lights} passed at red",
         "compare the stop lines with the pictures; report this with --json"),
        (not seen.early_hits, f"{len(seen.early_hits)} collisions at the start {seen.early_hits}; "
         f"ground touched: {dict(touched)}",
         "the ground counts as an obstacle: report its type and impulse"),
        (grown_mb < _MOST_GROWTH_MB, f"the client uses {seen.rss_mb[-1]:.0f} MB, "
         f"{grown_mb:+.0f} MB since the first episode", "report this with --json"),
        (per_s * period_s >= 1.0, f"{per_s:.1f} steps/s, {per_s * period_s:.1f} x real time; the "
         f"traffic manager was woken {wakes} times",
         "collection is slower than real time: try -quality-level=Low or fewer vehicles"),
    )  # fmt: skip
    return [
        Finding(check, OK if is_well else WARNING, text, "" if is_well else fix)
        for check, (is_well, text, fix) in zip(DRIVE_CHECKS, rows, strict=True)
    ]


def _rss_mb(pid: int | None) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def page(report: DoctorReport, pictures: list[NDArray[np.uint8]]) -> str:
    """Return one page of HTML with the findings and the pictures."""
    from avtd3.store.render.html import render_page
    from avtd3.store.render.media import filmstrip

    return render_page(
        "doctor.html.j2",
        title=f"CARLA server {report.server}",
        report=report,
        kinds={OK: "ok", WARNING: "warning", FAILED: "error"},
        pictures=filmstrip(pictures, _PICTURE_PX)[0] if pictures else (),
        every_s=_PICTURE_EVERY_S,
    )
