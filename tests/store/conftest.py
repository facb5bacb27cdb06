"""Fixtures of the tests of the store."""

import os

import pytest


@pytest.fixture(scope="module")
def no_fsync():
    """No waiting for the disk: that every byte reaches it cannot be tested here anyway."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield
