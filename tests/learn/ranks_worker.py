"""Trains small runs in float64, alone or as one of several ranks: ``ranks_worker.py PLAN``.

PLAN is a JSON file with a list of the keyword arguments of `train_case`.
"""

import contextlib
import json
import sys
from pathlib import Path
from unittest import mock

import torch

from avtd3.learn import trainer
from avtd3.learn.batch import BatchLoader
from avtd3.learn.checkpoints import read_as
from avtd3.learn.config import LearnConfig
from avtd3.learn.device import map_tensors
from avtd3.learn.ranks import open_ranks


class DoubleLoader(BatchLoader):
    """A loader whose batches are float64."""

    def load(self, sampler):
        batch, index = super().load(sampler)
        return map_tensors(torch.Tensor.double, batch), index


def train_case(data, run, learn, batch_size):
    """Train a run in float64; `learn` are settings as JSON, of which `batch_size` is one."""
    learn["replay"] = {**learn.get("replay", {}), "batch_size": batch_size}
    fixed = {"device": "cpu", "precision": "fp32", "threads": 1, "checkpoint_every": 50}
    config = read_as(LearnConfig, fixed | learn, "learn")
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(trainer, "BatchLoader", DoubleLoader))
        # policies are float32
        stack.enter_context(mock.patch.object(trainer.Trainer, "_publish"))
        before = torch.get_default_dtype()
        stack.callback(torch.set_default_dtype, before)
        torch.set_default_dtype(torch.float64)
        return trainer.train(config, datasets=data, run=run)


def main():
    """Train the runs of a plan, one after another, in the same processes."""
    with open_ranks():
        for case in json.loads(Path(sys.argv[1]).read_text()):
            train_case(**case)


if __name__ == "__main__":
    main()
