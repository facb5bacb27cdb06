"""Driving: worlds, the task, drivers, and the collector that writes episodes."""
