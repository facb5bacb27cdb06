"""Names of the guards and of the levels of their alerts."""

from collections.abc import Mapping
from types import MappingProxyType

LEVELS = ("warn", "serious", "stop")
"""How bad it is, rising."""

GUARDS: Mapping[str, str] = MappingProxyType(
    {
        "actor_grad_norm": "lower the actor's learning rates; see the other alerts",
        "critic_grad_norm": "scale the rewards (td3.reward_scale), or lower critic_lr",
        "actor_loss": "check td3.wiring is correct, lower actor_cnn_lr, or normalise the features",
        "critic_loss": "scale the rewards (td3.reward_scale), or lower critic_lr",
        "q_size": "scale the rewards (td3.reward_scale), or lower gamma",
        "q_bound": "lower the critics' learning rates or tau; check terminated in the data",
        "actor_q_bound": "check td3.wiring is correct; add imitation (td3.bc_alpha)",
        "actor_feature_norm": "keep network.feature_norm on, or lower actor_cnn_lr",
        "critic_feature_norm": "keep network.feature_norm on, or lower critic_cnn_lr",
        "saturation": "add a penalty on the numbers before tanh (td3.pre_tanh_weight)",
        "actor_dead_units": "lower actor_cnn_lr, or use network.activation leaky_relu",
        "critic_dead_units": "lower critic_cnn_lr, or use network.activation leaky_relu",
        "constant_action": "lower actor_lr; look at the actions with avtd3 replay-inspect",
        "actor_not_finite": "lower the actor's learning rates; see the other alerts",
        "critic_not_finite": "inspect the data with avtd3 replay-inspect, or lower critic_lr",
        "update_ratio": "lower the learning rate of that layer's network (td3.actor_lr, ...)",
        "weights": "go back to an earlier checkpoint, and lower the learning rates",
    }
)
"""Name of each guard to what mends it."""
