"""Released FlashSloth checkpoints <-> ours.

    python -m llm_adapters.released convert CHECKPOINT OUT     a folder that transformers loads, as any model
    python -m llm_adapters.released export MODEL OUT           and back, bit for bit

CHECKPOINT is a folder or file in the released key layout, of stage 1 or 2, at 384 pixels or HD, as
safetensors or .bin, sharded or not. A stage-1 checkpoint holds the compressor and the projector, sometimes
the projector alone, sometimes everything; what it lacks is taken from `base=`, which is a complete released
checkpoint or a model of ours (FlashSloth-HD starts from the same stage 1). HD checkpoints have the same
tensors as 384-pixel ones: `tiles=2` tells the processor. Nothing is written unless every key fits.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from compressors.command_line import Command, CommandLine, setting
from compressors.errors import UsageError


@dataclass(frozen=True)
class ConversionOptions:
    """What a checkpoint does not say."""

    base: Path | None = setting(None, "convert: where what the checkpoint lacks comes from")
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

    # our own errors are one line; transformers would add its report of keys
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if action == "convert":
        notes = convert_checkpoint(Path(source), Path(target), options.tiles, options.base)
    elif action == "export":
        if options != ConversionOptions():
            raise UsageError("export: takes no settings; base= and tiles= are of convert")
        notes = export_model(Path(source), Path(target))
    else:
        raise UsageError(f"'{action}': expected convert or export")
    for note in [*notes, f"wrote {target}"]:
        sys.stdout.write(f"{note}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
