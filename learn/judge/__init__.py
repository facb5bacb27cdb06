"""Judging runs by their TensorBoard event files: gates, and comparisons of two runs."""
