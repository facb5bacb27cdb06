"""`avtd3 export` and `avtd3 import`."""

from pathlib import Path
from typing import Annotated, Literal

from avtd3.configs.commands import options as opt
from avtd3.configs.commands.console import running


def export(
    dataset: Annotated[Path, opt.argument("DATASET", "Dataset directory.")],
    out: Annotated[
        Path,
        opt.argument(
            "OUT",
            "File (hdf5) or directory (others) to create. Until it is whole, the work is "
            "in OUT.partial; to continue, run the same command again.",
        ),
    ],
    to: Annotated[
        Literal["hdf5", "lerobot", "minari", "npz"],
        opt.option(
            "--to", "Layout: hdf5 (robomimic), lerobot, minari, or npz (replay buffer of DrQ-v2)."
        ),
    ],
    filter_: opt.FilterOption = None,
    stream: Annotated[
        list[str] | None, opt.option("NAME", "Export only this stream. Repeatable. Default: all.")
    ] = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Export episodes for other tools.

    The report lists what the layout cannot hold. See docs/exchange.md.
    """
    from avtd3.store.exchange.exporting import export_episodes

    with running() as control:
        report = export_episodes(
            dataset, out, to, filters=filter_ or (), streams=stream or (), **control
        )
    opt.finish(report, as_json, is_no=report.stopped)


def import_(
    source: Annotated[
        Path, opt.argument("SOURCE", "File (hdf5) or directory (minari, npz) to read.")
    ],
    dataset: Annotated[Path, opt.argument("DATASET", "Dataset directory; created if missing.")],
    from_: Annotated[
        Literal["hdf5", "minari", "npz"],
        opt.option(
            "--from", "Layout: hdf5 (robomimic or D4RL), minari, or npz (replay buffer of DrQ-v2)."
        ),
    ],
    image: Annotated[
        str | None,
        opt.option(
            "NAME", "Observation to store as image, or none. Default: all; several become streams."
        ),
    ] = None,
    vector: Annotated[
        list[str] | None,
        opt.option("NAME", "Observation to store as part of the vector. Repeatable. Default: all."),
    ] = None,
    stack: Annotated[
        int | None,
        opt.option(
            "K", "Frames per observation. Default: as the source states, or else 4.", min=1, max=64
        ),
    ] = None,
    period: Annotated[
        float | None,
        opt.option(
            "SECONDS",
            "Simulated time per step, if the source does not state it. Default: 0.05.",
            min=1e-6,
            max=1e6,
        ),
    ] = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Import episodes that other tools wrote.

    Nothing in the source is executed or unpickled. To continue an interrupted import, run the same
    command again: episodes that the dataset has are skipped. See docs/exchange.md.
    """
    from avtd3.store.exchange.importing import import_episodes
    from avtd3.store.exchange.record import ImportConfig

    config = opt.replace(
        ImportConfig(),
        image=image,
        vectors=None if vector is None else tuple(vector),
        stack=stack,
        period_s=period,
    )
    with running() as control:
        report = import_episodes(source, dataset, from_, config, **control)
    opt.finish(report, as_json, is_no=report.stopped)
