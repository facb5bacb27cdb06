"""The `avtd3` command: mount the commands; turn errors into exit codes.

Exit codes: 0 done; 1 the answer is no (an audit with findings, NO-GO, training stopped by a
guard); 2 invalid command line, configuration or input; 3 the environment failed (no simulator,
disk full, a file that cannot be read now); 70 an error that avtd3 does not know; 128 + N ended by
signal N. With ``--json``, standard output contains exactly one JSON document. Progress and errors
go to standard error.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from avtd3.configs.commands.console import (
    EXIT_ENVIRONMENT,
    EXIT_UNEXPECTED,
    EXIT_USAGE,
    say,
    terminal,
)
from avtd3.store.errors import (
    Avtd3Error,
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
    (Avtd3Error, EXIT_USAGE),
    (OSError, EXIT_ENVIRONMENT),
    (MemoryError, EXIT_ENVIRONMENT),
)
"""Exit codes of the errors that avtd3 knows; the first line that fits counts."""


def make_app() -> "typer.Typer":
    """Mount the commands; their modules are imported only now, when signals are handled."""
    import typer

    from avtd3.configs.commands import config, doctor, policy, road, store
    from avtd3.configs.commands.collect import collect
    from avtd3.configs.commands.demo import demo
    from avtd3.configs.commands.evaluate import evaluate
    from avtd3.configs.commands.exchange import export, import_
    from avtd3.configs.commands.gate import compare, gate
    from avtd3.configs.commands.learn import learn
    from avtd3.configs.commands.replay_inspect import replay_inspect

    app = typer.Typer(
        name="avtd3",
        help="Train driving policies offline: collect episodes, audit them, learn, evaluate.\n\n"
        "Collectors and learners exchange only files, so they can run on different machines.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for command in (demo, collect, replay_inspect, learn, evaluate, gate, compare, export):
        app.command()(command)  # replay_inspect becomes replay-inspect
    app.command("import")(import_)
    groups = {"store": store, "policy": policy, "road": road, "config": config, "doctor": doctor}
    for name, module in groups.items():
        app.add_typer(module.app, name=name)
    return app


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
        raise SystemExit(code)


def _run(arguments: list[str]) -> int:
    """Run a command; return its exit code.

    Typer's own way to run it turns a broken pipe or an end of file anywhere into exit code 1.
    """
    import typer

    usage_error: Any = typer.BadParameter.__bases__[0]  # Typer does not export it
    try:
        command = typer.main.get_command(make_app())
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


def _report(error: BaseException) -> int:
    """Print one line about an error; return the exit code."""
    if os.environ.get("AVTD3_TRACEBACK"):
        traceback.print_exception(error)
    code = next((code for kind, code in _CODES if isinstance(error, kind)), EXIT_UNEXPECTED)
    if type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error):
        code = EXIT_ENVIRONMENT  # torch's
    text = describe(error) or type(error).__name__
    if code == EXIT_UNEXPECTED:
        text = (
            f"unexpected {type(error).__name__}: {text[:1000]}; this is a defect of avtd3: "
            "set AVTD3_TRACEBACK=1 for the traceback, and report it"
        )
    _say_error(text)
    return code


def _say_error(text: str) -> None:
    """Print an error in one line of bounded length."""
    say(f"avtd3: {' '.join(cut_middle(text).split())}")


if __name__ == "__main__":
    main()
