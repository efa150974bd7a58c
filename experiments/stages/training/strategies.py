"""How many processes train a stage, and how they share the model: Lightning's strategies by name.

auto, ddp      every process has the whole model; gradients are averaged
fsdp           FSDP2: parameters, gradients and AdamW's state are cut into one shard a process
deepspeed      ZeRO stage 2: gradients and AdamW's state are; GPUs only
"""

from collections.abc import Iterable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from compressors.errors import UsageError
from experiments.config.devices import parse_devices
from experiments.config.schema_sections import TrainerSettings
from experiments.models.build import silence_libraries
from llm_adapters.adapter import decoder_layers
from llm_adapters.modeling import FlashSlothForConditionalGeneration

# Lightning is imported where it is needed: a sweep that is planned on a machine without GPUs is not
if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy


def check_strategy(settings: TrainerSettings) -> None:
    """UsageError when what the strategy needs is not there."""
    if settings.strategy != "deepspeed":
        return
    if find_spec("deepspeed") is None:
        raise UsageError(
            "trainer.strategy=deepspeed: deepspeed is not installed; pip install deepspeed, or "
            "take trainer.strategy=fsdp"
        )
    if settings.accelerator == "cpu" or not torch.cuda.is_available():
        raise UsageError("trainer.strategy=deepspeed: needs a GPU; take trainer.strategy=ddp or fsdp")


def count_processes(settings: TrainerSettings) -> int:
    """How many processes of this machine train: one a device. 0: the one that asks, alone. UsageError when
    this machine lacks the devices."""
    can_be_alone = settings.strategy in ("auto", "ddp") and settings.nodes == 1
    if settings.devices == "auto" and uses_cpu(settings):  # one, as Lightning would say
        return 0 if can_be_alone else 1
    import lightning as L
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.plugins.environments import LightningEnvironment

    silence_libraries()  # here, as importing Lightning sets the levels of its loggers
    devices = parse_devices(settings)
    try:
        trainer = L.Trainer(
            accelerator=settings.accelerator, devices=devices, barebones=True, plugins=LightningEnvironment()
        )
    except (MisconfigurationException, ImportError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"trainer.accelerator={settings.accelerator} trainer.devices={settings.devices}: this machine "
            f"has no such devices ({reason}); leave them at auto"
        ) from error
    if trainer.num_devices == 1 and can_be_alone:
        return 0
    return trainer.num_devices


def uses_cpu(settings: TrainerSettings) -> bool:
    """Whether a training certainly runs on the CPU: asked for, or nothing else that Lightning knows is
    there."""
    if settings.accelerator != "auto":
        return settings.accelerator == "cpu"
    has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    return not has_gpu and find_spec("torch_xla") is None


def place_trainer(settings: TrainerSettings, world: int) -> dict[str, Any]:
    """Lightning's arguments that say where it trains, in one of `world` processes of this node or, for 0, in
    this one."""
    from lightning.pytorch.plugins.environments import LightningEnvironment

    arguments: dict[str, Any] = {
        "accelerator": settings.accelerator,
        "devices": parse_devices(settings),
        # the processes are there: training.ranks has started them, whatever scheduler runs the sweep; the
        # scheduler's own environment would save and resume by itself
        "plugins": [LightningEnvironment()],
    }
    if world:
        arguments["strategy"] = make_strategy(settings.strategy, world * settings.nodes)
        arguments["num_nodes"] = settings.nodes
    return arguments


def make_strategy(name: str, world: int) -> "Strategy":
    """The strategy of one of `world` processes."""
    from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy

    if name == "fsdp":
        return ModelParallelStrategy(
            data_parallel_size=world,
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,  # one file, as `checkpoints.py` reads it
        )
    if name == "deepspeed":
        return DeepSpeedStrategy(stage=2, logging_batch_size_per_gpu=1)  # of its own log only
    return DDPStrategy(gradient_as_bucket_view=True)  # else every gradient is there twice


def make_precision_policy(precision: str) -> MixedPrecisionPolicy:
    """How FSDP2 gathers and reduces, for a precision as Lightning names it. bf16-mixed: weights are gathered
    in bfloat16, half the bytes; gradients are added up in float32, and each process keeps float32 weights."""
    if precision != "bf16-mixed":
        return MixedPrecisionPolicy()
    # autocast rounds what goes into a product; inputs stay, since patches are chosen by scores among them
    return MixedPrecisionPolicy(
        param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
    )


def shard_model(
    model: FlashSlothForConditionalGeneration, mesh: DeviceMesh, policy: MixedPrecisionPolicy
) -> None:
    """FSDP2 in place, one layer of LLM and tower at a time; all else is gathered for the whole forward pass,
    the query module too, which runs inside a layer."""
    for layer in (*decoder_layers(model.language_model), *find_tower_layers(model.vision_tower)):
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def find_tower_layers(tower: nn.Module) -> list[nn.Module]:
    """A tower's blocks: of its lists of modules the one with most parameters."""
    largest: Iterable[nn.Module] = ()
    most_parameters = -1
    for module in tower.modules():
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            count = sum(parameter.numel() for parameter in module.parameters())
            if count > most_parameters:
                largest = module
                most_parameters = count
    return list(largest)


def gather_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with whole tensors, on the CPU; every process must ask, the first one gets it."""
    if torch.distributed.is_initialized():
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, Any] = get_model_state_dict(model, options=options)
        return state
    return model.state_dict()
