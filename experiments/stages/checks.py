"""What can be known of a cell before any of its stages begins: no weights are read."""

from experiments.config.schema import Config
from experiments.models import build
from experiments.stages import lora, row_lengths, strategies


def check_cell_config(config: Config) -> None:
    """UsageError when a cell lacks a package or a device, or when its parts do not fit together."""
    build.silence_libraries()
    check_training_needs(config)
    build.check_model_config(config)
    row_lengths.check_row_lengths(config)


def check_training_needs(config: Config) -> None:
    """UsageError when the strategy or LoRA wants what this machine does not have."""
    strategies.check_strategy(config.trainer)
    lora.check_peft(config.lora)
