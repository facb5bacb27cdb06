"""Datasets for the tests of maintenance, and what readers see of them."""

from avtd3.store.dataset import Dataset
from avtd3.store.format.codec import FrameCodec
from avtd3.store.replaced import episode_digests
from avtd3.store.writer import SegmentWriter, WriterConfig
from avtd3.tests.store.segments import Clock, feed, make_episode, make_record, make_spec

SPEC = make_spec(height=3, width=2)
START = 1_700_000_000.0


def identity(dataset):
    """What readers see: the digest of every episode, in order."""
    return [d for segment in dataset.snapshot().segments for d in episode_digests(segment)]


def publish(
    dataset, lengths, *, seed=0, now=START, codec=None, info=None, map_text=None, **provenance
):
    """One segment of episodes of these lengths; returns the episodes."""
    about = {"policy_version": seed, "policy_digest": "a", **(info or {})}
    episodes = [
        make_episode(dataset.spec, length, seed=seed + n, **about)
        for n, length in enumerate(lengths)
    ]
    config = WriterConfig(codec=codec or FrameCodec(), segment_steps=10_000, segment_seconds=1e9)
    writer = SegmentWriter(
        dataset, collector="test", provenance=provenance, config=config, clock=Clock(now)
    )
    with writer:
        for n, episode in enumerate(episodes):
            text = map_text
            world = None if text is None else make_record(episode.length, seed + n, text=text)
            feed(writer, episode, world)
    return episodes


def fill(path, segments, spec=SPEC, **options):
    """A dataset of segments, each given by the lengths of its episodes; and the episodes."""
    dataset = Dataset.create(path, spec)
    episodes = []
    for number, lengths in enumerate(segments):
        episodes += publish(dataset, lengths, seed=100 * number, now=START + number, **options)
    return dataset, episodes


def files(path):
    """Every path below a directory with its bytes."""
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(path.rglob("*"))}
