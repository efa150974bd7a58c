"""A preset with another LLM: its prompt and end token are those of the tokenizer's chat template.

    python -m experiments.backbones.chat_preset Qwen/Qwen2.5-1.5B-Instruct to=qwen.yaml
    python -m experiments.sweep preset=qwen.yaml compressor=sap+embq data.train=llava.json ...

Only the tokenizer is read. The file says what it has taken; change it as any preset.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from compressors.command_line import Command, CommandLine
from compressors.errors import UsageError
from compressors.setting_fields import setting


@dataclass(frozen=True)
class PresetOptions:
    """What is written where."""

    to: Path = setting(Path("preset.yaml"), "file to write, which preset= of the sweep takes")
    preset: str = setting("flashsloth", "what it starts from: tower, data and recipe")


COMMAND = Command(
    usage="python -m experiments.backbones.chat_preset LLM [to=FILE.yaml] [preset=flashsloth]",
    description=f"{__doc__}\nLLM: a folder that save_pretrained wrote, or OWNER/NAME of the hub.",
    options=PresetOptions,
    words=(1, 1),
    elsewhere="write to another file with to=FILE.yaml",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(write_preset, arguments)


def write_preset(line: CommandLine) -> int:
    """Read the tokenizer, write the file."""
    options: PresetOptions = line.options
    (source,) = line.words
    if options.to.suffix not in (".yaml", ".yml"):
        raise UsageError(f"to={options.to}: must end in .yaml")
    if options.to.exists():
        raise UsageError(f"to={options.to}: is there already; name a new file")
    from omegaconf import OmegaConf  # torch behind the next two, too: what is wrong above is answered at once

    from experiments.config.presets import load_preset
    from experiments.models.chat_prompt import read_chat_prompt
    from experiments.models.pretrained import read_tokenizer

    load_preset(options.preset)  # there is one of that name
    where = f"llm.source={source}"
    template = read_chat_prompt(read_tokenizer(source, where), where)
    content = {"preset": options.preset, "llm": {"source": source}, "prompt": asdict(template)}
    options.to.parent.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(content), options.to)
    sys.stdout.write(f"{options.to}: {source}, answers end with {template.end}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
