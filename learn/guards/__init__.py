"""Guards of a training run: clipping, alerts, adaptive learning rates, rollback."""
