"""The families of multimodal models that a compressor can be put into, by `model_type` of the configuration.

A package of yours offers one in the entry-point group `slothkit.families`: a `ModelFamily` under the
`model_type` of its models. It cannot replace one of ours.
"""

from typing import Any

import transformers
from torch import nn

from compressors.errors import UsageError
from compressors.registry import find_entry_points, loading_error
from connectors.versions import is_at_least
from llm_adapters.reuse.families import convolutional, crops, grids, patches, sizes, tiles
from llm_adapters.reuse.families.family import ModelFamily, PatchGrid, RawFunction, VideoFrames

__all__ = [
    "FAMILIES",
    "GROUP",
    "ModelFamily",
    "PatchGrid",
    "RawFunction",
    "VideoFrames",
    "find_family",
    "list_families",
]

GROUP = "slothkit.families"
PIXTRAL_TOWER = "pixtral"  # of LLaVA's class; a model of this type is the tower alone
FAMILIES: dict[str, ModelFamily] = {
    "llava": crops.LLAVA,
    "llava_next": tiles.LLAVA_NEXT,
    "internvl": crops.INTERNVL,
    "idefics3": crops.IDEFICS,
    "smolvlm": crops.IDEFICS,
    "paligemma": crops.PALIGEMMA,
    "gemma3": crops.GEMMA3,
    "qwen2_vl": grids.QWEN2_VL,
    "qwen2_5_vl": grids.QWEN2_5_VL,
    "vipllava": crops.VIP_LLAVA,
    "aya_vision": crops.COHERE,
    "cohere2_vision": crops.COHERE,
    "janus": crops.JANUS,
    "deepseek_vl": crops.DEEPSEEK_VL,
    "perception_lm": crops.PERCEPTION_LM,
    "llava_next_video": tiles.LLAVA_NEXT_VIDEO,
    "llava_onevision": tiles.LLAVA_ONEVISION,
    PIXTRAL_TOWER: sizes.PIXTRAL,
    "mistral3": sizes.MISTRAL3,
    "lighton_ocr": sizes.LIGHTON_OCR,
    "qwen3_vl": grids.QWEN3_VL,
    "qwen3_vl_moe": grids.QWEN3_VL,
    "qwen3_5": grids.QWEN3_5,
    "qwen3_5_moe": grids.QWEN3_5,
    "glm4v": grids.GLM4V,
    "glm4v_moe": grids.GLM4V,
    "glm46v": grids.GLM4V,
    "exaone4_5": grids.EXAONE4_5,
    "fast_vlm": convolutional.FAST_VLM,
    "ovis2": crops.OVIS2,
    "kimi_k25": sizes.KIMI_K25,
    "idefics2": patches.IDEFICS2,
    "gemma3n": convolutional.GEMMA3N,
    "gemma4": patches.GEMMA4,
}
# what is asked for and has no entry, with the reason
REFUSED: dict[str, str] = {
    "gemma4_unified": "it has no vision tower: patches of pixels go straight into the LLM, so that there are "
    "no features to compress; gemma4 can",
    "kimi_vl": "transformers has no class of it, and no code of a repository is run here; kimi_k25 can",
}


def list_families() -> list[str]:
    """Names of ours, and of those that packages offer."""
    names = [name for name in FAMILIES if name != PIXTRAL_TOWER]
    return names + [name for name in find_entry_points(GROUP) if name not in FAMILIES]


def find_family(model: nn.Module) -> ModelFamily:
    """UsageError for a model that is none of them, with the names there are, or that PEFT has wrapped."""
    config: Any = getattr(model, "config", None)  # any module may be given, by mistake
    kind = getattr(config, "model_type", type(model).__name__)
    if kind == PIXTRAL_TOWER:
        family = None
    elif kind == "llava" and config.vision_config.model_type == PIXTRAL_TOWER:
        kind = "llava with a pixtral tower"
        family = FAMILIES[PIXTRAL_TOWER]
    else:
        family = FAMILIES.get(kind) or _load_family(kind)
    if family is None and kind in REFUSED:
        raise UsageError(f"model of type '{kind}': {REFUSED[kind]}")
    if family is None:
        raise UsageError(f"model of type '{kind}': a compressor can be put into {', '.join(list_families())}")
    if getattr(config, "vision_config", config) is None:
        raise UsageError(
            f"{type(model).__name__}: it has no vision tower (vision_config: null); load one that has"
        )
    if hasattr(model, "get_base_model"):
        raise UsageError(
            f"{type(model).__name__}: give model.get_base_model(); a compressor is attached "
            "before PEFT wraps the model"
        )
    if not is_at_least(family.since):
        raise UsageError(
            f"transformers {transformers.__version__}: a compressor can be put into {kind} from "
            f"{family.since} on; upgrade it"
        )
    return family


def _load_family(kind: str) -> ModelFamily | None:
    """What a package offers for models of that type. UsageError where it does not load or is none."""
    point = find_entry_points(GROUP).get(kind)
    if point is None:
        return None
    try:
        family = point.load()
    except Exception as error:  # the package's own code
        raise loading_error("family", point, error) from error
    if not isinstance(family, ModelFamily):
        raise UsageError(
            f"family '{kind}' of entry point {point.value}: it is a {type(family).__name__}; offer a "
            "llm_adapters.reuse.families.ModelFamily"
        )
    return family
