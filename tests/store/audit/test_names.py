"""Names that are not UTF-8, or that steer a terminal: everything finishes and reports them."""

import datetime
import html
import json
import os
import shutil

import numpy as np
import pytest

from avtd3.cli import main
from avtd3.store.audit.audit import AuditConfig, audit, quarantine_damaged
from avtd3.store.maintenance.prune import PruneConfig, prune
from avtd3.store.render.audit_view import audit_page, audit_text, choose_episodes, write_audit_page
from avtd3.store.render.episode_view import document_of, find_episode
from avtd3.store.render.text import markdown_table
from avtd3.store.replay.config import ReplayConfig
from avtd3.store.replay.sampler import Sampler
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

NAMES = (
    b"bad\xff\xfe",
    b"esc\x1b[2Jverdict: ok",
    b"new\nline",
    b"del\x7f\x08",
    "\u202elink".encode(),
)
MADE = datetime.datetime(2026, 11, 21, tzinfo=datetime.UTC)
SPEC = make_spec(height=12, width=12)


@pytest.fixture(params=NAMES, ids=ascii)
def name(request):
    return os.fsdecode(request.param)


def write(path):
    return write_dataset(path, SPEC, [make_episode(SPEC, 6, n) for n in range(2)])


def check_documents(report, tmp_path):
    """The documents are UTF-8 without a control character or a lone surrogate."""
    document = json.dumps(report.document(), ensure_ascii=False, allow_nan=False)
    document.encode()
    assert not any(ord(c) < 32 or ord(c) == 127 for c in json.dumps(report.document()))
    write_audit_page(report, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert all(c.isprintable() or c in "\n\t" for c in page)
    audit_text(report)
    return document, page


def put_file(dataset, name):
    (dataset.segments_path / name).write_bytes(b"x")


def put_folder(dataset, name):
    (dataset.segments_path / name).mkdir()


def put_copy(dataset, name):
    (segment,) = dataset.segment_ids()
    shutil.copytree(dataset.segments_path / segment, dataset.segments_path / name)


def put_file_in_segment(dataset, name):
    (segment,) = dataset.segment_ids()
    (dataset.segments_path / segment / name).write_bytes(b"x")


def put_link(dataset, name):
    (dataset.segments_path / name).symlink_to(dataset.path / "nowhere")


def put_in_staging(dataset, name):
    (dataset.staging_path / name).mkdir(parents=True)


@pytest.mark.parametrize(
    ("put", "check"),
    [
        (put_file, "stray"),
        (put_folder, "manifest-missing"),
        (put_copy, "manifest"),
        (put_file_in_segment, "file-unexpected"),
        (put_link, "segment-link"),
        (put_in_staging, "staging"),
    ],
)
def test_whatever_has_the_name_is_reported_and_nothing_ends(tmp_path, name, put, check):
    dataset = write(tmp_path / "data")
    put(dataset, name)
    for sample in (1.0, 0.5):
        report = audit([dataset.path], AuditConfig(scheduler="sync", sample=sample))
        assert check in report.log.counts, report.log.counts
        assert report.total.steps == 12
        document, page = check_documents(report, tmp_path)
    assert "bad\xff" not in document
    if "\udcff" in name and check != "staging":
        assert r"bad\\udcff" in document
        assert r"bad\udcff" in html.unescape(page)
    with Sampler([dataset], ReplayConfig(batch_size=4), seed=0, scratch=tmp_path) as sampler:
        assert sampler.sample().reward.shape == (4,)
    json.dumps(document_of(find_episode([dataset.path], "best", np.random.default_rng(0))))
    assert len(list(dataset.episodes(skip_damaged=True))) == 2
    prune(dataset.path, PruneConfig(max_bytes=10**12))
    quarantine_damaged(report)


def test_a_dataset_of_such_a_name_is_read_and_audited(tmp_path, name):
    dataset = write(tmp_path / name)
    report = audit([dataset.path], AuditConfig(scheduler="sync"))
    assert report.total.steps == 12
    check_documents(report, tmp_path)
    with Sampler([dataset], ReplayConfig(batch_size=4, held_out=0.5), seed=0) as sampler:
        list(sampler.held_out())
    shown = choose_episodes([dataset.path])
    audit_page(report, shown, made=MADE).encode()


def test_the_command_finishes_and_prints_one_document(tmp_path, name, capfd):
    dataset = write(tmp_path / "data")
    put_file(dataset, name)
    page = tmp_path / "page.html"
    with pytest.raises(SystemExit, match="1"):
        main(["replay-inspect", str(dataset.path), "--json", "--html", str(page)])
    text = capfd.readouterr().out
    assert all(c.isprintable() or c == "\n" for c in text)
    assert json.loads(text)["finding_counts"]["stray"] == 1
    assert page.read_text("utf-8")


def test_a_markdown_table_is_one_line_per_row_and_utf_8(name):
    lines = markdown_table(["name"], "<", [[f"{name}|<b>"]])
    assert len(lines) == 3
    assert lines[2].isprintable()
    assert lines[2].endswith("\\|&lt;b> |")
    lines[2].encode()
