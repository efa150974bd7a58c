"""What the model cards of composed models and of models with a compressor attached have in common."""

from collections.abc import Mapping
from typing import Any

# no package index has it: whoever installs that name there gets something else
INSTALL = "install SlothKit from the repository that made this model"


def describe_part(name: str | None, knobs: Mapping[str, Any] | None) -> str:
    """A part's name, and the knobs that it was made with."""
    if name is None:
        return "none"
    words = [f"`{name}`"]
    for knob, value in (knobs or {}).items():
        words.append(f"`{knob}={value}`")
    return ", ".join(words)
