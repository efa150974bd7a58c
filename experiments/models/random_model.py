"""Cells' models with random weights, and inputs for them: what a model costs does not need trained weights.

Backbones that `backbone_sizes.yaml` knows are built from their sizes, so that nothing is downloaded.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from compressors.key_value import parse_settings
from experiments.config.cells import Cell, copy_section, make_cells
from experiments.config.presets import read_yaml
from experiments.config.schema import Config
from experiments.models import build
from llm_adapters.conversation import IGNORE
from llm_adapters.modeling import FlashSlothForConditionalGeneration

TEXT_TOKENS = 40  # tokens of prompt, question and what follows it
BackboneConfigs = Mapping[str, PreTrainedConfig]


@cache
def read_backbone_configs() -> dict[str, PreTrainedConfig]:
    """The backbones whose sizes are known, by name."""
    entries = read_yaml(Path(__file__).with_name("backbone_sizes.yaml"))
    return {name: AutoConfig.for_model(**sizes) for name, sizes in entries.items()}


@contextmanager
def make_weightless_cells(
    overrides: Sequence[str], sizes: BackboneConfigs | None = None
) -> Iterator[list[Cell]]:
    """Cells of these overrides whose known backbones are folders with a configuration alone, as long as the
    context lasts. `sizes`: these backbones; None: all of `read_backbone_configs`."""
    if sizes is None:
        sizes = read_backbone_configs()
    with TemporaryDirectory() as folder:

        def save_backbone_config(source: str) -> str:
            if source not in sizes:
                return source
            place = Path(folder, source.replace("/", "--").replace(":", "--"))
            if not place.is_dir():  # cells share their backbones
                sizes[source].save_pretrained(place)
            return str(place)

        cells = []
        for cell in make_cells(parse_settings(list(overrides))):
            config = copy_section(cell.config)
            config.tower.source = save_backbone_config(config.tower.source)
            config.llm.source = save_backbone_config(config.llm.source)
            cells.append(Cell(config, cell.label, cell.row))
        yield cells


def build_random_model(
    config: Config, device: torch.device, dtype: torch.dtype = torch.bfloat16
) -> tuple[FlashSlothForConditionalGeneration, int]:
    """The cell's model with new weights, filled in place: memory holds them once; and its image size."""
    with torch.device("meta"):
        model, size = build.build_skeleton(config)
    fill_weights(model, device, dtype, config.seed)
    set_placeholder_ids(model)
    return model, size


def fill_weights(model: Any, device: torch.device, dtype: torch.dtype, seed: int = 0) -> None:
    """New weights for a model that is on the meta device; to be run, not trained."""
    for parameter in model.parameters():  # buffers (rotary frequencies) stay as they are
        parameter.data = parameter.data.to(dtype)
    model.to_empty(device=device)
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)  # what initialisation forgets shows in the logits
    torch.manual_seed(seed)
    model.init_weights()
    model.eval()


def set_placeholder_ids(model: FlashSlothForConditionalGeneration) -> None:
    """The last two ids stand for visual and query tokens: there is no tokenizer."""
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)  # every LLM's
    model.config.image_token_id = embeddings.num_embeddings - 1
    model.config.query_token_id = embeddings.num_embeddings - 2


def split_text_tokens(tokens: int) -> tuple[int, int, int]:
    """Text tokens before the image, of the question, after the queries: 12, 20 and 8 of 40."""
    before = 3 * tokens // 10
    question = tokens // 2
    return before, question, tokens - before - question


def make_random_prompt(
    model: FlashSlothForConditionalGeneration, crops: int, size: int, rows: int = 1, text: int = TEXT_TOKENS
) -> dict[str, Tensor]:
    """`rows` rows of text, images of `crops` crops in all, question, query tokens, and an answer that counts
    as the last of `text` tokens; all but the pixels. On the CPU."""
    before, question, answer = split_text_tokens(text)
    visual = crops * model.num_image_tokens(size, size)
    counts = torch.tensor([before, visual, question, model.num_queries, answer])
    part = torch.arange(len(counts)).repeat_interleave(counts).expand(rows, -1)  # (B, T), numbers of `counts`
    # below the two placeholders, which are the last ids
    ids = torch.randint(model.config.query_token_id, part.shape)
    ids[part == 1] = model.config.image_token_id
    ids[part == 3] = model.config.query_token_id
    first_query = before + visual + question
    query_places = torch.arange(first_query, first_query + model.num_queries).expand(rows, -1)  # (B, Q)
    prompt = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "turns": ((part >= 1) & (part <= 3)).long(),
        "labels": ids.where(part == 4, IGNORE),
        "query_index": query_places,
        "image_turn": torch.ones(rows, crops, dtype=torch.long),
    }
    encoder = model.vision_tower.text_encoder
    if model.compressor.needs_tower_text and encoder is not None:
        # one question a row, in one piece; (B, 1, 1, L)
        prompt["question_ids"] = torch.zeros(rows, 1, 1, encoder.length, dtype=torch.long)
    return prompt


def make_random_batch(
    model: FlashSlothForConditionalGeneration, crops: int, size: int, rows: int = 1, text: int = TEXT_TOKENS
) -> dict[str, Tensor]:
    """The same with pixels, where and in the type that the model is."""
    batch = make_random_prompt(model, crops, size, rows, text)
    batch["pixel_values"] = (2 * torch.rand(rows, crops, 3, size, size) - 1).to(model.dtype)
    return {name: value.to(model.device) for name, value in batch.items()}
