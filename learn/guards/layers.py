"""`LayerProbe`: how large each layer's weights are, and how far one update moves them.

The norms catch growth that no clipping stops (Adam divides the gradient's scale out again); the
ratio of the step to the weights is about 1e-3 in networks that learn well (Karpathy, "A Recipe for
Training Neural Networks", 2019).
"""

import torch
from torch import Tensor, nn

from avtd3.learn.metrics import UPDATE_RATIOS, WEIGHTS
from avtd3.learn.state import TD3State


class LayerProbe:
    """Looks at one update of each network every so many."""

    def __init__(self, every: int, policy_delay: int) -> None:
        """Plan the looks.

        Args:
            every: Updates between two looks.
            policy_delay: Critic updates per actor update; the actor is looked at in its first
                update from then on.
        """
        self._every, self._policy_delay = every, policy_delay
        self._before: dict[str, dict[str, list[Tensor]]] = {}

    def before(self, state: TD3State) -> None:
        """Keep a copy of the weights that the next update is to be held against, if it is due."""
        number = state.updates + 1
        due: dict[str, nn.Module] = {}
        if number % self._every == 0:
            due["critic"] = state.critic
        if number % self._policy_delay == 0 and number % self._every < self._policy_delay:
            due["actor"] = state.actor
        self._before = {
            name: {
                layer: [p.detach().clone() for p in parameters]
                for layer, parameters in layers_of(network).items()
            }
            for name, network in due.items()
        }

    def after(self, state: TD3State) -> dict[str, float]:
        """Norms and ratios of what was looked at; empty mostly, else it waits for the device."""
        scalars: dict[str, Tensor] = {}
        for name, layers in self._before.items():
            now = layers_of(getattr(state, name))
            for layer, old in layers.items():
                size = _norm(old)
                step = _norm([b.detach() - a for a, b in zip(old, now[layer], strict=True)])
                scalars[f"{WEIGHTS}{name}.{layer}"] = _norm([p.detach() for p in now[layer]])
                scalars[f"{UPDATE_RATIOS}{name}.{layer}"] = step / size.clamp(min=1e-12)
        self._before = {}
        if not scalars:
            return {}
        values = torch.stack(list(scalars.values())).tolist()
        return dict(zip(scalars, values, strict=True))


def layers_of(network: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Parameters of each layer of a network, by the layer's name."""
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        layers.setdefault(name.rpartition(".")[0], []).append(parameter)
    return layers


def _norm(tensors: list[Tensor]) -> Tensor:
    total: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)).float())
    return total
