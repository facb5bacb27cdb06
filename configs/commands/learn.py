"""`avtd3 learn`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from avtd3.configs.commands import options as opt
from avtd3.configs.commands.console import EXIT_NO, interruptible, progress, say, set_verbosity


def learn(
    datasets: Annotated[
        list[Path],
        opt.argument(
            "DATASET", "Datasets to learn from: directories, or URLs such as s3://BUCKET/PATH."
        ),
    ],
    run: Annotated[
        Path,
        opt.option(
            "DIR",
            "Directory of this run: checkpoints, metrics and configuration. If it exists and "
            "is not a run, the run gets a directory of its own in it, such as "
            "TD3_scenario_0_npcs_20_20261130_081500.",
        ),
    ],
    policies: Annotated[
        Path | None,
        opt.option("DIR", "Directory or URL to publish policies in. Default: policies in --run."),
    ] = None,
    updates: Annotated[
        int | None,
        opt.option(
            "N", "Total gradient updates, including those before a resume. Default: 1000000.", min=1
        ),
    ] = None,
    follow: Annotated[
        bool | None,
        opt.option(
            "--follow/--no-follow",
            "Pick up new segments while collectors write them. Default: no, or as before "
            "with --resume.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        opt.option(
            "--resume",
            "Continue from the newest checkpoint of --run, with the settings of the run; "
            "--config and --set change only what they name.",
        ),
    ] = False,
    rollback: Annotated[
        int | None,
        opt.option(
            "N", "Continue from the checkpoint at update N; later ones are set aside.", min=0
        ),
    ] = None,
    mode: Annotated[
        str | None,
        opt.option(
            "--replay MODE",
            "cache (decode all frames once, into scratch files), direct (decode frames when "
            "they are sampled), or auto (cache if it fits on the disk). Default: auto.",
        ),
    ] = None,
    filter_: opt.FilterOption = None,
    seed: opt.SeedOption = None,
    config: opt.ConfigOption = None,
    set_: opt.SetOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Train TD3 or TD3+BC from datasets and publish policies.

    Writes the page RUN/run.html, which shows curves with alerts, what the policy looks at, and
    what it would do. Exits with 1 if a guard stopped the training. Press Ctrl-C once to save a
    checkpoint and stop.
    """
    from avtd3.learn.threads import limit_spinning

    limit_spinning()  # before torch is imported
    from avtd3.learn.analysis.run_page import RunPageCallback
    from avtd3.learn.callbacks import ProgressCallback
    from avtd3.learn.ranks import open_ranks
    from avtd3.learn.run_settings import name_run, read_settings, resolve_places
    from avtd3.learn.trainer import train
    from avtd3.store.files import check_local
    from avtd3.store.remote.client import open_place
    from avtd3.store.status import Heartbeat

    with interruptible() as should_stop, open_ranks() as ranks:
        if not ranks.is_first:
            set_verbosity(-1)
        before: dict[str, Any] = {}
        if resume or rollback is not None:
            before = read_settings(run)
        else:
            check_local(run)
            named = Path(ranks.share(str(name_run(run, datasets))))
            if named != run:
                say(f"run {named}")
            run = named
        settings = opt.section("learn", config, set_, stored=before.get("learn"))
        settings = opt.replace(settings, updates=updates, seed=seed)
        filters = None if filter_ is None else tuple(filter_)
        replay = opt.replace(settings.replay, filter=filters, mode=mode)
        settings = opt.replace(settings, replay=replay)
        published, follows = resolve_places(run, before, policies, follow)
        heart = Heartbeat(
            [open_place(published)] if ranks.is_first else [],
            "learner",
            run.name,
            datasets=[open_place(path) for path in datasets if follows and ranks.is_first],
        )
        status = ProgressCallback(lambda reported: heart.update(**reported.status()))
        page = RunPageCallback(run)
        with progress() as show, heart:
            report = train(
                settings,
                datasets=datasets,
                run=run,
                policies=policies,
                follow=follow,
                resume=resume,
                rollback=rollback,
                callbacks=[ProgressCallback(show, should_stop), status, page],
            )
        if page.message:
            say(page.message)
    if ranks.is_first:
        opt.answer(report.document(), as_json, report.summary())
    if report.halted:
        raise typer.Exit(EXIT_NO)
