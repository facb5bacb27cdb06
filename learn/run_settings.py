"""The settings of a run, in ``RUN/config.json``, which a resumed run keeps or changes explicitly.

The file has the settings of the newest process, and under ``changes`` every setting that a resume
changed, with the update from which on it applies.
"""

import dataclasses
import datetime
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avtd3.learn.checkpoints import CHECKPOINTS, list_checkpoints, read_as, updates_of
from avtd3.learn.config import LearnConfig
from avtd3.store import files
from avtd3.store.dataset import Dataset, dataset_around
from avtd3.store.errors import CheckpointError, ConfigError, DatasetError, abbreviate
from avtd3.store.locks import LOCK_FILE
from avtd3.store.settings import Difference, differences

CONFIG_FILE = "config.json"
RANKS = "ranks"
"""Key of the number of ranks; missing for one."""
RUN_ID = "run_id"
"""Key of the id of the run, which a resumed run keeps, and which its policies name."""
_KEPT = "network."
"""Settings that a checkpoint determines."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class SettingChange(Difference):
    """A setting that a resumed run changed."""

    from_update: int
    """Updates that were done with the old value."""

    def __str__(self) -> str:
        return f"{Difference.__str__(self)} from update {self.from_update + 1} on"


def is_run(path: Path) -> bool:
    """Return whether a directory is a run, or was locked as one."""
    return any((path / name).exists() for name in (CONFIG_FILE, CHECKPOINTS, "events", LOCK_FILE))


def name_run(path: Path, datasets: Sequence[Path]) -> Path:
    """Return the directory of a new run: the path itself, or a named one in it.

    A directory that exists and is no run is a parent of runs. The name has the scenario and the
    number of other vehicles of the first dataset, if it says so, and the date and time in UTC:
    ``TD3_scenario_0_npcs_20_20261130_081500``.
    """
    if not path.is_dir() or is_run(path):
        return path
    moment = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d_%H%M%S")
    name = "_".join(("TD3", *_scenario_of(datasets), moment))
    names = itertools.chain((name,), (f"{name}_{number}" for number in itertools.count(2)))
    return next(path / each for each in names if not (path / each).exists())


def _scenario_of(datasets: Sequence[Path]) -> tuple[str, ...]:
    """Return the parts of a run's name that describe how its data were collected."""
    try:
        segments = Dataset.open(datasets[0]).snapshot(check_files=False).segments
    except (ConfigError, DatasetError, OSError):
        return ()  # a collector may still have to create it, or it is a URL
    for segment in segments:
        scenario = segment.provenance.get("scenario")
        if isinstance(scenario, dict):  # of a driving world, and not of a file of routes
            named = (("scenario", scenario.get("number")), ("npcs", scenario.get("npcs")))
            return tuple(f"{word}_{n}" for word, n in named if type(n) is int and 0 <= n < 1 << 31)
    return ()


def check_places(run: Path, policies: Path, datasets: Sequence[Path]) -> None:
    """Raise `ConfigError` if a run or its policies would be mixed with a dataset, or are URLs."""
    files.check_local(run, policies, *datasets)
    for name, place in (("run", run), ("policies", policies)):
        around = dataset_around(place)
        whole = place.resolve()
        for dataset in () if around else datasets:  # a collector may still have to create it
            if dataset.resolve() in (whole, *whole.parents):
                around = dataset
        if around is not None:
            raise ConfigError(
                f"{name} {place} is in the dataset {around}; give a directory of its own, such as "
                f"{around}-run"
            )


def resolve_places(
    run: Path, before: Mapping[str, Any], policies: Path | str | None, follow: bool | None
) -> tuple[Path, bool]:
    """Return where a run publishes and whether it follows its datasets: as asked, or as before.

    Args:
        run: The run's directory.
        before: What `read_settings` returned, if the run is resumed; else nothing.
        policies: Path or URL; None for that of `before`, or ``RUN/policies``.
        follow: None for what the run did before, or no.
    """
    if policies is None:
        policies = before.get("policies", run / "policies")
    return Path(policies), bool(before.get("follow", False) if follow is None else follow)


def read_settings(run: Path) -> dict[str, Any]:
    """Return the document of ``RUN/config.json``.

    Raises:
        ConfigError: If there is no such run, or the file is invalid.
    """
    path = run / CONFIG_FILE
    if run.exists() and not run.is_dir():
        raise ConfigError(f"run {run} is a file, expected a directory; choose another path")
    if not path.exists():
        raise ConfigError(
            f"{run} contains no run to resume or to show; give a run's directory, or start it "
            "without --resume"
        )
    try:
        document = files.read_json(path)
    except ValueError as error:
        raise _invalid(path, str(error)) from error
    if not isinstance(document, dict) or not isinstance(document.setdefault("learn", {}), dict):
        raise _invalid(path, "it has no settings of learn")
    for key, kind in (("datasets", list), ("changes", list), ("policies", str)):
        if not isinstance(document.get(key, kind()), kind):
            raise _invalid(path, f"{key} is {abbreviate(document[key])}")
    return document


def _invalid(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path} cannot be read: {why}; restore the file, or start a new run and give the settings "
        "again"
    )


def stored_config(run: Path) -> LearnConfig:
    """Return the settings of a run, for a resume that changes none.

    Raises:
        ConfigError: If there is no such run, or its settings are not valid in this version.
    """
    document = read_settings(run)
    try:
        config = read_as(LearnConfig, document["learn"], "learn")
    except CheckpointError as error:
        raise _invalid(run / CONFIG_FILE, str(error)) from error
    assert isinstance(config, LearnConfig)
    return config


def find_changes(
    run: Path,
    before: Mapping[str, Any],
    config: LearnConfig,
    rollback: int | None,
    ranks: int = 1,
) -> list[SettingChange]:
    """Return the settings that a resume changes.

    Raises:
        ConfigError: If one of them is determined by the checkpoint.
    """
    checkpoints = list_checkpoints(run / CHECKPOINTS)
    updates = updates_of(checkpoints[-1]) if checkpoints else 0
    changed = list(differences(before["learn"], dataclasses.asdict(config), "learn."))
    changed += differences({RANKS: before.get(RANKS, 1)}, {RANKS: ranks}, "")
    for change in changed:
        if checkpoints and change.setting.startswith(f"learn.{_KEPT}"):
            raise ConfigError(
                f"{change.setting} is {abbreviate(change.after)}, expected "
                f"{abbreviate(change.before)} as in the checkpoints of {run}; a resumed run keeps "
                "its networks: start a new run for others"
            )
    first = updates if rollback is None else rollback
    return [
        SettingChange(setting=c.setting, before=c.before, after=c.after, from_update=first)
        for c in changed
    ]


def write_settings(run: Path, document: Mapping[str, Any]) -> None:
    """Write ``RUN/config.json``."""
    text = json.dumps(document, indent=2, sort_keys=True) + "\n"
    files.write_aside(run / CONFIG_FILE, text.encode())
