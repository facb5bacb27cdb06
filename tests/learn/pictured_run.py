"""A small run with a camera, alerts and names that try a page."""

import json

from avtd3.learn.config import LearnConfig
from avtd3.learn.guards.config import GuardConfig
from avtd3.learn.networks import NetworkConfig
from avtd3.learn.trainer import train
from avtd3.store.replay.config import ReplayConfig
from avtd3.tests.store.segments import make_episode, make_spec, write_dataset

EVIL = "<img src=x onerror=document.title='run'><script>document.title='run'</script>"
LONG = "a/metric_whose_name_is_much_longer_than_anybody_would_like_it_to_be_in_a_table"
ALERT = {"update": 3, "name": EVIL, "level": "stop", "reason": LONG * 3, "fix": EVIL}


def pictured_config(**replay):
    return LearnConfig(
        updates=6,
        log_every=2,
        evaluate_every=2,
        checkpoint_every=3,
        threads=1,
        guards=GuardConfig(every=2, update_ratio_limit=1e-9, layers_every=6),
        network=NetworkConfig(hidden=(8, 8), features=8),
        replay=ReplayConfig(batch_size=8, held_out=0.5, **replay),
    )


def pictured_dataset(path, *, image=True, vector=3, episodes=8):
    """Write episodes whose returns rise with their number, half of them terminated."""
    spec = make_spec(height=40, width=44, vector=vector, image=image)
    names = {"action_names": ["steer", EVIL], "reward_terms": ["efficiency", EVIL]}
    spec = type(spec).from_json(spec.to_json() | names)
    made = [make_episode(spec, 6 + n, n, town=EVIL if n % 2 else LONG) for n in range(episodes)]
    for number, episode in enumerate(made):
        episode.terms[:] = number
        episode.reward = episode.terms.sum(axis=1)
    write_dataset(path, spec, made)
    return path


def make_pictured_run(folder):
    run = folder / "run"
    train(pictured_config(), datasets=pictured_dataset(folder / "data"), run=run)
    with (run / "alerts.jsonl").open("a") as file:
        file.write(json.dumps(ALERT) + "\n")
    return run
