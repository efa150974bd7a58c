"""Tiny models and processors of the real classes that a compressor can be put into; nothing from the hub."""

from functools import cache
from importlib.util import find_spec

import pytest
import torch
from factories import CORPUS
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPImageProcessor,
    Gemma3ImageProcessor,
    Gemma3Processor,
    GotOcr2ImageProcessor,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaProcessor,
    PaliGemmaProcessor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipImageProcessor,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from compressors.errors import UsageError
from connectors.versions import is_at_least
from llm_adapters import reuse

no_num2words = pytest.mark.skipif(not find_spec("num2words"), reason="SmolVLM's processor needs num2words")


def family_params(*names: str) -> list:
    """Families as pytest's parameters; those that cannot be here are skipped."""

    def marks(name: str) -> list:
        since = reuse.FAMILIES[name].since
        too_old = pytest.mark.skipif(not is_at_least(since), reason=f"{name} needs transformers {since}")
        return [too_old, no_num2words] if name == "smolvlm" else [too_old]

    return [pytest.param(name, marks=marks(name)) for name in names]


over_families = pytest.mark.parametrize("family", family_params(*reuse.FAMILIES))
SAP = {"compressor": "sap", "rate": 3, "grid_policy": "ceil"}
EMBQ = {"query_module": "embq", "query_knobs": {"at": 2, "dim": 8, "num_queries": 3}}
GRID = 6  # patches on a side
PATCH = 4
SIZE = GRID * PATCH
NAMED = {
    "image_token": "<image>",
    "video_token": "<video>",
    "boi_token": "<boi>",
    "eoi_token": "<eoi>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<image>",
}
SPECIALS = [
    "<pad>",
    "<unk>",
    "<s>",
    "</s>",
    *dict.fromkeys(NAMED.values()),
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
    "<vision_start>",
    "<vision_end>",
    *(f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)),
]
CHAT = (
    "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}IMAGE{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}{% endif %}\n{% endfor %}assistant:"
)


@cache
def _backend() -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=320,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=SPECIALS,
            show_progress=False,
        ),
    )
    return backend.to_str()


def tokenizer(side: str = "left") -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_backend()),
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        padding_side=side,
        extra_special_tokens=NAMED,
        clean_up_tokenization_spaces=False,
    )


def ids() -> dict[str, int]:
    tok = tokenizer()
    return {token: tok.convert_tokens_to_ids(token) for token in SPECIALS}


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
QWEN_VISION = {
    "depth": 3,
    "num_heads": 4,
    "patch_size": PATCH,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "initializer_range": 0.3,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
PIXELS = {"height": SIZE, "width": SIZE}


def _llama(kind: str = "llama") -> dict:
    return {**TEXT, "model_type": kind}


def _siglip(**changes) -> dict:
    return {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False, **changes}


def _configs() -> dict[str, dict]:
    known = ids()
    image = {"image_token_id": known["<image>"], "tie_word_embeddings": False}
    clip = {**VISION, "model_type": "clip_vision_model"}
    qwen = {
        **image,
        "video_token_id": known["<video>"],
        "vision_start_token_id": known["<vision_start>"],
        "vision_end_token_id": known["<vision_end>"],
    }
    return {
        "llava": {**image, "vision_config": clip, "text_config": _llama()},
        "llava_next": {
            **image,
            "vision_config": clip,
            "text_config": _llama(),
            "image_grid_pinpoints": [[SIZE, 2 * SIZE], [2 * SIZE, SIZE], [2 * SIZE, 2 * SIZE]],
        },
        "internvl": {
            **image,
            "text_config": _llama("qwen2"),
            "vision_feature_layer": -1,
            "vision_config": {
                **VISION,
                "model_type": "internvl_vision",
                "image_size": [SIZE, SIZE],
                "patch_size": [PATCH, PATCH],
            },
        },
        "idefics3": {
            **image,
            "text_config": _llama(),
            "scale_factor": 2,
            "pad_token_id": 0,
            "vision_config": {**VISION, "model_type": "idefics3_vision"},
        },
        "smolvlm": {
            **image,
            "text_config": _llama(),
            "scale_factor": 2,
            "pad_token_id": 0,
            "vision_config": {**VISION, "model_type": "smolvlm_vision"},
        },
        "paligemma": {
            **image,
            "text_config": _llama("gemma"),
            "projection_dim": 32,
            "vision_config": _siglip(projection_dim=32),
        },
        "gemma3": {
            **image,
            "text_config": {**_llama("gemma3_text"), "query_pre_attn_scalar": 8, "sliding_window": 64},
            "vision_config": _siglip(),
            "mm_tokens_per_image": 9,
            "boi_token_index": known["<boi>"],
            "eoi_token_index": known["<eoi>"],
        },
        "qwen2_vl": {
            **qwen,
            "text_config": {**_llama("qwen2_vl_text"), "rope_parameters": ROPE},
            "vision_config": {**QWEN_VISION, "embed_dim": 16, "hidden_size": 32, "mlp_ratio": 2},
        },
        "qwen2_5_vl": {
            **qwen,
            "text_config": {**_llama("qwen2_5_vl_text"), "rope_parameters": ROPE},
            "vision_config": {
                **QWEN_VISION,
                "hidden_size": 16,
                "intermediate_size": 24,
                "out_hidden_size": 32,
                "window_size": 16,
                "fullatt_block_indexes": [1],
            },
        },
    }


def make_model(family: str, seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **_configs()[family])).eval()
    if family == "gemma3":  # its projection starts at zero
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    return model


def make_processor(family: str, side: str = "left") -> ProcessorMixin:
    tok, chat = tokenizer(side), {"chat_template": CHAT.replace("IMAGE", PLACEHOLDER.get(family, "<image>"))}
    clip = {"size": PIXELS, "crop_size": PIXELS}
    if family == "llava":
        return LlavaProcessor(
            CLIPImageProcessor(**clip),
            tok,
            patch_size=PATCH,
            **chat,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
    if family == "llava_next":
        pinpoints = _configs()[family]["image_grid_pinpoints"]
        images = LlavaNextImageProcessor(**clip, image_grid_pinpoints=pinpoints)
        return LlavaNextProcessor(
            images,
            tok,
            patch_size=PATCH,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
            **chat,
        )
    if family == "internvl":
        images = GotOcr2ImageProcessor(size=PIXELS, min_patches=1, max_patches=4)
        return InternVLProcessor(images, tok, InternVLVideoProcessor(size=PIXELS), image_seq_length=9, **chat)
    edges = {"size": {"longest_edge": 2 * SIZE}, "max_image_size": {"longest_edge": SIZE}}
    if family == "idefics3":
        return Idefics3Processor(Idefics3ImageProcessor(**edges), tok, image_seq_len=9, **chat)
    if family == "smolvlm":
        images, videos = SmolVLMImageProcessor(**edges), SmolVLMVideoProcessor(**edges)
        return SmolVLMProcessor(images, tok, videos, image_seq_len=9, **chat)
    if family == "paligemma":
        images = SiglipImageProcessor(size=PIXELS)
        images.image_seq_length = GRID * GRID
        return PaliGemmaProcessor(images, tok, **chat)
    if family == "gemma3":
        return Gemma3Processor(Gemma3ImageProcessor(size=PIXELS), tok, image_seq_length=9, **chat)
    images = Qwen2VLImageProcessor(
        patch_size=PATCH, merge_size=2, min_pixels=SIZE * SIZE, max_pixels=4 * SIZE * SIZE
    )
    kind = Qwen2VLProcessor if family == "qwen2_vl" else Qwen2_5_VLProcessor
    return kind(images, tok, Qwen2VLVideoProcessor(patch_size=PATCH, merge_size=2), **chat)


PLACEHOLDER = {
    "gemma3": "<boi>",
    "qwen2_vl": "<vision_start><image><vision_end>",
    "qwen2_5_vl": "<vision_start><image><vision_end>",
}


def attached(family: str, seed: int = 0, **options) -> tuple[PreTrainedModel, ProcessorMixin]:
    """With SAP and EmbQ, and weights of theirs that show in the tokens."""
    model, processor = make_model(family, seed), make_processor(family)
    reuse.attach(model, processor, **{**SAP, **EMBQ, **options})
    for parameter in model.slothkit.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3)
    return model, processor


def prompt(family: str, question: str = "What is this?", images: int = 1, marked: bool = False) -> str:
    question = f"<question>{question}<query>" if marked else question
    return f"USER: {PLACEHOLDER.get(family, '<image>') * images}\n{question} ASSISTANT:"


def picture(seed: int = 0, width: int = SIZE, height: int = SIZE) -> Image.Image:
    pixels = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.byte().numpy())


def inputs(processor: ProcessorMixin, rows: list[tuple[str, list[Image.Image]]]) -> dict:
    """Texts with their images, through the processor, padded."""
    batch = processor(
        text=[text for text, _ in rows],
        images=[images for _, images in rows],
        padding=True,
        return_tensors="pt",
    )
    batch.pop("labels", None)
    return dict(batch)


def two_rows(family: str, marked: bool = False) -> list[tuple[str, list[Image.Image]]]:
    """Different lengths, and pictures of different shapes."""
    return [
        (prompt(family, marked=marked), [picture(1)]),
        (prompt(family, "And that, is it a cat or a dog?", marked=marked), [picture(2, 40, 24)]),
    ]


def train_loss(model: torch.nn.Module, batch: dict) -> torch.Tensor:
    return model(**batch, labels=batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)).loss


def cache_agrees(family: str, rows: list, **options) -> bool:
    """Whether the plain model answers alike with and without a KV cache. Before transformers 5.17 not always:
    images of beams are mixed up, for one."""
    if is_at_least("5.17"):
        return True
    model, batch = make_model(family), inputs(make_processor(family), rows)
    return answers(model, batch, **options) == answers(model, batch, use_cache=False, **options)


def pieces_refused(says: str):
    """That a prefill in pieces is refused, in words of ours; before 5.4 transformers does it itself."""
    if is_at_least("5.4"):
        return pytest.raises(UsageError, match=says)
    return pytest.raises(ValueError, match="prefill chunk")


def answers(model: PreTrainedModel, batch: dict, **options) -> list[list[int]]:
    if not is_at_least("5.17"):
        options["suppress_tokens"] = [model.config.image_token_id]  # random weights say it there
    said = model.generate(**batch, max_new_tokens=4, do_sample=False, **options)
    return said[:, batch["input_ids"].shape[1] :].tolist()
