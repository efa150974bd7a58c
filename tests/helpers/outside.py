"""Packages that are not installed, and what they offer through entry points."""

from importlib.metadata import EntryPoint

from compressors import registry


def offer_parts(monkeypatch, group: str, *offers: tuple[str, str]) -> None:
    """Make packages offer these, each a name and MODULE:ATTRIBUTE, in a group, and nobody anything else."""
    points = [EntryPoint(name, value, group) for name, value in offers]
    monkeypatch.setattr(registry, "entry_points", lambda group: [p for p in points if p.group == group])
