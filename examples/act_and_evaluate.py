"""Collect, train with a callback, act with the published policy, and evaluate it."""

import numpy as np

from avtd3.collect import CollectConfig, EvaluateConfig, ScenarioConfig, collect, evaluate
from avtd3.learn import LearnConfig, Policy, PolicyActor, TrainCallback, train
from avtd3.store import Dataset


class PrintLoss(TrainCallback):
    def on_metrics(self, step, scalars):
        print(step, scalars["critic/loss"])


if __name__ == "__main__":
    roads = ScenarioConfig(networks=2, route_length_m=60.0)
    collect("driving", CollectConfig(scenario=roads), episodes=2)
    config = LearnConfig(updates=20, log_every=10, publish_every=20, learning_starts=0)
    train(config, datasets="driving", run="run", callbacks=[PrintLoss()])

    actor = PolicyActor(Policy.load("run/policies"))
    for episode in Dataset.open("driving").episodes():
        actor.reset()
        actions = [actor.act(episode.observation(t)) for t in range(episode.length)]
        print("mean difference from the expert:", np.abs(actions - episode.actions).mean())

    report = evaluate("run/policies", EvaluateConfig(scenario=roads, episodes=2))
    print(report.summary())
