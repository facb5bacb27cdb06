"""Hosts of a fleet on this machine: network namespaces on one switch, whose links can be cut.

The namespaces have no names, and live as long as one process in each, which the kernel kills with
the process of the tests. So they cannot collide with those of other runs, and nothing is left.
Other users than root get them in a user namespace, where the machine permits that.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STORE = "store"
"""The host that has the switch and the bucket."""
ADDRESS = "10.77.0.1"
"""Its address; that of the others ends with 2, 3 and so on."""
CUTS = {
    "unplugged": (STORE, "ip link set {0} down", "ip link set {0} up"),
    "interface down": ("", "ip link set eth0 down", "ip link set eth0 up"),
    "silent": (STORE, "ip link set {0} nomaster", "ip link set {0} master switch"),
}
"""Kinds of cuts: the host that does it, or "" for the host itself; how to cut and to heal. After a
silent one, packets vanish, and no interface reports it."""
_SWITCH = f"""
ip link set lo up
ip link add switch type bridge forward_delay 0
ip address add {ADDRESS}/24 dev switch
ip link set switch up
"""
_PORT = """
ip link add {0} type veth peer name eth0 netns {1}
ip link set {0} master switch
ip link set {0} up
"""
_HOST = f"""
ip link set lo up
ip address add {ADDRESS[:-1]}{{0}}/24 dev eth0
ip link set eth0 up
"""
_DIES_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL"]
_IN_USER = [] if os.geteuid() == 0 else ["--user"]


class Hosts:
    """The host `STORE`, and one for each name. Use it as a context manager."""

    def __init__(self, *names):
        self._names, self._pids, self._stack = names, {}, contextlib.ExitStack()

    def __enter__(self):
        for program in ("ip", "unshare", "nsenter", "setpriv"):
            if shutil.which(program) is None:
                pytest.skip(f"needs the program {program}, of iproute2 or util-linux")
        with contextlib.ExitStack() as self._stack:
            self._open(STORE, [], ["--map-root-user"] if _IN_USER else [])
            self.shell(STORE, _SWITCH)
            for number, name in enumerate(self._names, 2):
                self._open(name, self.words(STORE), [])
                self.shell(STORE, _PORT.format(name, self._pids[name]))
                self.shell(name, _HOST.format(number))
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _open(self, name, where, options):
        words = [*where, "unshare", "--net", *(_IN_USER if not where else []), *options]
        words += [*_DIES_WITH_PARENT, "sh", "-c", "echo ready; exec sleep infinity"]
        holder = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._stack.callback(_end, holder)
        assert holder.stdout is not None
        assert holder.stderr is not None
        if holder.stdout.readline() != "ready\n":
            pytest.skip(
                f"needs the permission to create network namespaces: {holder.stderr.read()}"
            )
        self._pids[name] = holder.pid

    def words(self, name):
        """Return the words before a command that runs it on a host."""
        entered = ["--preserve-credentials", *_IN_USER] if _IN_USER else []
        enter = ["nsenter", "--target", str(self._pids[name]), "--net", *entered]
        return [*enter, *_DIES_WITH_PARENT]

    def shell(self, name, script):
        """Run the lines of a script on a host."""
        words = [*self.words(name), "sh", "-e", "-c", script]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError(f"{script}: {done.stderr}")

    def cut(self, name, kind):
        """Cut the link between a host and the switch."""
        self._change(name, kind, 1)

    def heal(self, name, kind):
        """Undo `cut`."""
        self._change(name, kind, 2)

    def _change(self, name, kind, which):
        host = CUTS[kind][0] or name
        self.shell(host, CUTS[kind][which].format(name))

    @contextlib.contextmanager
    def server(self, engine, folder, bucket):
        """Run an S3 server on the store until the end of the block; yield its environment."""
        words = self.words(STORE)[: -len(_DIES_WITH_PARENT)]  # it must end its server first
        words += [sys.executable, "-m", "avtd3.tests.store.remote.servers"]
        words += [engine, str(folder), ADDRESS, bucket]
        pipe = subprocess.PIPE
        with subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True) as process:
            try:  # the server ends when its standard input does
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line, f"the server did not start: {list(Path(folder).glob('*.log'))}"
                yield dict(pair.split("=", 1) for pair in line.split())
            finally:
                process.communicate()


def _end(process):
    process.kill()
    process.communicate()
