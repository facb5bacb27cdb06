"""Tests that the real client must not crash: each runs in a process of its own.

A fork costs nothing, where a fresh interpreter with pytest would take longer than most tests.
"""

import functools
import os
import selectors
import signal
import time
import traceback
import warnings

import pytest

WITHIN_S = 180.0


def own_process(test):
    """Run a test in a fork, which may crash or block."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            # Of other threads none holds what the client or a test needs.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _inside(writing, functools.partial(test, *args, **kwargs))
        os.close(writing)
        said, is_over = _read(reading)
        if not is_over:
            os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code or not is_over:
            pytest.fail(
                said or f"the process ended with {code}, within {WITHIN_S:.0f} s: {is_over}"
            )

    return run


def _inside(writing, test):
    """Run a test, tell what went wrong, and leave: the client may abort an ordinary end."""
    code = 1
    try:
        test()
        code = 0
    except BaseException:  # noqa: BLE001 # whatever it is, the other process is to hear of it
        os.write(writing, traceback.format_exc().encode())
    finally:
        os._exit(code)


def _read(reading):
    """What is said until the other end is closed, and whether that was in time."""
    said, end = b"", time.monotonic() + WITHIN_S
    with selectors.DefaultSelector() as selector, os.fdopen(reading, "rb", buffering=0) as pipe:
        selector.register(pipe, selectors.EVENT_READ)
        while selector.select(max(end - time.monotonic(), 0.0)):
            data = pipe.read(1 << 16)
            if not data:
                return said.decode(), True
            said += data
    return said.decode(), False
