"""Tiny models of the real classes, tokenizers that know a few words, and pictures: all in milliseconds.

model = make_model("llama", "sap", "embq")          # 6x6 patches, SAP -> 4 visual tokens, 3 query tokens
batch = make_processor(model)(images=picture(), text=...)
"""

import re
import string
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache

import torch
from PIL import Image
from text_towers import question_tokenizer, whole_config
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    CompileConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import compressors
from compressors.base import registry
from connectors.versions import find_pil_class, is_at_least
from llm_adapters.configuration import FlashSlothConfig
from llm_adapters.conversation import IMAGE, QUERY, Encoded, Template, Turn, render_turns
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.processing import FlashSlothProcessor, stack_images

LLMS = ("phi", "llama", "qwen2")
SPECIALS = ("<pad>", "<unk>", "<s>", "</s>", IMAGE, QUERY)
WORDS = ("USER: What is this? ASSISTANT: A dog.", "USER: And that? ASSISTANT: The cat is red.")
CORPUS = (Template().system, *WORDS) * 3
MODEL_TYPES = {"gemma3": "gemma3_text"}  # where the name in tests is not transformers'
SIZE, CROP_TOKENS = 84, 4  # pixels of a picture; visual tokens of one under the default compressor
# Knobs under which a compressor fits a 6x6 grid and an LLM of width 32.
KNOBS = {
    "c_abstractor": {"width": 32, "num_layers": 1, "positions": (6, 6)},
    "d_abstractor": {"grid": (2, 2), "width": 32, "heads": 2, "num_layers": 1, "positions": (6, 6)},
    "hiprune": {"block": 1},
    "ldpv2": {"grid": (2, 2)},
    "pixel_shuffle": {"rate": 3},
    "qformer": {"num_queries": 4, "num_layers": 2, "heads": 2, "width": 8},
    "resampler": {"num_queries": 4, "num_layers": 1, "heads": 2, "head_dim": 4},
    "resampler_2d": {"grid": (2, 2)},
    "vscan": {"block": 1},
}
QUERY_KNOBS = {
    "embq": {"dim": 16, "at": 2, "num_queries": 3},
    "llava_mini": {"num_layers": 2, "num_queries": 3},
}


def saved_settings(processor: FlashSlothProcessor) -> dict:
    """What is saved, without what transformers 5.0 to 5.3 add to an image processor as they load it."""
    settings = processor.to_dict()
    if not is_at_least("5.4"):
        settings["image_processor"].pop("data_format", None)
    return settings


def compiled_decoding() -> dict:
    """Options of `generate`: a static cache and the decoding step as one graph, an error if it cannot be.
    transformers makes it on GPUs alone unless told otherwise."""
    config = CompileConfig(backend="eager", mode=None, fullgraph=True)
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


@contextmanager
def graphs_made() -> Iterator[dict[str, int]]:
    """What torch.compile counts inside; `unique_graphs` among it."""
    torch._dynamo.reset()
    counts = torch._dynamo.utils.counters["stats"]
    counts.clear()
    yield counts


@cache
def byte_tokenizer(bos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few dozen merges; a word has its space before it, as GPT-2 and phi have."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=320, initial_alphabet=alphabet, special_tokens=list(SPECIALS), show_progress=False
        ),
    )
    return _wrap(backend, bos)


@cache
def word_tokenizer() -> PreTrainedTokenizerFast:
    """WordPiece as the embedded default's: whole words, else characters; case and spaces are lost."""
    words = re.findall("[a-z]+", " ".join(CORPUS).lower())
    letters = [*string.ascii_lowercase, *string.digits]
    vocabulary = [*SPECIALS, *string.punctuation, *letters, *(f"##{x}" for x in letters), *words]
    ids = {word: i for i, word in enumerate(dict.fromkeys(vocabulary))}
    backend = Tokenizer(models.WordPiece(ids, unk_token="<unk>"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return _wrap(backend, bos=False)


def _wrap(backend: Tokenizer, bos: bool) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=[IMAGE, QUERY],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.add_bos_token = bos
    return tokenizer


TOKENIZERS = {"bytes": byte_tokenizer, "words": word_tokenizer}


def llm_config(name: str, **changes) -> PreTrainedConfig:
    """4 layers, width 32, 4 heads; large weights, so that what is wrong shows in the tokens."""
    sizes = {
        "vocab_size": len(byte_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 1024,
        "initializer_range": 0.3,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 2,
        "eos_token_id": 3,
    }
    if name != "phi" and name != "gpt_neox":
        sizes["num_key_value_heads"] = 2
    if name in ("qwen3", "gemma2", "gemma3"):
        sizes["head_dim"] = 8
    return AutoConfig.for_model(MODEL_TYPES.get(name, name), **{**sizes, **changes})


def make_llm(name: str, seed: int = 0, **changes) -> PreTrainedModel:
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(llm_config(name, **changes)).eval()


def vision_config(**changes) -> PreTrainedConfig:
    """SigLIP, 84 pixels in patches of 14: 6x6; 3 blocks, of which the default select_layer needs 2."""
    sizes = {
        "image_size": SIZE,
        "patch_size": 14,
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
    }
    return AutoConfig.for_model("siglip_vision_model", **{**sizes, **changes})


def make_config(
    llm: str = "phi",
    compressor: str = "sap",
    query_module: str | None = "embq",
    compressor_knobs: dict | None = None,
    llm_changes: dict | None = None,
    prompt: Template | None = None,
    vision: dict | None = None,
    **knobs,
) -> FlashSlothConfig:
    """`knobs` are the query module's."""
    knobs = {**QUERY_KNOBS.get(query_module, {}), **knobs}
    image, query = byte_tokenizer().convert_tokens_to_ids([IMAGE, QUERY])
    compressors.names()  # imports the methods, which register themselves
    tower_text = whole_config() if "joint" in registry.get(compressor).needs_cues else None
    return FlashSlothConfig(
        vision_config=vision or vision_config(),
        text_config=llm_config(llm, **(llm_changes or {})),
        compressor=compressor,
        compressor_knobs=KNOBS.get(compressor) if compressor_knobs is None else compressor_knobs,
        query_module=query_module,
        query_module_knobs=knobs or None,
        prompt=prompt and asdict(prompt),
        tower_text_config=tower_text,
        image_token_id=image,
        query_token_id=query,
    )


def make_model(
    llm: str = "phi",
    compressor: str = "sap",
    query_module: str | None = "embq",
    *,
    seed: int = 0,
    scale: float = 0.3,
    **options,
) -> FlashSlothForConditionalGeneration:
    """In eval mode. `options` as in `make_config`; `scale` is the weights' of our own parts."""
    config = make_config(llm, compressor, query_module, **options)
    torch.manual_seed(seed)
    model = FlashSlothForConditionalGeneration(config).eval()
    for part in (model.compressor, model.projector, model.query_module):
        for parameter in part.parameters() if part is not None else ():
            torch.nn.init.normal_(parameter.data, std=scale)
    return model


def make_processor(
    model: FlashSlothForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast | None = None,
    tiles: int = 1,
) -> FlashSlothProcessor:
    """What `model` wants; the tokenizer must give its placeholder ids (both of the file's do)."""
    images = find_pil_class("SiglipImageProcessor")(size={"height": SIZE, "width": SIZE})
    processor = FlashSlothProcessor(
        images,
        tokenizer or byte_tokenizer(),
        image_tokens=model.num_image_tokens(),
        tiles=tiles,
        num_queries=model.num_queries,
        prompt=model.config.prompt,
    )
    if model.config.tower_text_config is not None:
        processor.question_tokenizer = question_tokenizer()
    return processor


def picture(seed: int = 0, size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    """A picture of noise, (width, height) pixels."""
    pixels = torch.randint(0, 256, (size[1], size[0], 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(pixels.byte().numpy())


def prompt(processor: FlashSlothProcessor, question: str) -> str:
    """The text of one turn, with its markers."""
    return render_turns([Turn(question)], processor.encoder.template)


def chat(*images: object, text: str = "What is this?") -> list[dict]:
    """One user message in the chat format."""
    parts = [*({"type": "image", "image": image} for image in images), {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def assert_same(one: dict, other: dict) -> None:
    """Two batches of inputs are equal, bit for bit."""
    assert set(one) == set(other)
    for name in one:
        assert torch.equal(one[name], other[name]), name


def make_batch(
    processor: FlashSlothProcessor, rows: list[tuple[list[Turn], list[Image.Image]]], side: str = "left"
) -> dict[str, torch.Tensor]:
    """Rows of (turns, images), through the encoder of training, collated with `labels`."""
    encoded: list[Encoded] = [processor.encode(turns, len(images)) for turns, images in rows]
    batch = processor.collate(encoded, side)
    if any(images for _, images in rows):
        batch["pixel_values"] = stack_images([processor.pixels(images) for _, images in rows])
    return batch
