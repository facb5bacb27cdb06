"""`CarlaServer`: a wire-compatible server in a process of its own, for the time of a `with`."""

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

ANSWERS_WITHIN_S = 60.0


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
        line = self._lines.get(timeout=ANSWERS_WITHIN_S)
        assert line, f"the server has ended: {self.log()}"
        return json.loads(line)

    def log(self):
        """What it wrote on its standard error."""
        self._log.seek(0)
        return self._log.read().decode()

    def _order(self, order):
        self._orders.write(json.dumps(order).encode() + b"\n")
        self._orders.flush()
        return self._line()

    def fault(self, **changes):
        """Change what goes wrong; see `avtd3.tests.collect.carla.server.faults.Faults`."""
        self._order({"fault": changes})

    def record(self):
        """What happened so far: calls, actors, controls by tick, ticks, streams and more."""
        return self._order({"record": True})

    def record_when(self, is_so):
        """The record as soon as it meets a condition: the server learns of ends a little later."""
        end, pause = time.monotonic() + ANSWERS_WITHIN_S, threading.Event()
        while not is_so(record := self.record()):
            assert time.monotonic() < end, record
            pause.wait(0.05)
        return record

    @property
    def is_alive(self):
        return self._process.poll() is None

    def rss_bytes(self):
        """Memory that the process holds."""
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def hang_up(self):
        """Close its standard input, as the end of its starter would."""
        self._orders.close()

    def wait(self):
        """Wait for its end; the exit code."""
        return self._process.wait(ANSWERS_WITHIN_S)

    def kill(self):
        """End it at once."""
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
