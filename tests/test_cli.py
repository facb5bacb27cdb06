"""Errors become one line and an exit code; options are checked before the work."""

import errno
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from avtd3 import cli
from avtd3.collect import collect, evaluate
from avtd3.configs.commands import options
from avtd3.configs.commands.options import describe_presets
from avtd3.learn import ReplayDataset
from avtd3.learn.policy import Policy
from avtd3.learn.policy_store import PolicyStore
from avtd3.learn.trainer import train
from avtd3.store import SegmentWriter, export_episodes, import_episodes
from avtd3.store.audit.audit import audit
from avtd3.store.dataset import Dataset
from avtd3.store.errors import ConfigError, SegmentUnreadableError, StorageError, WorldError
from avtd3.store.spec import EpisodeSpec


class Panic(BaseException):
    """What a panic in Rust raises: not even an `Exception`."""


@pytest.fixture
def run(capsys):
    """Run the command line; return its exit code and the lines on standard error."""

    def ended(*words):
        with pytest.raises(SystemExit) as stop:
            cli.main([str(word) for word in words])
        out, err = capsys.readouterr()
        assert not out
        return stop.value.code, err.splitlines()

    return ended


@pytest.fixture
def run_raising(run, monkeypatch):
    """Run a command line whose command raises an error."""

    def raising(error):
        def fail():
            raise error

        monkeypatch.setattr(cli, "make_command", fail)
        return run("anything")

    return raising


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("wrong"), 2),
        (WorldError("wrong"), 3),
        (StorageError(errno.ENOSPC, "wrong"), 3),
        (SegmentUnreadableError(errno.EIO, "wrong"), 3),
        (FileNotFoundError(errno.ENOENT, "wrong"), 3),
        (BrokenPipeError(errno.EPIPE, "wrong"), 3),
        (MemoryError("wrong"), 3),
        (RuntimeError("wrong: can't allocate memory: you tried to allocate 1 byte"), 3),
        (KeyError("wrong"), 70),
        (EOFError("wrong"), 70),
        (RuntimeError("wrong"), 70),
        (RecursionError("wrong"), 70),
        (AssertionError("wrong"), 70),
        (ExceptionGroup("wrong", [ValueError()]), 70),
        (Panic("wrong"), 70),
    ],
)
def test_every_error_is_one_line_and_never_a_no(run_raising, error, code):
    found, (line,) = run_raising(error)
    assert found == code
    assert line.startswith("avtd3: ")
    assert "wrong" in line
    assert ("AVTD3_TRACEBACK=1" in line) == (code == 70)


def test_a_traceback_is_printed_when_asked_for(run_raising, monkeypatch):
    monkeypatch.setenv("AVTD3_TRACEBACK", "1")
    code, lines = run_raising(KeyError("wrong"))
    assert code == 70
    assert "KeyError: 'wrong'" in lines
    assert lines[-1].startswith("avtd3: unexpected KeyError")


@pytest.mark.parametrize("error", [ConfigError, RuntimeError])
def test_a_message_is_one_line_of_bounded_length(run_raising, error):
    _, (line,) = run_raising(error("first\nverdict: ok\x1b[2J" + "x" * 10_000_000 + "last"))
    assert len(line) < 3000
    assert line.isprintable()
    assert "first verdict: ok" in line


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("learn", "d"), "avtd3: Missing option '--run'; see avtd3 learn --help"),
        (("lern",), "avtd3: No such command 'lern'"),
        (("--nothing",), "avtd3: No such option: --nothing"),
        (("store", "prune", "d", "--max-steps", "0"), "avtd3: Invalid value for '--max-steps'"),
        (("gate", "a", "b\nverdict: GO"), r"avtd3: Got unexpected extra argument"),
    ],
)
def test_wrong_use_is_one_line(run, words, text):
    code, (line,) = run(*words)
    assert code == 2
    assert line.startswith(text)


def test_help_is_printed_when_nothing_is_asked_for(capsys):
    with pytest.raises(SystemExit):
        cli.main([])
    assert "Usage: avtd3" in "".join(capsys.readouterr())


def all_commands(command, path=()):
    """Yield every command, with its path."""
    groups = getattr(command, "commands", {})
    for name, inner in groups.items():
        yield from all_commands(inner, (*path, name))
    if not groups:
        yield path, command


ALL_COMMANDS = [path for path, _ in all_commands(cli.make_command())]


def printed(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.mark.parametrize("path", [(), ("store",), ("config",), *ALL_COMMANDS], ids=" ".join)
def test_every_help_text_is_plain_text_of_80_columns(capsys, monkeypatch, path):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = printed(capsys, *path, "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert not re.search(r"list\[|<path>|<str>|\{[A-Z]", out), "a type of Python"
    assert ("--quiet" in out) == (path in ALL_COMMANDS)


@pytest.mark.parametrize("command", ["collect", "learn", "evaluate", "demo"])
def test_help_lists_the_presets(capsys, command):
    out = " ".join(printed(capsys, command, "--help")[1].split())
    for name, text in describe_presets().items():
        assert f"{name} {text}" in out


def test_the_version_has_what_a_report_needs(capsys):
    code, out, _ = printed(capsys, "--version")
    assert code == 0
    for package in ("avtd3", "torch", "numpy", "zarr"):
        assert f"{package} {importlib.metadata.version(package)}" in out
    assert f"Python {platform.python_version()}" in out


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_a_verbose_command_says_what_it_uses(capsys, flag):
    words = ("replay-inspect", "nowhere", "--config", "demo", "--set", "audit.strict=true", flag)
    code, out, err = printed(capsys, *words)
    assert (code, out) == (2, "")
    assert "Python" in err.splitlines()[0]
    assert "audit.strict is set by --set" in err
    assert "learn.updates" not in err


@pytest.mark.parametrize("flag", ["-q", "--quiet"])
def test_a_quiet_command_still_prints_its_error(run, flag):
    code, (line,) = run("replay-inspect", "nowhere", flag)
    assert code == 2
    assert "nowhere" in line
    code, lines = run("replay-inspect", "nowhere", "--config", "demo", "-v")  # no longer quiet
    assert len(lines) > 1


def test_an_unexpected_error_has_a_traceback_if_a_command_is_verbose(run, monkeypatch):
    def fail(*_):
        raise KeyError("wrong")

    monkeypatch.setattr(options, "section", fail)
    code, lines = run("doctor", "carla", "-v")
    assert code == 70
    assert "KeyError: 'wrong'" in lines
    assert len(run("doctor", "carla")[1]) == 1


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("avtd3 le", {"learn"}),
        ("avtd3 config ", {"show", "list", "check", "diff", "schema", "presets", "reference"}),
        ("avtd3 learn d --config sp", {"spinning_up"}),
        ("avtd3 collect d --world c", {"carla"}),
        ("avtd3 config show le", {"learn"}),
        ("avtd3 gate r --stage 5", {"5k", "50k"}),
        ("avtd3 config diff sb", {"sb3"}),
        ("avtd3 learn d --upd", {"--updates"}),
    ],
)
def test_a_shell_completes_words(capsys, monkeypatch, typed, expected):
    words = typed.split(" ")
    monkeypatch.setenv("_AVTD3_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    code, out, _ = printed(capsys)
    assert code == 0
    assert set(out.split()) == expected


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_installed(shell, tmp_path):
    environment = {
        **os.environ,
        "HOME": str(tmp_path),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",
    }
    command = [sys.executable, "-m", "avtd3.cli", "--install-completion", shell]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert any("_AVTD3_COMPLETE" in text for text in texts)


COMMANDS_THAT_WRITE = [
    ("evaluate", "nowhere.safetensors", "--gif"),
    ("replay-inspect", "nowhere", "--html"),
    ("replay-inspect", "nowhere", "--episode", "worst", "--sheet"),
    ("replay-inspect", "nowhere", "--episode", "worst", "--gif"),
    ("replay-inspect", "nowhere", "--episode", "worst", "--mp4"),
    ("gate", "nowhere", "--stage", "5k", "--html"),
    ("gate", "nowhere", "--stage", "5k", "--markdown"),
    ("compare", "nowhere", "nowhere", "--html"),
    ("compare", "nowhere", "nowhere", "--markdown"),
    ("doctor", "carla", "--port", "1", "--image"),
]


@pytest.mark.parametrize("words", COMMANDS_THAT_WRITE, ids=" ".join)
def test_a_destination_is_checked_before_the_work(run, tmp_path, words):
    code, (line,) = run(*words, tmp_path)
    assert code == 2
    assert line == f"avtd3: {tmp_path} is a directory; give the path of a file"
    file = tmp_path / "file"
    file.write_text("")
    code, (line,) = run(*words, file / "page")
    assert code == 3
    assert line.startswith(f"avtd3: cannot write {file}")


@pytest.mark.parametrize("words", COMMANDS_THAT_WRITE[:1] + COMMANDS_THAT_WRITE[5:6], ids=" ".join)
def test_missing_directories_of_a_destination_are_made(run, tmp_path, words):
    run(*words, tmp_path / "new" / "er" / "page.gif")
    assert (tmp_path / "new" / "er").is_dir()


@pytest.mark.skipif(not os.geteuid(), reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_refused_before_the_work(run, tmp_path):
    tmp_path.chmod(0o500)
    code, (line,) = run("gate", "nowhere", "--stage", "5k", "--html", tmp_path / "page.html")
    assert code == 3
    assert "permission denied" in line


@pytest.mark.parametrize(
    ("words", "used"),
    [
        (("collect", "d"), "collect"),
        (("evaluate", "expert"), "evaluate"),
        (("replay-inspect", "d"), "audit"),
        (("replay-inspect", "d", "--scores"), "audit and evaluate"),
        (("replay-inspect", "--estimate"), "collect"),
        (("doctor", "carla"), "collect"),
        (("config", "show", "audit"), "audit"),
    ],
)
def test_a_setting_without_effect_is_refused(run, words, used):
    code, (line,) = run(*words, "--set", "learn.td3.tau=0.1")
    assert code == 2
    assert line == (
        "avtd3: --set 'learn.td3.tau=0.1' has no effect: this command uses the settings of "
        f"{used}; remove it"
    )


@pytest.mark.parametrize(
    "words",
    [
        ("learn", "d", "--run", "r", "--seed", 2**64),
        ("learn", "d", "--run", "r", "--updates", 10**30),
        ("evaluate", "expert", "--seed", 2**64),
        ("evaluate", "expert", "--episodes", 2**70),
        ("collect", "d", "--seed", 2**64),
        ("collect", "d", "--npcs", 2**64),
        ("collect", "d", "--scenario", 2**64),
        ("collect", "d", "--workers", 2**64),
        ("collect", "d", "--max-lead", 2**64),
    ],
    ids=lambda words: f"{words[0]} {words[-2]}",
)
def test_numbers_beyond_64_bits_are_refused(run, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    code, (line,) = run(*words)
    assert code == 2
    assert line == f"avtd3: {words[-2]} is {words[-1]}, expected less than 2^63"
    assert not list(tmp_path.iterdir())


OTHER_URLS = ("file:///data", "abfss://c@account/d", "https://host/d")
URLS = ("s3://bucket/data", "gs://b/d", "az://c/d", *OTHER_URLS)
OPEN = (
    ("collect", "URL", "--steps", "5"),
    ("collect", "data", "--policies", "URL", "--driver", "policy"),
    ("learn", "URL", "--run", "run", "--follow"),
    ("learn", "data", "--run", "run", "--policies=URL"),
    ("replay-inspect", "URL"),
    ("replay-inspect", "data", "--against", "URL"),
    ("evaluate", "URL"),
    ("policy", "info", "URL"),
    ("policy", "export", "URL", "policy.pt2", "--to", "torch"),
    ("push", "data", "URL"),
    ("pull", "URL", "data"),
    ("status", "URL", "--once"),
)
"""Commands that take URLs of object stores, but no others."""
PLACES = (
    ("learn", "data", "--run", "URL"),
    ("learn", "s3://bucket/data", "--resume", "--run=URL"),
    ("collect", "s3://bucket/data", "--scenario-file", "URL"),
    ("collect", "s3://bucket/data", "--set", "collect.spool=URL", "--steps", "5"),
    ("evaluate", "s3://bucket/policies", "--gif", "URL"),
    ("replay-inspect", "s3://bucket/data", "--html", "URL"),
    ("replay-inspect", "s3://bucket/data", "--episode", "worst", "--sheet", "URL"),
    ("status", "s3://bucket/data", "--html", "URL"),
    ("gate", "URL", "--stage", "smoke"),
    ("compare", "run", "URL"),
    ("run-page", "URL"),
    ("run-page", "run", "--data", "URL"),
    ("export", "URL", "out", "--to", "npz"),
    ("import", "source", "URL"),
    ("policy", "export", "s3://bucket/policies", "policy.pt2", "--to", "torch", "--run", "URL"),
    ("policy", "export", "s3://bucket/policies", "policy.pt2", "--to", "torch", "--data", "URL"),
    ("store", "compact", "URL"),
    ("store", "prune", "URL", "--max-size", "1GB"),
    ("store", "relabel", "data", "URL", "--weights", "a=1"),
    ("store", "render", "URL", "new"),
    ("store", "upgrade", "URL", "new"),
    ("store", "pin", "URL", "segment"),
    ("store", "unpin", "URL", "segment"),
    ("store", "pins", "URL"),
    ("demo", "--out", "URL"),
    ("config", "show", "--config", "URL"),
    ("config", "check", "URL"),
    ("config", "diff", "default", "URL"),
    ("status", "data", "--html", "URL"),
)
"""Where a command takes a path of this machine, also beside a URL."""
LOCAL_ONLY = {"doctor", "road"}
"""Commands that name neither a dataset nor policies."""


def test_every_command_says_whether_it_takes_urls():
    known = {words[: 1 + (words[0] in ("store", "policy"))] for words in (*OPEN, *PLACES)}
    every: set[tuple[str, ...]] = set()
    for name, command in cast(Any, cli.make_command()).commands.items():
        parts = command.commands if name in ("store", "policy") else {"": None}
        every |= {(name, part) if part else (name,) for part in parts if name not in LOCAL_ONLY}
    assert every == known


@pytest.mark.parametrize("words", [*PLACES, *OPEN], ids=" ".join)
def test_a_url_is_refused_where_a_path_is_expected(tmp_path, monkeypatch, run, words):
    monkeypatch.chdir(tmp_path)
    for url in OTHER_URLS if words in OPEN else URLS[:1]:
        code, (line,) = run(*(word.replace("URL", url) for word in words))
        assert code == 2
        assert f"{url.replace(':///', '://')!r} is a URL, expected a path of this machine" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", URLS)
def test_a_url_is_refused_from_python_also_as_a_path(tmp_path, monkeypatch, url):
    spec = EpisodeSpec(vector_names=("x",), action_names=("a",))
    monkeypatch.chdir(tmp_path)
    for path in (url, Path(url)):
        uses = [
            lambda path=path: Dataset.open(path),
            lambda path=path: Dataset.create(path, spec),
            lambda path=path: train(datasets="data", run=path),
            lambda path=path: PolicyStore(path),
            lambda path=path: Policy.load(path),
            lambda path=path: SegmentWriter(path),
            lambda path=path: audit([Path(path)]),
            lambda path=path: ReplayDataset([path]),
            lambda path=path: export_episodes(Path(path), tmp_path / "out", "npz"),
            lambda path=path: export_episodes(Path("data"), Path(path), "npz"),
            lambda path=path: import_episodes(tmp_path, Path(path), "npz"),
        ]
        if url in OTHER_URLS:
            uses += [
                lambda path=path: collect(path),
                lambda path=path: collect("data", policies=path),
                lambda path=path: train(datasets=path, run="run", follow=True),
                lambda path=path: train(datasets="data", run="run", policies=path),
                lambda path=path: evaluate(path),
            ]
        for use in uses:
            with pytest.raises(ConfigError, match="is a URL, expected a path"):
                use()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ("replay-inspect", "missing", "--scheduler", "tcp://127.0.0.1:1"),
        ("store", "pin", "missing", "segment", "--note", "https://tracker/17"),
    ],
)
def test_addresses_are_no_paths(run, words):
    code, (line,) = run(*words)
    assert code == 2
    assert "missing" in line
    assert "is a URL" not in line
