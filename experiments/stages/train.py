"""Both training stages: build, align or tune, save."""

import shutil
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from compressors.errors import UsageError
from experiments.config.cells import make_alignment_config
from experiments.config.schema import Config
from experiments.data import roles
from experiments.data.ahead import count_workers
from experiments.data.loader import (
    ConversationDataset,
    SampleImages,
    StepLoader,
    open_feature_cache,
)
from experiments.data.order import SampleOrder, StepOrder
from experiments.data.shares import make_shares
from experiments.data.streaming.dataset import StreamedDataset, make_stream_order
from experiments.data.streaming.order import StreamOrder
from experiments.data.streaming.rows import make_rules
from experiments.models.build import build_model, silence_libraries
from experiments.runtime.files import write_atomic
from experiments.runtime.progress import Reporter
from experiments.stages.checks import check_training_needs
from experiments.stages.finite import check_finite_weights, explain_divergence, find_not_finite
from experiments.stages.training import lora, strategies
from experiments.stages.training.checkpoints import locate_checkpoint, remove_bad_checkpoint
from experiments.stages.training.fit import fit_module
from experiments.stages.training.initial import load_start
from experiments.stages.training.module import (
    SlothModule,
    TrainablePart,
    format_trainable_table,
    list_checkpoint_names,
    set_trainable,
)
from experiments.stages.training.node_link import Launch, NodeLink, require_link
from experiments.stages.training.query_warmup import make_query_warmup
from experiments.stages.training.ranks import launch_processes
from experiments.stages.training.teacher import TaughtLoader, load_teacher
from experiments.stages.training.validation import make_validation
from experiments.store.folder import CHECKPOINTS_FOLDER
from experiments.store.plan import TRAINING_ROLES
from experiments.store.store import NotFinite
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.processing import FlashSlothProcessor
from llm_adapters.saved import MODEL_FOLDER

ALIGNED_FILE = "aligned.safetensors"
TRAINED_FILE = "trained.pt"  # what several processes have trained, on its way to the one that saves it


def pretrain(config: Config, inputs: dict[str, Path], out: Path, report: Reporter) -> None:
    """Stage 1: compressor and projector learn to speak to the frozen LLM. The query module takes no part, so
    that all its variants share this stage. Writes the two parts' weights."""
    model, processor = prepare_model(config, "pretrain", inputs)
    train_stage(config, "pretrain", model, processor, inputs, out, report)
    save_file(collect_aligned_state(model), out / ALIGNED_FILE)
    remove_training_files(out)


def finetune(config: Config, inputs: dict[str, Path], out: Path, report: Reporter) -> None:
    """Stage 2: from stage 1's weights or a trained model's, all but (usually) the tower. Writes model and
    processor; adapters of the LLM are merged into it."""
    model, processor = prepare_model(config, "finetune", inputs)
    train_stage(config, "finetune", model, processor, inputs, out, report)
    model.save_pretrained(out / MODEL_FOLDER)
    processor.save_pretrained(out / MODEL_FOLDER)
    remove_training_files(out)


def remove_training_files(out: Path) -> None:
    """Remove what a stage goes on from, once what it has trained is saved: a disk may have been full."""
    (out / TRAINED_FILE).unlink(missing_ok=True)
    if (out / CHECKPOINTS_FOLDER).is_dir():
        shutil.rmtree(out / CHECKPOINTS_FOLDER)


def prepare_model(
    config: Config, stage: str, inputs: dict[str, Path]
) -> tuple[FlashSlothForConditionalGeneration, FlashSlothProcessor]:
    """The model that a stage starts from, and its processor."""
    silence_libraries()
    check_training_needs(config)
    if stage == "pretrain":
        model, processor = build_model(make_alignment_config(config))
    else:
        model, processor = build_model(config)
    load_start(config, stage, model)
    if stage == "finetune" and config.aligns:
        load_aligned_state(model, inputs["pretrain"] / ALIGNED_FILE)
    return model, processor


def collect_aligned_state(model: FlashSlothForConditionalGeneration) -> dict[str, torch.Tensor]:
    """What stage 1 has trained, by the names that the model's own state dict has for it."""
    state: dict[str, torch.Tensor] = {}
    for name in ("compressor", "projector"):
        for key, value in getattr(model, name).state_dict().items():
            # safetensors takes contiguous tensors only
            state[f"{name}.{key}"] = value.detach().cpu().contiguous()
    return state


def load_aligned_state(model: FlashSlothForConditionalGeneration, path: Path) -> None:
    """Put stage 1's weights into the model; UsageError unless they fit its compressor and projector."""
    state = load_file(path)
    differences = sorted(state.keys() ^ collect_aligned_state(model).keys())
    if differences:
        raise UsageError(
            f"{path}: does not fit this compressor and projector (first difference: {differences[0]}); "
            "delete it"
        )
    name = find_not_finite(state, state)
    if name is not None:  # an older version has kept it
        raise NotFinite(f"{path}: {name} is not finite; delete {path.parent} to train stage 1 again")
    model.load_state_dict(state, strict=False)  # the other parts are not in it


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
    parts, adapters = unfreeze_stage_parts(config, stage, model)
    table = format_trainable_table(parts)
    write_atomic(out / "trainable.md", table)
    for line in table.splitlines():
        report.write_note(line)
    # a compressor and projector without parameters: stage 1 has nothing to align
    if not any(part.trained for part in parts):
        return
    resumed = remove_bad_checkpoint(
        out,
        config.trainer.strategy,
        report,
        list_checkpoint_names(model),
        getattr(config, stage).accumulate,
    )
    world = strategies.count_processes(config.trainer)
    with explain_divergence(config, stage, locate_checkpoint(out) if resumed else None):
        if world:
            # this process keeps the model on the CPU: its weights come back through a file
            launch_on_nodes(config, stage, inputs, out, world, report)
            model.load_state_dict(torch.load(out / TRAINED_FILE, weights_only=True, mmap=True))
        else:
            module = make_module(config, stage, model, processor, inputs)
            validation = make_validation(config, stage, model, processor, inputs, report)
            fit_module(config, module, out, report, callbacks=validation)
        if adapters is not None:
            adapters.merge_and_unload()
        check_finite_weights(model, "after the last step")


def launch_on_nodes(
    config: Config, stage: str, inputs: dict[str, Path], out: Path, world: int, report: Reporter
) -> None:
    """The processes of a training, `world` on this node and on each of the others, if there are any."""
    arguments = (config, stage, inputs, out, world)
    if config.trainer.nodes == 1:
        launch_processes(train_rank, world, report, *arguments)
        return
    link = require_link(config.trainer.nodes)
    # the stem of a stage's partial directory is its key
    launch = link.announce_launch(f"{stage}/{out.stem}", world)
    with link.sharing(launch):
        link.await_ready(launch)
        launch_share(link, launch, report, *arguments)


def launch_share(link: NodeLink, launch: Launch, report: Reporter, *arguments: object) -> None:
    """This node's processes of a training that several nodes run."""
    node = link.place_processes(launch)
    watch = partial(link.check_fault, launch)
    launch_processes(train_rank, launch.processes, report, *arguments, node=node, watch=watch)


def train_rank(
    config: Config, stage: str, inputs: dict[str, Path], out: Path, world: int, report: Reporter
) -> None:
    """What each of several processes does, of which this node has `world`. The first one leaves what was
    trained in `out`."""
    model, processor = prepare_model(config, stage, inputs)
    unfreeze_stage_parts(config, stage, model)
    module = make_module(config, stage, model, processor, inputs)
    validation = make_validation(config, stage, model, processor, inputs, report)
    fit_module(config, module, out, report, world, validation)
    # every process takes part in gathering, or the others would wait for it
    state = strategies.gather_state_dict(model)
    if module.global_rank == 0:
        torch.save(state, out / TRAINED_FILE)


def unfreeze_stage_parts(
    config: Config, stage: str, model: FlashSlothForConditionalGeneration
) -> tuple[list[TrainablePart], Any]:
    """Make a stage's parts trainable. Returns them with the others, for the table, and peft's adapters of the
    LLM, None if there are none."""
    parts = set_trainable(model, stage, config.tower.train, images=not config.blind)
    if stage == "pretrain" or not config.lora.rank:
        return parts, None
    adapters, count = lora.add_adapters(model.language_model, config.lora, config.seed)
    rows = []
    for part in parts:
        # its own weights are frozen now, the adapters beside them are trained
        rows.append(part._replace(trained=False) if part.name == "language_model" else part)
    rows.append(TrainablePart("lora", count, True))
    return rows, adapters


def make_module(
    config: Config,
    stage: str,
    model: FlashSlothForConditionalGeneration,
    processor: FlashSlothProcessor,
    inputs: dict[str, Path],
) -> SlothModule:
    """The model with its optimisation and its data."""
    optimisation = getattr(config, stage)
    images = SampleImages(processor, open_feature_cache(inputs))
    dataset: ConversationDataset
    order: StepOrder
    stream = None
    if config.streams(TRAINING_ROLES[stage]):
        dataset, order = open_training_stream(config, stage, model, images)
        stream = order
    else:
        dataset, order = load_training_rows(config, stage, model, images, inputs)
    query_warmup = None
    teacher = None
    taught = None
    if stage == "finetune":
        query_warmup = make_query_warmup(config.finetune, order.steps, config.seed)
        teacher = load_teacher(config, model, images)
    if teacher is not None:
        taught = teacher.make_dataset(dataset)
    module = SlothModule(model, optimisation, order.steps, config.seed, query_warmup, teacher, stream)

    # made when a checkpoint has been read: a resumed run starts with the step after the last finished one
    def make_loader() -> StepLoader:
        options = {
            "workers": count_workers(config.data.workers, module.trainer.num_devices),
            "start": module.global_step,
            "rank": module.global_rank,
            "world": module.trainer.world_size,
        }
        if teacher is not None and taught is not None:
            return TaughtLoader(dataset, order, taught, teacher.shares_features, **options)
        return StepLoader(dataset, order, **options)

    setattr(module, "train_dataloader", make_loader)  # noqa: B010  Lightning asks for it by this name
    return module


def load_training_rows(
    config: Config,
    stage: str,
    model: FlashSlothForConditionalGeneration,
    images: SampleImages,
    inputs: dict[str, Path],
) -> tuple[ConversationDataset, SampleOrder]:
    """All rows of a stage, each checked, and which of them each step reads."""
    optimisation = getattr(config, stage)
    role = TRAINING_ROLES[stage]
    files = roles.load_role_files(config, inputs, role)
    samples = list(chain.from_iterable(files))
    dataset = ConversationDataset(samples, images, config.data.max_length)
    dataset.check_lengths()
    left_out = model.num_left_out(*images.processor.crop_size)
    dataset.check_positions(model.config.position_limit, left_out=left_out)
    lengths = None
    if optimisation.group_by_length:
        lengths = dataset.estimate_lengths()
    shares = make_shares(config, role, files)
    return dataset, SampleOrder(len(samples), optimisation, config.seed, lengths, shares)


def open_training_stream(
    config: Config, stage: str, model: FlashSlothForConditionalGeneration, images: SampleImages
) -> tuple[StreamedDataset, StreamOrder]:
    """The rows of a stage that are read while it trains."""
    dataset = StreamedDataset(
        images,
        config.data.max_length,
        make_rules(config),
        positions=model.config.position_limit,
        left_out=model.num_left_out(*images.processor.crop_size),
        bad_rows=config.data.bad_rows,
    )
    return dataset, make_stream_order(config, stage, TRAINING_ROLES[stage])
