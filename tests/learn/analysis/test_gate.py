import dataclasses
import json

import pytest

from avtd3.learn.analysis.criteria import Criterion, GateConfig
from avtd3.learn.analysis.gate import gate, read_settings
from avtd3.learn.analysis.metric_names import NameBook, NameMap, NameSet, nearest
from avtd3.learn.analysis.pages import gate_page
from avtd3.store.errors import ConfigError

OURS = NameSet(name="avtd3", axis="updates", marks=("critic/loss", "critic/q_gap"))
OTHERS = NameSet(
    name="other", axis="steps", marks=("train/closs",), tags={"critic/loss": "train/closs"}
)
BOOK = NameBook(sets=(OURS, OTHERS))


def config(*criteria, steps=None):
    named = [{"name": f"c{i}"} | settings for i, settings in enumerate(criteria)]
    return GateConfig(stage="s", steps=steps, criteria=tuple(Criterion(**c) for c in named))


def verdicts(report):
    return {result.name: result.verdict for result in report.criteria}


LOSS = {"metric": "critic/loss", "below": 5}


@pytest.fixture
def run(tmp_path, write_run):
    points = {
        "critic/loss": [(s, 4.0) for s in range(100, 1001, 100)],
        "actor/loss": [(s, -2.0) for s in range(100, 1001, 100)],
        "actor_mlp/grad_norm_after": [(s, 1.5) for s in range(100, 1001, 100)],
    }
    return write_run(tmp_path / "run", points)


def test_go_when_everything_holds(run):
    report = gate(run, config(LOSS, steps=1000), BOOK)
    assert report.verdict == "GO"
    assert verdicts(report) == {"event files whole": "pass", "steps reached": "pass", "c0": "pass"}


def test_one_failure_is_no_go(run):
    report = gate(run, config(LOSS, LOSS | {"below": 3}), BOOK)
    assert report.verdict == "NO-GO"
    assert verdicts(report)["c1"] == "fail"


def test_an_absent_metric_is_unknown_and_no_go(run):
    report = gate(run, config(LOSS | {"metric": "critic/los"}), BOOK)
    assert report.verdict == "NO-GO"
    (result,) = report.criteria[1:]
    assert result.verdict == "unknown"
    assert "--map critic/los=critic/loss" in result.outcome.reason


def test_an_optional_metric_may_be_absent_but_not_bad(run):
    absent = LOSS | {"metric": "critic_cnn/feature_norm", "optional": True}
    report = gate(run, config(absent, LOSS | {"below": 3, "optional": True}), BOOK)
    assert verdicts(report) == {"event files whole": "pass", "c0": "skipped", "c1": "fail"}


def test_a_person_may_call_metrics_optional(run):
    absent = config(LOSS | {"metric": "critic_cnn/feature_norm"})
    assert gate(run, absent, BOOK, optional=["*_cnn/*"]).verdict == "GO"
    assert gate(run, absent, BOOK, optional=["c0"]).verdict == "GO"
    with pytest.raises(ConfigError, match=r"matches no metric.*critic_cnn/feature_norm"):
        gate(run, absent, BOOK, optional=["critic_cnn/feature_nrm"])


def test_an_advisory_criterion_only_warns(run):
    report = gate(run, config(LOSS | {"below": 3, "advisory": True}), BOOK)
    assert verdicts(report)["c0"] == "warning"
    assert report.verdict == "GO"


def test_a_stage_wants_its_steps_and_looks_no_further(run, write_run):
    assert verdicts(gate(run, config(LOSS, steps=1020), BOOK))["steps reached"] == "pass"
    report = gate(run, config(LOSS, steps=1100), BOOK)
    assert verdicts(report)["steps reached"] == "fail"
    write_run(run, {"critic/loss": [(1100, 1e9)]}, first_step=1001)
    report = gate(run, config(LOSS, steps=1000), BOOK)
    assert report.verdict == "GO"
    assert "continues to 1,100" in report.notices[0]
    assert gate(run, config(LOSS), BOOK).verdict == "NO-GO"


def test_damage_is_no_go_and_a_truncated_end_is_reported(run):
    (path,) = (run / "events").iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    report = gate(run, config(LOSS), BOOK)
    assert report.verdict == "GO"
    assert "ends inside a record" in report.notices[0]
    path.write_bytes(whole[:-3] + b"\x00" + whole[-2:])
    report = gate(run, config(LOSS), BOOK)
    assert verdicts(report) == {"event files whole": "fail", "c0": "pass"}
    assert report.verdict == "NO-GO"


def test_limits_come_from_the_run_where_it_has_them(run):
    clipped = {
        "metric": "actor_mlp/grad_norm_after",
        "at_most": 1.0,
        "at_most_setting": "learn.td3.clip.actor_max_norm",
    }
    assert gate(run, config(clipped), BOOK).verdict == "NO-GO"
    settings = {"learn": {"td3": {"clip": {"actor_max_norm": 2.0}}}}
    (run / "config.json").write_text(json.dumps(settings))
    report = gate(run, config(clipped), BOOK)
    assert report.verdict == "GO"
    assert report.criteria[1].limit == "every x <= 2"
    assert "the run's own learn.td3.clip.actor_max_norm" in report.criteria[1].outcome.reason


def test_invalid_settings(run):
    assert read_settings(run) == {}
    (run / "config.json").write_text("[1]")
    assert read_settings(run) == {}
    (run / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json is not valid JSON"):
        read_settings(run)


def test_other_writers_are_known_by_their_tags(tmp_path, write_foreign):
    write_foreign(tmp_path, {"train/closs": [(1000, 4.0)]})
    report = gate(tmp_path, config(LOSS), BOOK)
    assert report.verdict == "GO"
    assert (report.names, report.axis) == ("other", "steps")
    assert report.criteria[1].tag == "train/closs"


def test_a_set_of_names_may_be_chosen(tmp_path, write_foreign):
    write_foreign(tmp_path, {"train/closs": [(1000, 4.0)]})
    assert gate(tmp_path, config(LOSS), NameBook(sets=(OURS,), chosen=OURS)).verdict == "NO-GO"
    assert gate(tmp_path, config(LOSS), NameBook(sets=(OURS,), chosen=OTHERS)).verdict == "GO"


def test_a_person_may_map_names(tmp_path, write_foreign):
    write_foreign(tmp_path, {"my loss": [(1000, 4.0)]})
    book = NameBook(sets=(OURS,), own={"critic/loss": "my loss"})
    assert gate(tmp_path, config(LOSS), book).verdict == "GO"
    book = NameBook(sets=(OURS,), own={"critic/loss": "my los"})
    with pytest.raises(ConfigError, match="did you mean my loss"):
        gate(tmp_path, config(LOSS), book)


def test_names_go_both_ways():
    names = NameMap(source=OTHERS, own={"actor/loss": "mine"})
    assert [names.tag(m) for m in ("critic/loss", "actor/loss", "x")] == [
        "train/closs",
        "mine",
        "x",
    ]
    assert [names.metric(t) for t in ("train/closs", "mine", "x")] == [
        "critic/loss",
        "actor/loss",
        "x",
    ]


def test_one_tag_is_one_metric():
    with pytest.raises(ConfigError, match="two metrics"):
        NameSet(name="x", tags={"a": "t", "b": "t"})


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("critic/loss", "train/critic_loss"),
        ("episode/length", "rollout/ep_len_mean"),
        ("actor/loss", "losses/actor_loss"),
    ],
)
def test_the_nearest_tag(name, tag):
    tags = ["time/fps", "train/critic_loss", "losses/actor_loss", "rollout/ep_len_mean"]
    assert nearest(name, tags) == tag


def test_nothing_like_it():
    assert nearest("alerts/stop", ["time/fps"]) is None
    assert nearest("critic/q_gap", ["critic/loss", "critic/q1_mean"]) is None
    assert nearest("///", ["a"]) is None


def test_the_document_is_stable(run):
    report = gate(run, config(LOSS | {"why": "w", "source": "reports"}, LOSS | {"below": 3}), BOOK)
    document = json.loads(json.dumps(report.document(), allow_nan=False))
    assert list(document) == [
        *("format", "run", "stage", "verdict", "names", "axis", "judged_to", "last_step"),
        *("counts", "criteria", "notices"),
    ]
    assert document["format"] == "avtd3.gate/1"
    assert document["counts"] == {"pass": 2, "fail": 1}
    assert document["criteria"][1] == {
        "name": "c0",
        "metric": "critic/loss",
        "tag": "critic/loss",
        "limit": "every x < 5",
        "value": 4.0,
        "shown": "4",
        "passed": True,
        "verdict": "pass",
        "blocks": False,
        "at_step": 100,
        "steps": [100, 1000],
        "points": 10,
        "reason": "all 10 points; the nearest to the bound is shown",
        "why": "w",
        "source": "reports",
    }


def test_a_document_with_wild_values_is_json(tmp_path, write_run):
    run = write_run(tmp_path, {"critic/loss": [(100, float("nan")), (200, float("inf"))]})
    for rule in ({"below": 5}, {"rule": "share", "below": 5}, {"rule": "last", "below": 5}):
        report = gate(run, config({"metric": "critic/loss"} | rule), BOOK)
        json.dumps(report.document(), allow_nan=False)
        assert report.verdict == "NO-GO"


GOLDEN = """\
# NO-GO: stage s of `RUN`

The stage is not passed. Not met or not measured: c1, c2.

| verdict | criterion | metric | asked | measured | at updates | why |
| --- | --- | --- | --- | ---: | ---: | --- |
| pass | event files whole |  |  | 1 event file |  | every checksum is valid |
| pass | c0 | `critic/loss` | every x &lt; 5 | 4 | 100 | all 10 points; the nearest to the bound \
is shown |
| **fail** | c1 | `actor/loss` | max \\|x\\| &lt; 1 | 2 | 100 | max of 10 points. the actor \
runs off |
| **unknown** | c2 | `critic/q_gap` | falling (95% sure) | absent |  | the run has no \
'critic/q_gap' |
"""


def test_markdown(run):
    runs_off = {"metric": "actor/loss", "rule": "max", "absolute": True, "below": 1}
    criteria = config(
        LOSS,
        runs_off | {"why": "the actor runs off"},
        {"metric": "critic/q_gap", "rule": "falling"},
    )
    assert gate(run, criteria, BOOK).markdown().replace(str(run), "RUN") == GOLDEN


def test_the_table_for_a_terminal(run):
    text = gate(run, config(LOSS, LOSS | {"below": 3, "why": "look there"}), BOOK).summary()
    assert text.splitlines()[-1] == f"NO-GO: stage s of {run} (2 pass, 1 fail)"
    assert "FAIL  c1" in text
    assert "critic/loss: 10 of 10 points outside, the first at 100" in text
    assert "look there" in text


def test_only_a_failure_prints_what_a_failure_means(run):
    absent = {"metric": "critic/q_gap", "below": 1, "why": "they disagree"}
    criteria = config(absent, LOSS | {"below": 3, "why": "look there", "advisory": True})
    report = gate(run, criteria, BOOK)
    assert verdicts(report) == {"event files whole": "pass", "c0": "unknown", "c1": "warning"}
    for text in (report.summary(), report.markdown(), gate_page(report)):
        assert "they disagree" not in text
        assert "ook there" in text


def test_what_passing_means_is_said_on_go_only(run):
    about = "GO for the next run."
    for limit, is_said in ((5, True), (3, False)):
        criteria = dataclasses.replace(config(LOSS | {"below": limit}), about=about)
        report = gate(run, criteria, BOOK)
        for text in (report.markdown(), gate_page(report)):
            assert (about in text) == is_said
            assert ("stage is not passed" in text) == (not is_said)


@pytest.mark.parametrize(
    ("settings", "applied"),
    [({"follow": False}, "c1"), ({"follow": True}, "c0"), ({}, "c0"), (None, "c0")],
    ids=str,
)
def test_criteria_apply_to_runs_with_or_without_new_episodes(run, settings, applied):
    if settings is not None:
        (run / "config.json").write_text(json.dumps(settings))
    bad = LOSS | {"below": 3}
    report = gate(run, config(bad | {"data": "online"}, bad | {"data": "offline"}), BOOK)
    other = {"c0": "c1", "c1": "c0"}[applied]
    assert verdicts(report) == {"event files whole": "pass", applied: "fail", other: "skipped"}
    assert "only for runs that learn o" in report.markdown()
