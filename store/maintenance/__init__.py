"""Maintenance of datasets: compact, prune, relabel and pin published segments."""
