"""Tests of weights keep away from the user's cache."""

import pytest


@pytest.fixture(autouse=True)
def _own_cache(cache) -> None:
    pass
