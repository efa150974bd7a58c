"""Released FlashSloth checkpoints <-> ours.

    python -m llm_adapters.released convert CHECKPOINT OUT     a folder that transformers loads, as any model
    python -m llm_adapters.released export MODEL OUT           and back, bit for bit

CHECKPOINT is a folder or file in the released key layout, of stage 1 or 2, at 384 pixels or HD, as
safetensors or .bin, sharded or not. A stage-1 checkpoint holds the compressor and the projector, sometimes
the projector alone, sometimes everything; what it lacks is taken from `--base`, which is a complete released
checkpoint or a model of ours (FlashSloth-HD starts from the same stage 1). HD checkpoints have the same
tensors as 384-pixel ones: `--tiles 2` tells the processor. Nothing is written unless every key fits.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers.utils import logging as transformers_logging

from compressors.errors import UsageError
from llm_adapters.configuration import FlashSlothConfig
from llm_adapters.conversation import QUERY
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.released import files, layout, sizes, tokens


def convert_checkpoint(
    checkpoint: Path, out: Path, tiles: int | None = None, base: Path | None = None
) -> list[str]:
    """Write a model folder, and its processor if a tokenizer is beside the weights; returns notes."""
    files.refuse_existing(out)
    found = files.read_checkpoint(checkpoint)
    if found.values.get("model_type") == FlashSlothConfig.model_type:
        raise UsageError(f"{checkpoint}: is a model of ours already; `export` is the way back")
    if base is not None:
        found = overlay_checkpoint(found, complete_checkpoint(base))
    tiles = sizes.read_tiles(found.values) if tiles is None else tiles
    if tiles < 1:
        raise UsageError(f"--tiles {tiles}: must be at least 1 (2: FlashSloth-HD)")
    model = build_from_saved_config(found)
    learned = fill_model(model, found)
    folders = [path if path.is_dir() else path.parent for path in (checkpoint, base) if path]
    tokenizer = next(filter(None, map(tokens.load_tokenizer, folders)), None)
    if tokenizer is not None:
        rows = model.get_input_embeddings().num_embeddings
        tokenizer = tokens.prepare_tokenizer(tokenizer, rows, checkpoint)
    tokens.give_ids(model, tokenizer)
    with files.open_draft(out) as folder:
        model.save_pretrained(folder)
        files.write_origin(folder, found, learned)
        if tokenizer is not None:
            tokens.make_processor(model, tokenizer, tiles).save_pretrained(folder)
    note = f"no tokenizer beside {checkpoint}: wrote the model without a processor"
    return found.notes if tokenizer is not None else [*found.notes, note]


def build_skeleton(config: FlashSlothConfig) -> FlashSlothForConditionalGeneration:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return FlashSlothForConditionalGeneration(config).eval()


def build_from_saved_config(found: layout.Checkpoint) -> FlashSlothForConditionalGeneration:
    """The skeleton of the model that a checkpoint's config.json and shapes describe."""
    try:
        return build_skeleton(sizes.make_composed_config(found.values, found.tensors, found.source))
    except UsageError:
        raise
    except (TypeError, ValueError, AttributeError, ZeroDivisionError, StrictDataclassError) as error:
        words = " ".join(str(error).split())
        raise UsageError(f"{found.source}: its config.json describes no model: {words}") from error


def fill_model(model: FlashSlothForConditionalGeneration, found: layout.Checkpoint) -> Tensor:
    """Put a checkpoint's tensors into the model, all or none; returns its query tokens as they were."""
    wanted = {found.spell(layout.to_released(key)): value.shape for key, value in model.state_dict().items()}
    spelled = {found.spell(key): value for key, value in found.tensors.items()}
    layout.check_keys(spelled, wanted, found.source, "give what it lacks with --base")
    learned = found.tensors[layout.QUERIES]
    dot = layout.dot_of(found.tensors, sizes.dot_token(found.values), found.source)
    state = {layout.to_ours(key): value for key, value in found.tensors.items()}
    state[layout.to_ours(layout.QUERIES)] = layout.fold_queries(learned, dot)
    model.load_state_dict(state, assign=True)
    return learned


def overlay_checkpoint(part: layout.Checkpoint, base: layout.Checkpoint) -> layout.Checkpoint:
    """A checkpoint with what it lacks taken from a complete one, whose sizes hold."""
    taken = [key for key in base.tensors if key not in part.tensors]
    note = f"{len(part.tensors)} tensors from {part.source}, {len(taken)} from {base.source}"
    merged = {**base.tensors, **part.tensors}
    return replace(base, source=part.source, tensors=merged, notes=[*part.notes, note])


def complete_checkpoint(path: Path) -> layout.Checkpoint:
    """A released checkpoint, or a model of ours in the released layout."""
    values = files.read_json((path if path.is_dir() else path.parent) / files.CONFIG)
    return (
        find_released(path)
        if values.get("model_type") == FlashSlothConfig.model_type
        else files.read_checkpoint(path)
    )


def find_released(folder: Path) -> layout.Checkpoint:
    """A model folder of ours in the released layout."""
    if not (folder / files.CONFIG).is_file():
        raise UsageError(f"{folder}: no {files.CONFIG} in it; give a model folder")
    if files.read_json(folder / files.CONFIG).get("model_type") != FlashSlothConfig.model_type:
        raise UsageError(f"{folder}: is no model of ours; `convert` makes one of a released checkpoint")
    config = FlashSlothConfig.from_pretrained(folder)
    sizes.check_exportable(config, folder)
    found = files.read_tensors(folder)
    layout.check_keys(found, {k: v.shape for k, v in build_skeleton(config).state_dict().items()}, folder)
    values, level, learned = files.read_origin(folder)
    values = values or sizes.values_of(config)
    state = {layout.to_released(key): value for key, value in found.items()}
    dot = layout.dot_of(state, sizes.dot_token(values), folder)
    state[layout.QUERIES] = layout.unfold_queries(state[layout.QUERIES], dot, learned)
    count = len(state[layout.EMBEDDING])
    values.get("llm", values)["vocab_size"] = count  # it may have been resized since
    return layout.Checkpoint(folder, values, state, level)


def export_model(model: Path, out: Path) -> list[str]:
    """Write a folder in the released layout; returns notes."""
    files.refuse_existing(out)
    found, tokenizer = find_released(model), tokens.load_tokenizer(model)
    if tokenizer is not None:
        tokenizer = tokens.rename_token(tokenizer, QUERY, tokens.LEARNABLE)
    with files.open_draft(out) as folder:
        state = {found.spell(key): value for key, value in found.tensors.items()}
        save_torch_state_dict(state, folder)
        (folder / files.CONFIG).write_text(json.dumps(found.values, indent=1))
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    return found.notes


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m llm_adapters.released", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = made.add_subparsers(dest="command", required=True)
    there = commands.add_parser("convert", help="a released checkpoint into a model of ours")
    there.add_argument("checkpoint", type=Path, help="folder, weight file or index")
    there.add_argument("--base", type=Path, help="where what the checkpoint lacks comes from")
    there.add_argument("--tiles", type=int, help="2: FlashSloth-HD; default: what config.json says, else 1")
    back = commands.add_parser("export", help="a model of ours into the released layout")
    back.add_argument("model", type=Path, help="folder")
    for command in (there, back):
        command.add_argument("out", type=Path, help="new folder")
    return made


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 2 with one line when something does not fit."""
    given = vars(parser().parse_args(arguments))
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        notes = {"convert": convert_checkpoint, "export": export_model}[given.pop("command")](**given)
    except (UsageError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write("".join(f"{line}\n" for line in [*notes, f"wrote {given['out']}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
