"""Tiny models and processors of Idefics 2, Gemma 3n and 4, for `reuse_models` and `reuse_processors`."""

from typing import Any

import transformers
from tiny_tokenizer import ids, tokenizer

WORDS = len(tokenizer())  # what is added to a tokenizer has ids from here on
SOUND_BASE = {"hidden_size": 16, "initializer_range": 0.3}
GEMMA3N_SOUND = {
    **SOUND_BASE,
    "vocab_offset": WORDS + 1,
    "vocab_size": 8,
    "input_feat_size": 32,
    "conf_attention_chunk_size": 4,
    "conf_attention_context_left": 5,
    "conf_num_attention_heads": 2,
    "conf_num_hidden_layers": 1,
    "sscp_conv_channel_size": [8, 4],
}
GEMMA4_SOUND = {
    **SOUND_BASE,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "subsampling_conv_channels": [32, 4],
    "output_proj_dims": 16,
    "attention_chunk_size": 4,
    "attention_context_left": 5,
    "use_clipped_linears": False,
}
LATENTS = 9  # of an image in Idefics 2
SOUND_TOKENS = 4  # of a clip in Gemma 3n


def make_idefics2_settings(text: dict, vision: dict) -> dict[str, Any]:
    """With a resampler of its own."""
    perceiver = {
        "hidden_size": text["hidden_size"],
        "resampler_n_latents": LATENTS,
        "resampler_depth": 1,
        "resampler_n_heads": 2,
        "resampler_head_dim": 8,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
    }
    return {
        "text_config": {**text, "model_type": "mistral"},
        "vision_config": {**vision, "model_type": "idefics2_vision"},
        "perceiver_config": perceiver,
    }


def make_gemma3n_settings(text: dict, tower: dict, grid: int) -> dict[str, Any]:
    """The markers' ids are beyond words and the per-layer table, as in the released models: the first is an
    image's to the model, the second a sound's."""
    known = ids()
    own_text = {
        "vocab_size": WORDS + 1 + GEMMA3N_SOUND["vocab_size"],
        "vocab_size_per_layer_input": WORDS,
        "hidden_size_per_layer_input": 8,
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 64,
        "laurel_rank": 4,
        "altup_num_inputs": 2,
        "activation_sparsity_pattern": [0.5, 0.0, 0.0],
    }
    vision = {
        **{name: value for name, value in tower.items() if name != "model_type"},
        "do_pooling": False,
        "vocab_offset": WORDS,
        "vocab_size": 1,
    }
    return {
        "text_config": {**text, **own_text},
        "vision_config": vision,
        "audio_config": GEMMA3N_SOUND,
        "vision_soft_tokens_per_image": grid**2,
        "audio_soft_tokens_per_image": SOUND_TOKENS,
        **name_token_ids(known),
    }


def make_gemma4_settings(text: dict, vision: dict) -> dict[str, Any]:
    """With per-layer inputs, attention both ways among visual tokens, and a norm behind the pooling."""
    own_text = {
        "vocab_size": WORDS + 1,  # the last is that of videos, which its processor adds
        "vocab_size_per_layer_input": WORDS + 1,
        "hidden_size_per_layer_input": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "sliding_window": 64,
        "use_bidirectional_attention": "vision",
        "global_head_dim": 8,
    }
    own_vision = {
        "head_dim": 4,
        "num_key_value_heads": 4,
        "pooling_kernel_size": 2,
        "position_embedding_size": 128,
        "standardize": True,
    }
    return {
        "text_config": {**text, **own_text},
        "vision_config": {**vision, **own_vision},
        "audio_config": GEMMA4_SOUND,
        "video_token_id": WORDS,
        **name_token_ids(ids()),
    }


def name_token_ids(known: dict[str, int]) -> dict[str, int]:
    """Gemma's names for special tokens' ids."""
    return {f"{name}_token_id": known[f"<{name}>"] for name in ("boi", "eoi", "boa", "eoa", "audio")}


def make_idefics2_processor(tok, chat, size: int):
    images = transformers.Idefics2ImageProcessor(
        size={"shortest_edge": size, "longest_edge": 2 * size}, do_image_splitting=False
    )
    return transformers.Idefics2Processor(images, tok, image_seq_len=LATENTS, **chat)


def make_gemma3n_processor(tok, chat, pixels: dict, grid: int):
    images = transformers.SiglipImageProcessor(size=pixels)
    sounds = transformers.Gemma3nAudioFeatureExtractor(feature_size=GEMMA3N_SOUND["input_feat_size"])
    return transformers.Gemma3nProcessor(
        sounds, images, tok, image_seq_length=grid**2, audio_seq_length=SOUND_TOKENS, **chat
    )


def make_gemma4_processor(tok, chat, patch: int):
    sizes = {"patch_size": patch, "pooling_kernel_size": 2, "max_soft_tokens": 70}
    images = transformers.Gemma4ImageProcessor(**sizes, do_resize=False)  # enlarges all
    videos = transformers.Gemma4VideoProcessor(**sizes)
    sounds = transformers.Gemma4AudioFeatureExtractor(
        feature_size=32
    )  # channels of its encoder's first layer
    return transformers.Gemma4Processor(sounds, images, tok, videos, **chat)
