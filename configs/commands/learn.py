"""`avtd3 learn`."""

from pathlib import Path
from typing import Annotated

import typer

from avtd3.configs.commands import options as opt
from avtd3.configs.commands.console import EXIT_NO, interruptible, progress, say, set_verbosity


def learn(
    datasets: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATASET",
            help="Datasets to learn from: directories, or URLs such as s3://BUCKET/PATH.",
        ),
    ],
    run: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="Directory of this run: checkpoints, metrics and configuration. An existing "
            "directory without a run in it gets a new one, such as "
            "TD3_scenario_0_npcs_20_20261130_081500.",
        ),
    ],
    policies: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Directory or URL to publish policies in. Default: policies in --run.",
        ),
    ] = None,
    updates: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Total gradient updates, including those before a resume. Default: 1000000.",
        ),
    ] = None,
    follow: Annotated[
        bool | None,
        typer.Option(
            "--follow/--no-follow",
            help="Pick up new segments while collectors write them. Default: no, or as before "
            "with --resume.",
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Continue from the newest checkpoint of --run, with the settings of the run; "
            "--config and --set change only what they name.",
        ),
    ] = False,
    rollback: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            help="Continue from the checkpoint at update N; later ones are set aside.",
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            "--replay",
            metavar="MODE",
            help="cache (decoded frames in memory), direct (decode when sampled), or auto "
            "(cache if it fits). Default: auto.",
        ),
    ] = None,
    filter_: opt.FilterOption = None,
    seed: opt.SeedOption = None,
    config: opt.ConfigOption = None,
    set_: opt.SetOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Train TD3 or TD3+BC from datasets and publish policies.

    Writes the page RUN/run.html: curves with alerts, what the policy looks at and would do. Exits
    with 1 if a guard stopped the training. Press Ctrl-C once to save a checkpoint and stop.
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
        resumes = resume or rollback is not None
        before = read_settings(run) if resumes else {}
        stored = before["learn"] if resumes else None
        if not resumes:
            check_local(run)
            named = Path(ranks.share(str(name_run(run, datasets))))
            if named != run:
                say(f"run {named}")
            run = named
        settings = opt.section("learn", config, set_, stored=stored)
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
