"""Publishes on a small real tmpfs, filled up a page further each time; run in a namespace.

``unshare -rm python -m avtd3.tests.store.small_disk DIRECTORY``: what is mounted on the directory
ends with this process, however that ends.
"""

import subprocess
import sys
from pathlib import Path

from avtd3.store.dataset import Dataset
from avtd3.store.errors import StorageError
from avtd3.store.format.codec import FrameCodec
from avtd3.tests.store.segments import assert_holds, feed, make_episode, make_spec, make_writer

SPEC = make_spec(vector=1, terms=1)
DISK_BYTES, PAGE_BYTES, MOST_PAGES = 2 << 20, 4096, 200


def fill(ballast, free_pages):
    """Leave so many pages free."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(PAGE_BYTES))
        except OSError:
            file.truncate(max(0, file.tell() // PAGE_BYTES - free_pages) * PAGE_BYTES)


def main(root):
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(root)], check=True
    )
    dataset = Dataset.create(root / "d", SPEC)
    writer = make_writer(dataset, codec=FrameCodec(name="raw"))
    episodes, refused = [], 0
    for free_pages in range(MOST_PAGES):
        if writer.steps_unpublished == 0:
            episodes.append(make_episode(SPEC, 2, free_pages))
            feed(writer, episodes[-1])
        fill(root / "ballast", free_pages)
        try:
            writer.flush()
        except StorageError as error:
            assert "disk is full" in str(error)  # noqa: PT017 - not each size is too small
            assert dataset.segment_ids() == []
            refused += 1
        else:
            break
        assert not any(dataset.staging_path.iterdir())
    (root / "ballast").unlink()
    assert_holds(dataset, episodes)
    for segment in dataset.snapshot().segments:
        segment.verify()
    sys.stdout.write(f"{refused}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
