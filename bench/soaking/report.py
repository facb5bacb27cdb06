"""The result of a soak as Markdown."""

import collections
import os
from collections.abc import Sequence
from typing import Any

from soaking.processes import Role
from soaking.soak import Soak


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(heads)} |", f"| {' | '.join('---' for _ in heads)} |"]
    return lines + [f"| {' | '.join(map(str, row))} |" for row in rows]


def report(soak: Soak, found: dict[str, Any], command: str) -> str:
    """Return the result as Markdown."""
    roles = [*soak.roles.values(), *soak.maintenance.values()]
    lines = [
        f"`{command}`: {soak.seconds / 60:.1f} minutes, {os.cpu_count()} cores.",
        "",
        f"- {found['published']:,} episodes ({found['published_steps']:,} steps) in "
        f"{found['segments']:,} segments were published; collected twice: {found['twice']}.",
    ]
    lines += [
        f"- {name}: {one['episodes']:,} episodes ({one['steps']:,} steps) are visible; lost "
        f"steps: {one['lost']}, doubled episodes: {one['doubled']}; audit: {one['verdict']}."
        for name, one in found["views"].items()
    ]
    if soak.learned:
        one = soak.learned
        lines.append(f"- learner: {one['updates']:,} updates, {one['steps']:,} steps at the end.")
    lines += [
        *(f"- {fact}" for fact in soak.facts()),
        f"- problems: {len(soak.problems)}.",
        "",
        *table(
            (
                "command",
                "starts",
                "SIGKILL",
                "of workers",
                "SIGTERM",
                "exit codes",
                "most MB",
                "most files",
            ),
            [_lives(role, soak.killed_workers[role.name]) for role in roles],
        ),
        "",
        "Own memory and open files of the longest process of each command: at five points of its "
        "lifetime, and the slope of the least-squares line through its second half (per hour):",
        "",
        *table(
            ("command", "seconds", "at 20 %", "40 %", "60 %", "80 %", "100 %", "slope"),
            [row for role in soak.roles.values() if (row := _growth(role))],
        ),
        "",
    ]
    lines += [f"- {text}" for text in soak.problems]
    return "\n".join(lines).rstrip("\n") + "\n"


def _lives(role: Role, killed_workers: int) -> list[object]:
    ends = collections.Counter(life.ending for life in role.lifetimes)
    codes = collections.Counter(life.code for life in role.lifetimes if life.code is not None)
    shown = ", ".join(f"{n} x {c}" for c, n in sorted(codes.items()) if c >= 0) or "none"
    samples = [sample for life in role.lifetimes for sample in life.samples]
    return [
        role.name,
        len(role.lifetimes),
        ends["SIGKILL"],
        killed_workers,
        ends["SIGTERM"],
        shown,
        f"{max((memory for _, memory, _ in samples), default=0.0):.0f}",
        max((files for _, _, files in samples), default=0),
    ]


def _growth(role: Role) -> list[object]:
    longest = role.longest
    if longest is None or len(longest.samples) < 5:
        return []
    samples = longest.samples
    points = [samples[min(len(samples) * n // 5, len(samples)) - 1] for n in range(1, 6)]
    memory_mb, files = longest.growth()[2:]
    return [
        role.name,
        f"{samples[-1][0]:.0f}",
        *(f"{mb:.0f} MB, {fd}" for _, mb, fd in points),
        f"{memory_mb:+.0f} MB, {files:+.1f}" if longest.is_long_enough else "too short",
    ]
