import contextlib
import dataclasses
import errno
import json
import math
import os
from collections.abc import Mapping
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtd3.configs import load
from avtd3.configs.commands.gate import load_directions, load_gate, load_names
from avtd3.configs.commands.options import parse_weights
from avtd3.store.errors import ConfigError, UnreadableError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    tau: float = 0.005
    """Share of the target network that each update replaces."""
    delay: int = 2
    mode: Literal["correct", "coupled"] = "correct"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    inner: Inner = Inner()
    weights: tuple[float, ...] = ()
    size: tuple[int, int] = (84, 84)
    name: str = "a"
    on: bool = False
    limit: float | None = None
    scores: Mapping[str, float] = dataclasses.field(default_factory=dict)
    more: tuple[Inner, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.isalpha() or self.name == "bad":
            raise ConfigError(f"name is {self.name!r}, expected letters")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    reach: int = 1


@pytest.fixture
def sections(monkeypatch):
    monkeypatch.setattr(load, "SECTIONS", {"outer": (__name__, "Outer"), "other": ("x", "Y")})
    monkeypatch.setattr(load, "section_type", lambda name: {"outer": Outer, "other": Other}[name])


def test_defaults_file_and_overrides_apply_in_this_order(sections, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("outer: {inner: {tau: 0.1, delay: 3}, weights: [1, 2.5]}\n")
    config = load.load_section("outer", str(file), ["outer.inner.tau=0.2", "outer.limit=7"])
    assert config == Outer(inner=Inner(tau=0.2, delay=3), weights=(1.0, 2.5), limit=7.0)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e-4", 1e-4), ("1E3", 1e3), ("+1.5e2", 150), (".5e1", 5), ("3", 3), ("-.inf", -math.inf)],
)
def test_numbers_may_have_an_exponent_without_a_dot(sections, text, number):
    tau = load.load_section("outer", None, [f"outer.inner.tau={text}"]).inner.tau
    assert tau == number
    assert isinstance(tau, float)


@pytest.mark.parametrize("text", ["3", "3.0", "3e0", "0x3"])
def test_whole_numbers_are_ints_in_every_notation(sections, text):
    delay = load.load_section("outer", None, [f"outer.inner.delay={text}"]).inner.delay
    assert delay == 3
    assert isinstance(delay, int)


@pytest.mark.parametrize("text", ["outer:", "outer:\n  inner:\n  # tau: 0.1\n"])
def test_a_key_without_a_value_keeps_its_default(sections, tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    assert load.load_section("outer", str(file)) == Outer()


def test_all_problems_are_listed_up_to_a_limit(sections, monkeypatch):
    wrong = ["outer.on=3", "outer.limit=x", "outer.nam=b"]
    with pytest.raises(ConfigError) as caught:
        load.load_section("outer", None, wrong)
    assert str(caught.value) == (
        "outer.on must be true or false, found 3; outer.limit must be a number, found 'x'; "
        "unknown key 'outer.nam'; did you mean outer.name?"
    )
    monkeypatch.setattr(load, "SHOWN_PROBLEMS", 1)
    with pytest.raises(ConfigError, match="found 3; and 2 more"):
        load.load_section("outer", None, wrong)


def test_a_file_that_expands_without_limit_is_rejected(sections, tmp_path):
    lines = ["a0: &a0 [1, 2]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12)]
    file = tmp_path / "c.yaml"
    file.write_text("outer:\n" + "".join(f"  {line}\n" for line in lines))
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        load.load_section("outer", str(file))
    file.write_text("outer: &loop {inner: *loop}")
    with pytest.raises(ConfigError, match="outer is not a plain document"):
        load.load_section("outer", str(file))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("outer.inner.tua=1", r"unknown key 'outer.inner.tua'.*did you mean outer.inner.tau"),
        ("outr.inner.tau=1", r"unknown section 'outr'.*did you mean outer"),
        ("outer.inner.delay=1.5", r"outer.inner.delay must be a whole number, found 1.5"),
        ("outer.inner.delay=true", r"outer.inner.delay must be a whole number, found True"),
        ("outer.on=1", r"outer.on must be true or false, found 1"),
        ("outer.inner.tau=fast", r"outer.inner.tau must be a number, found 'fast'"),
        ("outer.inner=3", r"outer.inner must be a mapping"),
        ("outer.inner.mode=coupld", r"outer.inner.mode must be 'correct' or 'coupled', found 'cou"),
        ("outer.inner=null", r"outer.inner must be a mapping of settings, found None"),
        ("outer.size=[1]", r"outer.size\[1\] is missing"),
        ("outer.size=[1, 2, 3]", r"outer.size must have 2 values, found 3"),
        ("outer.limit=true", r"outer.limit must be a number, found True"),
        ("outer.scores=[1]", r"outer.scores must be a mapping, found \[1\]"),
        ("outer.scores={a: x}", r"outer.scores.a must be a number, found 'x'"),
        ("outer.tau=1", r"unknown key 'outer.tau'; did you mean outer.inner.tau"),
        ("outer.inner.reach=1", r"unknown key 'outer.inner.reach'; did you mean other.reach\?"),
        ("outer.polyak=1", r"unknown key 'outer.polyak'; did you mean outer.inner.tau"),
        ("outer.zzz=1", r"unknown key 'outer.zzz'; known: inner, limit, more, name, on, scores"),
        ("outer.more=[{}, {taw: 1}]", r"'outer.more\[1\].taw'; did you mean outer.more\[1\].tau\?"),
        ("outer.name=2020-01-01", r"outer: name is '2020-01-01', expected letters"),
        ("outer={1: 2}", r"unknown key 'outer.1'"),
        ("outer={2020-01-01: 2}", r"outer is not a plain document"),
        ("outer.name=1e5", r"outer.name must be a string, found 100000"),
        ("outer.weights=3", r"outer.weights must be a list"),
        ("outer.weights=[x]", r"outer.weights\[0\] must be a number"),
        ("outer.name=bad", r"outer: name is 'bad'"),
        ("outer.name", r"expected section.key=value"),
        ("outer..name=1", r"expected section.key=value"),
        ("outer.name=[", r"not valid YAML"),
    ],
)
def test_an_invalid_override_is_named(sections, override, message):
    with pytest.raises(ConfigError, match=message):
        load.load_section("outer", None, [override])


MERGES = "\n".join(
    ["a0: &a0 {x: 1}"]
    + [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 12)]
)
HOSTILE_YAML = [
    "0x_", "-0x_", "0b_", "0x" + "f" * 5000, "1" * 5000, "9" * 400 + ":00.5", "1:2:" * 2000 + "3",
    "2020-13-45", "2020-02-30", "2020-01-01T99:99:99", "2020-01-01T00:00:00+99:99",
    "!!timestamp x", "!!bool x", "!!int x", "!!float x", "!!binary a", "!!omap [a]", "!!pairs [a]",
    "!!python/object/apply:os.system [x]", "!nothing x", "*nothing", "=", "&a [*a]", "{[1]: 2}",
    "{{a: 1}: 2}", "{<<: 3}", "[" * 1500 + "]" * 1500, "{a: " * 2000, "- " * 2000, "\0",
    "\x1b", "\udc80", '"\\ud800"', "'", "? ? ? x", "%YAML 9.9", "--- a\n--- b", "\t", MERGES,
]  # fmt: skip


@pytest.mark.parametrize("text", HOSTILE_YAML, ids=range(len(HOSTILE_YAML)))
def test_no_yaml_ends_in_anything_but_a_setting_or_a_config_error(sections, tmp_path, text):
    file = tmp_path / "c.yaml"
    for content in (
        f"outer: {{scores: {text}}}",
        f"outer: {{name: {text}",
        f"outer:\n  {text}",
        text,
    ):
        file.write_text(content, "utf-8", "surrogatepass")
        with contextlib.suppress(ConfigError):
            load.load_section("outer", str(file))
    for key in ("outer", "outer.name", "outer.inner.tau", "outer.inner.delay", "outer.scores"):
        try:
            load.load_section("outer", None, [f"{key}={text}"])
        except ConfigError as error:
            assert len(str(error)) < 1000  # noqa: PT017 - most are errors, some are not


@given(st.text(), st.text())
def test_any_override_is_a_setting_or_a_config_error(key, value):
    for text in (f"{key}={value}", f"audit.{key}={value}", f"audit={value}"):
        with contextlib.suppress(ConfigError):
            load.load_section("audit", None, [text])


@pytest.mark.parametrize("text", ["9223372036854775808", "-1e300", "0x8000000000000000"])
def test_whole_numbers_beyond_64_bits_are_refused(sections, text):
    with pytest.raises(ConfigError, match=r"outer.inner.delay is -?\d.*, expected at most 92233"):
        load.load_section("outer", None, [f"outer.inner.delay={text}"])
    assert abs(load.load_section("outer", None, [f"outer.limit={text}"]).limit) >= 2**63


@pytest.mark.parametrize("key", ["name", "on", "limit", "weights", "scores", "inner", "size"])
def test_an_alias_bomb_in_a_known_key_makes_a_short_message(sections, tmp_path, key):
    file = tmp_path / "c.yaml"
    long = f"outer: {{name: &a {'x' * 500_000}, more: [*a, *a, *a], {key}: [{'*a, ' * 9000}]}}"
    many = f"outer: {{{key}: [&a [{'1, ' * 20}], {'*a, ' * 2000}]}}"
    for text in (long, many):
        file.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load.load_section("outer", str(file))
        assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("kind", ["pipe", "zeros", "directory", "large"])
def test_only_regular_files_of_limited_size_are_read(sections, tmp_path, kind):
    file = tmp_path / "c.yaml"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "zeros":
        file.symlink_to("/dev/zero")
    elif kind == "directory":
        file.mkdir()
    else:
        file.write_bytes(b"#" * (load.MAX_CONFIG_BYTES + 1))
    for read in (
        lambda: load.load_section("outer", str(file)),
        lambda: parse_weights([str(file)]),
        lambda: load_gate(None, file),
        lambda: load_directions(file),
        lambda: load_names(str(file)),
    ):
        with pytest.raises(ConfigError, match=r"c\.yaml"):
            read()


def test_a_file_that_cannot_be_read_now_is_no_verdict(sections, monkeypatch):
    def fail(path, most):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))

    monkeypatch.setattr(load, "read_bytes", fail)
    with pytest.raises(UnreadableError, match=r"c\.yaml cannot be read: Stale file handle"):
        load.load_section("outer", "c.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n", "must be a mapping"), ("a: [", "not valid YAML"), ("\x00", "not valid YAML")],
)
def test_an_invalid_file_is_named(sections, tmp_path, text, message):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load.load_section("outer", str(file))


def test_only_a_file_of_wrong_bytes_is_said_not_to_be_text(sections, tmp_path):
    (tmp_path / "c.yaml").write_bytes(b"name: \xff")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8 text"):
        load.load_section("outer", str(tmp_path / "c.yaml"))
    with pytest.raises(ConfigError, match=r"cannot be read: .* is not a regular file"):
        load.load_section("outer", str(tmp_path))


def test_a_missing_file_lists_the_presets(sections):
    with pytest.raises(ConfigError, match="no such file; give a YAML file or a preset"):
        load.load_section("outer", "nowhere.yaml")


def test_a_directory_may_have_the_name_of_a_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert load.read_config("demo")["demo"]["steps"] == 60000


def test_an_empty_file_means_the_defaults(sections, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("")
    assert load.load_section("outer", str(file)) == Outer()


@given(
    st.builds(
        Outer,
        inner=st.builds(Inner, tau=st.floats(0, 1), delay=st.integers(1, 9)),
        weights=st.lists(st.floats(0, 9)).map(tuple),
        limit=st.none() | st.floats(0, 1),
        scores=st.dictionaries(st.text(), st.floats(allow_nan=False)),
        more=st.lists(st.builds(Inner)).map(tuple),
    )
)
def test_a_config_reads_back_as_itself(config):
    assert load.build(Outer, dataclasses.asdict(config), path="outer") == config


@pytest.mark.parametrize("name", load.SECTIONS)
def test_every_section_builds_from_nothing_and_reads_itself_back(name):
    config = load.load_section(name)
    assert load.build(type(config), dataclasses.asdict(config), path=name) == config


def test_the_schema_describes_types_defaults_and_meanings(sections):
    schema = load.json_schema("outer")
    definitions = schema["$defs"]
    assert schema["$ref"] == "#/$defs/Outer"
    definitions["Inner"].pop("description", None)  # pydantic before 2.14 omits it
    assert definitions["Inner"] == {
        "type": "object",
        "title": "Inner",
        "additionalProperties": False,
        "properties": {
            "tau": {
                "type": "number",
                "title": "Tau",
                "default": 0.005,
                "description": "Share of the target network that each update replaces.",
            },
            "delay": {"type": "integer", "title": "Delay", "default": 2},
            "mode": {
                "type": "string",
                "title": "Mode",
                "default": "correct",
                "enum": ["correct", "coupled"],
            },
        },
    }
    assert "required" not in definitions["Outer"]


def test_a_schema_of_an_unknown_section_is_rejected(sections):
    with pytest.raises(ConfigError, match=r"unknown section 'outr'.*did you mean outer"):
        load.json_schema("outr")


def test_inherited_keys_are_described_too():
    definitions = load.json_schema("collect")["$defs"]
    assert "EnvironmentConfig" not in definitions
    for name in ("CollectConfig", "CarlaCamera"):
        for key, field in definitions[name]["properties"].items():
            assert field["description"], f"{name}.{key}"


def test_the_schema_of_a_file_has_every_section_and_no_other():
    schema = load.json_schema()
    assert list(schema["properties"]) == list(load.SECTIONS)
    assert schema["additionalProperties"] is False
    for name, reference in schema["properties"].items():
        key = reference["$ref"].removeprefix("#/$defs/")
        fields = {field.name for field in dataclasses.fields(load.section_type(name))}
        assert set(schema["$defs"][key]["properties"]) == fields
    for definition in schema["$defs"].values():
        assert definition["additionalProperties"] is False
    json.dumps(schema, allow_nan=False)


@pytest.mark.parametrize("preset", load.presets())
def test_every_preset_loads(preset):
    for section in load.read_config(preset):
        load.load_section(section, preset)


@pytest.mark.parametrize("source", [None, "demo", "carla"])
def test_dumped_settings_load_as_the_same_settings(tmp_path, source):
    file = tmp_path / "all.yaml"
    file.write_text(load.dump_sections(None, source, ["learn.td3.tau=0.25"]))
    for name in load.SECTIONS:
        expected = load.load_section(name, source, ["learn.td3.tau=0.25"])
        assert load.load_section(name, str(file)) == expected


def test_one_section_can_be_dumped(sections):
    text = load.dump_sections("outer", None, ["outer.scores={a: 1}"])
    assert text.startswith("outer:\n  inner:\n    tau: 0.005\n")
    assert load.parse_mapping(text, "text", of="sections")["outer"]["scores"] == {"a": 1}
    with pytest.raises(ConfigError, match=r"unknown section 'outr'.*did you mean outer"):
        load.dump_sections("outr")
