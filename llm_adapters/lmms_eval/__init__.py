"""Plug-in for lmms-eval 0.7: models on the field's benchmarks. README.md has the commands."""

from typing import Any


def manifest() -> Any:
    """What lmms-eval finds by the entry point in `lmms_eval.models`; the model is imported when asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("slothkit", simple_class_path=f"{__name__}.model.SlothKit")
