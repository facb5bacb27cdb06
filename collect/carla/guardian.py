"""Run a program while standard input stays open: ``python -m ... PROGRAM ARG...``.

A simulator must not outlive the collector that started it, even if the collector was killed. When
the collector ends, the guardian's standard input ends, and it ends the process group of the
simulator: first with SIGTERM, then with SIGKILL. The system does not reuse the id of the group
before it is gone, so no other process is hit. The guardian writes one line to its standard output:
the process id of the program, whose output goes to the guardian's standard error.
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
    """Run a program until it or standard input ends; return its exit code."""
    # SLURM sends these to all processes; the collector decides. The program inherits this.
    for number in (signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
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
