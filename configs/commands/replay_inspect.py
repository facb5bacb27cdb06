"""`avtd3 replay-inspect`: audit datasets, compare two of them, or show one episode.

`check_options` refuses options that have no effect together. The report depends on these:

================================ ==============================================
option                           report
================================ ==============================================
none of those below              an audit: contents, integrity and plausibility
``--against`` or ``--window``    an audit, with the drift between two parts of it
``--scores``                     an audit, with CARLA leaderboard driving scores
``--episode``                    one episode, in the terminal and as pictures
``--estimate``                   disk space per step
================================ ==============================================
"""

import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avtd3.configs.commands import console
from avtd3.configs.commands import options as opt
from avtd3.store.errors import ConfigError, escape
from avtd3.store.files import remote_url, show_path

if TYPE_CHECKING:
    from markupsafe import Markup

    from avtd3.collect.leaderboard import ScoreReport
    from avtd3.store.audit.audit import AuditConfig, QuarantineReport
    from avtd3.store.audit.drift import Drift
    from avtd3.store.audit.report import AuditReport
    from avtd3.store.filters import EpisodeFilter
    from avtd3.store.render.text import Terminal

_EPISODE = {"--filter", "--sheet", "--gif", "--mp4"}
_REPORTS = ("--against", "--window", "--scores", "--episode", "--estimate")
"""Options that choose the report."""
_WITHOUT_AUDIT = {
    "--episode": {"--episode"} | _EPISODE,
    "--estimate": {"--estimate", "--config", "--set"},
}
"""Options that have an effect without an audit, besides ``--json``."""

MEASURED_STEPS = 600
"""Steps that ``--estimate`` drives to measure a configuration: 30 s at 20 Hz."""
_WINDOWS = 2


def check_options(given: Sequence[str]) -> None:
    """Raise `ConfigError` if some of the options that are given have no effect together."""
    chosen = [option for option in given if option in _REPORTS]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} exclude each other; give one of them")
    allowed = _WITHOUT_AUDIT.get(chosen[0], given) if chosen else given
    for option in given:
        if option in _EPISODE and "--episode" not in given:
            raise ConfigError(f"{option} needs an episode; add --episode worst, for example")
        if option not in allowed:
            raise ConfigError(f"{option} has no effect with {chosen[0]}; give one of them")
    if "--dry-run" in given and "--quarantine" not in given:
        raise ConfigError("--dry-run has no effect without --quarantine; add --quarantine")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The datasets of an audit, and which two parts of them are compared, if any."""

    datasets: tuple[Path, ...]
    """All datasets, those of ``--against`` included."""
    against: tuple[Path, ...]
    """The datasets that the others are compared with."""
    windows: tuple["EpisodeFilter", ...]
    """Two sets of episodes to compare, or none."""
    names: tuple[str, ...]
    """Names of the two parts, for the report."""

    @classmethod
    def parse(
        cls, datasets: Sequence[Path], against: Sequence[Path], windows: Sequence[str]
    ) -> "Comparison":
        """Read the arguments, ``--against``, and ``--window`` with filters between spaces."""
        from avtd3.store.filters import parse_filter

        if windows and len(windows) != _WINDOWS:
            raise ConfigError(
                f"found {len(windows)} --window, expected two, such as "
                "--window date=..2026-11-09 --window date=2026-11-10.."
            )
        if both := {*map(show_path, datasets)} & {*map(show_path, against)}:
            raise ConfigError(
                f"--against {min(both)} is compared with itself; name another dataset"
            )
        sides = (datasets, against)
        names = tuple(windows) or tuple(", ".join(map(show_path, side)) for side in sides)
        return cls(
            datasets=(*datasets, *against),
            against=tuple(against),
            windows=tuple(parse_filter(text.split()) for text in windows),
            names=names,
        )

    def drifts(self, report: "AuditReport") -> tuple["Drift", ...]:
        """Return the drift of each quantity between the two parts; empty without a comparison."""
        from avtd3.store.audit.drift import drift_between
        from avtd3.store.audit.statistics import Summary

        if self.windows:
            first, second = report.windows
        elif self.against:
            first, second = Summary(), Summary()
            for dataset in report.datasets:
                if dataset.path in map(show_path, self.against):
                    second = second.merge(dataset.summary)
                else:
                    first = first.merge(dataset.summary)
        else:
            return ()
        return drift_between(first, second)

    def text(self, drifts: Sequence["Drift"]) -> list[str]:
        """Return the drift as text for the terminal; empty without a comparison."""
        from avtd3.store.render.audit_view import drift_text

        return [drift_text(drifts, *self.names)] if self.windows or self.against else []


def show_estimate(
    datasets: Sequence[Path], config: str | None, overrides: Sequence[str], *, as_json: bool
) -> None:
    """Print the disk space per step, of a dataset or of `MEASURED_STEPS` in a configured world."""
    from avtd3.store.audit.statistics import estimate
    from avtd3.store.dataset import Dataset

    if len(datasets) > 1:
        raise ConfigError(f"--estimate measures one dataset, found {len(datasets)}")
    if datasets and (config is not None or overrides):
        raise ConfigError(
            "--config and --set have no effect when --estimate measures a dataset; omit the "
            "dataset to measure a configuration"
        )
    if datasets:
        report = estimate(Dataset.open(datasets[0]))
    else:
        from avtd3.collect.collector import collect

        with tempfile.TemporaryDirectory(prefix="avtd3-estimate-") as folder:
            path = Path(folder) / "data"
            collect(path, opt.section("collect", config, overrides), steps=MEASURED_STEPS)
            report = estimate(Dataset.open(path))
    opt.finish(report, as_json)


def show_episode(
    datasets: Sequence[Path],
    name: str,
    *,
    filters: Sequence[str] = (),
    sheet: Path | None = None,
    gif: Path | None = None,
    mp4: Path | None = None,
    as_json: bool = False,
) -> None:
    """Find an episode, by name or among those that match; write its pictures, and draw it."""
    import numpy as np

    from avtd3.store.filters import parse_filter
    from avtd3.store.render.episode_view import (
        document_of,
        draw_episode,
        find_episode,
        write_episode_gif,
        write_episode_mp4,
        write_episode_sheet,
    )

    opt.check_destinations(sheet, gif, mp4)
    rng = np.random.default_rng()
    found = find_episode(datasets, name, rng, parse_filter(filters))
    written = []
    for path, write in (
        (sheet, write_episode_sheet),
        (gif, write_episode_gif),
        (mp4, write_episode_mp4),
    ):
        if path is not None:
            write(found, path)
            console.say(f"wrote {path}")
            written.append(str(path))
    opt.answer(document_of(found) | {"files": written}, as_json, draw_episode(found, _terminal()))


def _terminal() -> "Terminal":
    """Return what standard output can show; pipes and files get no colours."""
    from avtd3.store.render.text import Terminal

    unicode = (sys.stdout.encoding or "ascii").lower().startswith("utf")
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM", "dumb") == "dumb"
    return Terminal(
        width=shutil.get_terminal_size((100, 40)).columns,
        unicode=unicode,
        colours=sys.stdout.isatty() and unicode and not plain,
    )


def show_audit(
    comparison: Comparison,
    settings: "AuditConfig",
    *,
    penalties: str | None = None,
    scored: Sequence[Path] = (),
    html: Path | None = None,
    quarantine: bool = False,
    dry_run: bool = False,
    as_json: bool = False,
) -> None:
    """Audit datasets and print the report, with driving scores by a table of penalties."""
    from avtd3.store.audit.audit import audit
    from avtd3.store.render.audit_view import audit_text, write_audit_page

    opt.check_destinations(html)
    scores = []
    with console.running() as control:
        report = audit(comparison.datasets, settings, windows=comparison.windows, **control)
        if penalties is not None:
            from avtd3.collect.leaderboard import penalty_table, score_datasets

            table, should_stop = penalty_table(penalties), control["should_stop"]
            scores.append(score_datasets(scored, table, should_stop))
    for problem in report.not_copied:
        console.complain(f"avtd3: not copied: {problem}")
    drifts = comparison.drifts(report)
    if html is not None:
        sections = [page_section(found) for found in scores]
        write_audit_page(report, html, drifts=drifts, compared=comparison.names, more=sections)
        console.say(f"wrote {html}")
    found, lines = _quarantine(report, wanted=quarantine, dry_run=dry_run)
    score_texts = [found.summary() for found in scores]
    text = "\n".join(
        [audit_text(report), *score_texts, *comparison.text(drifts), *map(escape, lines)]
    )
    document = report.document() | {
        "quarantined": [] if dry_run else list(found.moved),
        "kept": [dataclasses.asdict(segment) for segment in found.kept],
        "drift": [drift.document() for drift in drifts],
        "scores": next((found.document() for found in scores), None),
    }
    opt.answer(document, as_json, text)
    if report.verdict == "unreadable":
        raise typer.Exit(console.EXIT_ENVIRONMENT)
    if report.verdict != "ok" or report.not_copied:
        raise typer.Exit(console.EXIT_NO)


def page_section(report: "ScoreReport") -> tuple[str, "Markup"]:
    """Return title and content of the page's section on driving scores."""
    from avtd3.collect.leaderboard import NOT_OBSERVED
    from avtd3.store.render.html import render

    heads, rows = report.table()
    content = render(
        "scores.html.j2",
        heads=heads,
        rows=rows,
        note="Driving score: completion times infraction penalty, by the definitions of CARLA's "
        f"{report.version}. Not observed: {', '.join(NOT_OBSERVED)}.",
        rates=[(name, f"{rate:.2f}") for name, rate in report.rates()],
        unscored=[(entry.segment, entry.line().partition(": ")[2]) for entry in report.unscored],
    )
    return "Driving scores", content


def _quarantine(
    report: "AuditReport", *, wanted: bool, dry_run: bool
) -> tuple["QuarantineReport", list[str]]:
    """Move damaged segments; return what was done, and lines of text about it."""
    from avtd3.store.audit.audit import QuarantineReport, quarantine_damaged

    if not wanted and not dry_run:
        return QuarantineReport(moved=(), kept=()), []
    found = quarantine_damaged(report, dry_run=dry_run)
    verb = "would move" if dry_run else "moved"
    lines = [f"{verb} to quarantine: {name}" for name in found.moved]
    return found, [*lines, *(f"not moved: {s.segment}: {s.reason}" for s in found.kept)]


def replay_inspect(
    context: typer.Context,
    datasets: Annotated[
        list[Path] | None,
        opt.argument(
            "DATASET",
            "Datasets to audit: directories, or URLs, which are copied for the audit (with "
            "--scheduler, segment by segment by its workers).",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[
        str | None, opt.option("SHARE", "Read this share of the segments, such as 5% or 0.05.")
    ] = None,
    full: Annotated[
        bool, opt.option("--full", "Verify again what an earlier audit has verified.")
    ] = False,
    strict: Annotated[bool, opt.option("--strict", "Treat warnings as errors.")] = False,
    scheduler: Annotated[
        str | None, opt.option("ADDRESS", "Dask scheduler to use. Default: local threads.")
    ] = None,
    html: Annotated[Path | None, opt.option("FILE", "Write the report as one HTML page.")] = None,
    quarantine: Annotated[
        bool, opt.option("--quarantine", "Afterwards, move damaged segments to quarantine/.")
    ] = False,
    dry_run: Annotated[
        bool, opt.option("--dry-run", "With --quarantine: list the segments, move nothing.")
    ] = False,
    against: Annotated[
        list[Path] | None,
        opt.option("DATASET", "Report the drift from the other datasets to this one. Repeatable."),
    ] = None,
    window: Annotated[
        list[str] | None,
        opt.option(
            "FILTER",
            "Give twice, such as date=..2026-11-09 and date=2026-11-10..: report the drift "
            "from the first window to the second.",
        ),
    ] = None,
    scores: Annotated[
        bool, opt.option("--scores", "Report CARLA leaderboard scores, from the stored events.")
    ] = False,
    episode: Annotated[
        str | None,
        opt.option(
            "EPISODE",
            "Show one episode instead: worst, best, longest, shortest, random, "
            "SEGMENT:NUMBER, or its number in the collector's plan.",
        ),
    ] = None,
    filter_: opt.FilterOption = None,
    sheet: Annotated[
        Path | None, opt.option("FILE", "Save the episode as a contact sheet, as PNG.")
    ] = None,
    gif: Annotated[Path | None, opt.option("FILE", "Save the episode as a GIF.")] = None,
    mp4: Annotated[
        Path | None, opt.option("FILE", "Save the episode as a video; needs the extra video.")
    ] = None,
    estimate: Annotated[
        bool,
        opt.option(
            "--estimate",
            "Report bytes per step of one dataset instead; without a dataset, of the "
            "configuration.",
        ),
    ] = False,
    config: opt.ConfigOption = None,
    set_: opt.SetOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Audit datasets: integrity, contents, plausibility.

    Exits with 1 if there are findings. --against, --window and --scores extend the audit.
    --episode and --estimate replace it; --filter, --sheet, --gif and --mp4 belong to --episode.
    """
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if (source := context.get_parameter_source(parameter.name or ""))
        and source.name == "COMMANDLINE"
        and parameter.expose_value  # not --quiet, which every command has
    ]
    check_options([option for option in given if option not in ("datasets", "--json")])
    copies = UrlCopies(context)
    datasets, against = datasets or [], against or []
    if estimate or episode is not None:
        datasets = copies.local(datasets)
    if estimate:
        show_estimate(datasets, config, set_ or (), as_json=as_json)
        return
    if not datasets:
        raise ConfigError("replay-inspect needs a dataset; give one or more directories")
    if episode is not None:
        show_episode(
            datasets,
            episode,
            filters=filter_ or (),
            sheet=sheet,
            gif=gif,
            mp4=mp4,
            as_json=as_json,
        )
        return
    settings = opt.replace(
        opt.section("audit", config, set_, *(["evaluate"] if scores else [])),
        sample=None if sample is None else opt.parse_share(sample),
        strict=strict or None,
        full=full or None,
        scheduler=scheduler,
    )
    if quarantine:
        _check_movable((*datasets, *against))
    if not settings.is_cluster:
        datasets, against = copies.local(datasets), copies.local(against)
    show_audit(
        Comparison.parse(datasets, against, window or ()),
        settings,
        penalties=opt.section("evaluate", config, set_, "audit").penalties if scores else None,
        scored=copies.local(datasets) if scores else (),
        html=html,
        quarantine=quarantine,
        dry_run=dry_run,
        as_json=as_json,
    )
    if copies.has_problems:
        raise typer.Exit(console.EXIT_NO)


class UrlCopies:
    """Copies of datasets at URLs, in a temporary directory until the command has ended."""

    def __init__(self, context: typer.Context) -> None:
        self._context = context
        self.has_problems = False
        """Whether a segment of a URL is damaged there, and so not in its copy."""

    def local(self, paths: Sequence[Path]) -> list[Path]:
        """Return the paths with a copy in place of each URL."""
        return [path if (url := remote_url(path)) is None else self._copy(url) for path in paths]

    def _copy(self, url: str) -> Path:
        from avtd3.store.remote.transfer import transfer

        folder = tempfile.TemporaryDirectory(prefix="avtd3-inspect-")
        path = Path(self._context.with_resource(folder)) / url.rpartition("/")[2]
        with console.running() as control:
            report = transfer(url, path, **control)
        console.say(f"copied {url} to {path} for this command")
        for problem in report.problems:
            console.complain(f"avtd3: not copied: {problem}")
        if report.stopped:
            raise typer.Exit(console.EXIT_NO)
        self.has_problems = self.has_problems or bool(report.problems)
        return path


def _check_movable(paths: Sequence[Path]) -> None:
    """Raise if ``--quarantine`` cannot move segments of a dataset, because it is at a URL."""
    for url in filter(None, map(remote_url, paths)):
        raise ConfigError(
            f"--quarantine moves segments of a directory, found {url}; copy it first (avtd3 "
            "pull), and audit the copy"
        )
