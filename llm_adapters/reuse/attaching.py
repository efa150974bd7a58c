"""A compressor and a query module put into a model, set to another scale, and taken out again."""

import copy
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

from torch import nn
from transformers import PreTrainedModel, ProcessorMixin

import compressors
from compressors.base import Compressor
from compressors.errors import UsageError
from llm_adapters.adapter import llm_sizes
from llm_adapters.pruning.apply import check_positions
from llm_adapters.reuse import processors
from llm_adapters.reuse.creating import (
    check_compressor,
    check_spelling,
    create_level_projectors,
    create_markers,
    create_projector,
    create_query_module,
    find_common_grid,
    warn_of_refused_sizes,
    warn_of_training,
)
from llm_adapters.reuse.families import find_family
from llm_adapters.reuse.parts.cues import make_cue_reader
from llm_adapters.reuse.parts.positions import make_position_keeper
from llm_adapters.reuse.parts.visual_parts import VisualParts
from llm_adapters.reuse.pruning import PRUNING_ATTRIBUTE, ModelPruning, note_pruner
from llm_adapters.reuse.questions import make_question_reader
from llm_adapters.reuse.wrapping import PARTS_ATTRIBUTE, find_device, is_of_peft, list_copies, unwrap_peft


def attach(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    compressor: str,
    *,
    query_module: str | None = None,
    query_knobs: dict[str, Any] | None = None,
    new_projector: str | None = None,
    text_encoder: str | Path | None = None,
    **knobs: Any,
) -> None:
    """Put `compressor`, with its `knobs`, where the model's own reduction is, and `query_module` in its LLM.

    query_knobs     the query module's knobs
    new_projector   one of the projectors; None: the model's own where the compressor's width fits it, no
                    projector after a compressor that projects itself, otherwise `mlp2x_gelu`
    text_encoder    the whole CLIP or SigLIP that the model's tower is from, a folder or hub id, for a
                    compressor that compares patches with the question by its text encoder (`cdpruner`,
                    `trim`). It stays there: a saved model names it and loads it again
    UsageError for a model, compressor or knob that cannot be; nothing has changed then. A warning,
    `NeedsTraining`, where a compressor without weights does not fit the model's own projector.
    """
    family = find_family(model)
    if not isinstance(processor, ProcessorMixin):
        raise UsageError(
            f"processor={type(processor).__name__}: give the model's AutoProcessor, which "
            "counts its placeholders"
        )
    if hasattr(model, PARTS_ATTRIBUTE):
        raise UsageError(f"the model has a {model.config.slothkit['compressor']} already; detach it first")
    if hasattr(model.config, "slothkit"):
        name = model.config.slothkit["compressor"]
        raise UsageError(
            f"the model's configuration names a {name} that is not in this model; build each model from a "
            "configuration of its own, copied before `attach`, and load saved ones by reuse.load"
        )
    if hasattr(processor, "attached"):
        raise UsageError("the processor counts for another model with a compressor; load a fresh one")
    record = {
        "compressor": compressor,
        "knobs": copy.deepcopy(knobs),  # what a caller changes later is not what was attached
        "query_module": query_module,
        "query_knobs": copy.deepcopy(query_knobs or {}),
        "new_projector": new_projector,
    }
    if text_encoder is not None:
        record["text_encoder"] = str(text_encoder)
    # all that may be refused comes before anything is changed
    base = cast(PreTrainedModel, model.base_model)  # its type in transformers is too wide
    llm_dim = llm_sizes(model.config)["llm_dim"]
    check_spelling(compressor, knobs, query_module)
    compressors.check(compressor, **knobs)  # its widths, which are the model's, are no knobs
    part: Compressor = compressors.create(compressor, dim=family.dim(base), llm_dim=llm_dim, **knobs)
    check_compressor(part, compressor)
    cue_reader = make_cue_reader(family, base, part, compressor)
    question_reader = make_question_reader(family, model, processor, part, compressor, text_encoder)
    position_keeper = make_position_keeper(family, model, part, compressor)
    pruning: ModelPruning | None = getattr(model, PRUNING_ATTRIBUTE, None)
    if pruning is not None and pruning.pruner is not None:
        check_positions(pruning.pruner, part.keeps_positions)
    queries = create_query_module(model, family.dim(base), query_module, query_knobs or {})
    own_width = family.width(base.get_submodule(family.projector))
    projector = create_projector(part, own_width, new_projector, llm_dim)
    level_projectors = None
    if projector is not None:
        if new_projector is None:
            warn_of_training(part, compressor, own_width)
        level_projectors = create_level_projectors(family, base, part, new_projector, llm_dim)
    grid = find_common_grid(family, base)
    if grid is not None:
        part.num_tokens(*grid)  # says so where it cannot be
    else:
        warn_of_refused_sizes(part, compressor, family, base)
    model.config.slothkit = {
        **record,
        "counts": processors.read_counts(processor),
        "new_markers": processors.list_new_markers(processor) if queries is not None else [],
    }
    note_pruner(model)
    num_queries = queries.num_queries if queries is not None else 0
    pair = uuid4().hex
    own_rate = family.own_rate(base)
    patch_size = family.patch_size(base) if grid is None else None
    processors.attach_processor(
        processor,
        family.processor,
        part,
        grid,
        patch_size,
        num_queries,
        pair,
        own_rate,
        model.config.slothkit,
    )
    markers = None
    if queries is not None:  # behind the processor, whose tokenizer has the markers now
        markers = create_markers(model, processor, queries)
    parts = VisualParts(
        model,
        family,
        part,
        projector,
        level_projectors,
        cue_reader,
        position_keeper,
        queries,
        markers,
        pair,
        question_reader,
    )
    _insert_parts(model, parts, processor)


def _insert_parts(model: PreTrainedModel, parts: VisualParts, processor: ProcessorMixin) -> None:
    """Put parts into the model, on the device and in the type of its embeddings; all is undone where a part
    does not fit."""
    embeddings: Any = model.get_input_embeddings()
    parts = parts.to(find_device(embeddings), embeddings.weight.dtype)
    model.add_module(PARTS_ATTRIBUTE, parts.train(model.training))
    try:
        parts.insert_parts()
    except UsageError:
        detach(model, processor)
        raise


def pick(model: PreTrainedModel, processor: ProcessorMixin, scale: int) -> None:
    """One of the token counts at which a compressor was trained (`matryoshka`), in the model and in the
    placeholders of the processor that `attach` or `load` gave. `save_pretrained` keeps it.

    model       a PeftModel stands for the model in it, with every adapter's copy of the compressor
    UsageError for a scale that the compressor does not have; nothing has changed then."""
    model = unwrap_peft(model)
    parts = _require_parts(model, "pick")
    processors.check_pair(processor, parts.pair, "pick")
    # both may refuse: the processor's first, which is a copy
    counting_compressor = processors.copy_at_scale(processor, scale)
    for compressor in list_copies(parts.compressor):
        compressor.pick(scale)
    base = cast(PreTrainedModel, model.base_model)
    processors.update_counts(processor, counting_compressor, find_common_grid(parts.family, base), scale)
    model.config.slothkit["scale"] = scale


def _require_parts(model: nn.Module, action: str) -> VisualParts:
    """What is attached to a model; UsageError where nothing is."""
    parts: VisualParts | None = getattr(model, PARTS_ATTRIBUTE, None)
    if parts is None:
        raise UsageError(f"{action}: nothing is attached to this model")
    return parts


def detach(model: PreTrainedModel, processor: ProcessorMixin | None = None) -> None:
    """Both as they were before `attach`.

    model       a PeftModel stands for the model in it
    processor   the one that `attach` or `load` gave; None: it goes on counting for the compressor
    UsageError for a processor that is not the model's, and where a PEFT adapter is in the parts; nothing has
    changed then."""
    model = unwrap_peft(model)
    parts = _require_parts(model, "detach")
    if processor is not None:
        processors.check_pair(processor, parts.pair, "detach")
    _check_unadapted(parts)
    parts.remove_parts()
    delattr(model, PARTS_ATTRIBUTE)
    del model.config.slothkit
    if processor is not None:
        processors.detach_processor(processor)


def _check_unadapted(parts: VisualParts) -> None:
    """UsageError for parts that PEFT has wrapped, whose adapter would be left without them."""
    adapted = []
    for name, part in parts.named_children():
        if any(is_of_peft(module) for module in part.modules()):
            adapted.append(f"{PARTS_ATTRIBUTE}.{name}")
    if adapted:
        raise UsageError(
            f"detach: a PEFT adapter trains {', '.join(adapted)}; give the model that unload() or "
            "merge_and_unload() of the PeftModel returns"
        )


def name_trained_parts(model: nn.Module) -> list[str]:
    """Names of the attached parts, for `modules_to_save` of a peft configuration. UsageError for a model
    without any."""
    names = []
    for name, part in _require_parts(model, "name_trained_parts").named_children():
        if isinstance(part, nn.ModuleList):  # peft takes what is in a list, not the list
            names += [f"{PARTS_ATTRIBUTE}.{name}.{number}" for number in range(len(part))]
        elif list(part.parameters()):  # peft refuses modules without
            names.append(f"{PARTS_ATTRIBUTE}.{name}")
    return names
