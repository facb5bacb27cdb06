"""Datasets and policies in object stores: push, pull, follow."""
