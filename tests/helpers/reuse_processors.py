"""Processors of the real classes, for the models of `reuse_models`; nothing from the hub."""

import transformers
from reuse_models import GRID, GRID_FAMILIES, PATCH, PINPOINTS, SIZE
from reuse_newer import make_gemma3n_processor, make_gemma4_processor, make_idefics2_processor
from tiny_tokenizer import CHAT, tokenizer
from transformers import ProcessorMixin

PIXELS = {"height": SIZE, "width": SIZE}
CLIP = {"size": PIXELS, "crop_size": PIXELS}
EDGES = {"size": {"longest_edge": 2 * SIZE}, "max_image_size": {"longest_edge": SIZE}}
WITH_CLS = {
    "patch_size": PATCH,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
}
GLM = ("glm4v", "glm4v_moe", "glm46v")
PLACEHOLDER = {
    "gemma3": "<boi>",
    **dict.fromkeys(GRID_FAMILIES, "<vision_start><image><vision_end>"),
}


def video_placeholder(family: str) -> str:
    """What stands for a video in a text."""
    if family in GLM:
        return "<|begin_of_video|><video><|end_of_video|>"
    if family in GRID_FAMILIES and family != "kimi_k25":
        return "<vision_start><video><vision_end>"
    return "<video>"


def make_processor(family: str, side: str = "left") -> ProcessorMixin:
    """The family's processor, whose tokenizer pads on that side."""
    template = CHAT.replace("IMAGE", PLACEHOLDER.get(family, "<image>"))
    chat = {"chat_template": template.replace("VIDEO", video_placeholder(family))}
    return MAKERS[family](tokenizer(side), chat)


def _make_llava(tok, chat):
    images = transformers.CLIPImageProcessor(**CLIP)
    return transformers.LlavaProcessor(images, tok, **WITH_CLS, **chat)


def _make_llava_next(tok, chat):
    images = transformers.LlavaNextImageProcessor(**CLIP, image_grid_pinpoints=PINPOINTS)
    return transformers.LlavaNextProcessor(images, tok, **WITH_CLS, **chat)


def _make_llava_next_video(tok, chat):
    images = transformers.LlavaNextImageProcessor(**CLIP, image_grid_pinpoints=PINPOINTS)
    videos = transformers.LlavaNextVideoVideoProcessor(**CLIP)
    return transformers.LlavaNextVideoProcessor(videos, images, tok, **WITH_CLS, **chat)


def _make_onevision(tok, chat):
    images = transformers.LlavaOnevisionImageProcessor(size=PIXELS, image_grid_pinpoints=PINPOINTS)
    videos = transformers.LlavaOnevisionVideoProcessor(size=PIXELS)
    return transformers.LlavaOnevisionProcessor(
        images,
        tok,
        videos,
        num_image_tokens=GRID * GRID,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
        **chat,
    )


def _make_fast_vlm(tok, chat):
    images = transformers.CLIPImageProcessor(**CLIP)
    return transformers.LlavaProcessor(
        images,
        tok,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        **chat,
    )


def _make_ovis2(tok, chat):
    images = transformers.Ovis2ImageProcessor(size=PIXELS, crop_to_patches=True, max_patches=4)
    return transformers.Ovis2Processor(images, tok, image_seq_length=9, **chat)


def _make_kimi(tok, chat):
    images = transformers.Kimi_K25ImageProcessor(
        patch_size=PATCH, merge_size=2, size={"max_height": 12, "max_width": 12}
    )
    videos = transformers.Kimi_K25VideoProcessor(patch_size=PATCH, merge_size=2)
    return transformers.Kimi_K25Processor(images, tok, videos, **chat)


def _make_internvl(tok, chat):
    images = transformers.GotOcr2ImageProcessor(size=PIXELS, min_patches=1, max_patches=4)
    videos = transformers.InternVLVideoProcessor(size=PIXELS)
    return transformers.InternVLProcessor(images, tok, videos, image_seq_length=9, **chat)


def _make_idefics3(tok, chat):
    images = transformers.Idefics3ImageProcessor(**EDGES)
    return transformers.Idefics3Processor(images, tok, image_seq_len=9, **chat)


def _make_smolvlm(tok, chat):
    images = transformers.SmolVLMImageProcessor(**EDGES)
    videos = transformers.SmolVLMVideoProcessor(**EDGES)
    return transformers.SmolVLMProcessor(images, tok, videos, image_seq_len=9, **chat)


def _make_paligemma(tok, chat):
    images = transformers.SiglipImageProcessor(size=PIXELS)
    images.image_seq_length = GRID * GRID
    return transformers.PaliGemmaProcessor(images, tok, **chat)


def _make_gemma3(tok, chat):
    images = transformers.Gemma3ImageProcessor(size=PIXELS)
    return transformers.Gemma3Processor(images, tok, image_seq_length=9, **chat)


def _make_aya(tok, chat):
    images = transformers.GotOcr2ImageProcessor(size=PIXELS, crop_to_patches=True, max_patches=4)
    return transformers.AyaVisionProcessor(
        images,
        tok,
        patch_size=PATCH,
        img_size=SIZE,
        downsample_factor=2,
        start_of_img_token="<img>",
        end_of_img_token="</img>",
        img_patch_token="<patch>",
        **chat,
    )


def _make_cohere2(tok, chat):
    # its `patch_size` is tokens on a side of a tile
    images = transformers.Cohere2VisionImageProcessor(size=PIXELS, max_patches=4, patch_size=GRID // 2)
    return transformers.Cohere2VisionProcessor(images, tok, **chat)


def _make_janus(tok, chat):
    images = transformers.JanusImageProcessor(size=PIXELS)
    return transformers.JanusProcessor(images, tok, num_image_tokens=GRID * GRID, **chat)


def _make_deepseek(tok, chat):
    images = transformers.DeepseekVLImageProcessor(size=PIXELS)
    return transformers.DeepseekVLProcessor(images, tok, num_image_tokens=GRID * GRID, **chat)


def _make_perception(tok, chat):
    images = transformers.PerceptionLMImageProcessor(tile_size=SIZE, max_num_tiles=4, size=PIXELS)
    videos = transformers.PerceptionLMVideoProcessor(size=PIXELS)
    return transformers.PerceptionLMProcessor(videos, images, tok, patch_size=PATCH, pooling_ratio=1, **chat)


def _make_pixtral(merge):
    def make(tok, chat):
        patch = {"height": merge * PATCH, "width": merge * PATCH}
        images = transformers.PixtralImageProcessor(size={"longest_edge": 2 * SIZE}, patch_size=patch)
        return transformers.PixtralProcessor(
            images,
            tok,
            patch_size=PATCH,
            spatial_merge_size=merge,
            image_token="<image>",
            image_break_token="<break>",
            image_end_token="<end>",
            **chat,
        )

    return make


def _make_lighton(tok, chat):
    patch = {"height": 2 * PATCH, "width": 2 * PATCH}
    images = transformers.PixtralImageProcessor(size={"longest_edge": 2 * SIZE}, patch_size=patch)
    return transformers.LightOnOcrProcessor(images, tok, patch_size=PATCH, spatial_merge_size=2, **chat)


def _make_grid(processor, image_processor, video_processor):
    def make(tok, chat):
        images = getattr(transformers, image_processor)(
            patch_size=PATCH,
            merge_size=2,
            size={"shortest_edge": SIZE * SIZE * FRAMES[image_processor], "longest_edge": EDGE_PIXELS},
        )
        videos = getattr(transformers, video_processor)(patch_size=PATCH, merge_size=2)
        return getattr(transformers, processor)(images, tok, videos, **chat)

    return make


FRAMES = {"Qwen2VLImageProcessor": 1, "Glm4vImageProcessor": 2, "Glm46VImageProcessor": 2}
EDGE_PIXELS = 8 * SIZE * SIZE
QWEN3 = ("Qwen3VLProcessor", "Qwen2VLImageProcessor", "Qwen3VLVideoProcessor")
MAKERS = {
    "llava": _make_llava,
    "vipllava": _make_llava,
    "llava_next": _make_llava_next,
    "llava_next_video": _make_llava_next_video,
    "llava_onevision": _make_onevision,
    "internvl": _make_internvl,
    "fast_vlm": _make_fast_vlm,
    "ovis2": _make_ovis2,
    "kimi_k25": _make_kimi,
    "idefics3": _make_idefics3,
    "smolvlm": _make_smolvlm,
    "idefics2": lambda tok, chat: make_idefics2_processor(tok, chat, SIZE),
    "gemma3n": lambda tok, chat: make_gemma3n_processor(tok, chat, PIXELS, GRID),
    "gemma4": lambda tok, chat: make_gemma4_processor(tok, chat, PATCH),
    "paligemma": _make_paligemma,
    "gemma3": _make_gemma3,
    "aya_vision": _make_aya,
    "cohere2_vision": _make_cohere2,
    "janus": _make_janus,
    "deepseek_vl": _make_deepseek,
    "perception_lm": _make_perception,
    "pixtral": _make_pixtral(1),
    "mistral3": _make_pixtral(2),
    "lighton_ocr": _make_lighton,
    "qwen2_vl": _make_grid("Qwen2VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
    "qwen2_5_vl": _make_grid("Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
    "exaone4_5": _make_grid("Exaone4_5_Processor", "Qwen2VLImageProcessor", "Qwen2VLVideoProcessor"),
    "qwen3_vl": _make_grid(*QWEN3),
    "qwen3_vl_moe": _make_grid(*QWEN3),
    "qwen3_5": _make_grid(*QWEN3),
    "qwen3_5_moe": _make_grid(*QWEN3),
    "glm4v": _make_grid("Glm4vProcessor", "Glm4vImageProcessor", "Glm4vVideoProcessor"),
    "glm4v_moe": _make_grid("Glm4vProcessor", "Glm4vImageProcessor", "Glm4vVideoProcessor"),
    "glm46v": _make_grid("Glm46VProcessor", "Glm46VImageProcessor", "Glm46VVideoProcessor"),
}
