"""Export a policy as an ONNX file or a program of `torch.export`, with a model card beside it.

The graph takes what a camera and sensors give, and returns actions to apply: scaling of pixels,
normalisation of the vector, the action's bounds and the action limit are parts of it::

    frames  uint8   (batch, K * C, H, W)   stacked frames, oldest first; only with a camera; with
                                           several streams, one input frames_NAME for each
    vector  float32 (batch, V)             physical values; only if the spec has a vector
    action  float32 (batch, A)             within the spec's bounds
"""

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from avtd3.learn.networks import ObservationBatch
from avtd3.learn.policy import Policy
from avtd3.learn.run_settings import CONFIG_FILE, read_settings
from avtd3.store.dataset import Dataset
from avtd3.store.errors import (
    Avtd3Error,
    CheckpointError,
    ConfigError,
    abbreviate,
    import_extra,
)
from avtd3.store.files import read_json, show_path, write_aside
from avtd3.store.remote.background import local_policy, mirror_path
from avtd3.store.render.text import file_size, join_lines, markdown_table, number
from avtd3.store.spec import IMAGE, EpisodeSpec

KINDS = ("onnx", "torch")
METADATA = "avtd3"
"""Key of the ONNX file's metadata: JSON with the spec and the policy's version and digest."""
TOLERANCE = 1e-5
"""Largest difference from the policy, in half ranges of the action."""
_BATCHES = (1, 2, 5)
_MOST_BATCH = 65_535
_Runner: TypeAlias = Callable[[Sequence[NDArray[Any]]], NDArray[np.float32]]
"""Returns the actions of an exported policy for its inputs."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CardConfig:
    """What a model card says besides what the policy file holds.

    Example:
        >>> CardConfig(licence="CC BY 4.0").run is None
        True
    """

    run: Path | None = None
    """Run that trained the policy; None for the directory around its policy directory."""
    data: tuple[Path, ...] = ()
    """Datasets that it was trained on; empty for those of the run."""
    evaluation: Path | None = None
    """What ``avtd3 evaluate --json`` printed."""
    licence: str = "not stated"
    """Licence of the policy."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PolicyReport:
    """What is known of a policy, and what was exported."""

    policy: Mapping[str, Any]
    """Version, digest, spec and network."""
    out: str = ""
    """The exported file; empty if nothing was exported."""
    card: str = ""
    """The model card."""
    size_bytes: int = 0
    """Size of the exported file."""
    difference: float = 0.0
    """Largest difference from the policy that was found, in half ranges of the action."""

    def summary(self) -> str:
        """Format the report for a terminal."""
        about = self.policy
        lines = [
            f"policy {about['version']}, {about['updates']:,} updates, SHA-256 {about['digest']}",
            *(f"{name:<12}{text}" for name, text in _facts(about)),
        ]
        if self.out:
            lines += [
                f"exported to {self.out} ({file_size(self.size_bytes)}); largest difference from "
                f"the policy: {self.difference:.1e} of half the action's range",
                f"model card: {self.card}",
            ]
        return join_lines(lines)

    def document(self) -> dict[str, Any]:
        """Return the report as a JSON object."""
        return dataclasses.asdict(self)


def describe_policy(policy: Policy) -> dict[str, Any]:
    """Return what a policy file says about itself, as JSON values."""
    actor = policy.actor
    return {
        "version": policy.version,
        "updates": policy.updates,
        "digest": policy.digest,
        "action_limit": policy.action_limit,
        "stack_stride": policy.stack_stride,
        "spec": policy.spec.to_json(),
        "layers": [layer.out_features for layer in actor.head.layers],
        "parameters": sum(parameter.numel() for parameter in actor.parameters()),
    }


def _facts(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    spec = about["spec"]
    for name, image in EpisodeSpec.from_json(spec).images.items():
        frame = f"{image.channels} x {image.height} x {image.width}"
        stride = image.stride * about["stack_stride"]
        apart = f", {stride} periods apart" if stride > 1 else ""
        stream = "" if name == IMAGE else f"stream {name}: "
        yield "frames", f"{stream}uint8, {image.stack} frames of {frame}{apart}, oldest first"
    if spec["vector_names"]:
        yield "vector", ", ".join(spec["vector_names"])
    ranges = zip(spec["action_names"], spec["action_low"], spec["action_high"], strict=True)
    yield "action", ", ".join(f"{name} ({low:g} to {high:g})" for name, low, high in ranges)
    yield "period", f"{spec['control_period_s']:g} s"
    layers = ", ".join(map(str, about["layers"]))
    yield "network", f"layers {layers}; {about['parameters']:,} parameters"
    if about["action_limit"] < 1.0:
        yield "limit", f"{about['action_limit']:.0%} of each half range of the action"


def export_policy(path: Path, out: Path, kind: str, card: CardConfig | None = None) -> PolicyReport:
    """Export a policy, compare it with the original, and write a model card beside it.

    Args:
        path: A policy file, a policy directory for its newest policy, or a URL of either.
        out: The file to write; the card has its name with ``.md``. Both are replaced atomically.
        kind: ``onnx`` or ``torch``.
        card: What the card says besides.

    Raises:
        CheckpointError: The policy cannot be read, or the export answers differently.
        MissingPackageError: A package for ONNX is not installed.

    Example:
        >>> from avtd3.learn import NetworkConfig, PolicyStore
        >>> from avtd3.learn.networks import Actor
        >>> from avtd3.store import EpisodeSpec
        >>> spec = EpisodeSpec(vector_names=("speed",), action_names=("pedal",))
        >>> config = NetworkConfig(hidden=(8,))
        >>> version = PolicyStore("policies").publish(Actor(spec, config), spec, config, updates=0)
        >>> report = export_policy(Path("policies"), Path("policy.pt2"), "torch")
        >>> report.difference < 1e-5, Path("policy.md").exists()
        (True, True)
    """
    if kind not in KINDS:
        raise ConfigError(f"--to is {kind!r}, expected one of: {', '.join(KINDS)}")
    if out.suffix == ".md" or out.is_dir():
        raise ConfigError(f"{out} is a directory or would be the model card; give another file")
    with local_policy(path) as local:
        policy = Policy.load(local)
    graph, about = _Graph(policy).eval(), describe_policy(policy)
    text = _card(about, out, kind, path, card or CardConfig())
    if kind == "onnx":
        data = _to_onnx(graph, about)
        difference = _compare(policy, _onnx_runner(data, graph.names))
    else:
        program = torch.export.export(graph, **_export_arguments(graph))
        difference = _compare(policy, _torch_runner(program))
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        data = buffer.getvalue()
    write_aside(out, data)
    write_aside(out.with_suffix(".md"), text.encode())
    return PolicyReport(
        policy=about,
        out=str(out),
        card=str(out.with_suffix(".md")),
        size_bytes=len(data),
        difference=difference,
    )


class _Graph(nn.Module):
    """A policy from raw inputs to actions."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self._actor, self._spec, self._limit = policy.actor, policy.spec, policy.action_limit
        self._scales: Tensor
        self.register_buffer("_scales", torch.tensor(policy.spec.vector_scales))
        images = self._spec.images
        self.frames = ["frames"] if len(images) == 1 else [f"frames_{name}" for name in images]
        self.names = [*self.frames, *(["vector"] if self._spec.vector_size else [])]

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return actions (B, A) for inputs in the order of `names`."""
        parts = dict(zip(self.names, inputs, strict=True))
        batch = ObservationBatch(
            pixels=tuple(parts[name].float() for name in self.frames),
            vector=parts["vector"] / self._scales if "vector" in parts else None,
        )
        action: Tensor = self._actor(batch)
        centre = self._actor.action_centre
        return action if self._limit == 1.0 else centre + self._limit * (action - centre)

    def examples(self, count: int) -> list[NDArray[Any]]:
        """Return a batch of noise for each input, the same each time."""
        rng, found = np.random.default_rng(count), []
        for image in self._spec.images.values():
            shape = (count, *image.observation_shape)
            found.append(rng.integers(0, 256, shape, np.uint8))
        if size := self._spec.vector_size:
            values = rng.standard_normal((count, size)) * self._spec.vector_scales
            found.append(values.astype(np.float32))
        return found


def _export_arguments(graph: _Graph) -> dict[str, Any]:
    batch = torch.export.Dim("batch", min=1, max=_MOST_BATCH)
    examples = tuple(map(torch.from_numpy, graph.examples(2)))
    return {"args": examples, "dynamic_shapes": (tuple({0: batch} for _ in examples),)}


def _torch_runner(program: torch.export.ExportedProgram) -> _Runner:
    module = program.module()

    def run(inputs: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        with torch.no_grad():
            actions: NDArray[np.float32] = module(*map(torch.from_numpy, inputs)).numpy()
        return actions

    return run


def _to_onnx(graph: _Graph, about: Mapping[str, Any]) -> bytes:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        import_extra(name, "onnx", "an export to ONNX")
    with _quiet():
        program = torch.onnx.export(
            graph,
            **_export_arguments(graph),
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=graph.names,
            output_names=["action"],
        )
    assert program is not None, "not with dynamo"
    model: Any = program.model_proto
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA, json.dumps(about, sort_keys=True)
    data: bytes = model.SerializeToString()
    return data


def _onnx_runner(data: bytes, names: Sequence[str]) -> _Runner:
    runtime = import_extra("onnxruntime", "onnx", "an export to ONNX")
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(["action"], dict(zip(names, inputs, strict=True)))[0]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporter says about operators that are not used."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for kind in (FutureWarning, DeprecationWarning, UserWarning):
                warnings.simplefilter("ignore", kind)
            yield
    finally:
        logger.setLevel(before)


def _compare(policy: Policy, run: _Runner) -> float:
    """Return the largest difference from a policy over batches of several sizes; raise if large."""
    spec, graph = policy.spec, _Graph(policy)
    half = (np.asarray(spec.action_high) - np.asarray(spec.action_low)) / 2.0
    scales = np.asarray(spec.vector_scales, np.float32)
    worst = 0.0
    for count in _BATCHES:
        inputs = graph.examples(count)
        actions = run(inputs)
        parts = dict(zip(graph.names, inputs, strict=True))
        for row in range(count):
            vector = parts["vector"][row] / scales if "vector" in parts else None
            stacks = zip(spec.images, graph.frames, strict=True)
            frames = {stream: parts[name][row] for stream, name in stacks}
            wanted = policy.act(frames, vector)
            worst = max(worst, float((np.abs(actions[row] - wanted) / half).max()))
    if not worst <= TOLERANCE:
        raise CheckpointError(
            f"the exported policy differs from the original by {worst:.1e} of half the action's "
            f"range, expected at most {TOLERANCE:g}; nothing was written"
        )
    return worst


def _card(about: Mapping[str, Any], out: Path, kind: str, policy: Path, config: CardConfig) -> str:
    """Return the model card, Markdown."""
    folder = policy if policy.is_dir() else policy.parent
    run = config.run or (folder.parent if (folder.parent / CONFIG_FILE).is_file() else None)
    settings = {} if run is None else read_settings(run)
    file = "ONNX" if kind == "onnx" else "a program of torch.export"
    paths = config.data or tuple(Path(str(path)) for path in settings.get("datasets", ()))
    lines = [
        f"# Driving policy {about['version']}",
        "",
        f"`{out.name}` is {file}, made by avtd3 {importlib.metadata.version('avtd3')} from a "
        f"policy of {about['updates']:,} updates with SHA-256 `{about['digest']}`.",
        "",
        f"Licence: {' '.join(config.licence.split())}",
        "",
        "## Inputs and output",
        "",
        "Pixels are scaled and the vector is normalised inside: give raw values. The first axis of "
        "each is the batch.",
        "",
        *markdown_table(["", ""], "<<", list(_facts(about))),
        "",
        "## Data",
        "",
        *_data_lines(paths, run),
        "",
        "## Evaluation",
        "",
        *_evaluation_lines(config.evaluation, about["digest"]),
        "",
        "## Settings of the training",
        "",
        *(_code(settings.get("learn")) if settings else ["Not known: no run was given."]),
        "",
    ]
    return "\n".join(lines)


def _code(document: object) -> list[str]:
    text = json.dumps(document, indent=1, sort_keys=True).replace("`", "'")
    return ["```json", *text.splitlines(), "```"]


def _data_lines(paths: Sequence[Path], run: Path | None) -> list[str]:
    rows = []
    for path in paths:
        try:
            snapshot = Dataset.open(mirror_path(run, path) if run else path).snapshot()
        except Avtd3Error as error:
            rows.append([show_path(path), "-", "-", f"not found: {abbreviate(str(error))}"])
            continue
        counts = [f"{len(snapshot.segments):,}", f"{snapshot.steps:,}"]
        rows.append([show_path(path), *counts, snapshot.digest])
    if not rows:
        return ["Not known: no run and no dataset was given."]
    heads = ["dataset", "segments", "steps", "digest at the time of the export"]
    return markdown_table(heads, "<>><", rows)


def _evaluation_lines(path: Path | None, digest: str) -> list[str]:
    if path is None:
        return ["None was given."]
    try:
        document = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--evaluation {path} cannot be read: {error}") from error
    found = document.get("policy_digest") if isinstance(document, dict) else None
    if found != digest:
        raise ConfigError(
            f"{path} is of a policy with digest {abbreviate(found)}, expected {digest}; give what "
            "avtd3 evaluate --json printed for this policy"
        )
    try:
        rows = [[name.replace("_", " "), text] for name, text in _measured(document)]
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"--evaluation {path} has a value that is no number: {error}") from error
    return markdown_table(["measure", "value"], "<>", rows)


def _measured(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the numbers and intervals of an evaluation."""
    for name, value in document.items():
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield name, number(float(value))
        elif isinstance(value, str) and name in ("world", "setting"):
            yield name, value
        elif name.endswith("_interval") and isinstance(value, list):
            yield f"{name} (95 %)", " to ".join(number(float(bound)) for bound in value)
