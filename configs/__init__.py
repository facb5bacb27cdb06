"""Typed configuration: YAML files, overrides, presets."""
