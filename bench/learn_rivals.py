"""The other ways of making TD3 updates from pixels that `learn_bench.py` times."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from avtd3.store.replay.gather import Transitions

STACK, SIDE, ACTIONS = 4, 84, 2
GAMMA, TAU, SIGMA, CLIP, DELAY = 0.99, 0.005, 0.2, 0.5, 2


def stable_baselines3(batch: int, device: str) -> Callable[[], None]:
    """stable-baselines3's TD3 with its CnnPolicy; an update draws from its buffer in RAM."""
    import gymnasium
    from stable_baselines3 import TD3
    from stable_baselines3.common.logger import configure

    class Pixels(gymnasium.Env[np.ndarray[Any, Any], np.ndarray[Any, Any]]):
        observation_space = gymnasium.spaces.Box(0, 255, (STACK, SIDE, SIDE), np.uint8)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32)

    model = TD3("CnnPolicy", Pixels(), buffer_size=1_000, batch_size=batch, device=device, seed=0)
    model.set_logger(configure(None, []))
    rng = np.random.default_rng(0)
    buffer = model.replay_buffer
    assert buffer is not None
    for _ in range(buffer.buffer_size):
        seen = rng.integers(0, 256, (2, 1, STACK, SIDE, SIDE), np.uint8)
        action = rng.uniform(-1.0, 1.0, (1, ACTIONS)).astype(np.float32)
        reward, done = rng.normal(size=1), np.zeros(1, bool)
        buffer.add(seen[0], seen[1], action, reward, done, [{}])
    return lambda: model.train(gradient_steps=1, batch_size=batch)


class _Net(nn.Module):
    def __init__(self, vector: int, outputs: int, heads: int) -> None:
        super().__init__()
        self.cnn = nn.Sequential(
            *(nn.Conv2d(STACK, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()),
            *(nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU()),
        )
        self.heads = nn.ModuleList(
            nn.Sequential(
                *(nn.Linear(512 + vector, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU()),
                nn.Linear(256, outputs),
            )
            for _ in range(heads)
        )


class Plain:
    """TD3 as one writes it down in PyTorch: pixels to floats by division, autograd, Adam."""

    def __init__(self, vector: int) -> None:
        self.actor = _Net(vector, ACTIONS, 1)
        self.critic = _Net(vector + ACTIONS, 1, 2)
        self.targets = copy.deepcopy(self.actor), copy.deepcopy(self.critic)
        self.actor_adam = torch.optim.Adam(self.actor.parameters(), 3e-4)
        self.critic_adam = torch.optim.Adam(self.critic.parameters(), 3e-4)
        self.updates = 0

    def act(self, net: _Net, frames: Tensor, vector: Tensor) -> Tensor:
        """Actions of a policy."""
        return torch.tanh(net.heads[0](torch.cat([net.cnn(frames), vector], 1)))

    def value(self, net: _Net, features: Tensor, vector: Tensor, action: Tensor) -> list[Tensor]:
        """Both values of state and action."""
        state = torch.cat([features, vector, action], 1)
        return [head(state) for head in net.heads]

    def update(self, draw: Transitions) -> None:
        """One update on a draw."""
        assert draw.observation_frames is not None
        assert draw.next_observation_frames is not None
        first = torch.from_numpy(np.ascontiguousarray(draw.observation_frames)).float() / 255
        later = torch.from_numpy(np.ascontiguousarray(draw.next_observation_frames)).float() / 255
        assert draw.observation_vector is not None
        assert draw.next_observation_vector is not None
        now, then = map(torch.from_numpy, (draw.observation_vector, draw.next_observation_vector))
        action = torch.from_numpy(draw.action)
        reward, discount = map(torch.from_numpy, (draw.reward, draw.discount))
        with torch.no_grad():
            noise = (torch.randn_like(action) * SIGMA).clamp(-CLIP, CLIP)
            best = (self.act(self.targets[0], later, then) + noise).clamp(-1, 1)
            q = self.value(self.targets[1], self.targets[1].cnn(later), then, best)
            target = reward[:, None] + discount[:, None] * torch.minimum(*q)
        q = self.value(self.critic, self.critic.cnn(first), now, action)
        loss = functional.mse_loss(q[0], target) + functional.mse_loss(q[1], target)
        self.critic_adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch does not annotate it
        self.critic_adam.step()
        self.updates += 1
        if self.updates % DELAY == 0:
            with torch.no_grad():
                features = self.critic.cnn(first)
            q = self.value(self.critic, features, now, self.act(self.actor, first, now))
            self.actor_adam.zero_grad()
            (-q[0].mean()).backward()  # type: ignore[no-untyped-call]  # as above
            self.actor_adam.step()
            self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        for target, online in zip(self.targets, (self.actor, self.critic), strict=True):
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.mul_(1 - TAU).add_(TAU * fast)
