"""The parts that `attach` puts into a model, made for its sizes; what does not fit is refused or told."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

import compressors
from compressors.base import Compressor
from compressors.errors import UsageError
from connectors.projector import registry as projectors
from connectors.query_module import QueryModule
from connectors.query_modules import registry as query_modules
from llm_adapters.adapter import llm_sizes
from llm_adapters.conversation import QUERY, QUESTION
from llm_adapters.reuse.families import ModelFamily
from llm_adapters.reuse.families.family import RAGGED, read_merge_size
from llm_adapters.reuse.parts.markers import Markers
from llm_adapters.reuse.wrapping import find_device, is_wrapped

MOST_UNITS = 16  # a side of the pictures whose sizes are tried, in the units that it is rounded to


class NeedsTraining(UserWarning):
    """A compressor without weights has got a new projector, which must be trained."""


def check_spelling(compressor: str, knobs: Mapping[str, Any], query_module: str | None) -> None:
    """UsageError for a query module that is named with the compressor, as sweeps spell it, or whose knobs are
    given as the compressor's."""
    name, plus, behind = str(compressor).partition("+")
    if plus:
        raise UsageError(
            f"compressor={compressor}: name one compressor here, and the query module apart: "
            f'compressor="{name}", query_module="{behind}"'
        )
    if query_module is None:
        return
    own_knobs = compressors.knobs(compressor)
    for typed, value in knobs.items():
        knob = typed.removeprefix(f"{query_module}.")  # as sweeps spell it
        if typed not in own_knobs and knob in query_modules.knobs(query_module):
            raise UsageError(
                f"{typed}={value}: a knob of {query_module}, not of {compressor}; give it in "
                f"query_knobs={{'{knob}': {value!r}}}"
            )


def create_query_module(
    model: PreTrainedModel, vision_dim: int, name: str | None, knobs: dict[str, Any]
) -> QueryModule | None:
    """The query module of that name for the model's LLM and a tower. UsageError for knobs of none, and for an
    LLM whose embeddings are already those of another model's query tokens: ids do not tell whose they are."""
    if name is not None:
        sizes = {**llm_sizes(model.config), "vision_dim": vision_dim}
        try:
            queries = query_modules.create(name, **sizes, **knobs)
        except UsageError as error:
            raise UsageError(f"query_knobs={knobs}: {error}") from error
        if is_wrapped(model.get_input_embeddings(), "forward"):
            raise UsageError(
                f"query_module={name}: the language model is also that of another model, which has a query "
                "module; detach that one first, or give each model a language model of its own"
            )
        return queries
    if knobs:
        raise UsageError(
            f"query_knobs={knobs} without a query_module; name one of {', '.join(query_modules.names())}"
        )
    return None


def find_common_grid(family: ModelFamily, base: PreTrainedModel) -> tuple[int, int] | None:
    """The patch grid where all images have one."""
    if family.processor in RAGGED:
        return None
    return family.grid(base)


def warn_of_refused_sizes(part: Compressor, name: str, family: ModelFamily, base: PreTrainedModel) -> None:
    """A warning where a model whose patch grids follow from pictures will refuse some sizes."""
    merge = read_merge_size(base)  # sides are rounded to as many patches
    patch_height, _ = family.patch_size(base)
    refused = []
    for units in range(1, MOST_UNITS + 1):
        try:
            part.num_tokens(units * merge, units * merge)
        except UsageError:
            refused.append(str(units * merge * patch_height))
    if refused:
        warnings.warn(
            f"compressor '{name}' refuses pictures of some sizes: of {MOST_UNITS} square ones those of "
            f"{', '.join(refused)} pixels; give grid_policy=floor, ceil or pad, or resize pictures",
            stacklevel=3,
        )


def warn_of_training(part: Compressor, name: str, own_width: int) -> None:
    """A warning where a compressor that has nothing to train gets a new projector because of its width."""
    if part.projects or any(True for _ in part.parameters()):
        return
    reason = f"its tokens are {part.out_dim} wide and the model's own projector takes {own_width}"
    if not own_width:
        reason = "the model's own projector makes no tokens for its LLM without its own reduction"
    warnings.warn(
        f"compressor '{name}' has nothing to train, but {reason}: a new one follows it, which must be "
        "trained",
        NeedsTraining,
        stacklevel=3,
    )


def check_compressor(part: Compressor, name: str) -> None:
    """UsageError for a compressor that wants what these models do not have."""
    if part.varies:
        raise UsageError(
            f"compressor '{name}': the number of an image's tokens follows from its content, but processors "
            "of these models write placeholders before that is seen; take one number for all, as by default"
        )
    if part.image_rate != 1:
        raise UsageError(
            f"compressor '{name}' shrinks the image before the tower; give the processor the "
            "smaller size instead"
        )


def create_projector(part: Compressor, own_width: int, name: str | None, llm_dim: int) -> nn.Module | None:
    """A new projector, None where the model's own fits."""
    if name is None and not part.projects and part.out_dim == own_width:
        return None
    return _create_new_projector(part, name, llm_dim)


def _create_new_projector(part: Compressor, name: str | None, llm_dim: int) -> nn.Module:
    """The projector of that name; None: `mlp2x_gelu`, or none at all behind a compressor that projects."""
    if name is None:
        name = "identity" if part.projects else "mlp2x_gelu"
    return projectors.create(name, in_dim=part.out_dim, llm_dim=llm_dim)


def create_level_projectors(
    family: ModelFamily, base: PreTrainedModel, part: Compressor, name: str | None, llm_dim: int
) -> nn.ModuleList | None:
    """A new projector for each DeepStack level, None for a family without."""
    if family.deepstack is None:
        return None
    level_projectors = nn.ModuleList()
    for _ in base.get_submodule(family.deepstack.mergers).children():
        level_projectors.append(_create_new_projector(part, name, llm_dim))
    return level_projectors


def create_markers(model: PreTrainedModel, processor: ProcessorMixin, queries: QueryModule) -> Markers:
    """Markers of questions for a query module, which is initialised from the LLM's embeddings."""
    tokenizer: Any = getattr(processor, "tokenizer")  # noqa: B009  processors have it, their base class does not
    embed: Any = model.get_input_embeddings()

    def embed_last_token(text: str) -> torch.Tensor:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][-1:] or [0]
        row = torch.tensor([ids], device=find_device(embed))
        with torch.no_grad():
            embedding = embed(row)[0, 0]
        return embedding.cpu().float()

    queries.initialise(embed_last_token("."))
    question_id, query_id = tokenizer.convert_tokens_to_ids([QUESTION, QUERY])
    return Markers(question_id, query_id, embed_last_token("\n"))
