"""The child process of a CARLA world: ``python -m avtd3.collect.carla.child FD PARENT``.

It answers commands that come over a pipe: ``(number, name, arguments)`` in; out, any number of
``("phase", (what, limit_s))`` and then ``("answer", number, value)`` or ``("error", number, (type,
arguments))``. When the pipe ends it removes its actors, restores the server and leaves; if that
hangs, a thread ends the process. It always leaves by `os._exit`: the client aborts processes that
end in the ordinary way.
"""

import faulthandler
import os
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from typing import Any

from avtd3.collect.carla.checkup import Checkup
from avtd3.collect.carla.doctor import CHECKS
from avtd3.collect.carla.session import Session
from avtd3.store.errors import Avtd3Error

COMMANDS = {
    "session": ("open", "reset", "step", "surroundings", "close"),
    "checkup": (*CHECKS, "close"),
}
"""What may be asked, by the work that the parent chose: episodes, or an examination."""
_WORKERS: dict[str, type[Session] | type[Checkup]] = {"session": Session, "checkup": Checkup}
_LOOK_S = 0.5


def main(descriptor: int, parent: int) -> None:
    """Serve one parent until it asks to end or is gone.

    Args:
        descriptor: File descriptor of the pipe.
        parent: The parent's process.
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
    session = _WORKERS[work](config, port, lambda *told: pipe.send(("phase", told)))
    try:
        while _serve(session, COMMANDS[work], pipe):
            pass
    except (EOFError, OSError):  # the parent is gone
        session.server.mute()
        session.close()


def _serve(
    session: Session | Checkup, commands: tuple[str, ...], pipe: "Connection[Any, Any]"
) -> bool:
    """Answer one command; whether there may be more."""
    number, name, arguments = pipe.recv()
    assert name in commands, "the parent asks for what there is"
    try:
        answer = getattr(session, name)(*arguments)
    except Avtd3Error as error:
        pipe.send(("error", number, (type(error).__name__, error.args)))
    except RuntimeError as error:  # the client's own
        known = session.server.explained(error, name)
        pipe.send(("error", number, (type(known).__name__, known.args)))
    else:
        pipe.send(("answer", number, answer))
    return bool(name != "close")


def _watch(parent: int, farewell_s: float) -> None:
    """End the process if its parent is gone and it does not end by itself."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    time.sleep(farewell_s)
    os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    os._exit(0)
