"""A compressor, and a query module if wanted, in a multimodal model of transformers.

    model = LlavaForConditionalGeneration.from_pretrained(...)
    reuse.attach(model, processor, compressor="visionzip", tokens=64)                  # nothing to train
    reuse.attach(model, processor, compressor="sap", rate=3, query_module="embq")      # to be trained
    model.save_pretrained(folder), processor.save_pretrained(folder)
    model, processor = reuse.load(folder)
    reuse.pick(model, processor, 2)                                  # another scale, where it has several
    reuse.detach(model, processor)                                   # what they were before
    reuse.prune(model, "fastv", ratio=0.5)                           # a pruner inside the LLM

The compressor reads the tower's patch features in the place of the model's own reduction (pixel shuffle,
pooling, merger), or between tower and projector where there is none. The model's own projector follows where
the widths agree, otherwise a new one that has to be trained. What it asks of a CLIP or SigLIP tower beside
that (attention, keys, CLS) it gets; a compressor without weights before the model's own projector needs no
training.

With a query module, questions are marked: `processor.apply_chat_template` does it, and in plain text
"USER: <image>\\n<question>What is this?<query> ASSISTANT:". `<question>` is one more token in the sequence,
so the ids alone say what each query may read, through any collator, trainer and harness: its question, and
the images before it. A later turn takes the whole conversation again, not `past_key_values` of the last one.
"""

import warnings
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import torch
from torch import nn
from transformers import AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin

import compressors
from compressors.base import Compressor
from compressors.errors import UsageError
from connectors.hub import find_folder
from connectors.pretrained import load_model
from connectors.projector import registry as projectors
from connectors.query_module import QueryModule
from connectors.query_modules import registry as query_modules
from llm_adapters.adapter import llm_sizes
from llm_adapters.conversation import QUERY, QUESTION
from llm_adapters.pruning.apply import check_positions
from llm_adapters.reuse import loading, processors
from llm_adapters.reuse.cues import make_cue_reader
from llm_adapters.reuse.families import FAMILIES, ModelFamily, find_family
from llm_adapters.reuse.families.family import RAGGED, read_merge_size
from llm_adapters.reuse.parts import PARTS_ATTRIBUTE, Markers, VisualParts
from llm_adapters.reuse.positions import make_position_keeper
from llm_adapters.reuse.pruning import PRUNING_ATTRIBUTE, ModelPruning, prune
from llm_adapters.reuse.questions import make_question_reader
from llm_adapters.reuse.wrapping import find_device
from llm_adapters.saved import is_attached

__all__ = ["FAMILIES", "NeedsTraining", "attach", "detach", "load", "name_trained_parts", "pick", "prune"]

MOST_UNITS = 16  # a side of the pictures whose sizes are tried, in the units that it is rounded to


class NeedsTraining(UserWarning):
    """A compressor without weights has got a new projector, which must be trained."""


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
    if hasattr(processor, "attached"):
        raise UsageError("the processor counts for another model with a compressor; load a fresh one")
    record = {
        "compressor": compressor,
        "knobs": knobs,
        "query_module": query_module,
        "query_knobs": query_knobs or {},
        "new_projector": new_projector,
    }
    if text_encoder is not None:
        record["text_encoder"] = str(text_encoder)
    # all that may be refused comes before anything is changed
    base = cast(PreTrainedModel, model.base_model)  # its type in transformers is too wide
    llm_dim = llm_sizes(model.config)["llm_dim"]
    part: Compressor = compressors.create(compressor, dim=family.dim(base), llm_dim=llm_dim, **knobs)
    _check_compressor(part, compressor)
    cue_reader = make_cue_reader(family, base, part, compressor)
    question_reader = make_question_reader(family, model, processor, part, compressor, text_encoder)
    position_keeper = make_position_keeper(family, model, part, compressor)
    pruning: ModelPruning | None = getattr(model, PRUNING_ATTRIBUTE, None)
    if pruning is not None and pruning.pruner is not None:
        check_positions(pruning.pruner, part.keeps_positions)
    queries = _create_query_module(model, family.dim(base), query_module, query_knobs or {})
    own_width = family.width(base.get_submodule(family.projector))
    projector = _create_projector(part, own_width, new_projector, llm_dim)
    level_projectors = None
    if projector is not None:
        if new_projector is None:
            _warn_of_training(part, compressor, own_width)
        level_projectors = _create_level_projectors(family, base, part, new_projector, llm_dim)
    grid = _find_common_grid(family, base)
    if grid is not None:
        part.num_tokens(*grid)  # says so where it cannot be
    else:
        _warn_of_refused_sizes(part, compressor, family, base)
    model.config.slothkit = {**record, "counts": processors.read_counts(processor)}
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
        markers = _create_markers(model, processor, queries)
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


def _create_query_module(
    model: PreTrainedModel, vision_dim: int, name: str | None, knobs: dict[str, Any]
) -> QueryModule | None:
    """The query module of that name for the model's LLM and a tower; UsageError for knobs of none."""
    if name is not None:
        sizes = {**llm_sizes(model.config), "vision_dim": vision_dim}
        return query_modules.create(name, **sizes, **knobs)
    if knobs:
        raise UsageError(
            f"query_knobs={knobs} without a query_module; name one of {', '.join(query_modules.names())}"
        )
    return None


def _find_common_grid(family: ModelFamily, base: PreTrainedModel) -> tuple[int, int] | None:
    """The patch grid where all images have one."""
    if family.processor in RAGGED:
        return None
    return family.grid(base)


def _warn_of_refused_sizes(part: Compressor, name: str, family: ModelFamily, base: PreTrainedModel) -> None:
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


def _warn_of_training(part: Compressor, name: str, own_width: int) -> None:
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


def _check_compressor(part: Compressor, name: str) -> None:
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


def _create_projector(part: Compressor, own_width: int, name: str | None, llm_dim: int) -> nn.Module | None:
    """A new projector, None where the model's own fits."""
    if name is None and not part.projects and part.out_dim == own_width:
        return None
    return _create_new_projector(part, name, llm_dim)


def _create_new_projector(part: Compressor, name: str | None, llm_dim: int) -> nn.Module:
    """The projector of that name; None: `mlp2x_gelu`, or none at all behind a compressor that projects."""
    if name is None:
        name = "identity" if part.projects else "mlp2x_gelu"
    return projectors.create(name, in_dim=part.out_dim, llm_dim=llm_dim)


def _create_level_projectors(
    family: ModelFamily, base: PreTrainedModel, part: Compressor, name: str | None, llm_dim: int
) -> nn.ModuleList | None:
    """A new projector for each DeepStack level, None for a family without."""
    if family.deepstack is None:
        return None
    level_projectors = nn.ModuleList()
    for _ in base.get_submodule(family.deepstack.mergers).children():
        level_projectors.append(_create_new_projector(part, name, llm_dim))
    return level_projectors


def _create_markers(model: PreTrainedModel, processor: ProcessorMixin, queries: QueryModule) -> Markers:
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


def pick(model: PreTrainedModel, processor: ProcessorMixin, scale: int) -> None:
    """One of the token counts at which a compressor was trained (`matryoshka`), in the model and in the
    placeholders of the processor that `attach` or `load` gave. `save_pretrained` keeps it.
    UsageError for a scale that the compressor does not have; nothing has changed then."""
    parts = _require_parts(model, "pick")
    processors.check_pair(processor, parts.pair, "pick")
    # both may refuse: the processor's first, which is a copy
    counting_compressor = processors.copy_at_scale(processor, scale)
    parts.compressor.pick(scale)
    base = cast(PreTrainedModel, model.base_model)
    processors.update_counts(processor, counting_compressor, _find_common_grid(parts.family, base), scale)
    model.config.slothkit["scale"] = scale


def _require_parts(model: PreTrainedModel, action: str) -> VisualParts:
    """What is attached to a model; UsageError where nothing is."""
    parts: VisualParts | None = getattr(model, PARTS_ATTRIBUTE, None)
    if parts is None:
        raise UsageError(f"{action}: nothing is attached to this model")
    return parts


def detach(model: PreTrainedModel, processor: ProcessorMixin | None = None) -> None:
    """Both as they were before `attach`. UsageError for a processor that is not the model's; nothing has
    changed then."""
    parts = _require_parts(model, "detach")
    if processor is not None:
        processors.check_pair(processor, parts.pair, "detach")
    parts.remove_parts()
    delattr(model, PARTS_ATTRIBUTE)
    del model.config.slothkit
    if processor is not None:
        processors.detach_processor(processor)


def name_trained_parts(model: nn.Module) -> list[str]:
    """Names of the attached parts, for `modules_to_save` of a peft configuration."""
    names = []
    for name, part in getattr(model, PARTS_ATTRIBUTE).named_children():
        if isinstance(part, nn.ModuleList):  # peft takes what is in a list, not the list
            names += [f"{PARTS_ATTRIBUTE}.{name}.{number}" for number in range(len(part))]
        elif list(part.parameters()):  # peft refuses modules without
            names.append(f"{PARTS_ATTRIBUTE}.{name}")
    return names


def load(
    source: str | Path,
    *,
    revision: str | None = None,
    base: str | Path | None = None,
    text_encoder: str | Path | None = None,
    **kwargs: Any,
) -> tuple[Any, ProcessorMixin]:
    """What `save_pretrained` of an attached model and of its processor wrote, or that of a PeftModel of one.

    source      a folder, or a repository of the hub, which the cache has or which is downloaded
    revision    of a repository: a branch, a tag or a commit
    base        of an adapter: where the model is that it was trained on; None: where it says
    text_encoder    where the text encoder is that a compressor reads questions by; None: where it says
    kwargs      `from_pretrained`'s
    UsageError for a folder of another model.
    """
    options: dict[str, Any] = {name: kwargs[name] for name in loading.HUB_ARGUMENTS if name in kwargs}
    folder = find_folder(source, revision, **options)
    if (folder / loading.ADAPTER_FILE).is_file():
        return _load_adapter(folder, base, text_encoder, kwargs)
    model, record = loading.load_plain_model(folder, **kwargs)
    processor = loading.load_processor(folder, record)
    _attach_record(model, processor, record, text_encoder)
    getattr(model, PARTS_ATTRIBUTE).load_state_dict(loading.read_saved_parts(folder))
    return model, processor


def _attach_record(
    model: PreTrainedModel, processor: ProcessorMixin, record: dict[str, Any], text_encoder: str | Path | None
) -> None:
    """What a record tells, attached again, with fresh weights. `text_encoder`: as in `load`."""
    if text_encoder is not None:
        record["text_encoder"] = text_encoder
    knobs = record.pop("knobs")
    scale = record.pop("scale", None)
    if hasattr(model.config, "slothkit"):  # folders of 1.0 have it beside the plain configuration
        del model.config.slothkit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NeedsTraining)  # it was saved with its weights
        attach(model, processor, **record, **knobs)
    if scale is not None:
        pick(model, processor, scale)


def _load_adapter(
    folder: Path, base: str | Path | None, text_encoder: str | Path | None, kwargs: dict[str, Any]
) -> tuple[Any, ProcessorMixin]:
    """A PeftModel, of an attached model that was saved or of a plain one that a compressor was put into."""
    from peft import PeftModel  # takes seconds to import, and nothing else here needs it

    adapter = loading.read_adapter(folder)
    source = base or adapter["base_model_name_or_path"]
    options: dict[str, Any] = {name: kwargs[name] for name in loading.HUB_ARGUMENTS if name in kwargs}
    base_folder = find_folder(source, **options)
    if is_attached(base_folder):
        model, processor = load(base_folder, text_encoder=text_encoder, **kwargs)
    else:
        record = loading.read_record(folder)
        processor = loading.load_processor(folder, record)
        model = load_model(
            AutoModelForImageTextToText, base_folder, str(source), loading.SAVE_ADVICE, **kwargs
        )
        _attach_record(model, processor, record, text_encoder)
        missing = sorted(set(name_trained_parts(model)) - set(adapter.get("modules_to_save") or ()))
        if missing:
            raise UsageError(
                f"{folder}: the adapter has no weights of {', '.join(missing)}; give base= a model that was "
                "saved with them, or train with modules_to_save=reuse.name_trained_parts(model)"
            )
    return PeftModel.from_pretrained(model, str(folder)), processor
