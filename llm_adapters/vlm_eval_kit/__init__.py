"""Models in VLMEvalKit, saved ones, or of transformers with parts put into them. README.md has the steps.
Needs no vlmeval."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

from compressors.checks import check_at_least
from compressors.errors import UsageError
from compressors.registry import conform
from llm_adapters.evaluated_model import (
    NOT_NAMED,
    list_settings,
    load_evaluated_model,
    read_device,
    read_dtype,
    read_parts,
)
from llm_adapters.orientation import IMAGE_ERRORS, convert_to_upright_rgb


class SlothKit:
    """What VLMEvalKit asks of a model: a base beside its `BaseModel`, whose `generate` calls this one's
    `generate_inner`.

    pretrained       OUT/cells/CELL, OUT/finetune/KEY, or a folder that save_pretrained wrote, or a repository
                     of the hub: of ours, of another MLLM with a compressor attached (`llm_adapters.reuse`),
                     or, with `compressor` or `prune`, of an MLLM as it is
    max_new_tokens   of an answer
    device           as PyTorch names it; None: a GPU if there is one
    dtype            float32, bfloat16 or float16; None: bfloat16 on a GPU, else float32
    revision         of a repository: a branch, a tag or a commit
    compressor       NAME of one without weights that is put into an MLLM; its knobs as NAME.KNOB
    prune            NAME of a pruner inside the LLM, its knobs as NAME.KNOB; null: none
    text_encoder     of a compressor that compares patches with the question, as in `reuse.attach`

    Answers are greedy. UsageError for a folder that has no such model.
    """

    INTERLEAVE = True  # images stand where the message has them
    allowed_types = ("text", "image")

    def __init__(
        self,
        pretrained: str,
        max_new_tokens: int = 128,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        compressor: str | None = NOT_NAMED,
        prune: str | None = NOT_NAMED,
        text_encoder: str | None = None,
        **knobs: Any,
    ):
        super().__init__()
        self.max_new_tokens = conform(max_new_tokens, int, "max_new_tokens")
        check_at_least(1, max_new_tokens=self.max_new_tokens)
        revision = conform(revision, str | None, "revision")
        torch_dtype = read_dtype(dtype)
        self.device = read_device(device)
        parts = read_parts(compressor, prune, text_encoder, knobs, list_settings(type(self)))
        self.model, self.processor = load_evaluated_model(
            str(pretrained), parts, self.device, torch_dtype, revision
        )

    @torch.inference_mode()
    def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: str | None = None) -> str:
        """The answer to a message: parts {"type": "text" or "image", "value": text or an image's file}."""
        chat = [{"role": "user", "content": [read_part(part, dataset) for part in message]}]
        inputs = self.processor.apply_chat_template(
            chat, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
        ).to(self.device, self.model.dtype)
        out = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, do_sample=False, num_beams=1)
        answer_ids = out[0, inputs["input_ids"].shape[1] :]
        answer: str = self.processor.tokenizer.decode(answer_ids, skip_special_tokens=True)
        return answer.strip()


def read_part(part: Mapping[str, str], dataset: str | None) -> dict[str, Any]:
    """A part of a message as chat templates take it; UsageError for media that are no readable image."""
    kind = part["type"]
    if kind == "text":
        return {"type": "text", "text": part["value"]}
    if kind != "image":
        raise UsageError(f"{dataset}: a question shows a {kind}; slothkit's models read images and text")
    try:
        with Image.open(part["value"]) as picture:
            return {"type": "image", "image": convert_to_upright_rgb(picture)}
    except IMAGE_ERRORS as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{dataset}: {part['value']}: not a readable image ({reason})") from error
