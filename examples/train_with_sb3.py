"""Train TD3 and SAC of Stable-Baselines3 in the built-in simulator."""

import gymnasium
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.evaluation import evaluate_policy

NAME = "avtd3.collect.gym_road:avtd3/Country-v0"
ROADS = {"npcs": 0, "route_length_m": 60.0, "time_limit_s": 5.0}


def main():
    for algorithm in (TD3, SAC):
        model = algorithm(
            "MultiInputPolicy",
            gymnasium.make(NAME, **ROADS),
            buffer_size=1_000,
            learning_starts=100,
            batch_size=32,
            seed=0,
        )
        model.learn(140)  # enough to see that it runs; driving takes some 100 000
        held_out = gymnasium.make(NAME, held_out=True, **ROADS)
        mean, _ = evaluate_policy(model, held_out, n_eval_episodes=1, warn=False)
        print(f"{algorithm.__name__}: return {mean:.1f}")


if __name__ == "__main__":
    main()
