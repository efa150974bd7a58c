"""Plots take most of a report's time, and few tests look at them."""

import pytest

from ablations.writing import write


@pytest.fixture
def plots() -> None:
    """Asked for by tests that look at a report's plots, where the others of a module are `without_plots`."""


@pytest.fixture
def without_plots(request, monkeypatch) -> None:
    """Reports of a test have no plots; those of a module's fixtures do."""
    if "plots" not in request.fixturenames:
        monkeypatch.setattr(write, "draw_plots", lambda *_: {})
