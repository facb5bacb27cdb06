import dataclasses
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from avtd3.configs import load
from avtd3.store.errors import ConfigError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    tau: float = 0.005
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

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ConfigError("name is 'bad', expected anything else")


@pytest.fixture
def sections(monkeypatch):
    monkeypatch.setattr(load, "SECTIONS", {"outer": (__name__, "Outer"), "other": ("x", "Y")})
    monkeypatch.setattr(load, "section_type", lambda name: {"outer": Outer}[name])


def test_defaults_file_and_overrides_apply_in_this_order(sections, tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("outer: {inner: {tau: 0.1, delay: 3}, weights: [1, 2.5]}\n")
    config = load.load_section("outer", str(file), ["outer.inner.tau=0.2", "outer.limit=7"])
    assert config == Outer(inner=Inner(tau=0.2, delay=3), weights=(1.0, 2.5), limit=7.0)


def test_a_number_without_a_dot_in_its_mantissa_is_a_number(sections):
    assert load.load_section("outer", None, ["outer.inner.tau=1e-4"]).inner.tau == 1e-4


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
        ("outer.inner.mode=coupld", r"did you mean coupled"),
        ("outer.size=[1]", r"outer.size must have 2 values, found 1"),
        ("outer.weights=3", r"outer.weights must be a list"),
        ("outer.weights=[x]", r"outer.weights\[0\] must be a number"),
        ("outer.name=bad", r"outer: name is 'bad'"),
        ("outer.name", r"must look like section.key=value"),
        ("outer..name=1", r"must look like section.key=value"),
        ("outer.name=[", r"not valid YAML"),
    ],
)
def test_a_wrong_override_is_named(sections, override, message):
    with pytest.raises(ConfigError, match=message):
        load.load_section("outer", None, [override])


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n", "must be a mapping"), ("a: [", "not valid YAML"), ("\x00", "not valid YAML")],
)
def test_a_wrong_file_is_named(sections, tmp_path, text, message):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load.load_section("outer", str(file))


def test_a_missing_file_lists_the_presets(sections):
    with pytest.raises(ConfigError, match="no such file; give a YAML file or a preset"):
        load.load_section("outer", "nowhere.yaml")


def test_a_dataset_may_be_called_like_its_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    assert load.read_config("demo")["demo"]["steps"] == 30000


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
    )
)
def test_a_document_reads_back_as_the_same_config(config):
    assert load.build(Outer, load.to_document(config), path="outer") == config


@pytest.mark.parametrize("name", load.SECTIONS)
def test_every_section_builds_from_nothing_and_reads_itself_back(name):
    config = load.load_section(name)
    assert load.build(type(config), load.to_document(config), path=name) == config


@pytest.mark.parametrize("preset", load.presets())
def test_every_preset_loads(preset):
    for section in load.read_config(preset):
        load.load_section(section, preset)
