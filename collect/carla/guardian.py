"""Run a program for as long as somebody holds our standard input: ``python -m ... PROGRAM ARG...``.

A simulator must not outlive the collector that started it, not even one that was killed and could
clean up nothing. So the collector starts this keeper, and the keeper the simulator, in a process
group of its own. The end of the keeper's standard input, which comes when the collector ends in
whatever way, ends the whole group: first by SIGTERM, then by SIGKILL. The group is known by the
number of its first process, which is not given back to the system before the group is gone, so
nothing else can be hit.

The keeper's standard output is one line, the process id of the program; what the program writes
goes to the keeper's standard error. The keeper exits as the program does.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

FAREWELL_S = 3.0
"""Seconds between SIGTERM and SIGKILL: a simulator has nothing to save."""


def main(command: Sequence[str]) -> int:
    """Run a program until it ends or standard input does.

    Args:
        command: The program and its arguments.

    Returns:
        Its exit code; 128 and the signal's number if it was killed.

    Raises:
        OSError: It cannot be started.
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
    _signal(program.pid, signal.SIGKILL)  # what it started and left behind
    code = program.wait()
    return code if code >= 0 else 128 - code


def _stop_with_input(group: int, ended: threading.Event) -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    _signal(group, signal.SIGTERM)
    if not ended.wait(FAREWELL_S):
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, number)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
