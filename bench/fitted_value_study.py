"""Print the fitted value of the actor in each checkpoint of a run, on episodes of another dataset.

    python bench/fitted_value_study.py RUN DATASET [--episodes 30]

Compare it with how the published policies of the same updates drive (`avtd3 evaluate`).
"""

import argparse
import itertools
from pathlib import Path

import torch

from avtd3.learn.checkpoints import CHECKPOINTS, list_checkpoints, load_checkpoint
from avtd3.learn.evaluation import HeldOutEvaluator
from avtd3.learn.run_settings import stored_config
from avtd3.learn.td3 import create_state
from avtd3.store import Dataset

NAMES = ("offline/fitted_value", "offline/fitted_value_low", "offline/fitted_value_high")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--episodes", type=int, default=30, help="the first ones of the dataset")
    options = parser.parse_args()
    config, cpu = stored_config(options.run), torch.device("cpu")
    dataset = Dataset.open(options.dataset)
    evaluate = HeldOutEvaluator(dataset.spec, config.td3, config.replay.gamma, cpu, None)
    print("| checkpoint | fitted value | low | high |\n| --- | ---: | ---: | ---: |")
    for path in list_checkpoints(options.run / CHECKPOINTS):
        state = create_state(dataset.spec, config.network, config.td3, cpu, seed=0)
        load_checkpoint(path, state, None)
        found = evaluate(state, itertools.islice(dataset.episodes(), options.episodes))
        cells = (f"{found[name]:.2f}" if name in found else "none" for name in NAMES)
        print(f"| {path.name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
