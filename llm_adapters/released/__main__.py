"""Released FlashSloth checkpoints <-> ours.

    python -m llm_adapters.released convert CHECKPOINT OUT     a folder that transformers loads, as any model
    python -m llm_adapters.released export MODEL OUT           and back, bit for bit

CHECKPOINT is a folder, a file or a repository of the Hugging Face hub (OWNER/NAME, of which revision=) in the
released key layout, of stage 1 or 2, at 384 pixels or HD, as safetensors or .bin, sharded or not. A stage-1
checkpoint holds the compressor and the projector, sometimes the projector alone, sometimes everything; what
it lacks is taken from `base=`, which is a complete released checkpoint or a model of ours, in a folder or on
the hub (FlashSloth-HD starts from the same stage 1). HD checkpoints have the same tensors as 384-pixel ones:
`tiles=2` tells the processor. Nothing is written unless every key fits.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError
from compressors.setting_fields import setting
from connectors import hub


@dataclass(frozen=True)
class ConversionOptions:
    """What a checkpoint does not say."""

    base: Path | None = setting(None, "convert: where what the checkpoint lacks comes from")
    revision: str | None = setting(None, "of the hub's repository that is read: a branch, a tag or a commit")
    base_revision: str | None = setting(None, "of base=, if it is a repository of the hub")
    tiles: int | None = setting(None, "convert: 2 for FlashSloth-HD; null: what config.json says, else 1")


COMMAND = Command(
    usage="python -m llm_adapters.released convert|export FROM TO [KEY=VALUE ...]",
    description=__doc__ or "",
    options=ConversionOptions,
    words=(3, 3),
    elsewhere="write to another folder",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(run_conversion, arguments)


def run_conversion(line: CommandLine) -> int:
    """Convert or export, and say what was done."""
    action, source, target = line.words
    options: ConversionOptions = line.options
    from transformers.utils import logging as transformers_logging  # torch: --help and a typo do not wait

    from llm_adapters.released.conversion import convert_checkpoint, export_model
    from llm_adapters.released.files import refuse_existing

    # our own errors are one line; transformers would add its report of keys
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if action not in ("convert", "export"):
        raise UsageError(f"'{action}': expected convert or export")
    if action == "export" and options != ConversionOptions(revision=options.revision):
        raise UsageError("export: takes no settings but revision=; the others are of convert")
    base = options.base
    if base is None and options.base_revision is not None:
        raise UsageError(f"base_revision={options.base_revision}: of which repository? name it with base=")
    refuse_existing(Path(target))  # before anything is downloaded
    patterns = (*hub.MODEL_FILES, *hub.PICKLED_FILES)
    folder = hub.find_folder(source, options.revision, patterns)
    if base is not None:
        base = hub.find_folder(base, options.base_revision, patterns, "base_revision")
    if action == "convert":
        notes = convert_checkpoint(folder, Path(target), options.tiles, base)
    else:
        notes = export_model(folder, Path(target))
    for note in [*notes, f"wrote {target}"]:
        sys.stdout.write(f"{note}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
