"""Run ``python -m avtd3.tests.collect.carla.server --port 0 [--xodr FILE] [--set-fault JSON]``.

When it listens, it writes one line of JSON, ``{"port": ..., "pid": ...}``. It answers each line of
JSON on its standard input with a line: ``{"fault": {...}}`` changes faults, and
``{"record": true}`` returns the record so far. It ends with its standard input, or with a process
(``--serve-while PID``).
"""

import argparse
import json
import os
import selectors
import sys
import time
from pathlib import Path

from avtd3.tests.collect.carla.server.calls import Calls
from avtd3.tests.collect.carla.server.faults import Faults
from avtd3.tests.collect.carla.server.maps import Maps
from avtd3.tests.collect.carla.server.simulation import FREE_RUN_S, Simulation
from avtd3.tests.collect.carla.server.wire import Answers, Streams

_POLL_S = 0.5


class Server:
    """Sockets, simulation, and commands on standard input."""

    def __init__(self, options):
        self._selector = selectors.DefaultSelector()
        self.faults = Faults()
        self.faults.change(json.loads(options.set_fault))
        xodr = Path(options.xodr).read_text("utf-8") if options.xodr else None
        self._streams = Streams(self._selector, options.host)
        self.simulation = Simulation(Maps(xodr), self.faults, self._streams)
        self._calls = Calls(self.simulation, self._streams.port)
        self._answers = Answers(
            self._selector, options.host, options.port, self._calls, self.faults
        )
        self._master, self._line = options.serve_while, b""
        self._is_over, self._free_run_due_s = False, 0.0
        if self._master is None:
            self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, self._obey)

    def run(self):
        """Serve until the end of standard input, or of the process to serve."""
        self._say({"port": self._answers.port, "pid": os.getpid()})
        while not self._is_over:
            for key, events in self._selector.select(self._pause_s()):
                key.data(events)
            self._advance()

    def _pause_s(self):
        if not self.simulation.is_synchronous:
            return max(self._free_run_due_s - time.monotonic(), 0.0)
        return None if self._master is None else _POLL_S

    def _advance(self):
        """Advance an asynchronous simulation; check the process to serve."""
        if self._master is not None and not _is_alive(self._master):
            self._is_over = True
        now_s = time.monotonic()
        if not self.simulation.is_synchronous and now_s >= self._free_run_due_s:
            self._free_run_due_s = now_s + FREE_RUN_S
            if not self.faults.hang:
                self.simulation.tick()

    def _obey(self, _events):
        data = os.read(sys.stdin.fileno(), 1 << 16)
        self._is_over = not data
        *lines, self._line = (self._line + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            self.faults.change(order.get("fault", {}))
            self._say(self.record() if "record" in order else {})

    def record(self):
        """Return the calls so far, and the current state."""
        simulation = self.simulation
        return {
            "calls": dict(self._answers.counts),
            "commands": dict(self._calls.commands),
            "problems": self._answers.problems,
            "clients": self._answers.clients,
            "streams": {str(name): count for name, count in self._streams.counts().items()},
            "actors": [
                {
                    "id": actor.id,
                    "type": actor.type_id,
                    "parent": actor.parent_id,
                    "role": actor.attributes.get("role_name", ""),
                    "pose": actor.pose,
                }
                for actor in simulation.actors.values()
            ],
            "controls": list(simulation.history),
            "poses": list(simulation.poses),
            "ticks": simulation.ticks,
            "frame": simulation.frame,
            "episode": simulation.episode_id,
            "map": simulation.map.name,
            "settings": simulation.settings,
            "weather": simulation.weather,
        }

    def _say(self, value):
        sys.stdout.write(json.dumps(value) + "\n")
        sys.stdout.flush()


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", "-carla-rpc-port", type=int, default=2000)
    parser.add_argument("--xodr", help="the map to begin with, an OpenDRIVE file")
    parser.add_argument("--set-fault", default="{}", metavar="JSON")
    parser.add_argument("--serve-while", type=int, metavar="PID")
    Server(parser.parse_args()).run()


if __name__ == "__main__":
    main()
