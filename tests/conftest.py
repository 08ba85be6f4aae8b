"""Fixtures that every folder of tests may use, and how many processes share the tests of `pytest -n auto`."""

import os

import pytest

pytest_plugins = ["tests.postgres", "tests.databases", "tests.wallets"]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: about a third of the time a test waits for its servers."""
    return (os.cpu_count() or 1) + 1
