"""Training stages over tiny backbones and data on disk, so that other processes can build them again."""

import json
from pathlib import Path

import torch
from factories import byte_tokenizer, make_llm, picture, vision_config
from lightning.pytorch.callbacks import Callback
from torch.distributed.tensor import DTensor
from transformers import SiglipVisionModel

from experiments.config.schema import Config
from experiments.runtime.progress import Reporter
from experiments.stages import train as training
from experiments.stages.training.fit import fit_module


def write_backbones(folder: Path) -> None:
    torch.manual_seed(0)
    SiglipVisionModel(vision_config()).save_pretrained(folder / "tower")
    make_llm("phi").save_pretrained(folder / "llm")
    byte_tokenizer().save_pretrained(folder / "llm")


def write_data(folder: Path, count: int, text_only: frozenset[int] = frozenset()) -> None:
    """Conversations of one to three turns; numbers `text_only` have no picture."""
    records = []
    for i in range(count):
        turns = [
            turn
            for k in range(1 + i % 3)
            for turn in (
                {"from": "human", "value": f"what is {'a ' * k}this ?"},
                {"from": "gpt", "value": f"a dog {'and a cat ' * (i % 5)}{k}"},
            )
        ]
        image = {} if i in text_only else {"image": f"{i}.png"}
        if image:
            picture(i, (24, 20)).save(folder / f"{i}.png")
        records.append({"id": str(i), **image, "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records))


def swap_tokens(path: Path, one: str, other: str) -> None:
    """Two special tokens of a tokenizer.json change their ids."""
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary[one], vocabulary[other] = vocabulary[other], vocabulary[one]
    for token in content["added_tokens"]:
        token["content"] = {one: other, other: one}.get(token["content"], token["content"])
    path.write_text(json.dumps(content))


def make_config(folder: Path, compressor: str = "sap+embq", **trainer) -> Config:
    config = Config(compressor=compressor)
    config.tower.source, config.llm.source = str(folder / "tower"), str(folder / "llm")
    config.tower.cache, config.tower.select_layer = False, -2
    config.data.dataset = None
    config.data.pretrain = config.data.train = [str(folder / "data.json")]
    config.parts = {"sap": {"dropout": 0.0}, "embq": {"dim": 16, "at": 2, "num_queries": 3}}
    for stage in (config.pretrain, config.finetune):
        stage.batch_size, stage.accumulate, stage.max_steps, stage.epochs = 8, 2, 4, 4
    for name, value in {"accelerator": "cpu", "logger": "none", "precision": "32", **trainer}.items():
        setattr(config.trainer, name, value)
    return config


def align(config: Config, folder: Path) -> dict[str, Path]:
    """Stage 1's result, untrained."""
    training.save_file(
        training.collect_aligned_state(training.build_model(config)[0]), folder / training.ALIGNED_FILE
    )
    return {"pretrain": folder}


def run(
    stage: str, config: Config, inputs: dict[str, Path], out: Path, report: Reporter | None = None
) -> dict[str, torch.Tensor]:
    """A whole stage; the weights that it leaves."""
    out.mkdir(exist_ok=True)
    getattr(training, stage)(config, inputs, out, report or Reporter())
    [path] = out.rglob("*.safetensors")
    return training.load_file(path)


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Record(Callback):
    """The gradients of the first step, whole, as every process has them."""

    def __init__(self, path):
        self.path = path

    def on_before_optimizer_step(self, trainer, module, optimizer):  # noqa: ARG002
        found = {
            name: whole(p.grad).clone()
            for name, p in module.model.named_parameters()
            if p.requires_grad and p.grad is not None
        }
        torch.save(
            (found, sorted(n for n, p in module.model.named_parameters() if p.requires_grad)),
            f"{self.path}.{module.global_rank}",
        )


def record(config, stage, inputs, out, world, report):
    """One process of a stage of one step."""
    model, processor = training.prepare_model(config, stage, inputs)
    training.unfreeze_stage_parts(config, stage, model)
    module = training.make_module(config, stage, model, processor, inputs)
    fit_module(config, module, out, report, world, [Record(out / "gradients")])


def gradients(folder: Path, stage: str, name: str, **trainer) -> dict[str, torch.Tensor]:
    """Of the first step alone, not clipped; `name` is a new folder for it."""
    config, out = make_config(folder, **trainer), folder / name
    config.pretrain.max_steps = config.finetune.max_steps = 1
    config.pretrain.clip = config.finetune.clip = 0.0
    out.mkdir()
    record(config, stage, align(config, folder), out, 0, Reporter())
    return torch.load(out / "gradients.0")[0]


class Losses(Reporter):
    """The losses that a run tells; it may be killed at a step."""

    def __init__(self, die_at: int | None = None):
        self.die_at, self.total, self.done, self.step, self.losses = die_at, 0, 0, 0, []

    def announce_steps(self, total: int, done: int = 0) -> None:
        self.total, self.done, self.step = total, done, done

    def advance_steps(self, n: int = 1, **fields: object) -> None:
        self.step += n
        self.losses += fields.values()
        if self.step == self.die_at:
            raise KeyboardInterrupt
