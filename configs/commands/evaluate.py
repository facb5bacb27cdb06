"""`avtd3 evaluate`."""

from pathlib import Path
from typing import Annotated

import typer

from avtd3.configs.commands.console import interruptible, progress
from avtd3.configs.commands.options import (
    ConfigOption,
    HostOption,
    JsonOption,
    NpcsOption,
    PortsOption,
    ScenarioFileOption,
    ScenarioOption,
    SeedOption,
    ServerCommandOption,
    SetOption,
    TownOption,
    WalkersOption,
    WorkersOption,
    WorldOption,
    answer,
    at_servers,
    check_simulators,
    replace,
    section,
)


def evaluate(
    policy: Annotated[
        str,
        typer.Argument(
            metavar="POLICY",
            help="Policy file, directory of policies (the newest is used), or a driver such as "
            "expert.",
        ),
    ],
    world: WorldOption = None,
    episodes: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Number of held-out episodes. Default: 20."),
    ] = None,
    workers: WorkersOption = None,
    host: HostOption = None,
    port: PortsOption = None,
    server_command: ServerCommandOption = None,
    seed: SeedOption = None,
    scenario: ScenarioOption = None,
    scenario_file: ScenarioFileOption = None,
    npcs: NpcsOption = None,
    walkers: WalkersOption = None,
    town: TownOption = None,
    gif: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Save the first episode as a GIF.")
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how well a policy drives on held-out roads.

    The policy drives without exploration noise, on roads that no dataset contains. The report
    gives 95 % confidence intervals.
    """
    from avtd3.collect.evaluator import evaluate as run
    from avtd3.collect.foreign import stdout_to_stderr
    from avtd3.collect.worlds import use_current_directory

    settings = section("evaluate", config, set_)
    settings = replace(settings, world=world, episodes=episodes, workers=workers, seed=seed)
    where = replace(settings.scenario, number=scenario, file=scenario_file, npcs=npcs, town=town)
    settings = at_servers(replace(settings, scenario=where), host, port, server_command, walkers)
    use_current_directory(settings)
    with interruptible() as should_stop, progress() as show, stdout_to_stderr():
        report = run(policy, settings, gif=gif, should_stop=should_stop, on_progress=show)
    answer(report.document(), as_json, report.summary())
    check_simulators(report.failure)
