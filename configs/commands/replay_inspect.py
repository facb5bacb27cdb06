"""`avtd3 replay-inspect --against` and `--window`: which episodes are compared with which."""

import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avtd3.configs.commands.console import interruptible, progress, say
from avtd3.configs.commands.options import (
    EXIT_NO,
    ConfigOption,
    FilterOption,
    JsonOption,
    SetOption,
    answer,
    replace,
    section,
)
from avtd3.store.errors import ConfigError

if TYPE_CHECKING:
    from markupsafe import Markup

    from avtd3.collect.leaderboard import ScoreReport
    from avtd3.store.audit.drift import Drift
    from avtd3.store.audit.report import AuditReport
    from avtd3.store.filters import EpisodeFilter
    from avtd3.store.render.text import Terminal


WINDOWS = 2
"""Windows that can be compared."""


def parse_share(text: str) -> float:
    """Read a share, as ``5%`` or ``0.05``.

    Raises:
        ConfigError: It is no number above 0 and at most 1.
    """
    try:
        share = float(text.removesuffix("%")) / (100.0 if text.endswith("%") else 1.0)
    except ValueError:
        share = 0.0
    if not 0.0 < share <= 1.0:
        raise ConfigError(
            f"--sample is {text!r}, expected a share above 0 and at most 1, as 5% or 0.05"
        )
    return share


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What is audited, and which two parts of it are compared, if any."""

    datasets: tuple[Path, ...]
    """All that is audited."""
    against: tuple[Path, ...]
    """Those of them that the others are compared with."""
    windows: tuple["EpisodeFilter", ...]
    """Two sets of episodes to compare, or nothing."""
    names: tuple[str, ...]
    """What the two parts are called."""

    @classmethod
    def parse(
        cls, datasets: Sequence[Path], against: Sequence[Path], windows: Sequence[str]
    ) -> "Comparison":
        """Read the options.

        Args:
            datasets: The command's arguments.
            against: Datasets of ``--against``.
            windows: Texts of ``--window``: filters, several of one window apart by spaces.

        Raises:
            ConfigError: Not two windows, both options at once, or a dataset on both sides.
        """
        from avtd3.store.filters import parse_filter

        if windows and against:
            raise ConfigError("--against and --window both choose what to compare: give one")
        if windows and len(windows) != WINDOWS:
            raise ConfigError(f"{len(windows)} --window given, expected two to compare")
        if both := {*map(str, datasets)} & {*map(str, against)}:
            raise ConfigError(f"{min(both)} is compared with itself: name another --against")
        names = tuple(windows) or tuple(", ".join(map(str, side)) for side in (datasets, against))
        return cls(
            datasets=(*datasets, *against),
            against=tuple(against),
            windows=tuple(parse_filter(text.split()) for text in windows),
            names=names,
        )

    def drifts(self, report: "AuditReport") -> tuple["Drift", ...]:
        """The drift between the two parts, quantity by quantity; nothing if none was asked for."""
        from avtd3.store.audit.drift import drift_between
        from avtd3.store.audit.statistics import Summary

        if self.windows:
            first, second = report.windows
        elif self.against:
            first, second = Summary(), Summary()
            for dataset in report.datasets:
                if dataset.path in map(str, self.against):
                    second = second.merge(dataset.summary)
                else:
                    first = first.merge(dataset.summary)
        else:
            return ()
        return drift_between(first, second)

    def text(self, drifts: Sequence["Drift"]) -> list[str]:
        """The drift for the terminal; nothing if none was asked for."""
        from avtd3.store.render.audit_text import drift_text

        wanted = bool(self.windows or self.against)
        return [drift_text(drifts, *self.names)] if wanted else []


MEASURED_STEPS = 600
"""Steps that are driven to measure a configuration: half a minute at 20 Hz."""


def show_estimate(
    datasets: Sequence[Path], config: str | None, overrides: list[str] | None, *, as_json: bool
) -> None:
    """Print what a step costs on the disk.

    Args:
        datasets: One to measure; none to drive `MEASURED_STEPS` of the configured world, through
            the real writer, into a directory that is removed again.
        config: File or preset with the ``collect`` section.
        overrides: As ``collect.task.image_size=96``.
        as_json: Print JSON.

    Raises:
        Avtd3Error: More than one dataset, one that cannot be opened, or a world that fails.
    """
    from avtd3.store.audit.estimate import estimate
    from avtd3.store.dataset import Dataset

    if len(datasets) > 1:
        raise ConfigError(f"--estimate measures one dataset, {len(datasets)} are given")
    if datasets:
        found = estimate(Dataset.open(datasets[0]))
    else:
        from avtd3.collect.collector import collect

        with tempfile.TemporaryDirectory(prefix="avtd3-estimate-") as folder:
            path = Path(folder) / "data"
            collect(path, section("collect", config, overrides), steps=MEASURED_STEPS)
            found = estimate(Dataset.open(path))
    answer(found.document(), as_json, found.summary())


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeFiles:
    """Which pictures of an episode to write; None leaves one out."""

    sheet: Path | None = None
    """A contact sheet, PNG."""
    gif: Path | None = None
    """An animation."""
    mp4: Path | None = None
    """A film."""

    def check(
        self, episode: str | None, html: Path | None, among: Sequence[str], *, scores: bool
    ) -> None:
        """Refuse what does not go together, before anything is read.

        Args:
            episode: The episode to show, or None.
            html: Where to write the audit as a page, or None.
            among: Filters of episodes.
            scores: Whether driving scores are asked for.

        Raises:
            ConfigError: Pictures or filters without an episode, or a page or the scores of one.
        """
        if episode is None and among:
            raise ConfigError("--filter narrows what --episode chooses from: add --episode worst")
        if episode is not None and html is not None:
            raise ConfigError("--html shows a whole audit, --episode one episode: give one of them")
        if episode is not None and scores:
            raise ConfigError("--scores judges all episodes, --episode shows one: give one of them")
        for name in ("sheet", "gif", "mp4"):
            if episode is None and getattr(self, name) is not None:
                raise ConfigError(f"--{name} shows one episode: name it, as in --episode worst")


def show_episode(
    datasets: Sequence[Path],
    name: str,
    files: EpisodeFiles,
    *,
    among: Sequence[str] = (),
    as_json: bool = False,
) -> None:
    """Find an episode, write its pictures, and draw it in the terminal.

    Args:
        datasets: Where to look.
        name: See `avtd3.store.render.episode_record.find_episode`.
        files: What to write.
        among: Filters of the episodes that a word chooses from.
        as_json: Print its facts as JSON instead.

    Raises:
        Avtd3Error: There is no such episode, it cannot be read, or a file cannot be written.
    """
    import numpy as np

    from avtd3.store.filters import parse_filter
    from avtd3.store.render.episode_record import EpisodeRecord, find_episode
    from avtd3.store.render.episode_view import (
        draw_episode,
        write_episode_gif,
        write_episode_mp4,
        write_episode_sheet,
    )

    rng = np.random.default_rng()
    record = EpisodeRecord.read(find_episode(datasets, name, rng, parse_filter(among)))
    written = []
    for path, write in (
        (files.sheet, write_episode_sheet),
        (files.gif, write_episode_gif),
        (files.mp4, write_episode_mp4),
    ):
        if path is not None:
            write(record, path)
            say(f"wrote {path}")
            written.append(str(path))
    answer(record.document() | {"files": written}, as_json, draw_episode(record, _terminal()))


def _terminal() -> "Terminal":
    """What standard output can show; a pipe or a file gets plain shades, and no colours."""
    from avtd3.store.render.text import Terminal

    unicode = (sys.stdout.encoding or "ascii").lower().startswith("utf")
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM", "dumb") == "dumb"
    return Terminal(
        width=shutil.get_terminal_size((100, 40)).columns,
        unicode=unicode,
        colours=sys.stdout.isatty() and unicode and not plain,
    )


def judge(
    datasets: Sequence[Path],
    config: str | None,
    overrides: list[str] | None,
    should_stop: Callable[[], bool],
) -> "ScoreReport":
    """Score the datasets' episodes by the table that ``evaluate.penalties`` names.

    Raises:
        Avtd3Error: A path is no dataset, or there is no table of this name.
    """
    from avtd3.collect.leaderboard import penalty_table, score_datasets

    table = penalty_table(section("evaluate", config, overrides).penalties)
    return score_datasets(datasets, table, should_stop)


def page_section(report: "ScoreReport") -> tuple[str, "Markup"]:
    """Return title and content of the page's section of scores."""
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


def replay_inspect(
    datasets: Annotated[
        list[Path] | None, typer.Argument(help="Datasets to audit.", show_default=False)
    ] = None,
    sample: Annotated[
        str | None,
        typer.Option(metavar="SHARE", help="Share of the segments to read, as 5% or 0.05."),
    ] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Hash also what an earlier audit verified.")
    ] = False,
    against: Annotated[
        list[Path] | None, typer.Option(help="Datasets whose drift from the others to show.")
    ] = None,
    window: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILTER", help="Give two, as date=..2026-11-09: drift from one to the other."
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings are errors.")] = False,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask cluster; default: threads.")
    ] = None,
    quarantine: Annotated[
        bool, typer.Option("--quarantine", help="Move damaged segments to quarantine/ afterwards.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="With --quarantine: say what would be moved.")
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Bytes per step of the dataset, or of --config, instead."),
    ] = False,
    scores: Annotated[
        bool,
        typer.Option("--scores", help="Driving scores, computed again from the stored events."),
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write the audit as one HTML page.")] = None,
    episode: Annotated[
        str | None,
        typer.Option(
            metavar="EPISODE",
            help="Draw one episode instead: SEGMENT:NUMBER, a number in the plan, "
            "or worst, best, longest, shortest, random.",
        ),
    ] = None,
    sheet: Annotated[Path | None, typer.Option(help="Its contact sheet, as PNG.")] = None,
    gif: Annotated[Path | None, typer.Option(help="Play it as a GIF.")] = None,
    mp4: Annotated[Path | None, typer.Option(help="Play it as a film.")] = None,
    filter_: FilterOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Audit datasets: what they hold, whether the bytes are whole, whether the data make sense."""
    if estimate:
        show_estimate(datasets or (), config, set_, as_json=as_json)
        return
    if not datasets:
        raise ConfigError("replay-inspect needs a dataset: name one or more directories")
    files = EpisodeFiles(sheet=sheet, gif=gif, mp4=mp4)
    files.check(episode, html, filter_ or (), scores=scores)
    if episode is not None:
        show_episode(datasets, episode, files, among=filter_ or (), as_json=as_json)
        return
    from avtd3.store.audit.audit import audit
    from avtd3.store.render.audit_text import audit_text

    comparison = Comparison.parse(datasets, against or (), window or ())
    settings = section("audit", config, set_)
    settings = replace(
        settings,
        sample=None if sample is None else parse_share(sample),
        strict=strict or None,
        full=full or None,
        scheduler=scheduler,
    )
    with interruptible() as should_stop, progress() as draw:
        report = audit(
            comparison.datasets,
            settings,
            windows=comparison.windows,
            should_stop=should_stop,
            on_progress=draw,
        )
        judged = [judge(comparison.datasets, config, set_, should_stop)] if scores else []
    drifts = comparison.drifts(report)
    if html is not None:
        from avtd3.store.render.audit_page import write_audit_page

        more = [page_section(found) for found in judged]
        write_audit_page(report, html, drifts=drifts, compared=comparison.names, more=more)
        say(f"wrote {html}")
    moved, moved_text = _quarantine(report, wanted=quarantine, dry_run=dry_run)
    told = [found.summary() for found in judged]
    text = "\n".join([audit_text(report), *told, *comparison.text(drifts), *moved_text])
    document = report.document() | {
        "quarantined": moved,
        "drift": [drift.document() for drift in drifts],
        "scores": next((found.document() for found in judged), None),
    }
    answer(document, as_json, text)
    if report.verdict != "ok":
        raise typer.Exit(EXIT_NO)


def _quarantine(
    report: "AuditReport", *, wanted: bool, dry_run: bool
) -> tuple[list[str], list[str]]:
    """Move damaged segments, or say which: their names, and lines for people."""
    if dry_run and not wanted:
        raise ConfigError("--dry-run belongs to --quarantine: the audit itself changes nothing")
    if dry_run:
        return [], [f"would move to quarantine: {name}" for _, name in report.damaged]
    from avtd3.store.audit.audit import quarantine_damaged

    moved = list(quarantine_damaged(report)) if wanted else []
    return moved, [f"moved to quarantine: {name}" for name in moved]
