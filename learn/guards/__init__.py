"""Guards of a training run: alerts, adaptive learning rates and the action limit."""
