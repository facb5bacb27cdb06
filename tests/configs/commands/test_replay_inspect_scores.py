"""`avtd3 replay-inspect --scores`: from stored events to text, JSON and page."""

import dataclasses
import json
import shutil

import pytest

from avtd3.collect.collector import CollectConfig, collect
from avtd3.collect.leaderboard import TABLES, score_datasets
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.configs.commands.replay_inspect import page_section
from avtd3.store.dataset import Dataset
from avtd3.tests.collect.point_world import open_point_world
from avtd3.tests.store.format.test_golden import GOLDEN
from avtd3.tests.store.test_events import write


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    path = tmp_path_factory.mktemp("driven") / "d"
    setting = ScenarioConfig(route_length_m=30.0, time_limit_s=6.0)
    config = CollectConfig(driver="1:expert,1:random", scenario=setting)
    collect(path, config, episodes=8, open_world=open_point_world)
    return path


def test_json_has_the_scores_of_every_episode(driven, avtd3):
    _, out, _ = avtd3("replay-inspect", driven, "--scores", "--json")
    scores = json.loads(out)["scores"]
    assert (scores["penalties"], scores["unscored"]) == ("leaderboard-2.1", [])
    assert len(scores["rows"]) == scores["all"]["episodes"] == 8
    assert scores["by_driver"].keys() == {"expert", "random"}
    assert scores["by_driver"]["expert"]["driving_score"] == 100.0
    assert scores["by_driver"]["random"]["driving_score"] < 100.0
    row = scores["rows"][0]
    assert row["driving_score"] == pytest.approx(
        row["completion_percent"] * row["infraction_penalty"]
    )
    assert {"segment", "episode", "scenario", "town", "end_reason"} <= row.keys()


def test_penalties_are_a_setting(driven, avtd3):
    penalties = "evaluate.penalties=leaderboard-2.0"
    _, out, _ = avtd3("replay-inspect", driven, "--scores", "--json", "--set", penalties)
    assert json.loads(out)["scores"]["penalties"] == "leaderboard-2.0"
    code, _, err = avtd3("replay-inspect", driven, "--scores", "--set", "evaluate.penalties=mine")
    assert code == 2
    assert "expected one of: leaderboard-1.0, leaderboard-2.0" in err


def test_the_text_reports_scores_by_driver(driven, avtd3):
    _, out, _ = avtd3("replay-inspect", driven, "--scores")
    assert "scores  CARLA leaderboard-2.1, 8 episodes" in out
    assert "not observed: stop_infraction" in out
    lines = [line.split() for line in out.splitlines()]
    assert [line[2] for line in lines if line[:1] == ["expert"] and len(line) > 5] == ["100.0"]


def test_without_the_option_there_are_no_scores(driven, avtd3):
    _, out, _ = avtd3("replay-inspect", driven, "--json")
    assert json.loads(out)["scores"] is None


def test_the_page_has_a_section_on_scores(driven, avtd3, tmp_path):
    avtd3("replay-inspect", driven, "--scores", "--html", tmp_path / "a.html")
    text = (tmp_path / "a.html").read_text()
    assert "Driving scores" in text
    assert "leaderboard-2.1" in text
    avtd3("replay-inspect", driven, "--html", tmp_path / "b.html")
    assert "Driving scores" not in (tmp_path / "b.html").read_text()


def test_there_is_no_empty_card_of_infractions(driven):
    report = score_datasets([driven], TABLES["leaderboard-2.1"])
    assert "Infractions" in str(page_section(report)[1])
    expert = tuple(score for score in report.scores if score.driver == "expert")
    page = str(page_section(dataclasses.replace(report, scores=expert))[1])
    assert "By driver" in page
    assert "Infractions" not in page


def test_episodes_without_events_are_listed(avtd3, tmp_path):
    dataset = write(tmp_path / "some")
    shutil.copytree(GOLDEN / "dataset-v1", tmp_path / "old")
    _, out, _ = avtd3("replay-inspect", tmp_path / "old", "--scores", "--html", tmp_path / "c.html")
    assert "0 episodes" in out
    assert "2 episodes (0, 1): no events are stored" in out
    assert "Episodes without a score" in (tmp_path / "c.html").read_text()
    report = score_datasets([dataset.path], TABLES["leaderboard-2.1"])
    assert [entry.episodes for entry in report.unscored] == [(0, 1, 2)]
    assert report.document()["all"] is None


def test_damaged_segments_are_named_and_the_others_scored(driven, tmp_path):
    path = tmp_path / "copy"
    shutil.copytree(driven, path)
    (segment,) = Dataset.open(path).snapshot().segments
    chunk = segment.path / "event_value" / "c" / "0"
    data = bytearray(chunk.read_bytes())
    data[0] ^= 255
    chunk.write_bytes(data)
    report = score_datasets([path, driven], TABLES["leaderboard-2.1"])
    assert len(report.scores) == 8
    (broken,) = report.unscored
    assert broken.dataset == str(path)
    assert "event_value" in broken.reason
    assert "event_value" in report.summary()


def test_scores_and_one_episode_exclude_each_other(driven, avtd3):
    code, _, err = avtd3("replay-inspect", driven, "--scores", "--episode", "worst")
    assert code == 2
    assert "give one of them" in err


def test_reading_stops_on_request(driven):
    assert score_datasets([driven], TABLES["leaderboard-2.1"], lambda: True).scores == ()
