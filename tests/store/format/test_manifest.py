"""Parsing manifests: in parts where avtd3 wrote them, and always with the result of one parse."""

import json

import pytest

from avtd3.store.dataset import Dataset
from avtd3.store.files import canonical_json
from avtd3.store.format.manifest import FileEntry, Manifest, parse_manifest, read_manifest
from avtd3.store.writer import SegmentWriter
from avtd3.tests.store.segments import feed, make_episode, make_spec

CONFIGS = [
    {"seed": 1, "scenario": {"number": 3}},
    {},
    {"config": {"a": 1}, "config_digest": "x"},
    'text with "config":{"a":1},"config_digest":"inside',
    {"text": '"config":{},"config_digest":"'},
    [{"config": {}}],
    7,
    {"large": "x" * 70_000},
]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
@pytest.mark.parametrize("before", [{}, {"avtd3": {"config": {}, "config_digest": ""}}])
def test_a_manifest_parsed_in_parts_is_that_parsed_at_once(tmp_path, config, before):
    manifest = Manifest(
        format_version=1,
        segment_id=tmp_path.name,
        spec_digest="0" * 64,
        episodes=1,
        steps=2,
        observations=3,
        files={"zarr.json": FileEntry(size=1, sha256="0" * 64)},
        provenance={**before, "config": config, "config_digest": "0" * 64, "host": "h"},
        digest="",
    ).sealed()
    found = parse_manifest(manifest.to_bytes(), tmp_path)
    assert canonical_json(dict(found.provenance)) == canonical_json(dict(manifest.provenance))
    assert found.provenance == json.loads(manifest.to_bytes())["provenance"]


def test_the_settings_of_a_collector_are_in_memory_once(tmp_path):
    dataset = Dataset.create(tmp_path / "d", make_spec())
    about = {"config": {"a": [1]}, "config_digest": "0"}
    with SegmentWriter(dataset, collector="tester", provenance=about) as writer:
        for seed in (1, 2):
            feed(writer, make_episode(dataset.spec, 4, seed=seed))
            writer.flush()
    one, two = (read_manifest(dataset.segments_path / name) for name in dataset.segment_ids())
    assert one.provenance["config"] is two.provenance["config"]
    assert one.provenance["sealed_at"] != two.provenance["sealed_at"]
