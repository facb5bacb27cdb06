"""Feeds changed files to a parser of avtd3; run as a process of its own.

``python -m avtd3.tests.faults.fuzz TARGET --cases N`` or ``--seconds S`` (of CPU time), with
``--seed`` and ``--first``. Each case is drawn from the target, the seed and its number alone, so
``--first N --cases 1`` repeats case N. The last line is a JSON document with the failures.

The only outcomes allowed are a value and an `Avtd3Error` whose message is short. Memory is limited
by the kernel. A case that takes `MOST_CPU_S` of CPU time, or waits for `MOST_WAIT_S`, ends the
process with a traceback of where it hangs: faulthandler prints it without the help of Python.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Protocol

import yaml

from avtd3.store.errors import Avtd3Error
from avtd3.tests.faults import mutate

MOST_CPU_S = 20.0
MOST_WAIT_S = 300.0
MOST_BYTES = 2 << 30
"""Private memory that a process may map, with all its imports."""
MOST_CHARACTERS = 2000
"""Longest message; the paths in it have at most 200 characters here."""
MOST_FAILURES = 20
CODES = (0, 1, 2, 3)
SOURCE = Path(__file__).parents[2]


class Target(Protocol):
    """A parser with the files that it reads."""

    def __init__(self, root: Path) -> None:
        """Create the files; imports everything that a case needs."""
        ...

    def case(self, rng: random.Random) -> None:
        """Change the files and read them; an `Avtd3Error` is a proper answer."""
        ...


def check_message(text: str) -> None:
    """Raise if a message is too long to be read, or cannot be printed once it is escaped."""
    assert len(text) <= MOST_CHARACTERS, f"a message of {len(text):,} characters: {text[:200]!r}"
    text.encode("utf-8", "backslashreplace")


@contextlib.contextmanager
def proper() -> Any:
    """Accept an error of avtd3 inside, and check its message."""
    try:
        yield
    except Avtd3Error as error:
        check_message(str(error))


def command(*arguments: object) -> tuple[int, str]:
    """Run a command in this process; returns its exit code and all that it printed."""
    from avtd3.cli import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as ended:
            code = ended.code or 0
    text = printed.getvalue()
    assert code in CODES, f"exit code {code}: {text[-2000:]}"
    assert "Traceback" not in text, text[-2000:]
    return int(code), text


class ManifestTarget:
    """Manifests, and the zarr.json files of segments and datasets."""

    def __init__(self, root: Path) -> None:
        from avtd3.store.files import sha256
        from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

        spec = make_spec(terms=1)
        episodes = [make_episode(spec, length, seed) for seed, length in enumerate((5, 3))]
        made = write_dataset(root / "pristine", spec, episodes, segment_steps=1)
        self.path = Path(shutil.copytree(made.path, root / "data"))
        self.manifest = next(iter(sorted(self.path.glob("segments/*/MANIFEST.json"))))
        self.segment = self.manifest.parent
        self.others = [self.path / "zarr.json", *sorted(self.segment.rglob("zarr.json"))]
        self.sha256 = sha256
        self.number = 0

    def case(self, rng: random.Random) -> None:
        file = self.manifest if rng.random() < 0.6 else rng.choice(self.others)
        before = {path: path.read_bytes() for path in (file, self.manifest)}
        self.number += 1
        try:
            self._change(rng, file, before[file])
            if file not in (self.manifest, self.path / "zarr.json"):
                self._list_again(file)
            self._read()
            if self.number % 12 == 0:
                self._run_commands(rng)
        finally:
            for path, data in before.items():
                path.write_bytes(data)

    def _change(self, rng: random.Random, file: Path, data: bytes) -> None:
        if rng.random() < 0.2:
            file.write_bytes(mutate.bytes_of(rng, data))
            return
        document = json.loads(data)
        if file == self.manifest and rng.random() < 0.5:  # nine tenths of it are the list of files
            document["provenance"] = mutate.document(rng, {**document["provenance"], **CLAIMS})
        else:
            document = mutate.document(rng, document)
        if file == self.manifest and rng.random() < 0.8:
            document = self._sealed(document)
        file.write_bytes(mutate.text(rng, document))

    def _sealed(self, document: Any) -> Any:
        """Return a manifest with the digest that it should have, if it can have one."""
        from avtd3.store.files import canonical_json

        if isinstance(document, dict):
            rest = {key: value for key, value in document.items() if key != "digest"}
            with contextlib.suppress(ValueError, TypeError, RecursionError):
                return {**rest, "digest": self.sha256(canonical_json(rest))}
        return document

    def _list_again(self, file: Path) -> None:
        document = json.loads(self.manifest.read_bytes())
        for entry in document["files"]:
            if self.segment / entry["path"] == file:
                entry["size"] = file.stat().st_size
                entry["sha256"] = self.sha256(file.read_bytes())
        self.manifest.write_bytes(json.dumps(self._sealed(document)).encode())

    def _read(self) -> None:
        from avtd3.collect.plan import held_episodes
        from avtd3.store.dataset import Dataset

        dataset = Dataset.open(self.path)
        snapshot = dataset.snapshot()
        for refusal in snapshot.refused:
            check_message(refusal.reason)
        for segment in snapshot.segments:
            repr(segment), repr(segment.spec)
            for read in (segment.verify, segment.read_frames, segment.episode_table):
                with proper():
                    read()
            for name in segment.names:
                with proper():
                    segment.read(name)
            with proper():
                segment.events()
        with proper():
            held_episodes(dataset, "p")

    def _run_commands(self, rng: random.Random) -> None:
        page = self.path.parent / "page.html"
        every: tuple[tuple[Any, ...], ...] = (
            ("replay-inspect", self.path, "--json"),
            ("replay-inspect", self.path, "--html", page),
            ("replay-inspect", self.path, "--episode", "worst"),
            ("store", "compact", self.path, "--dry-run"),
            ("store", "prune", self.path, "--max-steps", 1, "--dry-run"),
        )
        command(*rng.choice(every))


CLAIMS = {
    "replaces": {"0": "0" * 64, "collector-1": ""},
    "origin": [{"segment_id": "a", "digest": "", "episodes": 1, "steps": 5, "host": "h"}],
    "relabel": {"source": "d", "weights": {"r0": 1.0}},
    "plan_digest": "p",
}
"""Keys of a provenance that readers look at."""


class PolicyTarget:
    """Headers, tensors, sidecars and LATEST files of policies."""

    def __init__(self, root: Path) -> None:
        import safetensors.torch
        import torch

        from avtd3.learn.networks import Actor, NetworkConfig
        from avtd3.learn.policy import HEADER_KEY
        from avtd3.learn.policy_store import PolicyStore
        from avtd3.store.spec import EpisodeSpec

        torch.set_num_threads(1)
        self.torch, self.safetensors, self.key = torch, safetensors.torch, HEADER_KEY
        self.spec = EpisodeSpec(
            vector_names=("a", "b"), action_names=("x", "y"), action_low=(-1.0, -0.5)
        )
        self.directory, self.store = root / "policies", PolicyStore(root / "policies")
        config = NetworkConfig(hidden=(4, 4))
        for version in range(2):
            actor = Actor(self.spec, config)
            self.store.publish(actor, self.spec, config, updates=version)
        self.files = {path: path.read_bytes() for path in sorted(self.directory.iterdir())}
        self.newest = self.directory / "policy-00000001.safetensors"
        data = self.files[self.newest]
        size = int.from_bytes(data[:8], "little")
        self.header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"][HEADER_KEY])
        self.tensors = safetensors.torch.load(data)

    def case(self, rng: random.Random) -> None:
        from avtd3.learn.policy import Policy
        from avtd3.learn.policy_store import PolicyStore

        kind = rng.randrange(10)
        if kind < 5:
            self._publish(rng, self._encode(rng, mutate.document(rng, self.header), self.tensors))
        elif kind < 7:
            self._publish(rng, self._encode(rng, self.header, self._odd_tensors(rng)))
        elif kind < 8:
            self._publish(rng, mutate.bytes_of(rng, self.files[self.newest]))
        else:
            file = rng.choice([path for path in self.files if path.suffix == ".json"])
            document = mutate.document(rng, json.loads(self.files[file]))
            file.write_bytes(
                mutate.bytes_of(rng, self.files[file])
                if rng.random() < 0.3
                else mutate.text(rng, document)
            )
        store = PolicyStore(self.directory)
        try:
            with proper():
                self._act(Policy.load(self.newest))
            with proper():
                if (policy := store.poll(None, self.spec)) is not None:
                    self._act(policy)
                check_message(store.warning)
            with proper():
                store.latest(self.spec)
                check_message(store.warning)
        finally:
            for path in self.directory.iterdir():
                if path not in self.files:
                    path.unlink()
            for path, data in self.files.items():
                path.write_bytes(data)

    def _publish(self, rng: random.Random, data: bytes) -> None:
        from avtd3.store.files import canonical_json, sha256

        self.newest.write_bytes(data)
        about = {"file": self.newest.name, "sha256": sha256(data), "version": 1}
        sidecar = {**about, "size_bytes": len(data)}
        if rng.random() < 0.1:
            sidecar = mutate.document(rng, sidecar)
        self.newest.with_suffix(".json").write_bytes(mutate.text(rng, sidecar))
        (self.directory / "LATEST.json").write_bytes(canonical_json(about))

    def _encode(self, rng: random.Random, header: Any, tensors: Any) -> bytes:
        text = mutate.text(rng, header).decode("utf-8", "replace")
        text = text[: 40 << 20]  # safetensors writes no header of 100 MB
        return bytes(self.safetensors.save(tensors, metadata={self.key: text}))

    def _odd_tensors(self, rng: random.Random) -> Any:
        torch = self.torch
        tensors = dict(self.tensors)
        name = rng.choice(sorted(tensors))
        old = tensors[name]
        size = rng.choice((1e30, 3e38, float("nan"), float("inf"), -3e38))
        tensors[name] = rng.choice(
            (
                lambda: torch.full_like(old, size),
                lambda: old.double(),
                lambda: old[:1].contiguous(),
                lambda: torch.zeros(0),
                lambda: torch.zeros(()),
                lambda: torch.zeros(old.shape, dtype=torch.int64),
            )
        )()
        if rng.random() < 0.2:
            tensors = {key: torch.full_like(value, 3e38) for key, value in self.tensors.items()}
        if rng.random() < 0.2:
            tensors[rng.choice(mutate.TEXTS).encode("utf-8", "replace").decode()] = torch.zeros(1)
        if rng.random() < 0.1:
            tensors |= {f"extra.{n}": torch.zeros(1) for n in range(2000)}
        return tensors

    def _act(self, policy: Any) -> None:
        import numpy as np

        repr(policy)
        for name in ("version", "updates"):
            value = getattr(policy, name)
            assert type(value) is int, f"{name} is {value!r:.80}"
            assert 0 <= value < 2**63, f"{name} is {value!r:.80}"
        assert type(policy.action_limit) in (int, float), f"limit {policy.action_limit!r:.80}"
        assert 0.0 < policy.action_limit <= 1.0
        spec = policy.spec
        frames = None if spec.image is None else np.zeros(spec.image.observation_shape, np.uint8)
        vector = np.full(spec.vector_size, 0.5, np.float32) if spec.vector_size else None
        action = policy.act(frames, vector)
        assert np.isfinite(action).all()


class ConfigTarget:
    """YAML: configurations with ``--set``, criteria of gates, and weights of rewards."""

    def __init__(self, root: Path) -> None:
        from importlib import resources

        from avtd3.configs import load

        self.load, self.root = load, root
        self.defaults = {
            name: json.loads(json.dumps(yaml.safe_load(load.dump_sections(name))))
            for name in load.SECTIONS
        }
        folder = resources.files("avtd3.configs") / "gates"
        self.gate = yaml.safe_load((folder / "5k.yaml").read_text())
        self.keys = [
            f"{name}.{key}" for name, found in self.defaults.items() for key in found[name]
        ]

    def case(self, rng: random.Random) -> None:
        section = rng.choice(sorted(self.load.SECTIONS))
        file = self.root / "c.yaml"
        kind = rng.randrange(8)
        if kind < 2:
            with proper():
                self.load.load_section(section, None, [self._override(rng)])
            return
        if kind < 6:
            file.write_bytes(self._text(rng, self.defaults[section]))
            with proper():
                self.load.load_section(section, str(file), ())
            with proper():
                self.load.dump_sections(section, str(file), [self._override(rng)])
        elif kind < 7:
            from avtd3.configs.commands.gate import load_directions, load_gate, load_names

            file.write_bytes(self._text(rng, self.gate))
            for read in (
                lambda: load_gate(None, file),
                lambda: load_names(str(file)),
                lambda: load_directions(file),
            ):
                with proper():
                    read()
        else:
            from avtd3.configs.commands.options import parse_weights

            file.write_bytes(self._text(rng, {"a/b": 1.0, "c": 2}))
            with proper():
                parse_weights([str(file)])

    def _override(self, rng: random.Random) -> str:
        key = rng.choice(self.keys)
        if rng.random() < 0.3:
            key += "." + rng.choice(("td3", "a", "0", "", "td3.gamma", "\ud800", "x" * 5000))
        return f"{key}={self._scalar(rng)}"

    def _scalar(self, rng: random.Random) -> str:
        if rng.random() < 0.5:
            return rng.choice(YAML)
        return mutate.text(rng, mutate.odd_value(rng)).decode("utf-8", "surrogatepass")

    def _text(self, rng: random.Random, document: Any) -> bytes:
        kind = rng.randrange(6)
        changed = mutate.document(rng, document)
        if kind < 2:  # JSON is YAML, nearly
            return mutate.text(rng, changed)
        try:
            text = yaml.safe_dump(changed, allow_unicode=rng.random() < 0.5)
        except (yaml.YAMLError, RecursionError, UnicodeError):
            return mutate.text(rng, changed)
        lines = text.splitlines()
        at = rng.randrange(len(lines) + 1)
        if kind < 4 and lines:
            key = lines[at % len(lines)].split(":")[0]
            lines[at % len(lines)] = f"{key}: {self._scalar(rng)}"
        elif kind < 5:
            lines[at:at] = [rng.choice(YAML)]
        data = "\n".join(lines).encode("utf-8", "surrogatepass")
        return mutate.bytes_of(rng, data) if rng.random() < 0.3 else data


BOMB = (
    "&a0 [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"k{n}: &a{n} [{','.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9))
).replace("&a0", "k0: &a0", 1)
YAML = (
    "0x7fffffffffffffffffffffffffffffff",
    "0x" + "f" * 5000,
    "0o" + "7" * 5000,
    "0b" + "1" * 20_000,
    "1:30:00",
    "190:20:30.15",
    ":".join(["59"] * 400),
    "1" * 5000,
    "1e999999999",
    "." * 2000,
    "2020-13-45",
    "2020-01-01 25:61:61",
    "9999-99-99t99:99:99.9+99:99",
    "!!python/object/apply:os.system [true]",
    "!!binary '====='",
    "!!set {a, b}",
    "!!omap [a, b]",
    "!!pairs [a, b]",
    "!!timestamp x",
    "!!int ''",
    "!!int x",
    "!!float ''",
    "!!bool maybe",
    "!!null x",
    "!unknown x",
    "&a [*a]",
    "&a {b: *a}",
    "{<<: [1, 2]}",
    "{<<: {a: 1}, <<: {a: 2}}",
    "{[1]: 2}",
    "{{a: 1}: 2}",
    "? [a]",
    "[" * 3000,
    "{a: " * 3000,
    "- " * 3000,
    "'unclosed",
    '"\\ud800"',
    '"\\x1b[2J"',
    "%YAML 9.9",
    "---\na: 1\n---\nb: 2",
    "\ufeffa: 1",
    "\t- x",
    "|\n" + "x\n" * 20_000,
    "@",
    "`",
    "*missing",
    BOMB,
)
"""Scalars and lines that YAML reads in a way that few expect, or not at all."""


class EventTarget:
    """TensorBoard event files, as the gate and the comparison read them."""

    def __init__(self, root: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2

        from avtd3.configs.commands.gate import load_directions, load_gate, load_names
        from avtd3.learn.analysis import compare, event_log, gate, pages

        self.proto, self.summary = event_pb2, summary_pb2
        self.log, self.gate, self.compare, self.pages = event_log, gate, compare, pages
        self.config, self.names = load_gate("5k", None), load_names()
        self.directions = load_directions()
        self.root = root
        self.tags = ["critic/loss", "episode/return", "actor/loss", "x/y"]
        self._write(root / "base", [self._event(tag, n, 1.0) for tag in self.tags for n in (1, 2)])

    def case(self, rng: random.Random) -> None:
        run = self.root / "run"
        shutil.rmtree(run, ignore_errors=True)
        for number in range(rng.choice((1, 1, 1, 3))):
            self._write(run, self._events(rng), rng, number)
        with proper():
            log = self.log.read_log(run)
            for text in (*log.notices, *log.damaged):
                check_message(text)
        if rng.random() < 0.7:
            return
        with proper():
            report = self.gate.gate(run, self.config, self.names)
            assert len(report.summary()) < 100_000
            json.dumps(report.document(), allow_nan=False)
            report.markdown()
            self.pages.gate_page(report)
        with proper():
            settings = self.compare.CompareConfig()
            runs = (self.root / "base", run)
            two = self.compare.compare(*runs, settings, (self.names, self.names), self.directions)
            json.dumps(two.document(), allow_nan=False)
            two.markdown()
            self.pages.compare_page(two)

    def _event(self, tag: str, step: int, value: float) -> Any:
        scalar = self.summary.Summary.Value(tag=tag, simple_value=value)
        summary = self.summary.Summary(value=[scalar])
        return self.proto.Event(step=step, wall_time=1.0, summary=summary)

    def _events(self, rng: random.Random) -> list[Any]:
        found: list[Any] = []
        if rng.random() < 0.7:
            found.append(self.proto.Event(file_version=rng.choice(("brain.Event:2", "", "x"))))
        count = rng.choice((1, 5, 40))
        ways = (lambda n: n, lambda n: -n, lambda n: rng.choice(STEPS), lambda n: 2**62 * (n % 3))
        step_of = rng.choice(ways)
        for number in range(count):
            tag = rng.choice(self.tags) if rng.random() < 0.8 else self._tag(rng)
            step = max(-(2**63), min(step_of(number), 2**63 - 1))
            value = rng.choice(VALUES) if rng.random() < 0.3 else float(number)
            found.append(self._event(tag, step, value))
            if rng.random() < 0.1:
                found.append(self._odd_event(rng, tag, step))
        return found

    def _tag(self, rng: random.Random) -> str:
        return rng.choice(mutate.TEXTS).encode("utf-8", "replace").decode()

    def _odd_event(self, rng: random.Random, tag: str, step: int) -> Any:
        event = self.proto.Event(step=step, wall_time=rng.choice(VALUES))
        if rng.random() < 0.3:
            event.session_log.status = rng.choice((0, 1, 2, 3))
            return event
        value = event.summary.value.add(tag=tag)
        value.metadata.plugin_data.plugin_name = rng.choice(("scalars", "", "x" * 1000))
        value.tensor.dtype = rng.choice((0, 1, 2, 3, 9, 19, 77))
        for _ in range(rng.choice((0, 1, 3))):
            value.tensor.tensor_shape.dim.add(size=rng.choice((1, 0, -1, 2**62)))
        if rng.random() < 0.5:
            value.tensor.tensor_content = rng.randbytes(rng.choice((0, 3, 4, 8)))
        else:
            value.tensor.float_val.extend([rng.choice(VALUES)] * rng.choice((0, 1, 2)))
        return event

    def _write(
        self, run: Path, events: list[Any], rng: random.Random | None = None, number: int = 0
    ) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        run.mkdir(parents=True, exist_ok=True)
        file = run / f"events.out.tfevents.170000000{number}.h.1.0"
        with file.open("wb") as stream:
            records = RecordWriter(stream)
            for event in events:
                data = event.SerializeToString()
                if rng is not None and rng.random() < 0.03:
                    data = mutate.bytes_of(rng, data)
                records.write(data)
            records.flush()
        if rng is not None and rng.random() < 0.2:
            file.write_bytes(mutate.bytes_of(rng, file.read_bytes()))


STEPS = (0, -1, 1, 2**63 - 1, -(2**63), 2**62, 10**15, 5_000, 100_000)
VALUES = (float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e-45, 0.0, -0.0)

TARGETS: dict[str, type[Target]] = {
    "manifest": ManifestTarget,
    "policy": PolicyTarget,
    "config": ConfigTarget,
    "events": EventTarget,
}


def failure(target: str, seed: int, number: int, error: BaseException) -> dict[str, Any]:
    """Describe a failure, with the line of avtd3 that it comes from."""
    origin = error.__context__ if isinstance(error, AssertionError) else None
    frames = traceback.extract_tb((origin or error).__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(SOURCE)]
    where = ([frame for frame in own if "/tests/" not in frame.filename] or own or frames)[-1]
    return {
        "repeat": f"python -m avtd3.tests.faults.fuzz {target} --seed {seed} "
        f"--first {number} --cases 1",
        "error": f"{type(error).__name__}: {error}"[:600],
        "where": f"{Path(where.filename).parent.name}/{Path(where.filename).name}:{where.lineno}",
        "traceback": "".join(traceback.format_exception(error))[-3000:],
    }


def run(
    target: str, root: Path, seed: int, first: int, cases: int | None, cpu_s: float
) -> dict[str, Any]:
    """Run cases until their number or the CPU time is used up, or `MOST_FAILURES` have failed."""
    prepared = TARGETS[target](root)
    failures: list[dict[str, Any]] = []
    places: set[str] = set()
    start, number = time.process_time(), first
    while (number - first < cases) if cases is not None else time.process_time() < start + cpu_s:
        signal.setitimer(signal.ITIMER_PROF, MOST_CPU_S)
        faulthandler.dump_traceback_later(MOST_WAIT_S, exit=True)
        sys.stderr.write(f"{number}\r")
        try:
            prepared.case(random.Random(f"{target} {seed} {number}"))
        except Avtd3Error as error:
            if len(str(error)) > MOST_CHARACTERS:
                failures.append(failure(target, seed, number, error))
        except Exception as error:  # noqa: BLE001 - this is what is looked for
            found = failure(target, seed, number, error)
            place = f"{found['where']} {found['error'][:20]}"
            if place not in places:
                places.add(place)
                failures.append(found)
        if len(failures) >= MOST_FAILURES:
            break
        number += 1
    signal.setitimer(signal.ITIMER_PROF, 0)
    faulthandler.cancel_dump_traceback_later()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"cases": number - first, "failures": failures, "peak_mb": peak // 1024}


def main() -> None:
    """Parse the command line, limit memory and time, and run the cases."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("root", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int)
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    os.fsync = lambda fd: None
    resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
    faulthandler.register(signal.SIGPROF, all_threads=True, chain=True)
    found = run(given.target, given.root, given.seed, given.first, given.cases, given.seconds)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
