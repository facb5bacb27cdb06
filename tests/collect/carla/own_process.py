"""Decorators for tests that the real client may crash or block: each runs in its own process.

A fork is faster than most tests, whereas a new interpreter with pytest would take longer.
"""

import functools
import os
import selectors
import signal
import time
import traceback
import warnings
from pathlib import Path

import pytest

WITHIN_S = 180.0
"""Time limit of a test."""
IDLE_S = 15.0
"""A test that uses no CPU time for this long is blocked: nothing else in it waits so long."""
ATTEMPTS = 5


def own_process(test):
    """Run a test in a fork, which may crash or block."""
    return _runner(test, attempts=1)


def own_process_with_traffic_manager(test):
    """Run a test in a fork; repeat it if the client blocks in its traffic manager.

    The traffic manager sets the flag of a step without the lock of its condition variable. A
    wake-up is therefore lost now and then, and the tick never returns (`tick_timeout` in
    docs/carla.md). Only a test that is blocked is repeated, not one that fails.
    """
    return _runner(test, attempts=ATTEMPTS)


def _runner(test, *, attempts):
    @functools.wraps(test)
    def run(*args, **kwargs):
        for attempt in range(1, attempts + 1):
            code, output, is_over = _run_in_fork(
                functools.partial(test, *args, **kwargs), IDLE_S if attempts > 1 else WITHIN_S
            )
            if code == 0 and is_over:
                return
            if is_over or attempt == attempts:
                pytest.fail(
                    output or f"the process ended with {code}, within {WITHIN_S:.0f} s: {is_over}"
                )

    return run


def _run_in_fork(test, idle_s):
    """Return exit code and output of a test, and whether it ended without being killed."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # No other thread holds a lock that the client or a test needs.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        _inside(writing, test)
    os.close(writing)
    output, is_over = _read(reading, pid, idle_s)
    if not is_over:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), output, is_over


def _inside(writing, test):
    """Run a test, write its error, and exit: the client may abort a normal exit."""
    code = 1
    try:
        test()
        code = 0
    except BaseException:  # noqa: BLE001 # every error is passed to the other process
        os.write(writing, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _read(reading, pid, idle_s):
    """Read until the other end is closed; return the text, and whether it was closed in time."""
    output, end = b"", time.monotonic() + WITHIN_S
    used_s, idle_until = -1.0, 0.0
    with selectors.DefaultSelector() as selector, os.fdopen(reading, "rb", buffering=0) as pipe:
        selector.register(pipe, selectors.EVENT_READ)
        while (now := time.monotonic()) < end:
            before_s, used_s = used_s, _cpu_time_s(pid)
            if used_s != before_s:
                idle_until = now + idle_s
            elif now > idle_until:
                break
            if selector.select(min(end - now, 1.0)):
                data = pipe.read(1 << 16)
                if not data:
                    return output.decode(), True
                output += data
    return output.decode(), False


def _cpu_time_s(pid):
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
