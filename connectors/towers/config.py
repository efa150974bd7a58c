"""What every family of towers needs: reading a vision configuration, its preprocessing, its weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from compressors.errors import UsageError
from compressors.registry import conform, suggest
from connectors.pretrained import load_model
from connectors.versions import map_vision_names

PREPROCESSING = ("image_mean", "image_std", "resample")  # extra keys any vision configuration may carry
Colours = float | tuple[float, float, float]
PREPROCESSING_TYPES: dict[str, Any] = {  # of an image processor's file; null leaves a step out
    "image_mean": Colours,
    "image_std": Colours,
    "resample": int | str,
    "rescale_factor": float,
    "size": dict[str, int] | int,
    "crop_size": dict[str, int] | int,
    "do_resize": bool,
    "do_rescale": bool,
    "do_normalize": bool,
    "do_convert_rgb": bool,
    "do_center_crop": bool,
}


def as_vision_config(config: dict[str, Any] | PreTrainedConfig) -> PreTrainedConfig:
    """A vision configuration from a dict with "model_type", or the vision part of a composite one.

    UsageError for an unknown model type or, in a dict, an unknown key.
    """
    if isinstance(config, dict):
        config = _make_config(config)
    return getattr(config, "vision_config", config)


def _make_config(values: dict[str, Any]) -> PreTrainedConfig:
    """A configuration from a dict with "model_type"."""
    values = dict(values)
    model_type = values.pop("model_type", None)
    if model_type is None:
        raise UsageError('the vision configuration has no "model_type" (for example siglip_vision_model)')
    try:
        fields = AutoConfig.for_model(model_type).to_dict()
    except ValueError:
        raise UsageError(f"vision tower: transformers knows no model_type '{model_type}'") from None
    for key in values:
        if key not in fields and key not in PREPROCESSING:
            raise UsageError(
                f"vision configuration '{model_type}' has no field '{key}'{suggest(key, fields)}"
            )
    return AutoConfig.for_model(model_type, **values)


def check_square(size: int | list[int] | tuple[int, ...], what: str) -> int:
    """The side of a square size that may be written as a pair. UsageError if it is not square."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise UsageError(f"{what}={size}: vision towers need a square")
    return sides.pop()


def check_preprocessing(values: Mapping[str, Any], where: str) -> None:
    """UsageError for what an image processor's file says in other types than transformers, and for colours
    that make no finite numbers."""
    for name, hint in PREPROCESSING_TYPES.items():
        conform(values.get(name), hint | None, f"{where}: {name}")
    for name in ("image_mean", "image_std", "rescale_factor"):
        value = values.get(name)
        if value is None:
            continue
        numbers = np.array(value, float)
        if not np.isfinite(numbers).all() or (name == "image_std" and not numbers.all()):
            raise UsageError(f"{where}: {name}={value}: must be finite, and a deviation not zero")
    resample = values.get("resample")
    if isinstance(resample, int) and resample not in list(Image.Resampling):
        numbers_of_filters = ", ".join(str(filter.value) for filter in Image.Resampling)
        raise UsageError(f"{where}: resample={resample}: choose one of {numbers_of_filters}")


def find_preprocessing(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """image_mean, image_std and the name of resample, those of a tower's preprocessing that are stated.
    UsageError for values that it cannot have."""
    check_preprocessing(values, where)
    fields = {key: values[key] for key in PREPROCESSING if values.get(key) is not None}
    for key in ("image_mean", "image_std"):
        if key in fields:
            conform(fields[key], tuple[float, float, float], f"{where}: {key}")
    resample = fields.get("resample")
    if isinstance(resample, int):
        fields["resample"] = Image.Resampling(resample).name.lower()
    if isinstance(resample, str) and resample.upper() not in Image.Resampling.__members__:
        names = ", ".join(filter.name.lower() for filter in Image.Resampling)
        raise UsageError(f"{where}: resample={resample!r}: choose one of {names}")
    return fields


def read_preprocessing(config: PreTrainedConfig, mean: tuple, std: tuple, resample: str = "bicubic") -> dict:
    """What the configuration says about preprocessing, else the defaults, as keywords of `VisionTower`."""
    values = {key: getattr(config, key, None) for key in PREPROCESSING}
    stated = find_preprocessing(values, f"vision configuration '{config.model_type}'")
    return {
        "image_mean": tuple(stated.get("image_mean", mean)),
        "image_std": tuple(stated.get("image_std", std)),
        "resample": stated.get("resample", resample),
    }


def load_weights(
    model_class: type[PreTrainedModel],
    source: str,
    config: PreTrainedConfig,
    dtype: torch.dtype | None,
    unused: tuple[str, ...] = (),
) -> PreTrainedModel:
    """`load_model` of a tower: every weight of the cut model is wanted but those under `unused` prefixes.

    What the checkpoint has beyond it (text model, deeper blocks, head) is left behind without a report.
    UsageError for weights that are missing, unreadable or of another shape.
    """
    return load_model(
        model_class,
        source,
        f"vision tower '{source}'",
        "save the tower there again",
        unused,
        config=config,
        dtype=dtype or "auto",
        key_mapping=map_vision_names(config.model_type),
    )
