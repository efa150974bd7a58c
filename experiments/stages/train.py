"""Both training stages: build, align or tune, save."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from compressors.errors import UsageError
from experiments.config.schema import Config
from experiments.data import roles
from experiments.data.loader import (
    ConversationDataset,
    SampleImages,
    SampleOrder,
    StepLoader,
    open_feature_cache,
)
from experiments.models.build import build_model, silence_libraries
from experiments.runtime.progress import Reporter
from experiments.stages import lora, strategies
from experiments.stages.checks import check_training_needs
from experiments.stages.fit import CHECKPOINTS_FOLDER, fit_module
from experiments.stages.module import SlothModule, set_trainable
from experiments.stages.ranks import launch_processes
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.processing import FlashSlothProcessor

ALIGNED_FILE = "aligned.safetensors"
MODEL_FOLDER = "model"
TRAINED_FILE = "trained.pt"  # what several processes have trained, on its way to the one that saves it


def pretrain(config: Config, inputs: dict[str, Path], out: Path, report: Reporter) -> None:
    """Stage 1: compressor and projector learn to speak to the frozen LLM. The query module takes no part, so
    that all its variants share this stage. Writes the two parts' weights."""
    model, processor = prepare_model(config, "pretrain", inputs)
    train_stage(config, "pretrain", model, processor, inputs, out, report)
    save_file(collect_aligned_state(model), out / ALIGNED_FILE)


def finetune(config: Config, inputs: dict[str, Path], out: Path, report: Reporter) -> None:
    """Stage 2: from stage 1's weights, all but (usually) the tower. Writes model and processor; adapters of
    the LLM are merged into it."""
    model, processor = prepare_model(config, "finetune", inputs)
    train_stage(config, "finetune", model, processor, inputs, out, report)
    model.save_pretrained(out / MODEL_FOLDER)
    processor.save_pretrained(out / MODEL_FOLDER)


def prepare_model(
    config: Config, stage: str, inputs: dict[str, Path]
) -> tuple[FlashSlothForConditionalGeneration, FlashSlothProcessor]:
    """The model that a stage starts from, and its processor."""
    silence_libraries()
    check_training_needs(config)
    if stage == "pretrain":
        image = dataclasses.replace(config.image, tiles=config.tiles("pretrain"))
        return build_model(dataclasses.replace(config, compressor=config.compressor_name, image=image))
    model, processor = build_model(config)
    if not config.blind:
        load_aligned_state(model, inputs["pretrain"] / ALIGNED_FILE)
    return model, processor


def collect_aligned_state(model: FlashSlothForConditionalGeneration) -> dict[str, torch.Tensor]:
    """What stage 1 has trained."""
    state = {
        f"{name}.{key}": value
        for name in ("compressor", "projector")
        for key, value in getattr(model, name).state_dict().items()
    }
    return {key: value.detach().cpu().contiguous() for key, value in state.items()}


def load_aligned_state(model: FlashSlothForConditionalGeneration, path: Path) -> None:
    """Stage 1's weights, every one of them."""
    state = load_file(path)
    if state.keys() != collect_aligned_state(model).keys():
        wrong = sorted(state.keys() ^ collect_aligned_state(model).keys())
        raise UsageError(
            f"{path}: does not fit this compressor and projector (first difference: {wrong[0]}); delete it"
        )
    model.load_state_dict(state, strict=False)


def train_stage(
    config: Config,
    stage: str,
    model: FlashSlothForConditionalGeneration,
    processor: FlashSlothProcessor,
    inputs: dict[str, Path],
    out: Path,
    report: Reporter,
) -> None:
    """Run one stage, from its last checkpoint if a run before was killed, on as many devices as there are."""
    rows, adapters = unfreeze_stage_parts(config, stage, model)
    (out / "trainable.md").write_text(format_trainable_table(rows))
    for line in format_trainable_table(rows).splitlines():
        report.write_note(line)
    if not any(trained for _, _, trained in rows):
        return
    world = strategies.count_processes(config.trainer)
    if world:
        launch_processes(train_rank, world, report, config, stage, inputs, out, world)
        model.load_state_dict(torch.load(out / TRAINED_FILE, mmap=True))
    else:
        fit_module(config, make_module(config, stage, model, processor, inputs), out, report)
    if adapters is not None:
        adapters.merge_and_unload()
    for path in (out / TRAINED_FILE, out / CHECKPOINTS_FOLDER):
        remove_path(path)


def train_rank(
    config: Config, stage: str, inputs: dict[str, Path], out: Path, world: int, report: Reporter
) -> None:
    """What each of several processes does. The first one leaves what was trained in `out`."""
    model, processor = prepare_model(config, stage, inputs)
    unfreeze_stage_parts(config, stage, model)
    module = make_module(config, stage, model, processor, inputs)
    fit_module(config, module, out, report, world)
    state = strategies.gather_state_dict(model)
    if module.global_rank == 0:
        torch.save(state, out / TRAINED_FILE)


def unfreeze_stage_parts(
    config: Config, stage: str, model: FlashSlothForConditionalGeneration
) -> tuple[list[tuple[str, int, bool]], Any]:
    """Make a stage's parts trainable; returns `set_trainable`'s rows and, if there are any, the adapters."""
    rows = set_trainable(model, stage, config.tower.train, images=not config.blind)
    if stage == "pretrain" or not config.lora.rank:
        return rows, None
    adapters, count = lora.add_adapters(model.language_model, config.lora, config.seed)
    rows = [(name, n, trained and name != "language_model") for name, n, trained in rows]
    return [*rows, ("lora", count, True)], adapters


def make_module(
    config: Config,
    stage: str,
    model: FlashSlothForConditionalGeneration,
    processor: FlashSlothProcessor,
    inputs: dict[str, Path],
) -> SlothModule:
    """The model with its optimisation and its data."""
    optimisation = getattr(config, stage)
    role = "pretrain" if stage == "pretrain" else "train"
    read = roles.load_role_samples(config, inputs, role)
    dataset = ConversationDataset(
        read, SampleImages(processor, open_feature_cache(inputs)), config.data.max_length
    )
    dataset.check_lengths()
    lengths = dataset.estimate_lengths() if optimisation.group_by_length else None
    order = SampleOrder(len(read), optimisation, config.seed, lengths)
    module = SlothModule(model, optimisation, order.steps, config.seed)

    # made when a checkpoint has been read: a resumed run starts with the step after the last finished one
    def make_loader() -> StepLoader:
        world_size = module.trainer.world_size
        return StepLoader(
            dataset, order, config.data.workers, module.global_step, module.global_rank, world_size
        )

    setattr(module, "train_dataloader", make_loader)  # noqa: B010  Lightning asks for it by this name
    return module


def remove_path(path: Path) -> None:
    """A file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def format_trainable_table(rows: list[tuple[str, int, bool]]) -> str:
    """What trains, as a Markdown table."""
    lines = [f"| {'part':14} | {'parameters':>13} | trained |", f"| {'-' * 14} | {'-' * 12}: | ------- |"]
    lines += [f"| {name:14} | {n:13,} | {'yes' if trained else 'no':7} |" for name, n, trained in rows]
    return "\n".join(lines) + "\n"
