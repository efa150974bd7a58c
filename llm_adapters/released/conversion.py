"""Released checkpoints -> a model folder of ours, and back; nothing is written unless every key fits."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from compressors.errors import UsageError
from connectors.pretrained import load_pretrained
from llm_adapters.configuration import FlashSlothConfig
from llm_adapters.conversation import QUERY
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.released import files, layout, sizes, tokens


def convert_checkpoint(
    checkpoint: Path, out: Path, tiles: int | None = None, base: Path | None = None
) -> list[str]:
    """Write a model folder, and its processor if a tokenizer is beside the weights; returns notes."""
    files.refuse_existing(out)
    source = files.read_checkpoint(checkpoint)
    if source.values.get("model_type") == FlashSlothConfig.model_type:
        raise UsageError(f"{checkpoint}: is a model of ours already; `export` is the way back")
    if base is not None:
        source = overlay_checkpoint(source, complete_checkpoint(base))
    if tiles is None:
        tiles = sizes.read_tiles(source.values)
    if tiles < 1:
        raise UsageError(f"tiles={tiles}: must be at least 1 (2: FlashSloth-HD)")
    model = build_from_saved_config(source)
    learned = fill_model(model, source)
    tokenizer = tokens.load_tokenizer(find_folder(checkpoint))
    if tokenizer is None and base is not None:
        tokenizer = tokens.load_tokenizer(find_folder(base))
    if tokenizer is not None:
        rows = tokens.count_embeddings(model)
        tokenizer = tokens.prepare_tokenizer(tokenizer, rows, checkpoint)
    tokens.give_ids(model, tokenizer)
    with files.open_draft(out) as folder:
        model.save_pretrained(folder)
        files.write_origin(folder, source, learned)
        if tokenizer is not None:
            tokens.make_processor(model, tokenizer, tiles).save_pretrained(folder)
    if tokenizer is None:
        return [*source.notes, f"no tokenizer beside {checkpoint}: wrote the model without a processor"]
    return source.notes


def find_folder(path: Path) -> Path:
    """The folder of a weight file, or the folder itself."""
    return path if path.is_dir() else path.parent


def build_skeleton(config: FlashSlothConfig) -> FlashSlothForConditionalGeneration:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return FlashSlothForConditionalGeneration(config).eval()


def build_from_saved_config(checkpoint: layout.Checkpoint) -> FlashSlothForConditionalGeneration:
    """The skeleton of the model that a checkpoint's config.json and shapes describe."""
    try:
        return build_skeleton(
            sizes.make_composed_config(checkpoint.values, checkpoint.tensors, checkpoint.source)
        )
    except UsageError:
        raise
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, StrictDataclassError) as error:
        words = " ".join(str(error).split())
        raise UsageError(f"{checkpoint.source}: its config.json describes no model: {words}") from error


def fill_model(model: FlashSlothForConditionalGeneration, checkpoint: layout.Checkpoint) -> Tensor:
    """Put a checkpoint's tensors into the model, all or none; returns its query tokens as they were."""
    # compared as the file spells its keys, so that an error names keys that a user can find there
    shapes = {
        checkpoint.spell(layout.to_released(key)): value.shape for key, value in model.state_dict().items()
    }
    spelled = {checkpoint.spell(key): value for key, value in checkpoint.tensors.items()}
    layout.check_keys(spelled, shapes, checkpoint.source, "give what it lacks with base=DIR")
    learned = checkpoint.tensors[layout.QUERIES]
    dot = layout.find_dot_embedding(
        checkpoint.tensors, sizes.find_dot_token(checkpoint.values), checkpoint.source
    )
    state = {layout.to_ours(key): value for key, value in checkpoint.tensors.items()}
    state[layout.to_ours(layout.QUERIES)] = layout.fold_queries(learned, dot)
    model.load_state_dict(state, assign=True)
    return learned


def overlay_checkpoint(part: layout.Checkpoint, base: layout.Checkpoint) -> layout.Checkpoint:
    """A checkpoint with what it lacks taken from a complete one, whose sizes hold."""
    lacking = [key for key in base.tensors if key not in part.tensors]
    note = f"{len(part.tensors)} tensors from {part.source}, {len(lacking)} from {base.source}"
    merged = {**base.tensors, **part.tensors}
    return replace(base, source=part.source, tensors=merged, notes=[*part.notes, note])


def complete_checkpoint(path: Path) -> layout.Checkpoint:
    """A released checkpoint, or a model of ours in the released layout."""
    values = files.read_config(find_folder(path))
    if values.get("model_type") == FlashSlothConfig.model_type:
        return find_released(path)
    return files.read_checkpoint(path)


def find_released(folder: Path) -> layout.Checkpoint:
    """A model folder of ours in the released layout."""
    if not (folder / files.CONFIG).is_file():
        raise UsageError(f"{folder}: no {files.CONFIG} in it; give a model folder")
    if files.read_config(folder).get("model_type") != FlashSlothConfig.model_type:
        raise UsageError(f"{folder}: is no model of ours; `convert` makes one of a released checkpoint")
    config = load_pretrained(FlashSlothConfig, folder, str(folder), "save the model there again")
    sizes.check_exportable(config, folder)
    tensors = files.read_tensors(folder)
    shapes = {key: value.shape for key, value in build_skeleton(config).state_dict().items()}
    layout.check_keys(tensors, shapes, folder)
    values, level, learned = files.read_origin(folder)
    values = values or sizes.make_flat_values(config)
    tiles = files.read_processor_tiles(folder)
    if tiles is not None:
        sizes.write_tiles(values, tiles)
    state = {layout.to_released(key): value for key, value in tensors.items()}
    dot = layout.find_dot_embedding(state, sizes.find_dot_token(values), folder)
    state[layout.QUERIES] = layout.unfold_queries(state[layout.QUERIES], dot, learned)
    count = len(state[layout.EMBEDDING])
    values.get("llm", values)["vocab_size"] = count  # it may have been resized since
    return layout.Checkpoint(folder, values, state, level)


def export_model(model: Path, out: Path) -> list[str]:
    """Write a folder in the released layout; returns notes."""
    files.refuse_existing(out)
    released = find_released(model)
    tokenizer = tokens.load_tokenizer(model)
    if tokenizer is not None:
        tokenizer = tokens.rename_token(tokenizer, QUERY, tokens.LEARNABLE)
    with files.open_draft(out) as folder:
        state = {released.spell(key): value for key, value in released.tensors.items()}
        save_torch_state_dict(state, folder)
        (folder / files.CONFIG).write_text(json.dumps(released.values, indent=1))
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    return released.notes
