"""Inputs that once ended a command in a traceback, a hang or an endless message."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from avtd3.learn.networks import Actor, NetworkConfig
from avtd3.learn.policy import HEADER_KEY
from avtd3.learn.policy_store import PolicyStore
from avtd3.store import files
from avtd3.store.dataset import Dataset
from avtd3.tests.faults.fuzz import BOMB
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

HOSTILE = "\x1b[2J\x1b[Hverdict: ok\r\n\x00\x07"
CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
SHORT = 20_000
"""Most characters that a command prints about a small input."""
TINY = "gym:avtd3.tests.collect.tiny_envs:Tiny-v0"


@pytest.fixture(autouse=True)
def limited():
    """Let the kernel refuse memory beyond 2 GB more than the process has."""
    before = resource.getrlimit(resource.RLIMIT_DATA)
    (used,) = re.findall(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())
    resource.setrlimit(resource.RLIMIT_DATA, (int(used) * 1024 + (2 << 30), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, before)


@pytest.fixture
def polite(avtd3):
    """Run a command; check that it ends with a documented code and prints little, escaped."""

    def run(*arguments, codes=(0, 1, 2, 3)):
        code, answer = avtd3(*arguments)
        text = answer if isinstance(answer, str) else json.dumps(answer)
        assert code in codes, f"{code}: {text[-2000:]}"
        assert len(text) < SHORT
        assert not CONTROL.search(text), repr(CONTROL.search(text))
        return text

    return run


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    """A dataset of the tiny world, and a directory with two good policies for it."""
    from avtd3.cli import main

    root = tmp_path_factory.mktemp("driven")
    words = ("--world", TINY, "--driver", "random", "--episodes", "1")
    with pytest.raises(SystemExit) as ended:
        main(["collect", str(root / "d"), *words, "--set=collect.gym.time_limit=8"])
    assert not ended.value.code
    spec = Dataset.open(root / "d").spec
    store = PolicyStore(root / "policies")
    config = NetworkConfig(hidden=(4,))
    for version in range(3):
        store.publish(Actor(spec, config), spec, config, updates=version)
    return root


def rewrite(directory, version, *, text=str, tensors=None):
    """Change the header of a policy as text, or its weights, and vouch for the result."""
    import safetensors.torch

    path = directory / f"policy-{version:08d}.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])["__metadata__"][HEADER_KEY]
    weights = safetensors.torch.load(data)
    changed = weights if tensors is None else tensors(weights)
    data = safetensors.torch.save(changed, metadata={HEADER_KEY: text(header)})
    path.write_bytes(data)
    about = {"version": version, "file": path.name, "sha256": files.sha256(data)}
    sidecar = files.canonical_json(about | {"size_bytes": len(data)})
    path.with_suffix(".json").write_bytes(sidecar)
    (directory / "LATEST.json").write_bytes(files.canonical_json(about))


def put(key, value):
    """Return a change that replaces the value of a key in the text of a header."""
    return lambda text: re.sub(rf'"{key}": [^,}}\]]+', lambda _: f'"{key}": {value}', text, count=1)


def huge_weights(weights):
    """Finite numbers whose sum is infinity minus infinity."""
    names = sorted(weights)
    last = [name for name in names if name.endswith("weight")][-1]
    huge = {name: value * 0 + 3e38 for name, value in weights.items()}
    huge[last][:, ::2] *= -1
    return huge


def many_tensors(weights):
    return weights | {f"more.{n}": next(iter(weights.values()))[:0] + 0 for n in range(100_000)}


POLICIES = {
    **{f"version={v}": {"text": put("version", v)} for v in ("1e999", '"7"', 1.5, "true", -5)},
    "version=10^30": {"text": put("version", 10**30)},
    "updates=1e999": {"text": put("updates", "1e999")},
    "updates=-1": {"text": put("updates", -1)},
    "updates=NaN": {"text": put("updates", "NaN")},
    "action_limit=text": {"text": put("action_limit", '"0.5"')},
    "action_limit=1e999": {"text": put("action_limit", "1e999")},
    "200 000 layers": {"text": lambda text: text.replace("[4]", json.dumps([1] * 200_000))},
    "a huge layer": {"text": lambda text: text.replace("[4]", "[65536, 65536, 65536]")},
    "deep": {"text": lambda text: text.replace("[4]", "[" * 100_000 + "]" * 100_000)},
    "answers NaN": {"tensors": huge_weights},
}
BIG = {"100 000 tensors": {"tensors": many_tensors}}
"""Policies that take seconds to write."""


@pytest.mark.parametrize(
    "name", [*POLICIES, *(pytest.param(n, marks=pytest.mark.slow) for n in BIG)]
)
def test_a_collector_drives_on_with_the_last_good_policy(driven, name, tmp_path, polite):
    policies = shutil.copytree(driven / "policies", tmp_path / "policies")
    rewrite(policies, 2, **(POLICIES | BIG)[name])
    words = ("--driver", "policy", "--policies", policies, "--episodes", 2, "--seed", 3)
    polite(
        "collect", tmp_path / "d", "--world", TINY, *words,
        "--set=collect.gym.time_limit=8", codes=(0,),
    )  # fmt: skip
    (segment,) = Dataset.open(tmp_path / "d").snapshot().segments
    whole = segment.episode_table().policy_version[-1:].tolist()
    assert whole == [1]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A sound dataset whose every text is hostile, with stray files of hostile names."""
    spec = make_spec(terms=1)
    named = type(spec).from_json(
        {**spec.to_json(), "reward_terms": [HOSTILE], "vector_names": [HOSTILE, "b", "c"]}
    )
    episodes = [make_episode(named, 5, seed, town=HOSTILE, driver=HOSTILE) for seed in range(2)]
    for episode in episodes:
        episode.reason = HOSTILE
    path = tmp_path_factory.mktemp("hostile") / "d"
    dataset = write_dataset(path, named, episodes, segment_steps=1)
    folder = os.fsencode(dataset.segments_path)
    for name in (b"\x1b[2Jx", b"\xff\xfe\x80", b"a\nb", b"\xed\xa0\x80"):
        os.mkdir(os.path.join(folder, name))  # noqa: PTH102, PTH118 - names that are not text
        with open(os.path.join(folder, name + b"-file"), "wb"):  # noqa: PTH118, PTH123
            pass
    staged = os.path.join(os.fsencode(dataset.staging_path), b"\xff\x1b")  # noqa: PTH118
    os.makedirs(staged, exist_ok=True)  # noqa: PTH103
    return dataset.path


HOSTILE_COMMANDS = [
    ("replay-inspect", "{d}"),
    ("replay-inspect", "{d}", "--html", "{out}/page.html"),
    ("replay-inspect", "{d}", "--episode", "worst"),
    ("replay-inspect", "{d}", "--scores"),
    ("replay-inspect", "{d}", "--against", "{d}"),
    ("replay-inspect", "{d}", "--quarantine", "--dry-run"),
    ("store", "prune", "{d}", "--max-steps", "1", "--dry-run"),
    ("store", "compact", "{d}", "--dry-run"),
    ("store", "pin", "{d}", HOSTILE),
    ("store", "pins", "{d}"),
    ("store", "relabel", "{d}", "{out}/new", "--weights", f"{HOSTILE}=2"),
    ("learn", "{d}", "--run", "{out}/run", "--updates", "1"),
    ("collect", "{d}", "--world", TINY, "--driver", "random", "--episodes", "1"),
    ("replay-inspect", f"{HOSTILE}"),
    ("gate", f"{HOSTILE}", "--stage", "5k"),
    ("config", "show", "--config", HOSTILE),
    ("config", "show", "--set", f"learn.{HOSTILE}=1"),
    ("evaluate", HOSTILE),
]


@pytest.mark.parametrize("words", HOSTILE_COMMANDS, ids=lambda words: " ".join(words)[:40])
def test_no_control_character_reaches_the_terminal(hostile, words, tmp_path, polite):
    polite(*(word.replace("{d}", str(hostile)).replace("{out}", str(tmp_path)) for word in words))


def test_tags_of_event_files_are_escaped(tmp_path, write_events, polite):
    write_events(tmp_path / "run", [(HOSTILE, n, float(n)) for n in range(5)])
    polite("gate", tmp_path / "run", "--stage", "5k", "--html", tmp_path / "page.html")
    polite("compare", tmp_path / "run", tmp_path / "run")


@pytest.fixture
def write_events():
    """Write an event file: an event for each tag, step and value."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    def write(run, points, version="brain.Event:2"):
        run.mkdir()
        with (run / "events.out.tfevents.1700000000.h.1.0").open("wb") as stream:
            records = RecordWriter(stream)
            if version:
                records.write(Event(file_version=version).SerializeToString())
            for tag, step, value in points:
                scalar = Summary.Value(tag=tag, simple_value=value)
                summary = Summary(value=[scalar])
                records.write(Event(step=step, summary=summary).SerializeToString())
            records.flush()
        return run

    return write


EVENTS = {
    "a tag of 5 MB": [("x" * 5_000_000, n, 1.0) for n in range(3)],
    "steps that go back": [("x", -n, 1.0) for n in range(50_000)],
    "steps near -2^63": [("x", -(2**63) + n, 1.0) for n in range(50)],
    "steps from end to end": [("x", s, 1.0) for s in (-(2**63), 2**63 - 1) * 20],
    "values that are not finite": [("x", n, v) for n, v in enumerate((np.nan, np.inf) * 30)],
    "the largest values": [("x", n, (-1.0) ** n * 3.4e38) for n in range(60)],
}


@pytest.mark.parametrize(
    ("name", "version"),
    [*((name, "brain.Event:2") for name in EVENTS), ("steps that go back", "")],
)
def test_event_files_of_others(tmp_path, write_events, name, version, polite):
    run = write_events(tmp_path / "run", EVENTS[name], version)
    polite("gate", run, "--stage", "5k", "--html", tmp_path / "page.html")
    polite("compare", run, run, "--html", tmp_path / "page.html")


SETTINGS = (
    "learn.updates=0xffffffffffffffffffffff",
    "learn.updates=190:20:30",
    "learn.updates=" + "9" * 5000,
    "learn.updates=!!bool maybe",
    "learn.updates=!!int ''",
    "learn.updates=!!timestamp x",
    "learn.seed=2020-13-45",
    "learn.seed=2020-02-30 10:00:00",
    "learn.seed=9999-12-31T23:59:59+99:00",
    "learn.seed=" + "[" * 5000,
    "learn.seed=" + "x" * 1_000_000,
    "learn.replay.filter=" + "{a: " * 300 + "1" + "}" * 300,
    f"learn.network.hidden={{{', '.join(f'{n}: {n}' for n in range(2_000))}}}",
    "learn.td3.gamma=.nan",
    "learn.replay.n_step=1000000000",
    "collect.seed=18446744073709551616",
    "collect.seed=1e30",
)


@pytest.mark.parametrize("text", SETTINGS, ids=lambda text: text[:40])
def test_settings_that_yaml_reads_in_its_own_way(text, polite):
    """n_step of 10^9 may be shown: it is too large for the data, not for a number."""
    polite("config", "show", text.split(".")[0], "--set", text, codes=(0, 2))


@pytest.mark.parametrize("where", ["learn:\n  replay:\n", "collect:\n", "audit:\n", "learn:\n"])
def test_alias_bombs_are_refused_in_one_line(where, tmp_path, polite):
    indent = " " * (4 if "replay" in where else 2)
    body = "".join(f"{indent}{line}\n" for line in BOMB.splitlines())
    (tmp_path / "c.yaml").write_text(where + body)
    polite("config", "show", where.split(":")[0], "--config", tmp_path / "c.yaml", codes=(2,))
    (tmp_path / "w.yaml").write_text(BOMB)
    for words in (("gate", tmp_path, "--criteria"), ("gate", tmp_path, "--stage=5k", "--names")):
        polite(*words, tmp_path / "w.yaml", codes=(2,))


@pytest.mark.parametrize(
    "words",
    [
        ("collect", "{out}/d", "--world", TINY, "--driver", "random", "--episodes", "1"),
        ("evaluate", "{policies}", "--world", TINY, "--episodes", "1"),
        ("learn", "{d}", "--run", "{out}/run", "--updates", "1"),
    ],
    ids=lambda words: words[0],
)
def test_a_seed_beyond_64_bits_is_refused(driven, words, tmp_path, polite):
    names = {"d": driven / "d", "policies": driven / "policies", "out": tmp_path}
    polite(*(word.format(**names) for word in words), "--seed", 2**64, codes=(2,))


@pytest.mark.parametrize("n_step", [10**9, 10**6, 2**31])
def test_a_huge_n_step_needs_no_memory(driven, n_step, tmp_path, polite):
    polite(
        "learn", driven / "d", "--run", tmp_path / "run", "--updates", 1,
        f"--set=learn.replay.n_step={n_step}", "--set=learn.replay.batch_size=2",
        "--set=learn.network.hidden=[4]", "--set=learn.learning_starts=1", codes=(0, 2),
    )  # fmt: skip


def test_the_largest_rewards_are_shown(tmp_path, polite):
    spec = make_spec(terms=1)
    episodes = [make_episode(spec, 9, seed) for seed in range(3)]
    for episode in episodes:
        episode.terms[:] = (-1.0) ** np.arange(9)[:, None] * 3e38
    dataset = write_dataset(tmp_path / "d", spec, episodes)
    polite("replay-inspect", dataset.path, "--html", tmp_path / "page.html", codes=(0, 1))
    polite("replay-inspect", dataset.path, "--episode", "worst")
    polite("replay-inspect", dataset.path, "--json", codes=(0, 1))


@pytest.mark.parametrize("setting", ["{a: 1}", '"x"', "[1]", "null", "true", "1e999", "NaN"])
@pytest.mark.parametrize("limit", ["learn.guards.q_max", "learn.td3.clip.actor_max_norm"])
def test_settings_of_a_run_may_be_of_another_type(tmp_path, write_events, setting, limit, polite):
    """A gate reads bounds from the run's own config.json."""
    run = write_events(tmp_path / "run", [("critic/q_max", n, 1.0) for n in range(20)])
    document = setting
    for key in reversed(limit.split(".")):
        document = f'{{"{key}": {document}}}'
    (run / "config.json").write_text(document)
    (tmp_path / "c.yaml").write_text(
        "criteria:\n- {name: a, metric: critic/q_max, rule: max, at_most: 5, "
        f"at_most_setting: {limit}}}\n"
    )
    polite("gate", run, "--criteria", tmp_path / "c.yaml", codes=(0, 1, 2))


BLOCKING = [
    ("store", "relabel", "{d}", "{out}/new", "--weights", "{file}"),
    ("config", "show", "--config", "{file}"),
    ("gate", "{d}", "--criteria", "{file}"),
    ("gate", "{d}", "--stage", "5k", "--names", "{file}"),
    ("gate", "{file}", "--stage", "5k"),
    ("compare", "{d}", "{d}", "--directions", "{file}"),
    ("collect", "{out}/e", "--scenario-file", "{file}", "--episodes", "1"),
    ("collect", "{out}/e", "--town", "{file}", "--episodes", "1"),
    ("evaluate", "{file}"),
    ("replay-inspect", "{file}"),
]


@pytest.mark.parametrize("kind", ["pipe", "/dev/zero"])
def test_what_is_no_file_is_refused_and_not_waited_for(driven, kind, tmp_path):
    """All commands in one process, which the kernel ends if it maps too much or works too long."""
    file = tmp_path / "named.tfevents.xodr"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(kind)
    names = {"d": driven / "d", "out": tmp_path, "file": file}
    lines = [[word.format(**names) for word in words] for words in BLOCKING]
    done = subprocess.run(
        [sys.executable, "-c", _RUN_ALL, json.dumps(lines)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == [2] * len(BLOCKING)


_RUN_ALL = """
import contextlib, faulthandler, json, resource, signal, sys
from avtd3.cli import main
resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
faulthandler.register(signal.SIGPROF, chain=True)
codes = []
for words in json.loads(sys.argv[1]):
    signal.setitimer(signal.ITIMER_PROF, 30.0)
    faulthandler.dump_traceback_later(60, exit=True)
    print(words, file=sys.stderr)
    with contextlib.redirect_stdout(sys.stderr):
        try:
            main(words)
        except SystemExit as ended:
            codes.append(ended.code or 0)
print(json.dumps(codes))
"""
