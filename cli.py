"""The `avtd3` command: mount the commands; turn errors into exit codes.

Exit codes: 0 done; 1 the answer is no (an audit with findings, NO-GO, training stopped by a
guard); 2 invalid command line, configuration or input; 3 the environment failed (no simulator,
disk full, a file that cannot be read now); 70 an error that avtd3 does not know; 128 + N ended by
signal N. With ``--json``, standard output contains exactly one JSON document. Progress and errors
go to standard error.
"""

import gc
import os
import re
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from avtd3.configs.commands.console import (
    EXIT_ENVIRONMENT,
    EXIT_UNEXPECTED,
    EXIT_USAGE,
    complain,
    is_verbose,
    say,
    set_verbosity,
    terminal,
)
from avtd3.store.errors import (
    Avtd3Error,
    RankLostError,
    StorageError,
    UnreadableError,
    WorldError,
    cut_middle,
    describe,
)

if TYPE_CHECKING:
    import typer

_CODES: tuple[tuple[type[BaseException], int], ...] = (
    (WorldError, EXIT_ENVIRONMENT),
    (StorageError, EXIT_ENVIRONMENT),
    (UnreadableError, EXIT_ENVIRONMENT),
    (RankLostError, EXIT_ENVIRONMENT),
    (Avtd3Error, EXIT_USAGE),
    (OSError, EXIT_ENVIRONMENT),
    (MemoryError, EXIT_ENVIRONMENT),
)
"""Exit codes of the errors that avtd3 knows; the first line that fits counts."""
_WITH_URLS = ("--scheduler", "--server-command", "--host", "--set", "--filter", "--map", "--note")
"""Options whose values are not paths."""
_OPEN_URLS = ("push", "pull", "learn", "collect", "evaluate", "replay-inspect", "status", "policy")
"""Commands that say themselves which of their paths may be URLs."""
_LOCAL_OPTIONS = {
    *("--run", "--html", "--gif", "--mp4", "--sheet", "--config", "--scenario-file"),
    *("--data", "--evaluation"),
}
"""Options of these commands whose values are paths of this machine."""


def make_app() -> "typer.Typer":
    """Mount the commands; their modules are imported only now, when signals are handled.

    `make_command` adds the options that all commands share.
    """
    import typer

    from avtd3.configs.commands import config, doctor, policy, road, store
    from avtd3.configs.commands.collect import collect
    from avtd3.configs.commands.demo import demo
    from avtd3.configs.commands.evaluate import evaluate
    from avtd3.configs.commands.exchange import export, import_
    from avtd3.configs.commands.gate import compare, gate, run_page
    from avtd3.configs.commands.learn import learn
    from avtd3.configs.commands.options import VersionOption, presets_epilog
    from avtd3.configs.commands.replay_inspect import replay_inspect
    from avtd3.configs.commands.status import status
    from avtd3.configs.commands.transfer import pull, push

    app = typer.Typer(
        name="avtd3",
        help="Train driving policies offline: collect episodes, audit them, learn, evaluate.\n\n"
        "Collectors and learners exchange only files, so they can run on different machines.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )

    @app.callback()
    def root(version: VersionOption = False) -> None:
        pass

    with_settings = app.command(epilog=presets_epilog())
    for command in (demo, collect, learn, evaluate):
        with_settings(command)
    for other in (replay_inspect, status, gate, compare, run_page, push, pull, export):
        app.command()(other)  # replay_inspect becomes replay-inspect
    app.command("import")(import_)
    groups = {"store": store, "policy": policy, "road": road, "config": config, "doctor": doctor}
    for name, module in groups.items():
        app.add_typer(module.app, name=name)
    return app


def make_command() -> Any:  # noqa: ANN401 - Typer does not export its type
    """Make the whole command, with the options that all commands share."""
    import typer

    from avtd3.configs.commands.options import shared_options

    shared = shared_options()

    def complete(command: Any) -> None:  # noqa: ANN401 - as above
        for parameter in command.params:
            if parameter.param_type_name == "argument":
                _show_as_usual(parameter)
        groups = getattr(command, "commands", {})
        command.params += [] if groups else shared
        for inner in groups.values():
            complete(inner)

    command = typer.main.get_command(make_app())
    complete(command)
    return command


def _show_as_usual(argument: Any) -> None:  # noqa: ANN401 - as above
    """Show an argument as ``DATASET...``; recent Typer has {DATASET}... <list[Path]>."""
    pieces = argument.get_usage_pieces
    argument.get_usage_pieces = lambda ctx: [re.sub(r"[{}]", "", piece) for piece in pieces(ctx)]
    argument.display_type_rich = lambda ctx: ""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; turn every error into one line and an exit code.

    Args:
        argv: Arguments after the program's name; None takes those of the process.

    Raises:
        SystemExit: Always, with the command's exit code.
    """
    with terminal():
        try:
            code = _run(list(sys.argv[1:] if argv is None else argv))
            sys.stdout.flush()
        except KeyboardInterrupt:
            code = 130
        except (SystemExit, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 - the boundary; a panic in Rust is no Exception
            code = _report(error)
        if argv is None:
            gc.freeze()  # nothing is left to collect, and the search takes a second with torch
        raise SystemExit(code)


def _run(arguments: list[str]) -> int:
    """Run a command; return its exit code.

    Typer's own way to run it turns a broken pipe or an end of file anywhere into exit code 1.
    """
    import typer

    _refuse_urls(arguments)
    usage_error: Any = typer.BadParameter.__bases__[0]  # Typer does not export it
    set_verbosity(0)
    try:
        command = make_command()
        if "_AVTD3_COMPLETE" in os.environ:  # the shell asks what could come next
            command.main(arguments, prog_name="avtd3")
        with command.make_context("avtd3", arguments) as context:
            command.invoke(context)
    except typer.Exit as end:
        return end.exit_code
    except usage_error as error:
        where = error.ctx
        if where is not None and str(error) == where.get_help():
            say(str(error))
        else:
            path = "avtd3" if where is None else where.command_path
            _say_error(f"{error.format_message().rstrip('.')}; see {path} --help")
        return EXIT_USAGE
    return 0


def _refuse_urls(arguments: Sequence[str]) -> None:
    """Raise `ConfigError` for a URL where a command takes a path."""
    from avtd3.store.files import check_local

    is_open = bool(arguments) and arguments[0] in _OPEN_URLS
    options = ("", *arguments)
    for option, argument in zip(options, arguments, strict=False):
        name, _, value = argument.partition("=") if argument.startswith("--") else (option, "", "")
        if name in _LOCAL_OPTIONS if is_open else name not in _WITH_URLS:
            check_local(value or argument)


def _report(error: BaseException) -> int:
    """Print one line about an error; return the exit code."""
    code = next((code for kind, code in _CODES if isinstance(error, kind)), EXIT_UNEXPECTED)
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        code = EXIT_ENVIRONMENT  # torch's
    if os.environ.get("AVTD3_TRACEBACK") or (is_verbose() and code == EXIT_UNEXPECTED):
        traceback.print_exception(error)
    text = describe(error) or type(error).__name__
    if code == EXIT_UNEXPECTED:
        text = (
            f"unexpected {type(error).__name__}: {text[:1000]}; this is a defect of avtd3: "
            "use --verbose or set AVTD3_TRACEBACK=1 for the traceback, and report it"
        )
    _say_error(text)
    return code


def _say_error(text: str) -> None:
    """Print an error in one line of bounded length."""
    complain(f"avtd3: {' '.join(cut_middle(text).split())}")


if __name__ == "__main__":
    main()
