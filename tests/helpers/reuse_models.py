"""Configurations of tiny models of the real classes that a compressor can be put into."""

from typing import Any

from reuse_newer import make_gemma3n_settings, make_gemma4_settings, make_idefics2_settings
from tiny_tokenizer import ids

GRID = 6  # patches on a side
PATCH = 4
SIZE = GRID * PATCH
TEXT = {
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "head_dim": 8,
    "tie_word_embeddings": False,
}
VISION = {
    "image_size": SIZE,
    "patch_size": PATCH,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
}
GRID_VISION = {
    "depth": 3,
    "num_heads": 4,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "initializer_range": 0.3,
    "hidden_size": 16,
    "intermediate_size": 24,
    "out_hidden_size": 32,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
PINPOINTS = [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE]]
PIXEL_SIZES = [SIZE, SIZE], [PATCH, PATCH]


def _llama(kind: str = "llama", **changes: Any) -> dict:
    return {**TEXT, "model_type": kind, **changes}


def _siglip(**changes: Any) -> dict:
    return {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False, **changes}


def _clip() -> dict:
    return {**VISION, "model_type": "clip_vision_model"}


def _internvl(kind: str) -> dict:
    image_size, patch_size = PIXEL_SIZES
    return {**VISION, "model_type": kind, "image_size": image_size, "patch_size": patch_size}


def _pixtral() -> dict:
    return {**VISION, "model_type": "pixtral", "image_size": 4 * SIZE, "head_dim": 4}


def _qwen3(experts: str = "", **text: Any) -> dict:
    rope = {**ROPE, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    vision = {**GRID_VISION, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    if experts:
        text |= {**EXPERTS, experts: 4, "decoder_sparse_step": 1}
    return {"text_config": {**TEXT, "rope_parameters": rope, **text}, "vision_config": vision}


def _qwen3_5(**text: Any) -> dict:
    linear = {
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": ["linear_attention", "full_attention", "full_attention"],
    }
    config = _qwen3(**linear, **text)
    config["text_config"]["rope_parameters"]["partial_rotary_factor"] = 1.0
    del config["vision_config"]["deepstack_visual_indexes"]
    return config


def _glm(**text: Any) -> dict:
    rope = {**ROPE, "partial_rotary_factor": 1.0}
    vision = {**GRID_VISION, "image_size": SIZE}
    return {"text_config": {**TEXT, "rope_parameters": rope, **text}, "vision_config": vision}


FASTVIT = {
    "model_type": "timm_wrapper",
    "architecture": "fastvit_mci0",
    "do_pooling": True,
    "global_pool": "avg",
    "hidden_size": 16,
    "initializer_range": 0.3,
    "model_args": {
        "layers": [1, 1],
        "embed_dims": [16, 16],
        "mlp_ratios": [2, 2],
        "downsamples": [False, False],
        "se_downsamples": [False, False],
        "pos_embs": [None, None],
        "token_mixers": ["repmixer", "repmixer"],
        "cls_ratio": 1.0,
        "stem_use_scale_branch": False,
        "inference_mode": True,
    },
}
GLM_EXPERTS = {
    **EXPERTS,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}


def make_settings(family: str) -> dict:
    """The keyword arguments of a family's configuration."""
    known = ids()
    settings = {"image_token_id": known["<image>"], "tie_word_embeddings": False}
    parts = FAMILY_SETTINGS[family]()
    settings |= parts
    if family in GRID_FAMILIES:
        settings |= {
            "video_token_id": known["<video>"],
            "vision_start_token_id": known["<vision_start>"],
            "vision_end_token_id": known["<vision_end>"],
        }
    if family == "ovis2":
        settings["image_token_id"] = known["<IMG_ATOM>"]
        markers = ("START", "GRID", "COL", "ROW", "END")
        settings["visual_indicator_token_ids"] = [known[f"<IMG_{name}>"] for name in markers]
    if family == "fast_vlm":
        settings["image_token_index"] = settings.pop("image_token_id")
    if family == "aya_vision":
        settings["image_token_id"] = known["<patch>"]
    if family == "gemma3":
        settings |= {"boi_token_index": known["<boi>"], "eoi_token_index": known["<eoi>"]}
    if family in ("llava_onevision", "llava_next_video", "perception_lm"):
        settings["video_token_id"] = known["<video>"]
    return settings


GRID_FAMILIES = (
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "glm4v",
    "glm4v_moe",
    "glm46v",
    "exaone4_5",
    "kimi_k25",
)
TILE_FAMILIES = ("llava_next", "llava_next_video", "llava_onevision")
FAMILY_SETTINGS = {
    "llava": lambda: {"vision_config": _clip(), "text_config": _llama()},
    "vipllava": lambda: {"vision_config": _clip(), "text_config": _llama(), "vision_feature_layer": -2},
    "llava_next": lambda: {
        "vision_config": _clip(),
        "text_config": _llama(),
        "image_grid_pinpoints": PINPOINTS,
    },
    "llava_next_video": lambda: {
        "vision_config": _clip(),
        "text_config": _llama(),
        "image_grid_pinpoints": PINPOINTS,
    },
    "llava_onevision": lambda: {
        "vision_config": _siglip(),
        "text_config": _llama("qwen2"),
        "image_grid_pinpoints": PINPOINTS,
        "vision_aspect_ratio": "anyres_max_2",
    },
    "internvl": lambda: {
        "text_config": _llama("qwen2"),
        "vision_feature_layer": -1,
        "vision_config": _internvl("internvl_vision"),
    },
    "idefics3": lambda: {
        "text_config": _llama(),
        "scale_factor": 2,
        "pad_token_id": 0,
        "vision_config": {**VISION, "model_type": "idefics3_vision"},
    },
    "smolvlm": lambda: {
        "text_config": _llama(),
        "scale_factor": 2,
        "pad_token_id": 0,
        "vision_config": {**VISION, "model_type": "smolvlm_vision"},
    },
    "paligemma": lambda: {
        "text_config": _llama("gemma"),
        "projection_dim": 32,
        "vision_config": _siglip(projection_dim=32),
    },
    "gemma3": lambda: {
        "text_config": _llama("gemma3_text", query_pre_attn_scalar=8, sliding_window=64),
        "vision_config": _siglip(),
        "mm_tokens_per_image": 9,
    },
    "aya_vision": lambda: {
        "text_config": _llama("cohere2", logit_scale=1.0),
        "vision_config": _siglip(),
        "alignment_intermediate_size": 48,
    },
    "cohere2_vision": lambda: {
        "text_config": _llama("cohere2", logit_scale=1.0),
        "vision_config": _siglip(),
        "alignment_intermediate_size": 48,
    },
    "janus": lambda: {
        "text_config": _llama(),
        "vision_config": {
            **VISION,
            "model_type": "janus_vision_model",
            "projection_dim": 32,
            "mlp_ratio": 2.0,
        },
        "vq_config": {
            "base_channels": 32,
            "channel_multiplier": [1],
            "num_res_blocks": 1,
            "latent_channels": 32,
            "num_embeddings": 16,
            "projection_dim": 32,
            "image_token_embed_dim": 32,
            "num_patches": GRID,
        },
    },
    "deepseek_vl": lambda: {"text_config": _llama(), "vision_config": _siglip()},
    "perception_lm": lambda: {
        "text_config": _llama(),
        "vision_use_cls_token": True,
        "projector_pooling_ratio": 1,
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "vit_pe_core_large_patch14_336",
            "do_pooling": True,
            "num_classes": 0,
            "global_pool": "",
            "initializer_range": 0.3,
            "model_args": {
                "embed_dim": 16,
                "depth": 3,
                "num_heads": 4,
                "img_size": [SIZE, SIZE],
                "patch_size": PATCH,
                "global_pool": "",
                "use_post_transformer_norm": False,
                "init_values": 1.0,
                "ref_feat_shape": [GRID, GRID],
            },
        },
    },
    "pixtral": lambda: {
        "text_config": _llama("mistral"),
        "vision_config": _pixtral(),
        "vision_feature_select_strategy": "full",
        "vision_feature_layer": -1,
    },
    "mistral3": lambda: {"text_config": _llama("mistral"), "vision_config": _pixtral()},
    "lighton_ocr": lambda: {"text_config": _llama("qwen3"), "vision_config": _pixtral()},
    "qwen2_vl": lambda: {
        "text_config": _llama("qwen2_vl_text", rope_parameters=ROPE),
        "vision_config": {**GRID_VISION, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
    },
    "qwen2_5_vl": lambda: {
        "text_config": _llama("qwen2_5_vl_text", rope_parameters=ROPE),
        "vision_config": {**GRID_VISION, "window_size": 16, "fullatt_block_indexes": [1]},
    },
    "exaone4_5": lambda: {
        "text_config": _llama("exaone4", sliding_window=64, layer_types=["full_attention"] * 3),
        "vision_config": {
            **GRID_VISION,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "num_key_value_heads": 2,
        },
    },
    "fast_vlm": lambda: {
        "text_config": _llama("qwen2"),
        "image_seq_length": GRID * GRID,
        "vision_config": FASTVIT,
    },
    "ovis2": lambda: {
        "text_config": _llama("qwen2"),
        "hidden_size": TEXT["hidden_size"],
        "vocab_size": TEXT["vocab_size"],
        "vision_config": {**VISION, "model_type": "ovis2_vision", "vocab_size": 40, "hidden_stride": 2},
    },
    "kimi_k25": lambda: {
        "projection_hidden_size": VISION["hidden_size"],
        "text_config": _llama(
            "deepseek_v3",
            num_key_value_heads=4,
            kv_lora_rank=8,
            q_lora_rank=8,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
            head_dim=4,
            n_group=1,
            topk_group=1,
            **GLM_EXPERTS,
        ),
        "vision_config": {
            "model_type": "kimi_k25_vision",
            "patch_size": PATCH,
            "pos_emb_height": 2 * GRID,
            "pos_emb_width": 2 * GRID,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "initializer_range": 0.3,
        },
    },
    "idefics2": lambda: make_idefics2_settings(TEXT, VISION),
    "gemma3n": lambda: make_gemma3n_settings(TEXT, FASTVIT, GRID),
    "gemma4": lambda: make_gemma4_settings(TEXT, VISION),
    "qwen3_vl": lambda: _qwen3(),
    "qwen3_vl_moe": lambda: _qwen3("num_experts"),
    "qwen3_5": lambda: _qwen3_5(),
    "qwen3_5_moe": lambda: _qwen3_5(**EXPERTS, num_experts=4, shared_expert_intermediate_size=16),
    "glm4v": lambda: _glm(),
    "glm4v_moe": lambda: _glm(**GLM_EXPERTS),
    "glm46v": lambda: _glm(model_type="glm4v_text"),
}
