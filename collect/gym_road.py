"""The built-in simulator as Gymnasium environments, for learners of other projects.

Importing this module registers ``avtd3/Road-v0``, ``avtd3/Country-v0``, ``avtd3/Town-v0`` and
``avtd3/Motorway-v0``, and each with ``Vision`` before the version. Gymnasium imports it for
``gymnasium.make("avtd3.collect.gym_road:avtd3/Road-v0")``: since its version 1.0 it has no plugins.
"""

from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict
from numpy.typing import NDArray

from avtd3.collect.driving.driving_env import DrivingEnvironment
from avtd3.collect.driving.expert import ExpertConfig
from avtd3.collect.driving.task import ObservationConfig, TaskConfig
from avtd3.collect.maps.scenarios import scenario as make_scenario
from avtd3.collect.scores import total_reward
from avtd3.collect.sim.world import RoadConfig, RoadWorld
from avtd3.store.errors import ConfigError
from avtd3.store.step import FrameStack, Observation

NETWORKS = {
    "Road": ("country", "loop", "town"),
    "Country": ("country",),
    "Town": ("town",),
    "Motorway": ("motorway",),
}
"""Kinds of road network of each environment."""
VECTOR_LIMIT = 100.0
"""Largest number of a vector, which is normalised; larger ones are cut."""
_MOST_SEED = 2**30


class RoadEnv(gymnasium.Env[dict[str, NDArray[Any]], NDArray[np.float32]]):
    """Drive along a route on generated roads, with the task and the reward of `avtd3 collect`.

    An observation has ``image``, uint8 (H, W, K * C), the last K frames with the oldest first, and
    ``vector``, float32 (V,), normalised. An action is float32 (2,): steering, and throttle or
    brake, each in [-1, 1].

    Args:
        networks: Kinds of road network to choose from.
        vision: Whether the vector holds the speed only, so that the route must be seen.
        held_out: Whether to drive the roads of evaluations, which training never sees.
        stack: Frames per observation, K.
        render_mode: ``rgb_array`` for pictures of the camera and the map.
        scenario: Fields of `Scenario` to change, such as ``npcs=0`` or ``route_length_m=100.0``.
    """

    metadata: dict[str, Any] = {  # noqa: RUF012 - as in its base class
        "render_modes": ["rgb_array"],
        "render_fps": 20,
    }

    def __init__(
        self,
        networks: tuple[str, ...] = NETWORKS["Road"],
        *,
        vision: bool = False,
        held_out: bool = False,
        stack: int = 4,
        render_mode: str | None = None,
        **scenario: Any,  # noqa: ANN401 - the fields of a dataclass
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"render_mode is {render_mode!r}, expected None or 'rgb_array'")
        try:
            chosen = make_scenario(0, network_kinds=tuple(networks), **scenario)
        except TypeError as error:
            raise ConfigError(f"scenario: {error}") from error
        observation = ObservationConfig(vector="speed" if vision else "full", stack=stack)
        self.render_mode, self._parity = render_mode, int(held_out)
        self._world = DrivingEnvironment(
            RoadWorld(RoadConfig()), TaskConfig(observation=observation), [chosen], ExpertConfig()
        )
        self.avtd3_spec = spec = self._world.spec
        """What avtd3 stores of these episodes: names, scales, period."""
        image = spec.image
        assert image is not None, "the simulator has a camera"
        shape = (image.height, image.width, image.stack * image.channels)
        limit = VECTOR_LIMIT
        observed: Any = Dict(
            image=Box(0, 255, shape, np.uint8),
            vector=Box(-limit, limit, (spec.vector_size,), np.float32),
        )
        self.observation_space = observed
        self.action_space = Box(-1.0, 1.0, (spec.action_size,), np.float32)
        self._stack, self._action = FrameStack(stack), np.zeros(spec.action_size, np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Start an episode; the same seed gives the same episode, and the same ones after it."""
        super().reset(seed=seed)
        world_seed = 2 * int(self.np_random.integers(_MOST_SEED)) + self._parity
        start = self._world.reset(world_seed)
        self._action = np.zeros_like(self._action)
        frame = start.observation.image
        assert frame is not None, "the simulator has a camera"
        self._stack.reset(frame)
        return self._observe(start.observation), {"seed": world_seed, **start.attributes}

    def step(
        self, action: NDArray[np.float32]
    ) -> tuple[dict[str, NDArray[Any]], float, bool, bool, dict[str, Any]]:
        """Apply an action for one control period; at the end, info says why and how it went."""
        self._action = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        step = self._world.step(self._action)
        frame = step.observation.image
        assert frame is not None, "the simulator has a camera"
        self._stack.push(frame)
        info: dict[str, Any] = {}
        if step.is_last:
            info = {"end_reason": step.end_reason, **self._world.measures()}
            info["is_success"] = step.end_reason == "goal"
        observation = self._observe(step.observation)
        return observation, total_reward(step), step.terminated, step.truncated, info

    def _observe(self, observation: Observation) -> dict[str, NDArray[Any]]:
        vector = np.clip(np.asarray(observation.vector), -VECTOR_LIMIT, VECTOR_LIMIT)
        image = np.ascontiguousarray(np.moveaxis(self._stack.stacked(), 0, -1))
        return {"image": image, "vector": vector}

    def render(self) -> NDArray[np.uint8] | None:
        """Return a picture of the camera beside a map, uint8 (H, W, 3), if `render_mode` is set."""
        if self.render_mode is None:
            return None
        return np.asarray(self._world.picture(self._action, "avtd3"))

    def close(self) -> None:
        """Release the simulator."""
        self._world.close()


for _name, _kinds in NETWORKS.items():
    for _suffix, _vision in (("", False), ("Vision", True)):
        if f"avtd3/{_name}{_suffix}-v0" not in gymnasium.registry:
            gymnasium.register(
                f"avtd3/{_name}{_suffix}-v0",
                "avtd3.collect.gym_road:RoadEnv",
                kwargs={"networks": _kinds, "vision": _vision},
            )
