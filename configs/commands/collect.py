"""`avtd3 collect`."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from avtd3.configs.commands import options as opt
from avtd3.configs.commands.console import interruptible, progress

if TYPE_CHECKING:
    from avtd3.collect.collector import CollectConfig
    from avtd3.collect.reports import CollectProgress


def collect(
    dataset: Annotated[
        Path,
        opt.argument(
            "DATASET", "Dataset directory, or a URL such as s3://BUCKET/PATH; created if missing."
        ),
    ],
    world: opt.WorldOption = None,
    steps: Annotated[
        int | None, opt.option("N", "Stop after N steps. Default: 10000.", min=1)
    ] = None,
    episodes: Annotated[
        int | None, opt.option("N", "Stop after N episodes instead.", min=1)
    ] = None,
    seconds: Annotated[
        float | None, opt.option("S", "Stop after S seconds of wall-clock time instead.", min=0.1)
    ] = None,
    driver: Annotated[
        str | None,
        opt.option(
            "DRIVER",
            "expert, random, policy or takeover, or a mixture such as "
            "0.7:policy+gaussian=0.1,0.3:expert. Default: expert.",
        ),
    ] = None,
    policies: Annotated[
        Path | None,
        opt.option(
            "DIR",
            "Directory or URL where a learner publishes policies; needed to drive with policy.",
        ),
    ] = None,
    workers: opt.WorkersOption = None,
    scheduler: opt.SchedulerOption = None,
    host: opt.HostOption = None,
    port: opt.PortsOption = None,
    server_command: opt.ServerCommandOption = None,
    seed: opt.SeedOption = None,
    scenario: opt.ScenarioOption = None,
    scenario_file: opt.ScenarioFileOption = None,
    npcs: opt.NpcsOption = None,
    walkers: opt.WalkersOption = None,
    town: opt.TownOption = None,
    random_steps: Annotated[
        int | None,
        opt.option(
            "N", "Drive the first N steps at random, regardless of --driver. Default: 0.", min=0
        ),
    ] = None,
    max_lead: Annotated[
        int | None,
        opt.option(
            "N",
            "Wait for the learner when the data are more than N steps ahead of its newest "
            "policy. Default: never wait.",
            min=0,
        ),
    ] = None,
    resume: Annotated[
        bool,
        opt.option(
            "--resume",
            "Continue an interrupted collection with its settings; options, --config and "
            "--set change only what they name.",
        ),
    ] = False,
    config: opt.ConfigOption = None,
    set_: opt.SetOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Drive a car and write the episodes to a dataset.

    Several collectors can write to one dataset at the same time; give each its own --seed.
    Press Ctrl-C once to publish what is complete and stop.
    """
    from avtd3.collect.collector import choose_plan
    from avtd3.collect.collector import collect as run
    from avtd3.collect.foreign import stdout_to_stderr
    from avtd3.collect.places import collection_path
    from avtd3.collect.worlds import use_current_directory
    from avtd3.store.files import remote_url
    from avtd3.store.remote.client import open_place
    from avtd3.store.status import Heartbeat

    def configure(stored: Mapping[str, Any] | None) -> "CollectConfig":
        settings = opt.section("collect", config, set_, stored=stored)
        lead = opt.replace(settings.lead, random_steps=random_steps, max_lead=max_lead)
        settings = opt.replace(
            settings, world=world, driver=driver, workers=workers, seed=seed, lead=lead
        )
        where = opt.replace(
            settings.scenario, number=scenario, file=scenario_file, npcs=npcs, town=town
        )
        settings = opt.replace(settings, scenario=where)
        found: CollectConfig = opt.at_servers(settings, host, port, server_command, walkers)
        return found

    if resume:
        spool = "" if remote_url(dataset) is None else configure(None).spool
        path = collection_path(dataset, spool)
        settings, plan = choose_plan(path, configure)
        stored = {} if plan is None else dict(plan.options)
        if steps is None and episodes is None and seconds is None:
            steps, episodes, seconds = (stored.get(n) for n in ("steps", "episodes", "seconds"))
        if policies is None and stored.get("policies"):
            policies = Path(stored["policies"])
    else:
        settings = configure(None)
    use_current_directory(settings)
    name, places = settings.name or platform.node(), [open_place(dataset)]
    heart = Heartbeat([], "collector", name, datasets=places)  # once there is a dataset

    def report_progress(progress: "CollectProgress") -> None:
        show(progress)
        heart.update(**progress.status())

    with interruptible() as should_stop, progress() as show, stdout_to_stderr(), heart:
        report = run(
            dataset,
            settings,
            steps=steps,
            episodes=episodes,
            seconds=seconds,
            policies=policies,
            resume=resume,
            should_stop=should_stop,
            on_progress=report_progress,
            scheduler=scheduler,
        )
    opt.finish(report, as_json)
    opt.check_simulators(report.failure)
