"""`avtd3 replay-inspect --episode`: one episode in the terminal, and as files that show it."""

import dataclasses
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from avtd3.configs.command_line import answer
from avtd3.configs.console import say
from avtd3.store.errors import ConfigError

if TYPE_CHECKING:
    from avtd3.store.render.episode_text import Terminal


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
        name: See `avtd3.store.render.episode_choice.find_episode`.
        files: What to write.
        among: Filters of the episodes that a word chooses from.
        as_json: Print its facts as JSON instead.

    Raises:
        Avtd3Error: There is no such episode, it cannot be read, or a file cannot be written.
    """
    import numpy as np

    from avtd3.store.filters import parse_filter
    from avtd3.store.render.episode_choice import find_episode
    from avtd3.store.render.episode_pictures import write_film, write_gif, write_sheet
    from avtd3.store.render.episode_record import EpisodeRecord
    from avtd3.store.render.episode_text import draw_episode

    rng = np.random.default_rng()
    record = EpisodeRecord.read(find_episode(datasets, name, rng, parse_filter(among)))
    written = []
    writers = ((files.sheet, write_sheet), (files.gif, write_gif), (files.mp4, write_film))
    for path, write in writers:
        if path is not None:
            write(record, path)
            say(f"wrote {path}")
            written.append(str(path))
    answer(record.document() | {"files": written}, as_json, draw_episode(record, _terminal()))


def _terminal() -> "Terminal":
    """What standard output can show; a pipe or a file gets plain shades, and no colours."""
    from avtd3.store.render.episode_text import Terminal

    unicode = (sys.stdout.encoding or "ascii").lower().startswith("utf")
    plain = "NO_COLOR" in os.environ or os.environ.get("TERM", "dumb") == "dumb"
    return Terminal(
        width=shutil.get_terminal_size((100, 40)).columns,
        unicode=unicode,
        colours=sys.stdout.isatty() and unicode and not plain,
    )
