"""Guards over a run: clipping, alerts, learning rates that adapt, and what a stop leads to."""
