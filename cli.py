"""The command line: parse, call one function, draw its progress, answer with an exit code.

Exit codes: 0 done; 1 the answer is no (an audit with findings, a halted training); 2 bad use;
3 the environment failed (simulator gone, disk full). With ``--json`` standard output holds one
JSON document and nothing else; progress and errors go to standard error.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from avtd3.configs.commands.console import interruptible, progress, say
from avtd3.configs.commands.doctor import app as doctor_app
from avtd3.configs.commands.gate import compare, gate
from avtd3.configs.commands.options import (
    EXIT_ENVIRONMENT,
    EXIT_NO,
    ConfigOption,
    FilterOption,
    HostOption,
    JsonOption,
    PortsOption,
    ServerCommandOption,
    SetOption,
    answer,
    at_servers,
    replace,
    section,
)
from avtd3.configs.commands.replay_inspect import replay_inspect
from avtd3.configs.commands.store import app as store_app
from avtd3.store.errors import Avtd3Error, StorageError, TrainingHalted, WorldError

EXIT_USAGE = 2

app = typer.Typer(
    name="avtd3",
    help="Offline-first driving: collect episodes, learn from them, exchange only files.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

WorldOption = Annotated[
    str | None,
    typer.Option(
        "--world",
        metavar="WORLD",
        help="road (built-in simulator), carla, gym:ID for a Gymnasium environment, or "
        "MODULE:FACTORY for a world of your own, also from the current directory "
        "(docs/worlds.md). Default: road.",
    ),
]
WorkersOption = Annotated[
    int | None, typer.Option(min=1, help="Processes; on CARLA one for each port.")
]
ScenarioFileOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Routes to drive by turns: YAML, or leaderboard route XML."),
]
TownOption = Annotated[
    str | None, typer.Option(help="An .xodr file to drive on, or a map of CARLA: Town01.")
]
SeedOption = Annotated[int | None, typer.Option(min=0, help="Seed of everything random.")]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; every error that avtd3 knows becomes one line and an exit code.

    Args:
        argv: Arguments after the program's name; None takes the process's.

    Raises:
        SystemExit: Always, with the command's exit code.
    """
    try:
        app(args=None if argv is None else list(argv))
    except (WorldError, StorageError) as error:
        _fail(error, EXIT_ENVIRONMENT)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except TrainingHalted as error:
        _fail(error, EXIT_NO)
    except Avtd3Error as error:
        _fail(error, EXIT_USAGE)
    except (OSError, MemoryError) as error:
        _fail(error, EXIT_ENVIRONMENT)


@app.command()
def collect(
    dataset: Annotated[Path, typer.Argument(help="Dataset directory; created if missing.")],
    world: WorldOption = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after so many steps.")] = None,
    episodes: Annotated[
        int | None, typer.Option(min=1, help="Stop after so many episodes.")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.1, help="Stop after so many seconds.")
    ] = None,
    driver: Annotated[
        str | None, typer.Option(help="expert, random, policy, or SHARE:DRIVER,...")
    ] = None,
    policies: Annotated[Path | None, typer.Option(help="Where policies are published.")] = None,
    workers: WorkersOption = None,
    host: HostOption = None,
    port: PortsOption = None,
    server_command: ServerCommandOption = None,
    seed: SeedOption = None,
    scenario: Annotated[int | None, typer.Option(min=0, help="Number of the scenario.")] = None,
    scenario_file: ScenarioFileOption = None,
    npcs: Annotated[int | None, typer.Option(min=0, help="Other vehicles.")] = None,
    town: TownOption = None,
    random_steps: Annotated[
        int | None, typer.Option(min=0, help="Steps of the plan driven at random first.")
    ] = None,
    max_lead: Annotated[
        int | None, typer.Option(min=0, help="Wait while the policy is so many steps behind.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Finish an interrupted plan.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drive, and write the episodes into a dataset."""
    from avtd3.collect.collector import collect as run
    from avtd3.collect.worlds import use_current_directory

    settings = section("collect", config, set_)
    lead = replace(settings.lead, random_steps=random_steps, max_lead=max_lead)
    settings = replace(settings, world=world, driver=driver, workers=workers, seed=seed, lead=lead)
    settings = at_servers(settings, host, port, server_command)
    settings = _replace_scenario(
        settings, number=scenario, file=scenario_file, npcs=npcs, town=town
    )
    use_current_directory(settings)
    with interruptible() as should_stop, progress() as draw:
        report = run(
            dataset,
            settings,
            steps=steps,
            episodes=episodes,
            seconds=seconds,
            policies=policies,
            resume=resume,
            should_stop=should_stop,
            on_progress=draw,
        )
    answer(report.document(), as_json, report.summary())
    _check_simulators(report.failure)


@app.command()
def learn(
    datasets: Annotated[list[Path], typer.Argument(help="Datasets to learn from.")],
    run: Annotated[Path, typer.Option(help="Run directory: checkpoints, metrics, config.")],
    policies: Annotated[Path | None, typer.Option(help="Where to publish policies.")] = None,
    updates: Annotated[int | None, typer.Option(min=1, help="Gradient updates in all.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Learn while others collect.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint.")] = False,
    rollback: Annotated[
        int | None,
        typer.Option(min=0, metavar="STEP", help="Go back to the checkpoint of that update."),
    ] = None,
    mode: Annotated[
        str | None, typer.Option("--replay", metavar="MODE", help="cache, direct or auto.")
    ] = None,
    filter_: FilterOption = None,
    seed: SeedOption = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train TD3 from datasets and publish policies."""
    from avtd3.learn.trainer import train

    settings = replace(section("learn", config, set_), updates=updates, seed=seed)
    texts = None if filter_ is None else tuple(filter_)
    settings = replace(settings, replay=replace(settings.replay, filter=texts, mode=mode))
    with interruptible() as should_stop, progress() as draw:
        report = train(
            datasets,
            run,
            settings,
            policies=policies,
            follow=follow,
            resume=resume,
            rollback=rollback,
            should_stop=should_stop,
            on_progress=draw,
        )
    answer(report.document(), as_json, report.summary())
    if report.halted:
        raise typer.Exit(EXIT_NO)


app.command(name="replay-inspect")(replay_inspect)
app.command()(gate)
app.command()(compare)
app.add_typer(store_app, name="store")
app.add_typer(doctor_app, name="doctor")


@app.command()
def evaluate(
    policy: Annotated[str, typer.Argument(help="Policy file or directory, or a driver's name.")],
    world: WorldOption = None,
    episodes: Annotated[int | None, typer.Option(min=1, help="Held-out episodes.")] = None,
    workers: WorkersOption = None,
    host: HostOption = None,
    port: PortsOption = None,
    server_command: ServerCommandOption = None,
    seed: SeedOption = None,
    scenario: Annotated[int | None, typer.Option(min=0, help="Number of the scenario.")] = None,
    scenario_file: ScenarioFileOption = None,
    npcs: Annotated[int | None, typer.Option(min=0, help="Other vehicles.")] = None,
    town: TownOption = None,
    gif: Annotated[Path | None, typer.Option(help="Animate the first episode here.")] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Drive held-out episodes without noise and measure how well."""
    from avtd3.collect.evaluator import evaluate as run
    from avtd3.collect.worlds import use_current_directory

    settings = section("evaluate", config, set_)
    settings = replace(settings, world=world, episodes=episodes, workers=workers, seed=seed)
    settings = at_servers(settings, host, port, server_command)
    settings = _replace_scenario(
        settings, number=scenario, file=scenario_file, npcs=npcs, town=town
    )
    use_current_directory(settings)
    with interruptible() as should_stop, progress() as draw:
        report = run(policy, settings, gif=gif, should_stop=should_stop, on_progress=draw)
    answer(report.document(), as_json, report.summary())
    _check_simulators(report.failure)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Directory for everything the demo makes.")] = Path(
        "demo-out"
    ),
    config: ConfigOption = None,
    set_: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run the whole pipeline once: collect, audit, learn, evaluate, collect again, audit again."""
    from avtd3.configs.commands.demo import DemoSections, run_demo

    sections = DemoSections.load(config, set_ or [])
    with interruptible() as should_stop:
        report = run_demo(out, sections, should_stop=should_stop, progress=progress, say=say)
    answer(report.document(), as_json, report.summary())


def _replace_scenario(settings: Any, **changes: object) -> Any:  # noqa: ANN401 - as above
    return replace(settings, scenario=replace(settings.scenario, **changes))


def _check_simulators(failure: str) -> None:
    """End with the environment's exit code where simulators kept the work from being done."""
    if failure:
        raise WorldError(failure)


def _fail(error: BaseException, code: int) -> None:
    # An OSError of ours has its sentence as strerror; str() would put a number before it.
    known = isinstance(error, Avtd3Error) and getattr(error, "strerror", None)
    text = known or str(error) or type(error).__name__
    text = " ".join(text.split())
    say(f"avtd3: {text}")
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
