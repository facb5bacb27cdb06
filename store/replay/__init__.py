"""Replay: from published segments to batches of transitions."""
