"""TD3 and TD3+BC against a plain reference, written from the papers with numpy and no autograd.

Fujimoto, van Hoof & Meger 2018 (algorithm 1) and Fujimoto & Gu 2021 (equations 3 to 5), for
vector observations, in float64: losses, gradients and weights over several updates.
"""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from avtd3.learn.guard.clip import ClipConfig
from avtd3.learn.networks import Actor, NetworkConfig, TwinCritic
from avtd3.learn.state import TD3Config, state_of
from avtd3.learn.td3 import update

Array = NDArray[np.float64]
Layers = list[tuple[Array, Array]]

GAMMA, LR_ACTOR, LR_CRITIC, TAU = 0.99, 1e-3, 2e-3, 0.01
SIGMA, CLIP, DELAY = 0.2, 0.5, 2


class Net:
    """A ReLU network with backpropagation and Adam spelled out."""

    def __init__(self, layers: Layers, lr: float) -> None:
        self.layers = [(w.copy(), b.copy()) for w, b in layers]
        self.lr = lr
        self.moments = [[np.zeros_like(x) for x in (w, w, b, b)] for w, b in layers]
        self.steps = 0

    def forward(self, x: Array) -> tuple[Array, list[Array]]:
        inputs = []
        for i, (w, b) in enumerate(self.layers):
            inputs.append(x)
            x = x @ w.T + b
            if i < len(self.layers) - 1:
                x = np.maximum(x, 0.0)
        return x, inputs

    def backward(self, inputs: list[Array], gradient: Array) -> tuple[Layers, Array]:
        found: Layers = []
        for i in reversed(range(len(self.layers))):
            w, _ = self.layers[i]
            found.append((gradient.T @ inputs[i], gradient.sum(0)))
            gradient = gradient @ w
            if i > 0:
                gradient = gradient * (inputs[i] > 0)
        return found[::-1], gradient

    def adam(self, gradients: Layers) -> None:
        self.steps += 1
        for i, pair in enumerate(gradients):
            updated = []
            for j, gradient in enumerate(pair):
                m, v = self.moments[i][2 * j], self.moments[i][2 * j + 1]
                m[...] = 0.9 * m + 0.1 * gradient
                v[...] = 0.999 * v + 0.001 * gradient**2
                m_hat = m / (1 - 0.9**self.steps)
                v_hat = v / (1 - 0.999**self.steps)
                updated.append(self.layers[i][j] - self.lr * m_hat / (np.sqrt(v_hat) + 1e-8))
            self.layers[i] = (updated[0], updated[1])

    def follow(self, online: "Net") -> None:
        self.layers = [
            (TAU * w + (1 - TAU) * wt, TAU * b + (1 - TAU) * bt)
            for (w, b), (wt, bt) in zip(online.layers, self.layers, strict=True)
        ]


class Reference:
    def __init__(self, actor: Layers, q1: Layers, q2: Layers, bc_alpha: float) -> None:
        self.actor, self.actor_target = Net(actor, LR_ACTOR), Net(actor, LR_ACTOR)
        self.q = [Net(q1, LR_CRITIC), Net(q2, LR_CRITIC)]
        self.q_target = [Net(q1, LR_CRITIC), Net(q2, LR_CRITIC)]
        self.bc_alpha = bc_alpha
        self.updates = 0
        self.gradients: dict[str, Layers] = {}

    def update(
        self, s: Array, a: Array, r: Array, s2: Array, done: Array, noise: Array
    ) -> tuple[float, float | None]:
        a2 = np.tanh(self.actor_target.forward(s2)[0]) + np.clip(SIGMA * noise, -CLIP, CLIP)
        sa2 = np.concatenate([s2, np.clip(a2, -1, 1)], 1)
        y = r + GAMMA * (1 - done) * np.minimum(*(q.forward(sa2)[0][:, 0] for q in self.q_target))
        sa = np.concatenate([s, a], 1)
        loss: float = 0.0
        for number, q in enumerate(self.q):
            value, inputs = q.forward(sa)
            error = value[:, 0] - y
            loss += float(np.mean(error**2))
            gradients, _ = q.backward(inputs, (2 * error / len(y))[:, None])
            self.gradients[f"head{number + 1}"] = gradients
            q.adam(gradients)
        self.updates += 1
        return loss, self.improve(s, a) if self.updates % DELAY == 0 else None

    def improve(self, s: Array, a: Array) -> float:
        raw, inputs = self.actor.forward(s)
        pi = np.tanh(raw)
        value, q_inputs = self.q[0].forward(np.concatenate([s, pi], 1))
        weight = self.bc_alpha / float(np.mean(np.abs(value))) if self.bc_alpha else 1.0
        loss = -weight * float(np.mean(value))
        _, at_inputs = self.q[0].backward(q_inputs, np.full_like(value, -weight / len(value)))
        at_pi = at_inputs[:, s.shape[1] :]
        if self.bc_alpha:
            loss += float(np.mean((pi - a) ** 2))
            at_pi = at_pi + 2 * (pi - a) / a.size
        gradients, _ = self.actor.backward(inputs, at_pi * (1 - pi**2))
        self.gradients["head"] = gradients
        self.actor.adam(gradients)
        self.actor_target.follow(self.actor)
        for target, online in zip(self.q_target, self.q, strict=True):
            target.follow(online)
        return loss


def layers_of(mlp: torch.nn.Module) -> Layers:
    tensors = [p.detach().numpy().copy() for p in mlp.parameters()]
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def gradients_of(mlp: torch.nn.Module) -> Layers:
    tensors = [p.grad.numpy().copy() for p in mlp.parameters() if p.grad is not None]
    return list(zip(tensors[::2], tensors[1::2], strict=True))


def assert_same(ours: Layers, theirs: Layers) -> None:
    for mine, reference in zip(ours, theirs, strict=True):
        for x, y in zip(mine, reference, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("bc_alpha", [0.0, 2.5])
def test_updates_are_those_of_the_papers(make_spec, make_batch, bc_alpha):
    spec = make_spec(vector=7)
    network = NetworkConfig(hidden=(32, 32))
    config = TD3Config(
        tau=TAU,
        actor_lr=LR_ACTOR,
        critic_lr=LR_CRITIC,
        bc_alpha=bc_alpha,
        clip=ClipConfig(enabled=False),
    )
    torch.manual_seed(3)
    state = state_of(Actor(spec, network).double(), TwinCritic(spec, network).double(), config)
    actor, critic = state.actor, state.critic
    reference = Reference(
        layers_of(actor.head), layers_of(critic.head1), layers_of(critic.head2), bc_alpha
    )
    for seed in range(6):
        batch = make_batch(spec, 64, seed, torch.float64)
        noise = torch.randn(64, 2, dtype=torch.float64)
        result = update(state, batch, noise, config)
        assert batch.observation.vector is not None
        assert batch.next_observation.vector is not None
        loss, loss_actor = reference.update(
            batch.observation.vector.numpy(),
            batch.action.numpy(),
            batch.reward.numpy(),
            batch.next_observation.vector.numpy(),
            (batch.discount == 0).double().numpy(),
            noise.numpy(),
        )
        assert result.critic.loss.item() == pytest.approx(loss, rel=1e-6)
        if loss_actor is None:
            assert result.actor is None
        else:
            assert result.actor is not None
            assert result.actor.loss.item() == pytest.approx(loss_actor, rel=1e-6)
            assert_same(gradients_of(actor.head), reference.gradients["head"])
        for name in ("head1", "head2"):
            assert_same(gradients_of(getattr(critic, name)), reference.gradients[name])
        pairs = [
            (actor.head, reference.actor),
            (state.actor_target.head, reference.actor_target),
            (critic.head1, reference.q[0]),
            (critic.head2, reference.q[1]),
            (state.critic_target.head1, reference.q_target[0]),
            (state.critic_target.head2, reference.q_target[1]),
        ]
        for ours, theirs in pairs:
            assert_same(layers_of(ours), theirs.layers)
