"""Runs commands in one process while files fail below Python; see `test_native_flaky.py`.

Started with ``LD_PRELOAD`` by `NativeFlaky`. ``python -m avtd3.tests.faults.flaky_commands
DATASET FOLDER ERROR...`` prints one line of JSON for each run.
"""

import contextlib
import ctypes
import errno
import io
import json
import os
import shutil
import sys
from pathlib import Path

from avtd3.tests.faults.native_flaky import CALLS, READING


def set_flaky(root, rate, error="EIO", calls=READING):
    """Let calls of this process fail from now on."""
    bits = sum(1 << CALLS.index(call) for call in calls)
    ctypes.CDLL(None).flaky_set(
        os.fsencode(root), ctypes.c_double(rate), getattr(errno, error), bits
    )


def run_command(*words):
    """Run a command; returns its exit code and what it printed."""
    from avtd3.cli import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main([str(word) for word in words])
        except SystemExit as ended:
            code = ended.code or 0
    return int(code), out.getvalue(), err.getvalue()


def segments(dataset):
    """The names of all segments, without asking the flaky calls."""
    return sorted(os.listdir(dataset / "segments"))  # noqa: PTH208 - bare names


def audit(dataset, folder, error):
    """Audit with --quarantine: a few calls fail, all calls on one segment, and then none."""
    before = segments(dataset)
    for name, root, rate in (
        ("few", dataset, 0.03),
        ("some", dataset / "segments", 0.3),
        ("one", dataset / "segments" / before[2], 1.0),
        ("none", dataset, 0.0),
    ):
        set_flaky(root, rate, error)
        code, out, err = run_command("replay-inspect", dataset, "--quarantine", "--json")
        set_flaky(root, 0.0)
        document = json.loads(out) if out else {}
        yield {
            "case": name,
            "code": code,
            "quarantined": document.get("quarantined", []),
            "checks": document.get("finding_counts", {}),
            "is_whole": segments(dataset) == before,
            "err": err[-1500:],
        }


def maintain(dataset, folder, error):
    """Compact and prune copies while calls fail; then look at what is there."""
    from avtd3.store.dataset import Dataset
    from avtd3.tests.store.maintenance.datasets import identity

    for words in (("compact",), ("prune", "--max-steps", "100000")):
        for rate in (0.05, 0.4):
            copy = shutil.copytree(dataset, folder / "copy")
            before = identity(Dataset.open(copy))
            set_flaky(copy / "segments", rate, error, CALLS)
            code, _, err = run_command("store", words[0], copy, *words[1:])
            set_flaky(copy, 0.0)
            is_whole = identity(Dataset.open(copy)) == before
            shutil.rmtree(copy)
            yield {"case": words[0], "code": code, "is_whole": is_whole, "err": err[-1500:]}


TINY = (
    "--set=learn.replay.batch_size=2",
    "--set=learn.network.hidden=[4]",
    "--set=learn.learning_starts=1",
)
COMMANDS = (
    ("replay-inspect", "{d}"),
    ("replay-inspect", "{d}", "--html", "{out}/page.html"),
    ("replay-inspect", "{d}", "--episode", "worst"),
    ("replay-inspect", "{d}", "--scores"),
    ("store", "compact", "{d}"),
    ("store", "prune", "{d}", "--max-steps", "20"),
    ("store", "relabel", "{d}", "{out}/new", "--weights", "r0=2"),
    ("store", "pin", "{d}", "{name}"),
    ("store", "pins", "{d}"),
    ("store", "unpin", "{d}", "{pinned}"),
    ("learn", "{d}", "--run", "{out}/run", "--updates", "1", *TINY),
)


def every(dataset, folder, error):
    """Run every command on a dataset while calls on all of it fail."""
    from avtd3.store.maintenance.pins import pin

    for words in COMMANDS:
        for rate, calls in ((0.3, READING), (0.7, READING), (1.0, ("read",)), (0.3, CALLS)):
            copy = shutil.copytree(dataset, folder / "copy")
            names = segments(copy)
            pin(copy, [names[0]])
            fill = {"d": copy, "out": folder, "name": names[1], "pinned": names[0]}
            set_flaky(copy, rate, error, calls)
            code, out, err = run_command(*(word.format(**fill) for word in words))
            set_flaky(copy, 0.0)
            shutil.rmtree(copy)
            for made in ("new", "run"):
                shutil.rmtree(folder / made, ignore_errors=True)
            yield {"case": words, "rate": rate, "code": code, "text": (out + err)[-1500:]}


def learn(dataset, folder, error):
    """Train while one segment cannot be read, until it was refused; then until it is there."""
    from avtd3.learn import train
    from avtd3.learn.callbacks import TrainCallback
    from avtd3.learn.config import LearnConfig
    from avtd3.learn.networks import NetworkConfig
    from avtd3.store.replay.config import ReplayConfig

    name = segments(dataset)[2]

    class Watch(TrainCallback):
        refused = ""
        is_healed = False

        def on_progress(self, progress):
            if progress.refused and not self.refused:
                self.refused = progress.refused[0].reason
                set_flaky(dataset, 0.03, error)
            elif self.refused and not progress.refused:
                self.is_healed = True

        def should_stop(self):
            return self.is_healed

    for mode in ("cache", "direct"):
        watch = Watch()
        set_flaky(dataset / "segments" / name, 1.0, error)
        config = LearnConfig(
            updates=10_000_000,
            learning_starts=1,
            refresh_seconds=0.01,
            log_every=10_000_000,
            publish_every=10_000_000,
            checkpoint_every=10_000_000,
            network=NetworkConfig(hidden=(4,)),
            replay=ReplayConfig(mode=mode, batch_size=2, n_step=1),
        )
        run = folder / f"run-{error}-{mode}"
        report = train(config, datasets=[dataset], run=run, callbacks=[watch])
        set_flaky(dataset, 0.0)
        yield {
            "case": mode,
            "refused": watch.refused,
            "named": name in watch.refused,
            "steps": report.steps,
            "left": [str(segment) for segment in report.refused],
        }


def main(dataset, folder, *errors):
    for error in errors:
        for tool in (audit, maintain, every, learn):
            for found in tool(Path(dataset), Path(folder), error):
                line = json.dumps({"tool": tool.__name__, "error": error, **found})
                sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
