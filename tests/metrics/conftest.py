"""Metrics as users call them, without the shape checks that the test run puts before them."""

import jaxtyping
import pytest


@pytest.fixture
def unchecked(monkeypatch):
    """Lets wrong shapes reach the metric, whose own error is what a user reads."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
