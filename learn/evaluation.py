"""Judging a critic and an actor by held-out episodes: what no draw has ever shown them.

The critic's TD error there against that in training shows overfitting; its value against the
return that followed shows optimism, and their correlation whether it tells good states from bad
ones; the actor's distance to the data's actions shows how far the
critic is asked about actions it has no data for.
"""

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avtd3.learn.batch import Batch
from avtd3.learn.networks import Observation, to_pixels
from avtd3.learn.td3 import TD3Config, TD3State, scale_reward, target_value
from avtd3.store.replay.eligibility import HeldOutEpisode
from avtd3.store.spec import EpisodeSpec

_STEPS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutEvaluator:
    """How held-out episodes are looked at."""

    spec: EpisodeSpec
    """What they hold."""
    config: TD3Config
    """Scale of the rewards."""
    gamma: float
    """Discount per step."""
    device: torch.device
    """Where the networks are."""
    autocast: torch.dtype | None
    """Type of the matrix products, float32 if None."""

    def __call__(self, state: TD3State, episodes: Iterable[HeldOutEpisode]) -> dict[str, float]:
        """Means over all steps of the episodes, by the name of their metric; empty without any.

        Of the first steps alone: the value of the actor's action in them, which is what the critic
        expects of a whole episode, and the return that the data had.

        Args:
            state: Looked at, not changed.
            episodes: Whole episodes, read one at a time.
        """
        columns: dict[str, list[NDArray[np.float32]]] = {}
        count = 0
        with torch.no_grad(), _evaluating(state):
            for episode in episodes:
                count += 1
                for name, values in self._judge(state, episode).items():
                    columns.setdefault(name, []).append(values)
        if not count:
            return {}
        steps = {name: np.concatenate(values) for name, values in columns.items()}
        found = {name: float(values.mean()) for name, values in steps.items()}
        if "offline/return" in steps:
            seen = steps["offline/return"].astype(np.float64)
            found |= _correlation(seen, seen + steps["offline/q_excess"])
        return found | {"offline/episodes": float(count)}

    def _judge(self, state: TD3State, episode: HeldOutEpisode) -> dict[str, NDArray[np.float32]]:
        """Each metric at each step of an episode, float32 (T,); of the first step alone (1,)."""
        length = len(episode.reward)
        spans = [
            self._judge_span(state, episode, start, min(start + _STEPS_AT_ONCE, length))
            for start in range(0, length, _STEPS_AT_ONCE)
        ]
        found = {
            name: torch.cat([span[name] for span in spans]).float().cpu().numpy()
            for name in spans[0]
        }
        if episode.terminated:  # where it was cut off, the rest of the return is not known
            reward = scale_reward(torch.from_numpy(episode.reward), self.config).numpy()
            seen = discounted_returns(reward, self.gamma)
            found["offline/return"] = seen
            found["offline/q_excess"] = found["offline/q"] - seen
            found["offline/initial_return"] = seen[:1]
        found["offline/initial_value"] = found["offline/q_actor"][:1]
        return found

    def _judge_span(
        self, state: TD3State, episode: HeldOutEpisode, start: int, stop: int
    ) -> dict[str, Tensor]:
        batch = self._batch(episode, start, stop)
        noise = torch.zeros_like(batch.action)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            target = target_value(
                state, batch, scale_reward(batch.reward, self.config), noise, self.config
            )
            encoded = state.critic.encode(batch.observation)
            q = state.critic.first(encoded, batch.action)
            action = state.actor(batch.observation)
            q_actor = state.critic.first(encoded, action)
        distance = (action - batch.action).abs() / state.actor.action_scale
        return {
            "offline/td_error": (q.float() - target.float()).abs(),
            "offline/q": q.float(),
            "offline/q_actor": q_actor,
            "offline/action_distance": distance.mean(dim=1),
        }

    def _batch(self, episode: HeldOutEpisode, start: int, stop: int) -> Batch:
        """The steps from `start` to before `stop` as a batch."""
        discount = np.full(stop - start, self.gamma, np.float32)
        if episode.terminated and stop == len(episode.reward):
            discount[-1] = 0.0
        return Batch(
            observation=self._observe(episode, start, stop),
            action=torch.from_numpy(episode.action[start:stop]).to(self.device),
            reward=torch.from_numpy(episode.reward[start:stop]).to(self.device),
            discount=torch.from_numpy(discount).to(self.device),
            next_observation=self._observe(episode, start + 1, stop + 1),
        )

    def _observe(self, episode: HeldOutEpisode, start: int, stop: int) -> Observation:
        pixels = vector = None
        if self.spec.image is not None:
            stacks = torch.from_numpy(episode.stacks(self.spec.image.stack, start, stop))
            pixels = to_pixels(stacks.to(self.device), self.autocast or torch.float32)
        if episode.vector is not None:
            vector = torch.from_numpy(episode.vector[start:stop]).to(self.device)
        return Observation(pixels=pixels, vector=vector)


def discounted_returns(reward: NDArray[np.float32], gamma: float) -> NDArray[np.float32]:
    """``sum(gamma**i * r[t + i])`` to the episode's end, float32 (T,) like the rewards."""
    found = np.empty(len(reward), np.float64)
    following = 0.0
    for t in range(len(reward) - 1, -1, -1):
        following = float(reward[t]) + gamma * following
        found[t] = following
    return found.astype(np.float32)


def _correlation(seen: NDArray[np.float64], q: NDArray[np.float64]) -> dict[str, float]:
    """Pearson's between returns and values, each (N,); nothing where one of them is constant."""
    if seen.std() == 0.0 or q.std() == 0.0:
        return {}
    return {"offline/q_correlation": float(np.corrcoef(seen, q)[0, 1])}


@contextlib.contextmanager
def _evaluating(state: TD3State) -> Iterator[None]:
    """Normalisations use what they have learned, and learn nothing meanwhile."""
    networks = [state.actor, state.critic]
    before = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for network, training in zip(networks, before, strict=True):
            network.train(training)
