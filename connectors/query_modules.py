"""The registry of query modules, with those that the project ships in it."""

from connectors import embq, llava_mini  # noqa: F401  they register themselves
from connectors.query_module import registry

__all__ = ["registry"]
