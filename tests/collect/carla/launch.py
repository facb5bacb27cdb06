"""`CarlaServer`: a wire-compatible server in its own process, as a context manager."""

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ANSWER_TIMEOUT_S = 60.0


class CarlaServer:
    """Run ``python -m avtd3.tests.collect.carla.server``; it ends with the test's process.

    Attributes:
        port: Where clients connect.
        pid: The server's process.
    """

    def __init__(self, *, port=0, xodr=None, **faults):
        self._command = [sys.executable, "-m", "avtd3.tests.collect.carla.server", f"--port={port}"]
        self._command += [f"--set-fault={json.dumps(faults)}"]
        self._command += [f"--xodr={xodr}"] if xodr else []

    def __enter__(self):
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log
        )
        self._lines = queue.Queue[bytes]()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._orders, self._output = self._process.stdin, self._process.stdout
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            hello = self._line()
        except BaseException:
            self.__exit__()
            raise
        self.port, self.pid = hello["port"], hello["pid"]
        return self

    def _read(self):
        for line in self._output:
            self._lines.put(line)
        self._lines.put(b"")

    def _line(self):
        line = self._lines.get(timeout=ANSWER_TIMEOUT_S)
        assert line, f"the server has ended: {self.log()}"
        return json.loads(line)

    def log(self):
        """Return its standard error."""
        self._log.seek(0)
        return self._log.read().decode()

    def _order(self, order):
        self._orders.write(json.dumps(order).encode() + b"\n")
        self._orders.flush()
        return self._line()

    def fault(self, **changes):
        """Change the faults; see `avtd3.tests.collect.carla.server.faults.Faults`."""
        self._order({"fault": changes})

    def record(self):
        """Return the record so far: calls, actors, controls by tick, ticks, streams and more."""
        return self._order({"record": True})

    def record_when(self, is_so):
        """Return the record as soon as it meets a condition."""
        end, pause = time.monotonic() + ANSWER_TIMEOUT_S, threading.Event()
        while not is_so(record := self.record()):
            assert time.monotonic() < end, record
            pause.wait(0.05)
        return record

    @property
    def is_alive(self):
        return self._process.poll() is None

    def rss_bytes(self):
        """Return the resident memory of the process."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def hang_up(self):
        """Close its standard input, as the end of its parent process would."""
        self._orders.close()

    def wait(self):
        """Wait for its end; return the exit code."""
        return self._process.wait(ANSWER_TIMEOUT_S)

    def kill(self):
        """Kill it."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def __exit__(self, *_):
        self.kill()
        self._reader.join()
        for file in (self._orders, self._output, self._log):
            try:
                file.close()
            except BrokenPipeError:
                continue
