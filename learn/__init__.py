"""TD3 from a dataset: networks, updates, checkpoints, published policies."""
