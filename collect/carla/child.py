"""The process that holds a CARLA client: ``python -m avtd3.collect.carla.child FD PARENT``.

It answers commands from a pipe. A command is ``(number, name, arguments)``. The process sends any
number of ``("phase", (what, limit_s))``, and then ``("answer", number, value)`` or ``("error",
number, (type, arguments))``. When the pipe ends, it removes its actors, restores the server and
exits; if that hangs, a thread ends the process. It always exits by `os._exit`, because the client
aborts processes that exit normally.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from avtd3.collect.carla.doctor import CHECKS
from avtd3.collect.carla.session import Checkup, Session
from avtd3.store.errors import Avtd3Error

COMMANDS = {
    "session": ("open", "reset", "step", "surroundings", "close"),
    "checkup": (*CHECKS, "close"),
}
"""Allowed commands, by the work that the parent chose: episodes, or the checks of the doctor."""
_WORKERS: dict[str, type[Session] | type[Checkup]] = {"session": Session, "checkup": Checkup}
_POLL_S = 0.5


def main(descriptor: int, parent: int) -> None:
    """Serve one parent until it sends ``close`` or is gone.

    Args:
        descriptor: File descriptor of the pipe.
        parent: Process id of the parent.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    faulthandler.enable()
    pipe: Connection[Any, Any] = Connection(descriptor)
    try:
        work, config, port = pipe.recv()
    except EOFError:
        return
    watcher = threading.Thread(target=_watch, args=(parent, config.step_timeout_s), daemon=True)
    watcher.start()
    session = _WORKERS[work](config, port, lambda *phase: pipe.send(("phase", phase)))
    try:
        while _serve(session, COMMANDS[work], pipe):
            pass
    except (EOFError, OSError):  # the parent is gone
        session.server.stop_reporting()
        session.close()


def _serve(
    session: Session | Checkup, commands: tuple[str, ...], pipe: "Connection[Any, Any]"
) -> bool:
    """Answer one command; return whether more may follow."""
    number, name, arguments = pipe.recv()
    assert name in commands, "the parent sends only known commands"
    try:
        answer = getattr(session, name)(*arguments)
    except Avtd3Error as error:
        pipe.send(("error", number, (type(error).__name__, error.args)))
    except RuntimeError as error:  # the client's own
        translated = session.server.translate_error(error, name)
        pipe.send(("error", number, (type(translated).__name__, translated.args)))
    else:
        pipe.send(("answer", number, answer))
    return bool(name != "close")


def _watch(parent: int, limit_s: float) -> None:
    """End the process if its parent is gone and it does not end by itself."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    time.sleep(limit_s)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)
