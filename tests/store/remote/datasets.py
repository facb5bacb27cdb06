"""Small datasets, and how tests compare them."""

from avtd3.store.dataset import Dataset
from avtd3.store.format.layout import MANIFEST_FILE
from avtd3.store.remote.commit import segment_key
from avtd3.tests.store.maintenance.datasets import fill, publish


def make(path, segments=((3, 2), (4,), (2,)), **options):
    """A local dataset of segments, each given by the lengths of its episodes."""
    return fill(path, segments, **options)[0]


def add(dataset, number, lengths=(2,), **provenance):
    """Publish one more segment; returns its name."""
    before = set(dataset.segment_ids())
    publish(dataset, lengths, seed=100 * number, now=1_700_000_000.0 + number, **provenance)
    (name,) = set(dataset.segment_ids()) - before
    return name


def content(path):
    """All published bytes of a local dataset, by path."""
    dataset = Dataset.open(path)
    for name in dataset.segment_ids():
        dataset.open_segment(name).verify()
    kept = [path / "zarr.json", *(path / "segments").rglob("*"), *(path / "maps").rglob("*")]
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in kept if p.is_file()}


def manifest_of(dataset, name):
    return (dataset.segments_path / name / MANIFEST_FILE).read_bytes()


def sealed(place):
    """The segments of a place that have a manifest, all of whose files are checked."""
    found = []
    for name in place.folders("segments/"):
        sizes = place.sizes(segment_key(name))
        if segment_key(name, MANIFEST_FILE) in sizes:
            found.append(name)
    return found


def copy(copier, name, **options):
    """Copy a segment that is there."""
    manifest, data = copier.manifest(name)
    copier.copy(manifest, data, **options)
