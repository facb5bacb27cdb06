"""Drive with an exported policy: onnxruntime and numpy, without torch."""

import json

import gymnasium
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("policy.onnx")
about = json.loads(session.get_modelmeta().custom_metadata_map["avtd3"])
scales = np.float32(about["spec"]["vector_scales"])
world = gymnasium.make("avtd3.collect.gym_road:avtd3/Road-v0", held_out=True, route_length_m=60.0)

for seed in range(3):
    observation, info = world.reset(seed=seed)
    total, is_over = 0.0, False
    while not is_over:
        # One observation is a batch of one: planes first, and physical values.
        frames = np.moveaxis(observation["image"], -1, 0)[None]
        vector = observation["vector"][None] * scales
        (actions,) = session.run(["action"], {"frames": frames, "vector": vector})
        observation, reward, terminated, truncated, info = world.step(actions[0])
        total, is_over = total + reward, terminated or truncated
    print(info["end_reason"], f"{info['route_completion']:.0%} of the route, return {total:.1f}")
