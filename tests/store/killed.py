"""Kills a maintenance command with SIGKILL at its system calls, one process for each.

Run by `test_killed.py` in a process of its own, which has no threads and may fork. The checks
are assertions here; the exit code says whether they hold.
"""

import dataclasses
import os
import shutil
import signal
import sys
from pathlib import Path

from avtd3.store.dataset import Dataset
from avtd3.store.maintenance.compact import compact
from avtd3.store.maintenance.derive import relabel, upgrade
from avtd3.store.maintenance.prune import PruneConfig, prune
from avtd3.tests.store.maintenance.datasets import SPEC, files, fill, identity
from avtd3.tests.store.segments import make_spec

CALLS = ("mkdir", "rename", "link", "unlink", "rmdir", "fsync", "write", "open")
SEGMENTS = [[3, 2], [4], [2]]
STREAMS = make_spec(streams=("bev", "rgb"))


def run_compact(root):
    compact(root / "data", target_steps=100)


def run_prune(root):
    prune(root / "data", PruneConfig(max_steps=2))


def run_relabel(root):
    relabel(root / "data", root / "new", {"r0": 2.0})


def arm(at, log):
    """Count the calls that change the disk; die instead of the one with the number ``at``."""

    def wrap(name, call):
        def counting(*args, **options):
            if name == "open" and not args[1] & os.O_CREAT:
                return call(*args, **options)
            if len(log) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            log.append(name)
            # A killed process loses nothing that the kernel has: no need to wait for the disk.
            return None if name == "fsync" else call(*args, **options)

        return counting

    for name in CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))


def die(root, command, at):
    """Run a command in a child and kill it; returns the calls it made if it was not."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        log: list[str] = []
        put = os.write
        arm(at, log)
        command(root)
        put(writer, " ".join(log).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        told = stream.read().decode()
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return None if os.WIFSIGNALED(status) else told.split()


def check_compact(root, master, episodes, *, is_done):
    dataset = Dataset.open(root / "data")
    assert identity(dataset) == episodes
    if is_done:
        assert len(dataset.segment_ids()) == 1
        assert not any(dataset.staging_path.iterdir())


def check_prune(root, master, episodes, *, is_done):
    dataset = Dataset.open(root / "data")
    wanted = [episodes[3:]] if is_done else [episodes, episodes[2:], episodes[3:]]
    assert identity(dataset) in wanted
    for segment in dataset.snapshot().segments:
        segment.verify()
    if is_done:
        assert not any(dataset.staging_path.iterdir())


def run_upgrade(root):
    upgrade(root / "data", root / "new", stream="rgb")


def check_relabel(root, master, episodes, *, is_done):
    check_derived(root, master, episodes, Dataset.open(master / "data").spec, is_done=is_done)


def check_upgrade(root, master, episodes, *, is_done):
    old = Dataset.open(master / "data").spec
    assert old.image is not None
    spec = dataclasses.replace(old, image=None, streams={"rgb": old.image})
    check_derived(root, master, episodes, spec, is_done=is_done)


def check_derived(root, master, episodes, spec, *, is_done):
    assert files(root / "data") == {
        root / p.relative_to(master): b for p, b in files(master / "data").items()
    }
    new = Dataset.create(root / "new", spec)
    found = new.snapshot()
    assert found.refused == ()
    for segment in found.segments:
        segment.verify()
    if is_done:
        assert sum(segment.episodes for segment in found.segments) == len(episodes)
        # What is left of a `Dataset.create` that was killed, a collector removes.
        assert not [p for p in new.staging_path.iterdir() if not p.name.startswith("zarr.json.")]


COMMANDS = {
    "compact": (run_compact, check_compact, SPEC),
    "compact-streams": (run_compact, check_compact, STREAMS),
    "prune": (run_prune, check_prune, SPEC),
    "prune-streams": (run_prune, check_prune, STREAMS),
    "relabel": (run_relabel, check_relabel, SPEC),
    "relabel-streams": (run_relabel, check_relabel, STREAMS),
    "upgrade": (run_upgrade, check_upgrade, SPEC),
}


def main(directory, name, stride):
    setattr(os, "fsync", lambda _: None)  # noqa: B010 - as in `arm`
    master, root = Path(directory) / "master", Path(directory) / "work"
    run, check, spec = COMMANDS[name]
    dataset, _ = fill(master / "data", SEGMENTS, spec, map_text="<OpenDRIVE/>")
    episodes = identity(dataset)

    def fresh():
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(master, root, copy_function=os.link)

    fresh()
    calls = die(root, run, -1)
    assert calls is not None
    points = {n for n in range(len(calls)) if n % stride == 0}
    points |= {n + d for n, call in enumerate(calls) if call == "rename" for d in (0, 1)}
    for at in sorted(points & set(range(len(calls)))):
        fresh()
        assert die(root, run, at) is None
        check(root, master, episodes, is_done=False)
        run(root)
        check(root, master, episodes, is_done=True)
    (Path(directory) / "points").write_text(f"{len(points)} of {len(calls)}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
