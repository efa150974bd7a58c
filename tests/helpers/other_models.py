"""Tiny models with inputs, of classes that pruners take and that `reuse` has no family for."""

import torch
from reuse_models import TEXT, VISION
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

OTHER_KINDS = ("ernie4_5_vl_moe", "granite4_vision")
IMAGE_ID = 10


def make_other_model(kind: str) -> tuple[PreTrainedModel, dict[str, Tensor]]:
    """One of `OTHER_KINDS` and a row with an image."""
    torch.manual_seed(0)
    settings, batch = _make_ernie() if kind == "ernie4_5_vl_moe" else _make_granite()
    config = AutoConfig.for_model(kind, **settings)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    return AutoModelForImageTextToText.from_config(config).eval(), batch


def _make_ernie() -> tuple[dict, dict[str, Tensor]]:
    """Its layers are given the types of tokens, by which experts are chosen."""
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "intermediate_size": 32,
    }
    text = {
        **TEXT,
        "head_dim": 16,
        "moe_intermediate_size": [16, 16],
        "moe_k": 2,
        "moe_num_experts": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [3, 3, 2]},
    }
    ids = torch.tensor([[20, 12] + [IMAGE_ID] * 4 + [13, 30, 31, 32]])
    types = (ids == IMAGE_ID).long()
    batch = {
        "input_ids": ids,
        "pixel_values": torch.randn(16, 3 * 16),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "mm_token_type_ids": types,
        "moe_mm_token_type_ids": types,
    }
    return {"vision_config": vision, "text_config": text, "image_token_id": IMAGE_ID}, batch


def _make_granite() -> tuple[dict, dict[str, Tensor]]:
    """Its LLM adds features of images in front of its first and its third layer."""
    vision = {
        **VISION,
        "model_type": "siglip_vision_model",
        "hidden_size": 64,
        "num_attention_heads": 2,
        "vision_use_head": False,
        "image_size": 16,
        "patch_size": 4,
    }
    settings = {
        "vision_config": vision,
        "text_config": {**TEXT, "model_type": "granite4_vision_text"},
        "image_token_index": IMAGE_ID,
        "vision_feature_select_strategy": "full",
        "vision_feature_layer": -1,
        "image_grid_pinpoints": [[16, 16], [16, 32]],
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-1, 0], [-2, 2]],
        "spatial_target_layers": [1, 1, 2, 2],
        "projector_dropout": 0.0,
    }
    batch = {
        "input_ids": torch.tensor([[20] + [IMAGE_ID] * 10 + [30, 31, 32]]),
        "pixel_values": torch.randn(1, 2, 3, 16, 16),
        "image_sizes": torch.tensor([[16, 16]]),
    }
    return settings, batch
