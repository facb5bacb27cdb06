"""Run a program while standard input stays open: ``python -m ... PROGRAM ARG...``.

A simulator must not outlive the collector that started it, even if the collector was killed.
Therefore the collector starts this guardian, and the guardian starts the simulator in a process
group of its own. When the collector ends, the guardian's standard input ends, and the guardian ends
the whole group: first with SIGTERM, then with SIGKILL. The group is identified by the id of its
first process. The system does not reuse this id before the group is gone, so no other process is
hit.

The guardian writes one line to its standard output: the process id of the program. The output of
the program goes to the guardian's standard error. The guardian exits with the code of the program.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

TERMINATE_S = 3.0
"""Seconds between SIGTERM and SIGKILL; a simulator has nothing to save."""


def main(command: Sequence[str]) -> int:
    """Run a program until it or standard input ends.

    Args:
        command: The program and its arguments.

    Returns:
        Its exit code; 128 plus the number of the signal if it was killed.

    Raises:
        OSError: The program cannot be started.
    """
    log = sys.stderr.fileno()
    program = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
    )
    ended = threading.Event()
    os.write(sys.stdout.fileno(), b"%d\n" % program.pid)
    threading.Thread(target=_stop_with_input, args=(program.pid, ended), daemon=True).start()
    os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
    ended.set()
    _signal(program.pid, signal.SIGKILL)  # processes that it started and left
    code = program.wait()
    return code if code >= 0 else 128 - code


def _stop_with_input(group: int, ended: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    _signal(group, signal.SIGTERM)
    if not ended.wait(TERMINATE_S):
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
