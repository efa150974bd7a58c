"""Whole tiny checkpoints of towers with their text encoder, as CLIP and SigLIP are saved, in a folder."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, SiglipConfig, SiglipModel

from connectors.towers.text_tokenizer import TextTokenizer

SIZE = 84  # pixels of a picture, as in `factories`
LENGTHS = {"clip": 12, "siglip": 8}  # tokens of a question
SPECIALS = ("<start>", "<end>")
WORDS = ("what", "is", "this", "where", "the", "a", "cat", "dog", "red", "What", "?", "<unk>")
VISION = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIZE,
    "patch_size": 14,
    "initializer_range": 0.3,
}


def text_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """Words, between a start and an end with CLIP, before an end with SigLIP; filled with the end."""
    vocabulary = {word: number for number, word in enumerate((*WORDS, *SPECIALS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = SPECIALS
    ids = [(word, vocabulary[word]) for word in SPECIALS]
    template = f"{start} $A {end}" if kind == "clip" else f"$A {end}"
    backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=start, eos_token=end, pad_token=end, unk_token="<unk>"
    )


def text_config(kind: str, width: int = 24) -> dict:
    """Of a text model for that tokenizer, beside a tower of that width."""
    tokenizer = text_tokenizer(kind)
    return {
        "hidden_size": width,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": LENGTHS[kind],
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.3,
        **({"projection_size": width} if kind == "siglip" else {}),
    }


def whole_config() -> dict:
    """Of a whole SigLIP with the tower of `factories`, for a text encoder with random weights."""
    config = SiglipConfig(text_config=text_config("siglip"), vision_config=VISION)
    return config.to_dict()


def question_tokenizer() -> TextTokenizer:
    """The tokenizer of its text encoder."""
    return TextTokenizer(text_tokenizer("siglip"), LENGTHS["siglip"], True)


def save_text_tower(folder: Path, kind: str, seed: int = 0, **sizes: object) -> str:
    """A checkpoint of that kind, by default 6x6 patches of 24 channels, with its tokenizer; where it is."""
    vision = {**VISION, **sizes}
    text = text_config(kind, vision["hidden_size"])
    torch.manual_seed(seed)
    model: torch.nn.Module
    if kind == "clip":
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=10))
    else:
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embeddings" not in name:
            torch.nn.init.normal_(parameter.data, std=0.3)
    model.save_pretrained(folder)
    text_tokenizer(kind).save_pretrained(folder)
    return str(folder)


def save_open_clip_model(folder: Path, name: str, config: dict) -> str:
    """A random model under a name that open_clip knows from then on; `open_clip:...` for its checkpoint."""
    import open_clip  # for which most tests do not wait

    config_file = folder / f"{name}.json"
    config_file.write_text(json.dumps(config))
    open_clip.add_model_config(config_file)
    torch.manual_seed(0)
    weights_file = folder / "weights.pt"
    torch.save(open_clip.create_model(name).state_dict(), weights_file)
    return f"open_clip:{name}:{weights_file}"
