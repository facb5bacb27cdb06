"""The audit reads segment by segment: four times the data takes about the same memory."""

import dataclasses
import json
import subprocess
import sys

import numpy as np

from avtd3.store.format.codec import FrameCodec
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

SPEC = make_spec(height=64, width=64, vector=1, terms=1)
STEPS = 1_000
SEGMENT_MB = STEPS * 64 * 64 / 1e6
AUDIT = """
import json, pathlib, re, sys
from avtd3.store.audit.audit import AuditConfig, audit
report = audit([pathlib.Path(sys.argv[1])], AuditConfig(workers=2))
status = pathlib.Path("/proc/self/status").read_text()
peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1]) * 1024 / 1e6
print(json.dumps([report.total.steps, peak]))
"""


def audited(path, segments):
    """Steps and peak memory in MB of the audit of so many segments, in a process of its own."""
    rng = np.random.default_rng(0)

    def noisy(seed):
        episode = make_episode(SPEC, STEPS, seed)
        frames = rng.integers(0, 256, episode.frames.shape, np.uint8)  # 4 MB that do not compress
        return dataclasses.replace(episode, frames=frames)

    codec = FrameCodec(name="raw")
    write_dataset(path, SPEC, map(noisy, range(segments)), segment_steps=1, codec=codec)
    done = subprocess.run([sys.executable, "-c", AUDIT, path], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


def test_memory_does_not_grow_with_the_dataset(tmp_path):
    few, small = audited(tmp_path / "few", 4)
    many, large = audited(tmp_path / "many", 16)
    assert (few, many) == (4 * STEPS, 16 * STEPS)
    assert large - small < 2 * SEGMENT_MB, "of 12 more segments, more than 2 are held"
