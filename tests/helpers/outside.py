"""Packages that are not installed, and what they offer through entry points."""

from importlib.metadata import EntryPoint

from compressors import registry


def offer_parts(monkeypatch, group: str, *offers: tuple[str, str]) -> None:
    """Make packages offer these in a group, each a name and MODULE:ATTRIBUTE, and nobody anything else there.
    Other groups stay: what is read from them once, such as a setting's choices, outlives the test."""
    offered = {group: [EntryPoint(name, value, group) for name, value in offers]}
    installed = registry.entry_points

    def find_points(group: str):
        return offered[group] if group in offered else installed(group=group)

    monkeypatch.setattr(registry, "entry_points", find_points)
