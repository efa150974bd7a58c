"""A language model out of a GGUF file, as a plain checkpoint that needs no GGUF reader any more."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def convert_gguf(path: Path, out: Path) -> None:
    """Writes the dequantised weights in half precision and the tokenizer.

    Four bits and a scale in half precision: what rounding the products to half precision adds is far below
    what four bits have lost.
    """
    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    model = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**where)
    config = model.config
    del config.quantization_config
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    plain.save_pretrained(out)
    tokenizer.save_pretrained(out)


@torch.inference_mode()
def complete_text(folder: Path, text: str, tokens: int = 8) -> str:
    """How the checkpoint goes on after `text`, greedily."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs = tokenizer(text, return_tensors="pt")
    out = model.generate(**inputs, do_sample=False, max_new_tokens=tokens)
    return tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
