"""From the words of `trainer` to a device."""

from typing import TYPE_CHECKING

from experiments.config.schema import GPU_ACCELERATORS
from experiments.config.schema_sections import TrainerSettings

if TYPE_CHECKING:
    import torch


def pick_device(settings: TrainerSettings) -> "torch.device":
    """Where work outside Lightning runs: the first GPU that training takes, else the CPU."""
    import torch  # here: settings are read without it

    if settings.accelerator not in GPU_ACCELERATORS or not torch.cuda.is_available():
        return torch.device("cpu")
    first = 0
    if settings.devices.startswith("["):  # which ones, [2,3]
        first = int(settings.devices.strip("[]").partition(",")[0])
    return torch.device("cuda", first)
