"""Housekeeping: what changes a dataset after it was collected."""
