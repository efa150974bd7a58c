"""Curves of a stage: a run of its own for each, in CSV files, TensorBoard or W&B, closed when the stage ends.

    csv          OUT/finetune/KEY/curves/version_0/metrics.csv, with the stage
    tensorboard  OUT/tensorboard/GROUP/NAME-KEY, for `tensorboard --logdir OUT/tensorboard`
    wandb        project slothkit, group: the sweep; offline ones in OUT/wandb

No curve is in a key or changes one.
"""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.logger import DummyLogger
from torch.optim import Optimizer

from compressors.errors import UsageError
from experiments.config.schema import Config, CurveRun
from experiments.runtime.files import write_atomic
from experiments.runtime.progress import Reporter
from experiments.stages.training.module import SlothModule
from experiments.store.folder import list_settings

CURVES_FOLDER = "curves"
PROJECT = "slothkit"  # in W&B
RUN_ID_FILE = "wandb_id"  # a killed run is gone on with under its own id
TABLE_KIND = "table"


class CurveMeter(Callback):
    """Learning rate, gradient norm and tokens a second of all processes, every `every` optimiser steps."""

    def __init__(self, every: int):
        self.every = every
        self.tokens = 0  # at the last look
        self.started = 0.0
        self.last_step = 0
        self.learning_rate = 0.0  # of the last optimiser step; the schedule is ahead of it at its end

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, SlothModule)  # what `fit_module` trains
        self.tokens = module.tokens
        self.started = perf_counter()
        self.last_step = trainer.global_step

    def on_before_optimizer_step(
        self,
        trainer: L.Trainer,  # noqa: ARG002
        module: L.LightningModule,  # noqa: ARG002
        optimizer: Optimizer,
    ) -> None:
        self.learning_rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: object) -> None:
        step = trainer.global_step
        if step == self.last_step or step % self.every:
            return  # a piece of a step, or one that no logger writes
        self.last_step = step
        assert isinstance(module, SlothModule)
        rate = (module.tokens - self.tokens) / (perf_counter() - self.started)
        module.log("tokens_per_second", rate, sync_dist=True, reduce_fx="sum")
        module.log("lr", self.learning_rate)
        if module.gradient_norm is not None:
            module.log("gradient_norm", module.gradient_norm)
        self.tokens = module.tokens
        self.started = perf_counter()


@contextmanager
def open_logger(config: Config, out: Path, report: Reporter) -> Iterator[Logger | bool]:
    """The logger of a stage that is computed in the folder `out`, with its settings; closed at the end, as
    failed after an error. Of several processes the first one logs."""
    name = config.trainer.logger
    run = config.curves or CurveRun(out.name, out.parent.name, out.name, "", str(out))
    if name == "none":
        yield False
    elif name == "csv":
        yield CSVLogger(out, name=CURVES_FOLDER)  # a resumed run adds a file beside the first one's
    elif not is_first_process(config.trainer.nodes):
        yield DummyLogger()
    elif name == "tensorboard":
        with open_tensorboard(run) as logger:
            logger.log_hyperparams(flatten_settings(list_settings(config)))
            yield logger
    else:
        with open_wandb_logger(config, run, out, report) as logger:
            yield logger


def is_first_process(nodes: int) -> bool:
    """Whether this is the first process of a training on so many nodes."""
    if nodes > 1 and os.environ["NODE_RANK"] != "0":
        return False
    return os.environ.get("LOCAL_RANK", "0") == "0"


@contextmanager
def open_tensorboard(run: CurveRun) -> Iterator[Any]:
    """TensorBoard's logger in a folder that its page shows as the run's name."""
    from lightning.pytorch.loggers import TensorBoardLogger

    group = Path(run.folder) / "tensorboard" / name_folder(run.group)
    version = name_folder(f"{run.name}-{run.key}")
    logger = TensorBoardLogger(group, name="", version=version, default_hp_metric=False)
    try:
        yield logger
    finally:
        logger.finalize("success")  # writes all that is left, and closes the file


@contextmanager
def open_wandb_logger(config: Config, run: CurveRun, out: Path, report: Reporter) -> Iterator[Any]:
    """W&B's logger with a run of its own, whatever other run this process has."""
    from lightning.pytorch.loggers import WandbLogger

    id_file = out / CURVES_FOLDER / RUN_ID_FILE
    resumed = id_file.is_file()
    if not resumed:
        id_file.parent.mkdir(exist_ok=True)
        write_atomic(id_file, secrets.token_hex(4))
    run_id = id_file.read_text(encoding="utf-8")
    with open_wandb_run(run, run_id, resumed) as wandb_run:
        report.write_note(f"curves: {wandb_run.url or wandb_run.dir}")
        wandb_run.config.update(list_settings(config), allow_val_change=True)
        yield WandbLogger(experiment=wandb_run)


@contextmanager
def open_wandb_run(run: CurveRun, run_id: str | None = None, resumed: bool = False) -> Iterator[Any]:
    """A run of W&B; finished at the end, as failed after an error. UsageError where W&B refuses it."""
    import wandb

    # its own lines would tear the progress bars apart
    settings = wandb.Settings(silent=True, console="off")
    try:
        wandb_run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.name,
            group=run.group,
            job_type=run.kind,
            id=run_id,
            resume="allow" if resumed else None,
            dir=run.folder,
            reinit="create_new",
            settings=settings,
        )
    except wandb.Error as error:  # no API key, no network
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"trainer.logger=wandb: {reason}; run `wandb login`, or set WANDB_MODE=offline"
        ) from error
    try:
        yield wandb_run
    except BaseException:
        with suppress(Exception):  # the first error is the one to be told of
            wandb_run.finish(exit_code=1)
        raise
    wandb_run.finish()


def publish_table(logger: str, group: str, root: Path, table: Path) -> None:
    """The final table of a sweep, table.md with table.csv beside it, as an artifact of a run of W&B, or as a
    text of TensorBoard. Other loggers: it lies there as it is."""
    run = CurveRun(TABLE_KIND, group, TABLE_KIND, "", str(root))
    if logger == "tensorboard":
        with open_tensorboard(run) as board:
            board.experiment.add_text(TABLE_KIND, table.read_text(encoding="utf-8"))
    elif logger == "wandb":
        import wandb

        artifact = wandb.Artifact(TABLE_KIND, type=TABLE_KIND)
        for path in (table, table.with_suffix(".csv")):
            artifact.add_file(str(path))
        with open_wandb_run(run) as wandb_run:
            wandb_run.log_artifact(artifact)


def name_folder(text: str) -> str:
    """A folder's name of letters that every file system takes."""
    return re.sub(r"[^\w.+=,-]+", "_", text).strip("_-")


def flatten_settings(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted path, as values that TensorBoard shows."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten_settings(value, f"{prefix}{name}.")
        elif isinstance(value, (bool, int, float, str)):
            flat[f"{prefix}{name}"] = value
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat
