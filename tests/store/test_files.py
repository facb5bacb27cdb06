import errno
import os
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtd3.store import files
from avtd3.store.errors import StorageError


def test_write_aside_replaces_the_whole_file(tmp_path):
    path = tmp_path / "a.json"
    files.write_aside(path, b"old")
    files.write_aside(path, b"new and longer")
    assert path.read_bytes() == b"new and longer"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_write_aside_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    files.write_aside(path, b"old")

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageError, match=r"a\.json: the disk is full"):
        files.write_aside(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO])
def test_storage_errors_are_one_line_with_path_and_fix(code):
    with pytest.raises(StorageError) as caught, files.storage_errors("/data/x"):
        raise OSError(code, "whatever")
    assert caught.value.errno == code
    assert "/data/x" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert ":" in str(caught.value)


def test_storage_errors_leave_our_own_alone():
    mine = StorageError("as it is")
    with pytest.raises(StorageError) as caught, files.storage_errors("x"):
        raise mine
    assert caught.value is mine


def test_create_exclusive_has_one_winner(tmp_path):
    barrier = threading.Barrier(8)
    wins = []

    def race(n):
        barrier.wait()
        wins.append(files.create_exclusive(tmp_path / "x", b"%d" % n, tmp_path / f"aside-{n}"))

    threads = [threading.Thread(target=race, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wins) == [False] * 7 + [True]
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_create_exclusive_without_hard_links(tmp_path, monkeypatch):
    def unsupported(*_args):
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(os, "link", unsupported)
    assert files.create_exclusive(tmp_path / "x", b"one", tmp_path / "aside")
    assert not files.create_exclusive(tmp_path / "x", b"two", tmp_path / "aside")
    assert (tmp_path / "x").read_bytes() == b"one"


def test_write_new_refuses_what_exists(tmp_path):
    files.write_new(tmp_path / "x", b"1")
    with pytest.raises(FileExistsError):
        files.write_new(tmp_path / "x", b"2")


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:3]))
    files.write_new(tmp_path / "x", b"0123456789")
    monkeypatch.undo()
    assert (tmp_path / "x").read_bytes() == b"0123456789"


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "..", "a/../../b", "a//b", "./a", "a/", "a\\b", "a\0b", ".hidden", "a\n"],
)
def test_paths_that_lead_elsewhere_are_refused(tmp_path, path):
    assert not files.is_safe_relative(path)
    with pytest.raises(ValueError, match="not a plain path"):
        files.safe_join(tmp_path, path)


def test_links_out_of_the_directory_are_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "in" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "in" / "inner").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "outer").symlink_to(tmp_path)
    for path in ("link", "outer/secret", "inner/link", "inner/outer/missing"):
        with pytest.raises(ValueError, match="symbolic link"):
            files.safe_join(tmp_path / "in", path)
    assert files.safe_join(tmp_path / "in", "a/b") == tmp_path / "in" / "a" / "b"
    assert files.safe_join(tmp_path / "in", "inner/a") == (tmp_path / "in" / "a").resolve()


@given(st.text(alphabet="ab./\\\0-_", max_size=12))
def test_what_is_safe_stays_below(path):
    if files.is_safe_relative(path):
        assert os.path.normpath(f"/root/{path}").startswith("/root/")


@pytest.mark.parametrize("text", ["", "{", "nul", "[1,]", "\xff", "[" * 100_000])
def test_what_is_not_json_is_a_value_error(tmp_path, text):
    (tmp_path / "x").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="JSON"):
        files.read_json(tmp_path / "x")


def test_read_json_is_bounded(tmp_path):
    (tmp_path / "x").write_text("[" + "1," * 100 + "1]")
    with pytest.raises(ValueError, match="at most 10"):
        files.read_json(tmp_path / "x", max_bytes=10)
    assert len(files.read_json(tmp_path / "x")) == 101


@pytest.mark.parametrize("read", [files.read_bytes, files.read_json, files.sha256_of_file])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(ValueError, match="not a regular file"):
            read(path)


def test_canonical_json_has_one_spelling():
    assert files.canonical_json({"b": 1, "a": ["é"]}) == b'{"a":["\\u00e9"],"b":1}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.canonical_json({"a": float("nan")})


def test_checksums(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    want = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(b"abc") == files.sha256_of_file(tmp_path / "x") == want


def test_a_shared_file_is_one_file_under_two_names(tmp_path):
    (tmp_path / "a").write_bytes(b"bytes")
    files.share_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")
    with pytest.raises(FileExistsError):
        files.share_file(tmp_path / "a", tmp_path / "b")


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EPERM, errno.EMLINK])
def test_where_links_do_not_reach_the_bytes_are_copied(tmp_path, monkeypatch, number):
    def no_link(*_):
        raise OSError(number, "no")

    (tmp_path / "a").write_bytes(b"bytes")
    monkeypatch.setattr(os, "link", no_link)
    files.share_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"bytes"
    assert not (tmp_path / "b").samefile(tmp_path / "a")
    with pytest.raises(FileExistsError):
        files.share_file(tmp_path / "a", tmp_path / "b")


def test_a_full_disk_is_no_reason_to_copy(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    (tmp_path / "a").write_bytes(b"bytes")
    monkeypatch.setattr(os, "link", full)
    with pytest.raises(OSError, match="full"):
        files.share_file(tmp_path / "a", tmp_path / "b")
