"""The config.json of a released FlashSloth checkpoint <-> our configuration.

Read are flat files in phi's words with LLaVA's `mm_*` fields, and nested ones (`llm`, `vision`, `sap`,
`embq`). What neither the file nor a tensor's shape says is a constant of the released code.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict
from math import isqrt
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig

from compressors.errors import UsageError, quote, shorten_reason
from connectors.tiling import Tiling
from connectors.towers.base import count_blocks
from connectors.towers.config import as_vision_config
from llm_adapters.configuration import FlashSlothConfig
from llm_adapters.conversation import Template
from llm_adapters.released.layout import EMBEDDING, QUERIES, TOWER

DOT, QUERY_ID, END_ID = 764, 50295, 50296  # " .", <learnable> and </s> in the released code
RATE, LAYER, WIDTH, QUERY_COUNT = 3, 8, 576, 9
LLM_NEEDS = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
LLM_FIELDS = (
    *LLM_NEEDS,
    "num_key_value_heads",
    "max_position_embeddings",
    "hidden_act",
    "layer_norm_eps",
    "qk_layernorm",
    "partial_rotary_factor",
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "attention_dropout",
    "embd_pdrop",
    "resid_pdrop",
    "initializer_range",
)
LLM_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
TOWER_NEEDS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
)
TOWER_FIELDS = (
    *TOWER_NEEDS,
    "layer_norm_eps",
    "hidden_act",
    "attention_dropout",
    "num_channels",
    "image_mean",
    "image_std",
    "resample",
)
# hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, image_size, patch_size
SO400M_SIZES = (1152, 4304, 27, 16, 384, 14)
TOWERS = {"siglip-so400m-patch14-384": dict(zip(TOWER_NEEDS, SO400M_SIZES))}


def make_composed_config(
    values: dict[str, Any], tensors: Mapping[str, Tensor], source: Path
) -> FlashSlothConfig:
    """Our configuration of a checkpoint. UsageError where a size is said nowhere."""
    select = values.get("mm_vision_select_layer", -2)
    text_config = make_llm_config(values, tensors, source)
    rate = values.get("sap", {}).get("rate", RATE)
    return FlashSlothConfig(
        vision_config=make_tower_config(values, tensors, select, source),
        text_config=text_config,
        select_layer=select,
        compressor="sap",
        compressor_knobs={"rate": rate},
        projector="mlp2x_gelu",
        query_module="embq",
        query_module_knobs=read_embq_knobs(values, tensors),
        query_token_id=values.get("placeholders", {}).get("queries", QUERY_ID),
        prompt=asdict(Template()),
    )


def make_llm_config(values: dict[str, Any], tensors: Mapping[str, Tensor], source: Path) -> PreTrainedConfig:
    """Phi's; as many embeddings as the checkpoint has."""
    llm_values = values.get("llm", values)  # nested in some releases, flat in others
    absent = [name for name in LLM_NEEDS if name not in llm_values]
    if absent:
        raise UsageError(
            f"{source}: config.json does not say {', '.join(absent)}; put the one that "
            "belongs to the weights beside them, or give base=DIR"
        )
    sizes = {name: llm_values[name] for name in LLM_FIELDS if llm_values.get(name) is not None}
    for name in LLM_IDS:  # phi's defaults are tokens that mean something else
        sizes[name] = llm_values.get(name)
    rows = llm_values.get("vocab_size", 51200)
    if EMBEDDING in tensors:
        rows = len(tensors[EMBEDDING])
    return AutoConfig.for_model("phi", vocab_size=rows, tie_word_embeddings=False, **sizes)


def make_tower_config(
    values: dict[str, Any], tensors: Mapping[str, Tensor], select: int, source: Path
) -> PreTrainedConfig:
    """SigLIP's: what the file says, or what its `mm_vision_tower` is known to be, else what shapes tell."""
    tower_values = values.get("vision") or values.get("vision_config") or read_named_tower(values, source)
    sizes: dict[str, Any] = dict(read_tower_shapes(tensors, select))
    for name in TOWER_FIELDS:
        if tower_values.get(name) is not None:
            sizes[name] = tower_values[name]
    absent = [name for name in TOWER_NEEDS if name not in sizes]
    if absent:
        raise UsageError(
            f"{source}: nothing says the tower's {', '.join(absent)}; add a vision_config to config.json"
        )
    count_blocks(select, sizes["num_hidden_layers"])
    return AutoConfig.for_model("siglip_vision_model", **sizes)


def read_named_tower(values: dict[str, Any], source: Path) -> dict[str, Any]:
    """Sizes of the tower that `mm_vision_tower` names."""
    name = values.get("mm_vision_tower")
    if name is None:
        return {}
    if Path(name).name in TOWERS:
        return TOWERS[Path(name).name]
    try:
        return as_vision_config(AutoConfig.from_pretrained(name, trust_remote_code=False)).to_dict()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{source}: mm_vision_tower={name} cannot be read ({shorten_reason(error)}); add a "
            "vision_config to config.json"
        ) from error


def read_tower_shapes(tensors: Mapping[str, Tensor], select: int) -> dict[str, int]:
    """What the tower's tensors tell of its sizes; the last layers were cut off down to `select`."""
    sizes: dict[str, int] = {}
    blocks = count_matching(tensors, rf"{re.escape(TOWER)}encoder\.layers\.(\d+)\.")
    patches = tensors.get(f"{TOWER}embeddings.patch_embedding.weight")
    positions = tensors.get(f"{TOWER}embeddings.position_embedding.weight")
    inner = tensors.get(f"{TOWER}encoder.layers.0.mlp.fc1.weight")
    if patches is not None:
        sizes.update(hidden_size=patches.shape[0], patch_size=patches.shape[-1])
        if positions is not None:
            sizes["image_size"] = isqrt(len(positions)) * sizes["patch_size"]
    if inner is not None:
        sizes["intermediate_size"] = inner.shape[0]
    if blocks and select > 0:
        sizes["num_hidden_layers"] = blocks
    elif blocks:  # counted from the end: -2 has cut one block off
        sizes["num_hidden_layers"] = blocks - 1 - select
    return sizes


def read_embq_knobs(values: dict[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, object]:
    """EmbQ's knobs: what the file says, else shapes, else constants."""
    embq_values = values.get("embq", {})
    image = tensors.get("model.lqformer.down_projector_image.weight")
    width = WIDTH if image is None else image.shape[0]
    tokens = tensors.get(QUERIES)
    count = QUERY_COUNT if tokens is None else tokens.shape[0]
    return {
        "dim": embq_values.get("dim", width),
        "num_queries": embq_values.get("num_queries", count),
        "num_layers": count_matching(tensors, r"model\.lqformer\.layers\.(\d+)\.") or 1,
        "at": embq_values.get("insert_before_layer_number", LAYER),
        "released": True,
    }


def count_matching(tensors: Mapping[str, Tensor], pattern: str) -> int:
    """One more than the highest number that the pattern finds in a key."""
    highest = -1
    for key in tensors:
        match = re.match(pattern, key)
        if match:
            highest = max(highest, int(match[1]))
    return highest + 1


def find_dot_token(values: dict[str, Any]) -> int:
    """The token whose embedding released code adds to the query tokens."""
    return values.get("embq", {}).get("dot_token_id", DOT)


def read_tiles(values: dict[str, Any]) -> int:
    """k of the k x k tiles; a nested file gives the crops, thumbnail included."""
    prompt = values.get("prompt", {})
    crops = prompt.get("hd_tiles", 1) if isinstance(prompt, dict) else prompt
    if not isinstance(crops, int) or crops < 1:
        raise UsageError(f"config.json: prompt.hd_tiles={quote(crops)}: expected a number of crops")
    return max(1, isqrt(crops - 1))


def write_tiles(values: dict[str, Any], tiles: int) -> None:
    """Let `values` give the crops of k x k tiles, if they tell of others."""
    if read_tiles(values) == tiles:
        return
    prompt = values.get("prompt")
    if not isinstance(prompt, dict):
        prompt = {}
    crops = Tiling(tiles).most_crops
    values["prompt"] = {**prompt, "hd_tiles": crops}


def make_flat_values(config: FlashSlothConfig) -> dict[str, Any]:
    """A flat config.json for a model that did not come from one: phi's words and the fields read above."""
    text = config.text_config.to_dict()
    vision = config.vision_config.to_dict()
    # transformers 5 nests what released files have at the top
    rope = text.pop("rope_parameters", None) or {}
    rope.pop("rope_type", None)
    text_values = {name: value for name, value in (text | rope).items() if value is not None}
    tower_sizes = {name: vision[name] for name in TOWER_FIELDS if vision.get(name) is not None}
    tower_name = None
    for name, sizes in TOWERS.items():
        if sizes.items() <= tower_sizes.items():
            tower_name = name
    knobs = config.query_module_knobs or {}
    return {
        **text_values,
        "mm_vision_tower": tower_name,
        "vision_config": tower_sizes,
        "mm_hidden_size": vision["hidden_size"],
        "mm_projector_type": "mlp2x_gelu",
        "mm_vision_select_layer": config.select_layer,
        "mm_vision_select_feature": "patch",
        "sap": {"rate": (config.compressor_knobs or {}).get("rate", RATE)},
        "embq": {"insert_before_layer_number": find_query_layer(knobs), "dot_token_id": DOT},
        "placeholders": {"queries": config.query_token_id},
    }


def find_query_layer(knobs: dict[str, Any]) -> int:
    """EmbQ's decoder layer; UsageError when it has several, which released keys cannot tell."""
    at = knobs.get("at", LAYER)
    layers = [at] if isinstance(at, int) else sorted(set(at))
    if len(layers) != 1:
        raise UsageError(f"embq.at={layers}: a released checkpoint has EmbQ at one decoder layer")
    return layers[0]


class ReleasedPart(NamedTuple):
    """What a model has as one of its parts, and what released code can have there."""

    name: str
    value: object
    possible: tuple[object, ...]


def list_released_parts(config: FlashSlothConfig) -> list[ReleasedPart]:
    """Every choice of a model that released code has made already."""
    knobs = config.query_module_knobs or {}
    projector_knobs = config.projector_knobs or {}
    # with one layer there is nothing to stack
    is_stacked = knobs.get("num_layers", 1) > 1 and knobs.get("stacked", False)
    llm_heads = config.text_config.num_attention_heads
    grid_policy = (config.compressor_knobs or {}).get("grid_policy", "error")
    return [
        ReleasedPart("llm", config.text_config.model_type, ("phi",)),
        ReleasedPart("tower", config.vision_config.model_type, ("siglip_vision_model",)),
        ReleasedPart("compressor", config.compressor, ("sap",)),
        # the same on a grid of whole windows; on another, converting it tells so
        ReleasedPart("sap.grid_policy", grid_policy, ("error", "ceil")),
        ReleasedPart("projector", config.projector, ("mlp2x_gelu", "auto")),
        ReleasedPart("mlp2x_gelu.depth", projector_knobs.get("depth", 2), (2,)),
        ReleasedPart("query_module", config.query_module, ("embq",)),
        ReleasedPart("embq.fusion", knobs.get("fusion", "add"), ("add",)),
        ReleasedPart("embq.stacked", is_stacked, (False,)),
        ReleasedPart("embq.heads", knobs.get("heads"), (None, llm_heads)),
        ReleasedPart("pruner", config.pruner, (None,)),
        ReleasedPart("prompt", config.template, (Template(),)),
    ]


def check_exportable(config: FlashSlothConfig, source: Path) -> None:
    """UsageError for a part that the released code does not have."""
    for part in list_released_parts(config):
        if part.value not in part.possible:
            raise UsageError(
                f"{source}: {part.name}={part.value}: the released model has {part.possible[0]} there, "
                "so its layout cannot hold this model"
            )
    find_query_layer(config.query_module_knobs or {})
