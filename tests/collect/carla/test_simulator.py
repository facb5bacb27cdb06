"""`Simulator` with real processes, all identified by their ids."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.world import Simulator
from avtd3.store.errors import WorldError, WorldLost
from avtd3.tests.collect.carla.worlds import ignored

LISTENER = """
import signal, socket, subprocess, sys, time
stubborn = "stubborn" in sys.argv
if stubborn:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if "child" in sys.argv:
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
if "lingers" in sys.argv:
    code = (
        "import os, socket, sys, time; parent = os.getppid();"
        "server = socket.create_server(('127.0.0.1', int(sys.argv[1])));"
        "[time.sleep(0.05) for _ in iter(lambda: os.getppid() == parent, False)]; time.sleep(1)"
    )
    subprocess.Popen([sys.executable, "-c", code, sys.argv[1]], start_new_session=True)
    time.sleep(600)
ballast = bytearray(200_000_000) if "heavy" in sys.argv else None
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    server.accept()[0].close()
"""
"""A server that only listens."""


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


@pytest.fixture
def command(tmp_path):
    program = tmp_path / "a server.py"
    program.write_text(LISTENER)
    return f"'{sys.executable}' '{program}' {{port}}"


@pytest.fixture
def run(port):
    """Create simulators that end with the test."""
    made = []

    def make(command, **options):
        made.append(Simulator(configured(command, **options), port))
        return made[-1]

    yield make
    for simulator in made:
        simulator.close()


def configured(command, **options):
    return CarlaConfig(server_command=command, **{"server_start_s": 60.0, **options})


def group(pid):
    """Return the ids of the living processes of a process group."""
    listed = subprocess.run(["ps", "-eo", "pid,pgid,stat"], capture_output=True, check=True)
    rows = [line.split() for line in listed.stdout.decode().splitlines()[1:]]
    return [int(row[0]) for row in rows if int(row[1]) == pid and not row[2].startswith("Z")]


def wait_for(predicate):
    end = time.monotonic() + 60
    while not predicate():
        assert time.monotonic() < end
        threading.Event().wait(0.05)


def test_it_starts_a_server_once_and_stops_it_with_its_children(run, command, port):
    simulator = run(command + " child")
    assert simulator.pid is None
    simulator.ensure()
    pid = simulator.pid
    assert pid is not None
    wait_for(lambda: len(group(pid)) == 2)
    simulator.ensure()
    assert (simulator.pid, simulator.starts) == (pid, 1)
    simulator.close()
    simulator.close()
    assert group(pid) == []
    assert simulator.pid is None


def test_signals_that_ask_a_collector_to_stop_do_not_end_its_server(run, command):
    simulator = run(command)
    simulator.ensure()
    for pid in (simulator.pid, simulator._guardian.pid):
        assert ignored(pid) >= {signal.SIGHUP, signal.SIGUSR1}


def test_a_server_that_died_is_restarted_and_its_children_are_stopped(run, command):
    simulator = run(command + " child")
    simulator.ensure()
    first = simulator.pid
    os.kill(first, signal.SIGKILL)
    wait_for(lambda: group(first) == [])
    simulator.ensure()
    assert (simulator.starts, len(group(simulator.pid)) > 0) == (2, True)


def test_only_losses_that_a_server_may_have_caused_replace_it(run, command):
    simulator = run(command)
    for reason, starts in (
        ("client_crash", 1),
        ("server_lost", 2),
        ("tick_timeout", 3),  # after a second loss in a row, the server may be the cause
    ):
        simulator.ensure()
        simulator.restart(reason)
        simulator.ensure()
        assert simulator.starts == starts
    simulator.episode_done()
    simulator.restart("tick_timeout")
    simulator.ensure()
    assert simulator.starts == 3


def test_it_is_recycled_after_a_number_of_episodes(run, command):
    simulator = run(command, recycle_episodes=2)
    starts = []
    for _ in range(5):
        simulator.ensure()
        starts.append(simulator.starts)
        simulator.episode_done()
    assert starts == [1, 1, 2, 2, 3]


def test_it_is_recycled_when_it_uses_too_much_memory(run, command):
    simulator = run(command + " heavy", server_memory_mb=150)
    simulator.ensure()
    assert simulator.memory_bytes() > 200_000_000
    simulator.episode_done()
    simulator.ensure()
    assert simulator.starts == 2
    simulator.close()
    assert simulator.memory_bytes() == 0


def test_it_waits_for_a_port_that_is_freed_late(run, command):
    simulator = run(command + " lingers")
    simulator.ensure()
    simulator.restart("server_lost")
    simulator.ensure()
    assert simulator.starts == 2


def test_a_server_that_ignores_sigterm_is_killed(run, command):
    simulator = run(command + " stubborn")
    simulator.ensure()
    pid = simulator.pid
    simulator.restart("server_lost")
    assert group(pid) == []


def test_another_server_on_the_port_is_left_alone(run, command, port):
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(WorldError, match="did not start; omit --server-command"):
            run(command).ensure()
        socket.create_connection(("127.0.0.1", port)).close()


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("no/such/CarlaUE4.sh -RenderOffScreen", "is not a program that can be run"),
        ("", "is not a program that can be run"),
        ("CarlaUE4.sh '-RenderOffScreen", "cannot be read: No closing quotation"),
    ],
)
def test_a_command_that_does_not_exist_is_one_clear_error(command, problem, port):
    with pytest.raises(WorldError, match=problem):
        Simulator(configured(command), port)


def test_a_server_that_ends_at_once_is_reported_with_its_last_output(run):
    program = f"'{sys.executable}' -c 'import sys; sys.exit(\"no GPU\")'"
    with pytest.raises(WorldLost, match=r"-carla-rpc-port=\d+\) ended with exit code 1 .*no GPU"):
        run(program).ensure()


def test_a_server_that_does_not_listen_in_time_is_stopped(port):
    program = f"'{sys.executable}' -c 'import time; time.sleep(600)'"
    simulator = Simulator(configured(program, server_start_s=0.2), port)
    with pytest.raises(WorldLost, match="does not listen on port"):
        simulator.ensure()
    assert simulator.pid is None
    simulator.close()


HOLDER = """
import sys
from avtd3.collect.carla.config import CarlaConfig
from avtd3.collect.carla.world import Simulator
simulator = Simulator(CarlaConfig(server_command=sys.argv[1]), int(sys.argv[2]))
simulator.ensure()
print(simulator.pid, flush=True)
sys.stdin.read()
"""


def test_a_server_does_not_outlive_a_collector_that_was_killed(command, port):
    holder = [sys.executable, "-c", HOLDER, command + " child", str(port)]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert group(pid)
        process.kill()
    wait_for(lambda: group(pid) == [])
