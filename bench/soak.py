"""Run collectors, a learner, a reader and maintenance together while things fail and processes die.

    python bench/soak.py --minutes 15 [--url] [--seed 0] [--kill-every S] [--out report.md]
        [--work DIR]

On one disk: two collectors (one with two workers) write into one dataset, a learner follows it and
publishes policies for them, and compact, prune, pin and audit run in turn. Calls on files fail at
random (`tests/faults/flaky_io.c`).

With --url: a store (SeaweedFS, or moto) is started behind a proxy that breaks requests and the
link. The collectors upload from spools, of which one is too small; the learner has a mirror that is
too small, and publishes policies to the bucket, which the collectors fetch; pull, push, audit and
status run in turn.

In both, finished segments are also copied into a second dataset in halves and in random order, as a
bad copy tool does; a reader follows it. Processes are killed with SIGKILL and started again, those
that run for ever in the first half only, so that the second half shows whether they grow. At the
end everything must be there exactly once.

A ledger keeps a hard link to each segment that is ever published, so that nothing can hide what is
lost. Exits with 1 if there is a problem. All processes run with a low priority.
"""

import argparse
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from soaking.copies import follow
from soaking.local import LocalSoak
from soaking.report import report
from soaking.soak import Soak
from soaking.url import UrlSoak


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument(
        "--url",
        nargs="?",
        const="weed",
        choices=("weed", "moto"),
        help="soak an object store: SeaweedFS (the default) or moto",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--kill-every",
        type=float,
        metavar="S",
        help="mean seconds until a collector is killed; the others live longer; 0 kills nothing",
    )
    parser.add_argument("--out", type=Path, help="write the report as Markdown")
    parser.add_argument("--work", type=Path, help="keep all files in this new directory")
    parser.add_argument("--follow", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kill_every is None:
        options.kill_every = max(8.0, min(60.0, options.minutes * 12.0))
    return options


def open_soak(options: argparse.Namespace, work: Path) -> Soak:
    """Return the soak that the options name."""
    seconds = options.minutes * 60.0
    if options.url:
        return UrlSoak(work, options.seed, seconds, options.kill_every, options.url)
    return LocalSoak(work, options.seed, seconds, options.kill_every)


def main() -> None:
    options = parse()
    if options.follow:
        follow(options.follow[0], Path(options.follow[1]))
        return
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
    work = (options.work or Path(tempfile.mkdtemp(prefix="soak-"))).resolve()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's `&` lets SIGINT be ignored
        signal.signal(number, signal.default_int_handler)
    soak = open_soak(options, work)
    try:
        soak.soak()
        found = soak.finish()
    finally:
        soak.close()
    mode = f" --url {options.url}" if options.url else ""
    command = f"{options.minutes:g}{mode} --seed {options.seed} --kill-every {options.kill_every:g}"
    text = report(soak, found, f"python bench/soak.py --minutes {command}")
    print(text)
    if options.out:
        options.out.write_text(text)
    if not options.work and not soak.problems:
        shutil.rmtree(work)
    sys.exit(1 if soak.problems else 0)


if __name__ == "__main__":
    main()
