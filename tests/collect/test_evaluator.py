import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from avtd3.collect import evaluator
from avtd3.collect.collector import CollectConfig, collect
from avtd3.collect.driving.driving_env import CAPTION_PX, LEGEND, PANEL_PX
from avtd3.collect.evaluator import (
    EvaluateConfig,
    EvaluateProgress,
    evaluate,
    sheet_held_out,
)
from avtd3.collect.maps.scenarios import ScenarioConfig
from avtd3.collect.plan import evaluation_seed
from avtd3.collect.worlds import open_environment
from avtd3.store.dataset import Dataset
from avtd3.store.errors import CheckpointError, ConfigError
from avtd3.store.render import media
from avtd3.store.render.media import BAD, GOOD, INK, LEGEND_PX, write_contact_sheet
from avtd3.tests.collect.lossy_world import LossyWorld
from avtd3.tests.collect.point_world import (
    open_camera_world,
    open_point_world,
    open_world_that_fails,
)

SHORT = ScenarioConfig(route_length_m=30.0, time_limit_s=6.0)
CONFIG = EvaluateConfig(scenario=SHORT, episodes=4)


def examine(subject, config=CONFIG, **options):
    return evaluate(subject, config, **{"open_world": open_point_world, **options})


def test_the_expert_succeeds_and_chance_does_not():
    expert, chance = examine("expert"), examine("random")
    assert expert.document()["success_rate"] == 1.0
    assert chance.document()["success_rate"] < 0.5
    assert expert.document()["return_mean"] > chance.document()["return_mean"] + 20
    assert expert.document()["lateral_deviation_m"] < 0.5
    assert expert.policy_version is None


def test_the_document_has_the_keys_that_scripts_rely_on():
    document = examine("expert").document()
    wanted = {
        "episodes",
        "success_rate",
        "success_interval",
        "return_mean",
        "route_completion",
        "collisions_per_km",
        "lateral_deviation_m",
        "speed_mps",
    }
    assert wanted <= document.keys()
    assert [row["index"] for row in document["rows"]] == [0, 1, 2, 3]
    assert [row["seed"] for row in document["rows"]] == [evaluation_seed(0, i) for i in range(4)]
    assert json.loads(json.dumps(document, allow_nan=False))["end_reasons"] == {"goal": 4}


def test_the_same_seed_scores_the_same_whatever_the_workers():
    one = examine("1:expert+noise,1:random")
    two = examine("1:expert+noise,1:random", dataclasses.replace(CONFIG, workers=2))
    other = examine("1:expert+noise,1:random", dataclasses.replace(CONFIG, seed=1))
    assert one.scores == two.scores
    assert {s.seed for s in one.scores}.isdisjoint(s.seed for s in other.scores)


def test_more_episodes_continue_where_fewer_ended():
    more = examine("expert", dataclasses.replace(CONFIG, episodes=5))
    assert more.scores[:4] == examine("expert").scores


def test_the_summary_is_for_people():
    text = examine("expert").summary()
    assert "4 held-out episodes" in text
    assert "success         100%" in text
    found = examine("expert").document()
    assert found["target_speed_mps"] == 30.0 / 3.6
    assert found["speed_of_target"] == pytest.approx(3.6 * found["speed_mps"] / 30.0)
    assert f"{found['speed_of_target']:.0%} of the target of 30 km/h" in text
    assert "4 goal" in text


def test_progress_and_stop():
    seen: list[EvaluateProgress] = []
    report = examine(
        "expert",
        on_progress=seen.append,
        should_stop=lambda: len(seen) == 2,
    )
    assert [entry.done for entry in seen] == [1, 2]
    assert seen[-1].fraction == 0.5
    assert seen[-1].line() == f"2 of 4 episodes, mean return {seen[-1].return_mean:.1f}"
    assert report.interrupted
    assert len(report.scores) == 2


def test_the_first_episode_can_be_animated(tmp_path):
    report = examine("expert", dataclasses.replace(CONFIG, episodes=1), gif=tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as picture:
        assert getattr(picture, "n_frames", 1) >= report.scores[0].steps // 4
    assert report.scores == examine("expert", dataclasses.replace(CONFIG, episodes=1)).scores


def colours_in(picture, box):
    """The colours in a part of a picture."""
    pixels = np.asarray(picture.convert("RGB").crop(box)).reshape(-1, 3)
    return {tuple(pixel) for pixel in np.unique(pixels, axis=0).tolist()}


@pytest.mark.parametrize(("subject", "ink"), [("expert", GOOD), ("random", BAD)])
def test_a_film_ends_with_a_still_of_the_outcome_above_a_legend(tmp_path, subject, ink):
    config = dataclasses.replace(CONFIG, episodes=1, seed=1)  # chance leaves the road
    (score,) = examine(subject, config, gif=tmp_path / "a.gif").scores
    assert (score.end_reason == "goal") == (ink == GOOD)
    with Image.open(tmp_path / "a.gif") as picture:
        assert picture.height == PANEL_PX + CAPTION_PX + LEGEND_PX
        corner, legend = (0, 0, 40, 30), (0, picture.height - LEGEND_PX, *picture.size)
        assert ink not in colours_in(picture, corner)
        picture.seek(getattr(picture, "n_frames", 1) - 1)
        assert ink in colours_in(picture, corner)
        assert {colour for colour, _ in LEGEND} <= colours_in(picture, legend)
        assert picture.info["duration"] >= 1500  # equal pictures are one, shown for longer


def test_a_long_film_skips_to_the_outcome(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "FILM_PICTURES", 3)
    config = dataclasses.replace(CONFIG, episodes=1)
    examine("expert", config, gif=tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as picture:
        assert getattr(picture, "n_frames", 1) == 4
        picture.seek(3)
        assert GOOD in colours_in(picture, (0, 0, 40, 30))


def test_a_film_ends_when_it_should_stop(tmp_path):
    report = examine("expert", gif=tmp_path / "a.gif", should_stop=lambda: True)
    assert report.interrupted
    with Image.open(tmp_path / "a.gif") as picture:
        assert getattr(picture, "n_frames", 1) <= 2  # the still repeats


def test_a_contact_sheet_has_a_legend_and_each_outcome(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluator, "open_world", open_point_world)
    mixed = "0.5:expert,0.5:random"
    scores = examine(mixed).scores
    reached = [score.end_reason == "goal" for score in scores]
    assert len({*reached}) == 2, "choose another seed"
    texts = []

    def note(pictures, captions, path, **options):
        texts.extend([captions, options])
        write_contact_sheet(pictures, captions, path, **options)

    monkeypatch.setattr(media, "write_contact_sheet", note)
    path = tmp_path / "a.png"
    sheet_held_out(mixed, CONFIG, path, scores=scores[:3], should_stop=lambda: False)
    captions, options = texts
    for caption, score in zip(captions, scores[:3], strict=False):
        place, outcome = caption.split("\n")
        assert place == f"{score.index}: {score.town}, {score.weather}"
        assert outcome.startswith(score.end_reason.replace("_", " "))
        assert f"{score.measures['route_completion']:.0%} of the route" in outcome
    assert captions[3].endswith("\nnot scored")
    assert options["inks"] == [GOOD if is_goal else BAD for is_goal in reached[:3]] + [INK]
    assert f"{sum(reached[:3])} of 4 roads driven to the goal" in options["title"]
    with Image.open(path) as sheet:
        assert {colour for colour, _ in LEGEND} <= colours_in(sheet, (0, 0, sheet.width, 60))


def test_a_contact_sheet_lacks_an_episode_without_a_route(tmp_path, monkeypatch):
    world = LossyWorld(routeless=[evaluation_seed(CONFIG.seed, 1)])
    monkeypatch.setattr(evaluator, "open_world", lambda *_: world)
    captions: list[str] = []
    monkeypatch.setattr(media, "write_contact_sheet", lambda *given, **_: captions.extend(given[1]))
    sheet_held_out("expert", CONFIG, tmp_path / "a.png", scores=(), should_stop=lambda: False)
    assert [caption[:2] for caption in captions] == ["0:", "2:", "3:"]


def test_the_world_is_closed_when_it_fails():
    worlds = []

    def failing(*at):
        worlds.append(open_world_that_fails(*at))
        return worlds[-1]

    with pytest.raises(Exception, match="the simulator is gone"):
        examine("expert", open_world=failing)
    assert all(world.closed for world in worlds)


@pytest.mark.parametrize(
    "subject", ["policy", "nobody", "runs/missing/policies", "1:policy", "n" * 999]
)
def test_what_is_no_subject_is_refused(subject):
    with pytest.raises(ConfigError, match=r"neither a policy's file, nor a directory"):
        examine(subject)


def test_an_empty_directory_holds_no_policy(tmp_path):
    with pytest.raises(CheckpointError, match="holds no readable policy"):
        examine(tmp_path)


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """A directory with two policies of random weights."""
    torch = pytest.importorskip("torch")
    from avtd3.learn.networks import Actor, NetworkConfig
    from avtd3.learn.policy_store import PolicyStore

    with open_environment(CONFIG, open_camera_world) as environment:
        spec = environment.spec
    directory = PolicyStore(tmp_path_factory.mktemp("policies"))
    for seed in range(2):
        torch.manual_seed(seed)
        network = NetworkConfig()
        directory.publish(Actor(spec, network), spec, network, updates=seed)
    return directory.path


def test_policies_drive_evaluations(policies):
    short = dataclasses.replace(SHORT, time_limit_s=1.0)
    config = dataclasses.replace(CONFIG, episodes=2, scenario=short)
    newest = examine(policies, config, open_world=open_camera_world)
    again = examine(policies, config, open_world=open_camera_world)
    assert newest.scores == again.scores
    assert newest.policy_version == again.policy_version
    files = sorted(policies.glob("*.safetensors"))
    older = examine(files[0], config, open_world=open_camera_world)
    assert older.policy_version < newest.policy_version
    assert older.policy_digest != newest.policy_digest
    assert older.scores != newest.scores
    assert {score.driver for score in newest.scores} == {"policy"}


def test_policies_drive_collections(policies, tmp_path):
    config = CollectConfig(
        driver="policy", scenario=dataclasses.replace(SHORT, time_limit_s=1.0), min_free_mb=0
    )
    collect(tmp_path / "d", config, episodes=2, policies=policies, open_world=open_camera_world)
    (segment,) = Dataset.open(tmp_path / "d").snapshot().segments
    table = segment.episode_table()
    assert table.policy_version.tolist() == [max(table.policy_version)] * 2
    assert all(len(digest) == 64 for digest in table.policy_digest)
    np.testing.assert_allclose(table.exploration_noise, 0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"episodes": 0}, "episodes"), ({"workers": 0}, "workers"), ({"world": "x"}, "world")],
)
def test_bad_settings_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        EvaluateConfig(**change)
