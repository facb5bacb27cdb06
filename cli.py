"""The `avtd3` command: mount the commands; turn errors into exit codes.

Exit codes: 0 done; 1 the answer is no (an audit with findings, NO-GO, training stopped by a
guard); 2 invalid command line, configuration or input; 3 the environment failed (no simulator,
disk full, a file that cannot be read now). With ``--json``, standard output contains exactly one
JSON document. Progress and errors go to standard error.
"""

from collections.abc import Sequence
from typing import NoReturn

import typer

from avtd3.configs.commands import config, doctor, store
from avtd3.configs.commands.collect import collect
from avtd3.configs.commands.console import say
from avtd3.configs.commands.demo import demo
from avtd3.configs.commands.evaluate import evaluate
from avtd3.configs.commands.gate import compare, gate
from avtd3.configs.commands.learn import learn
from avtd3.configs.commands.options import EXIT_ENVIRONMENT, EXIT_USAGE
from avtd3.configs.commands.replay_inspect import replay_inspect
from avtd3.store.errors import Avtd3Error, StorageError, UnreadableError, WorldError

app = typer.Typer(
    name="avtd3",
    help="Train driving policies offline: collect episodes, audit them, learn, evaluate.\n\n"
    "Collectors and learners exchange only files, so they can run on different machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(demo)
app.command()(collect)
app.command(name="replay-inspect")(replay_inspect)
app.command()(learn)
app.command()(evaluate)
app.command()(gate)
app.command()(compare)
app.add_typer(store.app, name="store")
app.add_typer(config.app, name="config")
app.add_typer(doctor.app, name="doctor")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; turn every error of avtd3 into one line and an exit code.

    Args:
        argv: Arguments after the program's name; None takes those of the process.

    Raises:
        SystemExit: Always, with the command's exit code.
    """
    try:
        app(args=None if argv is None else list(argv), prog_name="avtd3")
    except (WorldError, StorageError, UnreadableError) as error:
        _fail(error, EXIT_ENVIRONMENT)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Avtd3Error as error:
        _fail(error, EXIT_USAGE)
    except (OSError, MemoryError) as error:
        _fail(error, EXIT_ENVIRONMENT)


def _fail(error: BaseException, code: int) -> NoReturn:
    # The message of one of our OSErrors is its strerror; str() would put an errno before it.
    message = isinstance(error, Avtd3Error) and getattr(error, "strerror", None)
    text = message or str(error) or type(error).__name__
    say(f"avtd3: {' '.join(text.split())}")
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
