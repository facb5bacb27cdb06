"""`GuardedRun`: updates under the guards, without datasets or files except the alerts."""

import dataclasses
import json

import torch

from avtd3.learn.guards.config import GuardConfig
from avtd3.learn.guards.monitor import GuardMonitor
from avtd3.learn.networks import NetworkConfig
from avtd3.learn.td3 import create_state, update

CPU = torch.device("cpu")
PLAIN = NetworkConfig(hidden=(16, 16), features=24, feature_norm=False)
GUARDS = GuardConfig(every=10, warm_up=10, layers_every=20)


class GuardedRun:
    """Updates from random batches, each checked by the guards."""

    def __init__(self, path, spec, make_batch, *, network, td3, guards):
        self.spec, self.make_batch, self.td3 = spec, make_batch, td3
        self.state = create_state(spec, network, td3, CPU, 0)
        features = 0 if spec.image is None else network.features
        self.monitor = GuardMonitor(path, guards, features=features, policy_delay=td3.policy_delay)
        self.noise = torch.Generator().manual_seed(0)
        self.file = path / "alerts.jsonl"
        self.scalars: dict[str, float] = {}
        self.stop = None
        self.errors: list[float] = []

    def go(self, count, spoil=lambda batch: batch, length=200.0):
        for _ in range(count):
            batch = spoil(self.make_batch(self.spec, seed=self.state.updates))
            noise = torch.randn(batch.action.shape, generator=self.noise)
            self.monitor.before(self.state)
            done = update(self.state, batch, noise, self.td3)
            scalars, stop = self.monitor.after(self.state, done, batch, length)
            self.errors.append(done.critic.loss.item())
            self.scalars |= scalars
            self.stop = self.stop or stop

    @property
    def messages(self):
        return self.monitor.alerts.newest

    def lines(self):
        text = self.file.read_text() if self.file.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    def fired(self):
        return {line["name"]: line["level"] for line in self.lines() if line["level"] != "note"}


def learnable(batch):
    """Return a batch whose best actions depend on its images, or without them on its vectors."""
    pixels, vector = batch.observation.pixels, batch.observation.vector
    wanted = vector[:, :2].clamp(-0.8, 0.8)
    if pixels:
        bright = torch.linspace(-0.8, 0.8, len(wanted)).roll(int(vector[0, 0] * 100))
        wanted = torch.stack([bright, -bright], dim=1)
        shade = (bright + 1.0)[:, None, None, None]
        seen = dataclasses.replace(
            batch.observation, pixels=(pixels[0] * shade.to(pixels[0].dtype),)
        )
        batch = dataclasses.replace(batch, observation=seen)
    reward = 1.0 - (batch.action - wanted).square().mean(dim=1)
    return dataclasses.replace(batch, reward=reward, discount=0.5 * torch.ones_like(reward))


def scale(module, factor):
    with torch.no_grad():
        for p in module.parameters():
            p.mul_(factor)
