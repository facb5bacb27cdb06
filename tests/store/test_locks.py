import dataclasses
import errno
import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest

from avtd3.store.errors import ConfigError, InUseError, StorageError
from avtd3.store.locks import LOCK_FILE, ExclusiveLock, Identity

HOLD = """
import pathlib, sys, time
from avtd3.store.locks import ExclusiveLock
with ExclusiveLock(pathlib.Path(sys.argv[1]), purpose="a test"):
    print("held", flush=True)
    time.sleep(600)
"""
SHOW = """
import sys, time
from avtd3.store.locks import Identity
sys.stdout.buffer.write(Identity.current("a test").to_bytes())
sys.stdout.flush()
time.sleep(600)
"""


def start(script, *args, before=()):
    command = [*before, sys.executable, "-c", script, *map(str, args)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, process.stdout.readline()


def end(process):
    process.send_signal(signal.SIGKILL)
    process.communicate()


@pytest.fixture
def elsewhere():
    """Command prefix that starts a process in a process namespace of its own."""
    prefix = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")
    try:
        subprocess.run([*prefix, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("namespaces are not permitted here")
    return prefix


def test_a_second_process_learns_who_holds_the_lock(tmp_path):
    process, _ = start(HOLD, tmp_path)
    try:
        with (
            pytest.raises(InUseError, match="in use by process") as caught,
            ExclusiveLock(tmp_path, purpose="mine"),
        ):
            pass
    finally:
        end(process)
    assert isinstance(caught.value, ConfigError)
    text = str(caught.value)
    assert str(tmp_path) in text
    assert f"process {process.pid} " in text
    assert "a test" in text
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


def test_a_killed_holder_leaves_nothing_but_a_file_without_meaning(tmp_path):
    process, _ = start(HOLD, tmp_path)
    end(process)
    assert (tmp_path / LOCK_FILE).exists()
    with ExclusiveLock(tmp_path, purpose="mine"):
        holder = Identity.from_bytes((tmp_path / LOCK_FILE).read_bytes())
        assert (holder.pid, holder.purpose) == (os.getpid(), "mine")


def test_a_lock_is_not_entered_twice_and_free_after_it_was_left(tmp_path):
    with ExclusiveLock(tmp_path, purpose="one"):
        with pytest.raises(InUseError, match="one"), ExclusiveLock(tmp_path, purpose="two"):
            pass
        with ExclusiveLock(tmp_path, purpose="other", name=".other"):
            pass
    with ExclusiveLock(tmp_path, purpose="two"):
        pass


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    with ExclusiveLock(tmp_path, purpose="parent"):
        process = subprocess.Popen(
            [sys.executable, "-c", FORK, str(tmp_path / "sub")], stdout=subprocess.PIPE, text=True
        )
        output, _ = process.communicate()
    child = int(output)
    try:
        with ExclusiveLock(tmp_path / "sub", purpose="next"):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


FORK = """
import os, pathlib, sys, time
from avtd3.store.locks import ExclusiveLock
path = pathlib.Path(sys.argv[1])
path.mkdir()
ExclusiveLock(path, purpose="parent").__enter__()
child = os.fork()
if child:
    print(child, flush=True)
    os._exit(0)
os.close(1)
time.sleep(600)
"""


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff" * 9, b"[" * 4000, b'{"pid": -1}'])
def test_what_the_lock_file_contains_is_no_verdict(tmp_path, content):
    path = tmp_path / LOCK_FILE
    path.write_bytes(content)
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with (
            pytest.raises(InUseError, match="in use by another process"),
            ExclusiveLock(tmp_path, purpose="x"),
        ):
            pass
    with ExclusiveLock(tmp_path, purpose="x"):
        pass


@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_a_lock_file_that_is_no_file_is_refused_and_not_followed(tmp_path, kind):
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    directory = tmp_path / "data"
    directory.mkdir()
    lock = directory / LOCK_FILE
    {"link": lambda: lock.symlink_to(precious), "pipe": lambda: os.mkfifo(lock)}.get(
        kind, lock.mkdir
    )()
    with pytest.raises(StorageError, match=r"\.lock"), ExclusiveLock(directory, purpose="x"):
        pass
    assert precious.read_text() == "keep me"


def test_a_lock_file_has_the_permissions_that_the_umask_allows(tmp_path):
    before = os.umask(0o002)
    try:
        with ExclusiveLock(tmp_path, purpose="x"):
            assert (tmp_path / LOCK_FILE).stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused_or_warned_about(tmp_path, monkeypatch, code):
    def unsupported(*_args):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with (
        pytest.raises(StorageError, match="cannot be locked"),
        ExclusiveLock(tmp_path, purpose="x", is_required=True),
    ):
        pass
    with pytest.warns(UserWarning, match="cannot be locked"), ExclusiveLock(tmp_path, purpose="x"):
        pass


def test_an_identity_survives_being_written():
    me = Identity.current("a test")
    assert Identity.from_bytes(me.to_bytes()) == me
    assert me.is_dead() is False


def test_a_process_is_dead_when_it_was_killed_even_before_it_is_waited_for():
    process, line = start(SHOW)
    identity = Identity.from_bytes(line)
    assert identity.is_dead() is False
    process.send_signal(signal.SIGKILL)
    while identity.is_dead() is False and process.returncode is None:
        time.sleep(0.001)  # until the signal has arrived
    assert identity.is_dead() is True
    process.communicate()
    assert identity.is_dead() is True


ME = Identity.current()


@pytest.mark.parametrize(
    ("changes", "is_dead"),
    [
        ({"start_ticks": ME.start_ticks + 1}, True),
        ({"start_ticks": 0}, False),
        ({"boot": "another", "wall_time": 1e9}, True),
        ({"boot": "another"}, None),
        ({"boot": "", "wall_time": 1e9}, None),
        ({"host": "another"}, None),
        ({"host": "another", "boot": "another", "wall_time": 1e9}, None),
        ({"machine": "another", "boot": "another", "wall_time": 1e9}, None),
        ({"pid_namespace": 1}, None),
        ({"pid_namespace": 1, "boot": "another", "wall_time": 1e9}, True),
    ],
)
@pytest.mark.skipif(not ME.boot, reason="the system has no boot id")
def test_only_what_can_be_known_is_said_of_a_process(changes, is_dead):
    assert dataclasses.replace(ME, **changes).is_dead() is is_dead


def test_nothing_is_said_of_a_process_of_an_older_version():
    old = Identity.from_bytes(
        json.dumps({"host": ME.host, "pid": 2**22, "wall_time": 1.0}).encode()
    )
    assert old.is_dead() is (None if ME.boot else True)


@pytest.mark.parametrize("prefix_length", [4, 5])  # with and without a /proc of its own
def test_a_process_in_another_namespace_is_not_called_dead(elsewhere, prefix_length):
    prefix = elsewhere[:prefix_length]
    process, line = start(SHOW, before=prefix)
    try:
        assert Identity.from_bytes(line).is_dead() is None
        ask = (
            "import sys; from avtd3.store.locks import Identity;"
            "a, b = Identity.from_bytes(sys.argv[1].encode()), Identity.current();"
            "print(a.is_dead(), b.is_dead())"
        )
        mine = ME.to_bytes().decode()
        other, answer = start(ask, mine, before=prefix)
        end(other)
        assert answer == b"None False\n"
    finally:
        end(process)


@pytest.mark.parametrize(
    "document",
    [None, 1, [], {}, {"pid": 0}, {"pid": True}, {"pid": 2**31}, {"pid": 1, "host": 1}],
)
def test_invalid_identities_are_refused(document):
    with pytest.raises(ValueError, match=r"expected|not a JSON object"):
        Identity.from_bytes(json.dumps(document).encode())


@pytest.mark.parametrize("wall_time", [1e300, -1e300, 1e18, 0.0])
def test_an_identity_is_a_short_line_whatever_it_contains(wall_time):
    identity = dataclasses.replace(ME, host="h\x1b" * 999, purpose="p", wall_time=wall_time)
    text = str(identity)
    assert text.isprintable()
    assert len(text) < 200
