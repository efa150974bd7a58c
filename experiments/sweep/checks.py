"""What is looked at before any cell runs: errors with the cell's name, since a table has many."""

from collections.abc import Callable

from compressors.errors import UnreachableError, UsageError
from experiments.config.cells import Cell
from experiments.config.schema import GPU_ACCELERATORS, Config
from experiments.data.formats import is_file_entry
from experiments.runtime.collector import spare_modules_from_collector
from experiments.store.store import Store
from experiments.sweep.options import IN_PROCESS_LAUNCHER, LaunchOptions
from experiments.sweep.pool import list_gpus
from experiments.sweep.request import CellJob, SweepRequest


def check_model_sizes(config: Config) -> None:
    """What only a model's sizes can tell, raised as UsageError."""
    with spare_modules_from_collector():
        from experiments.stages import checks  # torch and transformers: a typo does not wait for them

    checks.check_cell_config(config)


def check_local_devices(config: Config) -> None:
    """UsageError when this machine lacks the devices that a cell asks for."""
    trainer = config.trainer
    is_plain = trainer.devices == "auto" and trainer.nodes == 1
    if is_plain and trainer.accelerator in ("auto", "cpu"):  # any machine has these
        return
    from experiments.stages import checks  # as above

    checks.check_devices(config)


def check_worker_devices(config: Config, launch: LaunchOptions) -> None:
    """UsageError when a cell asks for other GPUs than the one that a worker has."""
    trainer = config.trainer
    if launch.in_process or trainer.devices in ("auto", "-1", "1"):
        return
    if list_gpus(trainer.accelerator in GPU_ACCELERATORS):
        raise UsageError(
            f"trainer.devices={trainer.devices}: a worker has one GPU; leave it at auto, or take "
            "launch.workers=1 without launch.threads"
        )


def check_cell(cell: Cell, launch: LaunchOptions, check: Callable[[Config], None]) -> None:
    """`check`, and of the devices where the work is done here; errors with the cell's name: a table has
    many."""
    try:
        check(cell.config)
        if launch.where == IN_PROCESS_LAUNCHER:  # else other machines do the work
            check_local_devices(cell.config)
            check_worker_devices(cell.config, launch)
    except UsageError as error:
        raise type(error)(f"{cell.label}: {error}") from error


def check_request(request: SweepRequest, store: Store, check: Callable[[Config], None]) -> None:
    """UsageError for what is wrong with a cell, on this machine."""
    for cell in list_unlike_cells(request.jobs, store):
        check_cell(cell, request.launch, check)


def list_unchecked_cells(sweep: SweepRequest, store: Store, check: Callable[[Config], None]) -> list[str]:
    """Check all cells; notes of those whose sizes cannot be told, because a model is out of reach."""
    notes = []
    unreachable_models: set[str] = set()
    for cell in list_unlike_cells(sweep.jobs, store):
        models = describe_models(cell.config)
        if models in unreachable_models:  # a hub out of reach is waited for, half a minute each time
            notes.append(f"not checked: {cell.label}: its models are out of reach, as above")
            continue
        try:
            check_cell(cell, sweep.launch, check)
        except UnreachableError as error:
            unreachable_models.add(models)
            notes.append(f"not checked: {error}")
    return notes


def list_data_notes(request: SweepRequest) -> list[str]:
    """A note where stage 1 has the embedded data because nobody has said otherwise, and stage 2 has not."""
    for cell, _ in request.jobs:
        data = cell.config.data
        is_chosen = any(path == "data.pretrain" for path, _ in cell.row)
        if not cell.config.aligns or is_chosen or not all(map(is_file_entry, data.train)):
            continue
        splits = [entry for entry in data.pretrain if not is_file_entry(entry)]
        if splits:
            return [
                f"stage 1 trains on {data.dataset} (data.pretrain={','.join(splits)}), which is the default; "
                "for data of your own give data.pretrain=FILE.json"
            ]
    return []


def describe_models(config: Config) -> str:
    """All models that the checks of a cell load something of."""
    trained = (config.pretrain.init, config.finetune.init, config.finetune.teacher)
    return str((config.tower.source, config.llm.source, trained))


def list_unlike_cells(jobs: list[CellJob], store: Store) -> list[Cell]:
    """Cells that are not finished, one for all that the checks see alike."""
    # a look at a model takes a moment, and most recipes of a table differ in nothing that is looked at
    cells_by_shape: dict[str, Cell] = {}
    for cell, stage in jobs:
        if not store.is_finished(stage):
            cells_by_shape.setdefault(describe_checked_settings(cell.config), cell)
    return list(cells_by_shape.values())


def describe_checked_settings(config: Config) -> str:
    """All that the checks of a cell look at."""
    parts = (config.compressor, config.projector, config.parts, config.prune)
    backbones = (config.tower, config.llm, config.image)
    training = (config.trainer, config.lora)
    rows = (
        config.data,
        config.prompt,
        config.evaluate,
        config.validate,
        config.judge,
    )  # which have to fit into the LLM's positions
    steps = []
    for stage in (config.pretrain, config.finetune):
        steps.append((stage.batch_size, stage.accumulate, stage.init, stage.init_parts))
    teacher = (config.finetune.teacher, config.finetune.teacher_weight)
    return str((parts, backbones, training, rows, steps, teacher))
