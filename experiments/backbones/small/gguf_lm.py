"""A language model out of a GGUF file, as a plain checkpoint that needs no GGUF reader any more."""

from pathlib import Path
from typing import cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

COMPLETION_TOKENS = 8


def convert_gguf(path: Path, out: Path) -> None:
    """Write the dequantised weights in half precision and the tokenizer.

    Four bits and a scale in half precision: what rounding the products to half precision adds is far below
    what four bits have lost.
    """
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
    )
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
    # A model of its own: the loaded one is marked as quantised, and would be saved so.
    config = model.config
    del config.quantization_config
    plain_model = AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    plain_model.load_state_dict(model.state_dict())
    plain_model.generation_config = model.generation_config
    plain_model.save_pretrained(out)
    tokenizer.save_pretrained(out)


@torch.inference_mode()
def complete_text(folder: Path, text: str) -> str:
    """How the checkpoint goes on after `text`, greedily, for at most COMPLETION_TOKENS tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
    inputs = tokenizer(text, return_tensors="pt")
    output = model.generate(**inputs, do_sample=False, max_new_tokens=COMPLETION_TOKENS)
    prompt_length = inputs["input_ids"].shape[1]
    completion = tokenizer.decode(output[0, prompt_length:], skip_special_tokens=True)
    return cast(str, completion)  # a list of texts only for a batch of sequences
