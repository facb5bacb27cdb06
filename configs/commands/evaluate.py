"""`avtd3 evaluate`."""

from pathlib import Path
from typing import Annotated

from avtd3.configs.commands import options as opt
from avtd3.configs.commands.console import running


def evaluate(
    policy: Annotated[
        str,
        opt.argument(
            "POLICY",
            "Policy file, directory of policies (the newest is used), URL of either, such as "
            "s3://BUCKET/PATH, or a driver, such as expert.",
        ),
    ],
    world: opt.WorldOption = None,
    episodes: Annotated[
        int | None, opt.option("N", "Number of held-out episodes. Default: 20.", min=1)
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
    gif: Annotated[Path | None, opt.option("FILE", "Save the first episode as a GIF.")] = None,
    config: opt.ConfigOption = None,
    set_: opt.SetOption = None,
    as_json: opt.JsonOption = False,
) -> None:
    """Measure how well a policy drives on held-out roads.

    The policy drives without exploration noise, on roads that no dataset contains. The report
    gives 95 % confidence intervals.
    """
    from avtd3.collect.evaluator import evaluate as run
    from avtd3.collect.foreign import stdout_to_stderr
    from avtd3.collect.worlds import use_current_directory

    settings = opt.section("evaluate", config, set_)
    settings = opt.replace(settings, world=world, episodes=episodes, workers=workers, seed=seed)
    where = opt.replace(
        settings.scenario, number=scenario, file=scenario_file, npcs=npcs, town=town
    )
    settings = opt.at_servers(
        opt.replace(settings, scenario=where), host, port, server_command, walkers
    )
    use_current_directory(settings)
    opt.check_destinations(gif)
    with running() as control, stdout_to_stderr():
        report = run(policy, settings, gif=gif, scheduler=scheduler, **control)
    opt.finish(report, as_json)
    opt.check_simulators(report.failure)
