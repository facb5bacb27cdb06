"""Commands whose files fail below Python: they wait, say "unreadable now", and harm nothing."""

import collections
import errno
import json
import subprocess
import sys

import pytest

from avtd3.tests.faults.native_flaky import CALLS, ERRORS, NativeFlaky, why_not
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "can be compiled")

LENGTHS = (9, 5, 7, 4, 6)
FAST = ("ESTALE",)
"""Errors of the fast tests."""


_EVERY_CALL = """
import io, json, mmap, os, sys
folder, switch = sys.argv[1:]
file = io.FileIO(folder + "/open", "r+b")
number = file.fileno()
os.unlink(switch)
def attempt(call):
    try:
        call()
    except OSError as error:
        return error.errno
    return 0
print(json.dumps({
    "open": attempt(lambda: os.open(folder + "/file", os.O_RDONLY)),
    "create": attempt(lambda: os.open(folder + "/new", os.O_WRONLY | os.O_CREAT)),
    "read": attempt(lambda: file.read(1)),
    "pread": attempt(lambda: os.pread(number, 1, 0)),
    "fstat": attempt(lambda: os.fstat(number)),
    "stat": attempt(lambda: os.stat(folder + "/file")),
    "list": attempt(lambda: os.scandir(folder)),
    "mmap": attempt(lambda: mmap.mmap(number, 1, prot=mmap.PROT_READ)),
    "fsync": attempt(lambda: os.fsync(number)),
    "rename": attempt(lambda: os.rename(folder + "/file", folder + "/other")),
}))
"""


def call_everything(tmp_path, folder, **options):
    """Make a call of each kind below a folder; returns the error number of each, and the shim."""
    for name in ("file", "open"):
        (folder / name).write_bytes(b"x")
    flaky = NativeFlaky(tmp_path / "about", [tmp_path / "flaky"], errors=["ESTALE"], **options)
    flaky.stop()
    done = subprocess.run(
        [sys.executable, "-c", _EVERY_CALL, str(folder), str(flaky.switch)],
        env=flaky.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), flaky


@pytest.mark.parametrize("call", CALLS)
def test_the_library_fails_the_calls_that_it_is_asked_to(call, tmp_path):
    folder = tmp_path / "flaky"
    folder.mkdir()
    found, flaky = call_everything(tmp_path, folder, rate=1.0, calls=[call])
    assert found == {name: errno.ESTALE * (name == call) for name in CALLS}
    assert flaky.failed(call) == flaky.failed() >= 1


@pytest.mark.parametrize(("folder", "rate"), [("elsewhere", 1.0), ("flaky2", 1.0), ("flaky", 0.0)])
def test_the_library_leaves_alone_what_it_is_not_about(folder, rate, tmp_path):
    (tmp_path / folder).mkdir()
    found, flaky = call_everything(tmp_path, tmp_path / folder, rate=rate, calls=CALLS)
    assert found == dict.fromkeys(CALLS, 0)
    assert flaky.failed() == 0


@pytest.fixture(
    scope="module",
    params=[FAST, pytest.param(ERRORS, marks=(pytest.mark.slow, pytest.mark.timeout(1800)))],
    ids=["one error", "all errors"],
)
def results(request, tmp_path_factory):
    """What `flaky_commands.py` found, by its tool: one process, which imports everything once."""
    root = tmp_path_factory.mktemp("flaky")
    spec = make_spec(image=False)  # what the learner trains on is small
    episodes = [make_episode(spec, length, seed) for seed, length in enumerate(LENGTHS)]
    dataset = write_dataset(root / "d", spec, episodes, segment_steps=1).path
    flaky = NativeFlaky(root / "about", [root / "nothing"], rate=0.0)
    done = subprocess.run(
        [sys.executable, "-m", "avtd3.tests.faults.flaky_commands", dataset, root, *request.param],
        env=flaky.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert flaky.failed() > 0
    found = collections.defaultdict(list)
    for line in done.stdout.splitlines():
        one = json.loads(line)
        found[one["tool"]].append(one)
    return found


def test_an_audit_quarantines_nothing(results):
    for found in results["audit"]:
        assert found["is_whole"], found
        assert found["quarantined"] == [], found
        assert set(found["checks"]) <= {"unreadable"}, found
        expected = {"one": (3,), "none": (0,)}.get(found["case"], (0, 3))
        assert found["code"] in expected, found
        if found["case"] in ("one", "none"):
            assert found["checks"] == ({"unreadable": 1} if found["case"] == "one" else {})


def test_maintenance_loses_and_doubles_nothing(results):
    for found in results["maintain"]:
        assert found["is_whole"], found
        assert found["code"] in (0, 1, 3), found


def test_a_command_says_what_cannot_be_read_and_gives_no_verdict(results):
    for found in results["every"]:
        text = " ".join(found["text"].split())
        assert found["code"] in (0, 1, 3), found
        assert "[Errno" not in text, found
        assert "Traceback" not in text, found
        if found["code"] == 3:
            assert "unreadable" in text or "cannot" in text, found


def test_a_learner_takes_the_segment_once_it_can_be_read(results):
    for found in results["learn"]:
        assert found["named"], found
        assert "unreadable now" in found["refused"], found
        assert (found["steps"], found["left"]) == (sum(LENGTHS), []), found
