"""From the words of `trainer` to devices."""

from typing import TYPE_CHECKING

from experiments.config.schema import GPU_ACCELERATORS
from experiments.config.schema_sections import TrainerSettings

if TYPE_CHECKING:
    import torch


def parse_devices(settings: TrainerSettings) -> int | str:
    """As Lightning takes them: a number, "auto", or which, "0,2,"."""
    text = settings.devices
    if text.startswith("["):
        return text.strip("[]") + ","  # with a comma Lightning reads one number as which, not how many
    if text.lstrip("-").isdigit():
        return int(text)
    return text


def list_gpu_numbers(settings: TrainerSettings) -> list[int] | None:
    """Which GPUs training takes where it runs on GPUs; None: all there are."""
    devices = parse_devices(settings)
    if devices in ("auto", -1):
        return None
    if isinstance(devices, int):
        return list(range(devices))
    return [int(number) for number in devices.rstrip(",").split(",")]


def find_first_gpu(settings: TrainerSettings) -> int:
    """The one of them that all other work takes."""
    numbers = list_gpu_numbers(settings)
    return numbers[0] if numbers else 0


def pick_device(settings: TrainerSettings) -> "torch.device":
    """Where work outside Lightning runs: the first GPU that training takes, else the CPU."""
    import torch  # here: settings are read without it

    if settings.accelerator not in GPU_ACCELERATORS or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", find_first_gpu(settings))
