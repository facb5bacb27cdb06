"""`avtd3 store`: commands that change which segments a dataset contains.

They exit with 1 when something could not be done: pins keep a dataset above its limit, a segment
cannot be read, or the command was interrupted.
"""

from pathlib import Path
from typing import Annotated

from avtd3.configs.commands import options as opt
from avtd3.configs.commands.console import running
from avtd3.store.errors import ConfigError

app = opt.group("Prune, compact, relabel, render, upgrade or pin datasets.")

DatasetArgument = Annotated[Path, opt.argument("DATASET", "Dataset directory.")]
NewArgument = Annotated[
    Path, opt.argument("NEW", "Dataset to create; to continue, run the same command again.")
]
SegmentsArgument = Annotated[list[str] | None, opt.argument("SEGMENT", "Names of segments.")]
DryRunOption = Annotated[
    bool, opt.option("--dry-run", "Report what would be done, and change nothing.")
]


@app.command()
def prune(
    dataset: DatasetArgument,
    max_bytes: Annotated[
        str | None,
        opt.option(
            "SIZE", "Remove the oldest segments until the dataset has this size, such as 10GB."
        ),
    ] = None,
    max_steps: Annotated[
        int | None, opt.option("N", "Remove the oldest segments until N steps are left.", min=1)
    ] = None,
    older_than: Annotated[
        str | None, opt.option("AGE", "Remove only segments that are older than this, such as 30d.")
    ] = None,
    filter_: opt.FilterOption = None,
    dry_run: DryRunOption = False,
    as_json: opt.JsonOption = False,
) -> None:
    """Remove old or unwanted segments.

    Give --max-bytes, --max-steps, --older-than or --filter. --older-than and --filter restrict
    which segments are removed; a filter selects a segment only if all of its episodes match. Pinned
    segments are kept.
    """
    from avtd3.store.filters import parse_filter
    from avtd3.store.maintenance.prune import PruneConfig
    from avtd3.store.maintenance.prune import prune as run

    config = PruneConfig(
        max_bytes=None if max_bytes is None else opt.parse_bytes(max_bytes),
        max_steps=max_steps,
        older_than_s=None if older_than is None else opt.parse_seconds(older_than),
        episodes=parse_filter(filter_) if filter_ else None,
    )
    with running() as control:
        report = run(dataset, config, dry_run=dry_run, **control)
    is_undone = report.stopped or report.problems or not report.within_limits
    opt.finish(report, as_json, is_no=is_undone, has_failed=report.unreadable)


@app.command()
def compact(
    dataset: DatasetArgument,
    target_steps: Annotated[
        int,
        opt.option("N", "Merge segments of fewer than N/2 steps into segments of up to N steps."),
    ] = 16_384,
    dry_run: DryRunOption = False,
    as_json: opt.JsonOption = False,
) -> None:
    """Merge small adjacent segments.

    Every episode stays the same, byte for byte. Pinned segments are not merged.
    """
    from avtd3.store.maintenance.compact import compact as run

    with running() as control:
        report = run(dataset, target_steps=target_steps, dry_run=dry_run, **control)
    is_undone = report.stopped or report.problems
    opt.finish(report, as_json, is_no=is_undone, has_failed=report.unreadable)


@app.command()
def relabel(
    dataset: DatasetArgument,
    new: NewArgument,
    weights: Annotated[
        list[str],
        opt.option(
            "NAME=NUMBER,...",
            "Weights of reward terms, a YAML file of them, or the preset carl; other terms "
            "keep the weight 1.",
        ),
    ],
    as_json: opt.JsonOption = False,
) -> None:
    """Create a dataset of the same episodes with other rewards.

    Frames are hard-linked instead of copied where the file system allows it.
    """
    from avtd3.store.maintenance.derive import relabel as run

    numbers, factors = opt.parse_weights(weights)
    with running() as control:
        report = run(dataset, new, numbers, factors=factors, **control)
    is_undone = report.stopped or report.problems
    opt.finish(report, as_json, is_no=is_undone, has_failed=report.unreadable)


@app.command()
def render(
    dataset: DatasetArgument,
    new: Annotated[
        Path | None,
        opt.argument("NEW", "Dataset to create; to continue, run the same command again."),
    ] = None,
    camera: Annotated[
        list[str] | None,
        opt.option(
            "[NAME=]SETTING=VALUE,...",
            "New values of camera settings, such as width=144,field_of_view_deg=60; or a "
            "named stream, such as rgb=kind=rgb,height=144,width=256 (repeat it for several).",
        ),
    ] = None,
    weather: Annotated[str, opt.option("NAME", "Another weather, such as night or random.")] = "",
    check: Annotated[
        bool,
        opt.option("--check", "Draw the pictures again and compare them with the stored ones."),
    ] = False,
    workers: Annotated[int, opt.option("N", "Worker processes.", min=1, max=256)] = 1,
    host: opt.HostOption = None,
    port: opt.PortsOption = None,
    config: opt.ConfigOption = None,
    set_: opt.SetOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Create a dataset with pictures of another camera or weather.

    The pictures are drawn from the states of the world that collections on the built-in simulator
    and on CARLA store in every step. The episodes keep their actions, rewards and ends. If neither
    camera nor weather changes, the pictures of the built-in simulator equal the stored ones.

    Named streams make a dataset of format 2: gray, colour (kind=rgb), semantic masks
    (kind=semantic) and the view from above (kind=bev, or kind=bev_route with the route); NAME=
    alone is the recorded camera.

    For CARLA's cameras, the servers at --host and --port replay the states and take the pictures.
    Settings such as --set collect.carla.timeout_s=60 change how the servers are reached.
    """
    from avtd3.collect.rerender import check_pictures, rerender
    from avtd3.collect.sim.scene import SceneChanges

    settings, streams = opt.parse_cameras(camera or [])
    changes = SceneChanges(camera=settings, weather=weather, streams=streams)
    servers = opt.replace(
        opt.section("collect", config, set_).carla, host=host, ports=opt.parse_ports(port)
    )
    if check == (new is not None) or (check and changes != SceneChanges()):
        raise ConfigError("give either NEW and what to change, or --check alone")
    with running() as control:
        if new is None:
            report = check_pictures(dataset, workers=workers, **control)
        else:
            report = rerender(dataset, new, changes, workers=workers, servers=servers, **control)
    is_undone = report.stopped or report.problems or report.differing
    opt.finish(report, as_json, is_no=is_undone, has_failed=report.unreadable)


@app.command()
def upgrade(
    dataset: DatasetArgument,
    new: NewArgument,
    stream: Annotated[
        str, opt.option("NAME", "Name of the stream that the image becomes.")
    ] = "front",
    as_json: opt.JsonOption = False,
) -> None:
    """Create a dataset of format 2 with the same episodes.

    The image becomes a named stream. Nothing is lost: files are hard-linked where the file system
    allows it, and each segment is compared with the old one before it is published.
    """
    from avtd3.store.maintenance.derive import upgrade as run

    with running() as control:
        report = run(dataset, new, stream=stream, **control)
    is_undone = report.stopped or report.problems
    opt.finish(report, as_json, is_no=is_undone, has_failed=report.unreadable)


@app.command()
def pin(
    dataset: DatasetArgument,
    segments: SegmentsArgument = None,
    filter_: opt.FilterOption = None,
    note: Annotated[str, opt.option("TEXT", "Reason for the pin.")] = "",
    as_json: opt.JsonOption = False,
) -> None:
    """Protect segments from prune and compact.

    --filter pins the segments that contain a matching episode.
    """
    from avtd3.store.filters import parse_filter
    from avtd3.store.maintenance.pins import pin as run

    episodes = parse_filter(filter_) if filter_ else None
    report = run(dataset, segments or (), episodes=episodes, note=note)
    opt.finish(report, as_json)


@app.command()
def unpin(
    dataset: DatasetArgument,
    segments: SegmentsArgument = None,
    filter_: opt.FilterOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Remove pins.

    --filter unpins the segments that contain a matching episode.
    """
    from avtd3.store.filters import parse_filter
    from avtd3.store.maintenance.pins import unpin as run

    episodes = parse_filter(filter_) if filter_ else None
    report = run(dataset, segments or (), episodes=episodes)
    opt.finish(report, as_json)


@app.command()
def pins(dataset: DatasetArgument, as_json: opt.JsonOption = False) -> None:
    """List the pinned segments."""
    from avtd3.store.maintenance.pins import list_pins

    report = list_pins(dataset)
    opt.finish(report, as_json)
