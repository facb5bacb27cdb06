"""From published segments to batches of transitions."""
