"""Pretrains the tiny vision tower.

    python -m experiments.backbones.tiny.pretrain_tower to=experiments/assets/tiny/tower

A `SiglipVisionModel` learns to tell at every patch which object, character and colour is there, whose centre
it holds and where the object's centre lies. Linear heads read the raw output of the last layer and are thrown
away; their accuracy on unseen scenes is the linear-probe accuracy of the features.
"""

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SiglipVisionConfig, SiglipVisionModel

from compressors.command_line import Command, CommandLine
from compressors.setting_fields import setting
from connectors.versions import find_vision_parts
from experiments.backbones.tiny import training
from experiments.backbones.tiny.dense_labels import (
    GRID_SIDE,
    OBJECT,
    TARGET_SIZES,
    label_patches,
    sample_crowded_scene,
)
from experiments.picture_vqa.dataset import make_scene
from experiments.picture_vqa.drawing import draw_scene
from experiments.picture_vqa.scenes import PATCH_SIZE, SCENE_SIZE, Scene, sample_scene

SCENES_PER_BATCH = 32
PROBED_SCENES = 200
SCENES_PER_PROBE_BATCH = 50  # divides them
# Of the targets in the loss; of where the object's centre lies; of where the patch itself is.
TARGET_WEIGHTS = {"object": 1.0, "character": 2.0, "colour": 0.5, "order": 0.5, "role": 0.5}
OFFSET_WEIGHT = 0.3
PLACE_WEIGHT = 0.05
# Weight of the patches that show nothing of a kind, by far the most.
NOTHING_WEIGHTS = {"object": 0.2, "character": 0.05, "colour": 0.2, "order": 0.05, "role": 0.3}
PROCESSOR_CONFIG = {
    "image_processor_type": "SiglipImageProcessor",
    "do_resize": True,
    "size": {"height": SCENE_SIZE, "width": SCENE_SIZE},
    "resample": 3,  # bicubic
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_convert_rgb": True,
}


@dataclass(frozen=True)
class TowerPlan(training.PretrainingPlan):
    """How long the tower is trained by default."""

    steps: int = setting(3600, "batches of 32 scenes", low=1)


COMMAND = Command(
    usage="python -m experiments.backbones.tiny.pretrain_tower to=DIR [KEY=VALUE ...]",
    description="Pretrains the tiny vision tower on drawn scenes.",
    options=TowerPlan,
    elsewhere="write to another place with to=DIR",
)


def build_untrained_tower() -> SiglipVisionModel:
    """The untrained tower: 12 x 12 patches, 6 layers of width 128."""
    config = SiglipVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=SCENE_SIZE,
        patch_size=PATCH_SIZE,
        vision_use_head=False,
    )
    return SiglipVisionModel(config)


class DenseHeads(nn.Module):
    """One normalisation and one linear map from a patch's features to all targets, offsets and its place."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # each target's classes; the offset's x and y; the patch's column and row
        self.sizes = [*TARGET_SIZES.values(), 2, GRID_SIDE, GRID_SIDE]
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, sum(self.sizes))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        """(B, 144, C) -> (B, 144, size) for every one of `sizes`."""
        return self.linear(self.norm(features)).split(self.sizes, dim=-1)


def extract_patch_features(tower: SiglipVisionModel, pixels: Tensor) -> Tensor:
    """The last layer's raw output, `hidden_states[-1]`: (B, 144, C)."""
    parts = find_vision_parts(tower)
    # nn.Module's attributes are "Tensor or Module" to a type checker; these two are modules
    embeddings = cast(nn.Module, parts.embeddings)
    encoder = cast(nn.Module, parts.encoder)
    return encoder(inputs_embeds=embeddings(pixels)).last_hidden_state


def to_pixels(images: Tensor) -> Tensor:
    """(B, H, W, 3) bytes -> (B, 3, H, W) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def make_tower_batch(step: int, seed: int) -> dict[str, Tensor]:
    """Scenes of a step, three quarters of them crowded, drawn and labelled."""
    rng = random.Random(f"tower/{seed}/{step}")
    scenes = []
    for index in range(SCENES_PER_BATCH):
        sample = sample_scene if index % 4 == 0 else sample_crowded_scene
        scenes.append(sample(rng))
    return stack_scenes(scenes)


def stack_scenes(scenes: Sequence[Scene]) -> dict[str, Tensor]:
    """Images (B, H, W, 3) bytes, labels (B, 144, targets), offsets to the object's centre (B, 144, 2)."""
    images = []
    labels = []
    offsets = []
    for scene in scenes:
        images.append(np.asarray(draw_scene(scene)))
        labels.append(label_patches(scene).reshape(GRID_SIDE * GRID_SIDE, -1))
        offsets.append(_measure_offsets(scene))
    return {
        "images": torch.from_numpy(np.stack(images)),
        "labels": torch.from_numpy(np.stack(labels)).long(),
        "offsets": torch.from_numpy(np.stack(offsets)),
    }


def _measure_offsets(scene: Scene) -> np.ndarray:
    """From every patch's centre to the centre of the nearest object, in patches: (144, 2)."""
    steps = np.arange(GRID_SIDE) + 0.5
    patches = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 1, 2)  # x, y
    centres = np.array([(item.x / PATCH_SIZE, item.y / PATCH_SIZE) for item in scene.objects])
    offsets = centres - patches  # (144, objects, 2)
    nearest = (offsets**2).sum(-1).argmin(1)
    return offsets[np.arange(len(offsets)), nearest].astype(np.float32)


def compute_dense_loss(outputs: tuple[Tensor, ...], batch: dict[str, Tensor]) -> Tensor:
    """Weighted sum of the losses of all targets, of the offsets under objects, and of the patches' places.

    `outputs` are those of `DenseHeads`.
    """
    labels = batch["labels"]  # (B, 144, targets)
    *target_outputs, offset_output, column_output, row_output = outputs
    total = torch.zeros(())
    for index, (name, size) in enumerate(TARGET_SIZES.items()):
        class_weights = torch.ones(size)
        class_weights[0] = NOTHING_WEIGHTS[name]
        logits = target_outputs[index].flatten(0, 1).float()
        loss = F.cross_entropy(logits, labels[..., index].flatten(), class_weights)
        total = total + TARGET_WEIGHTS[name] * loss
    on_object = labels[..., OBJECT] > 0
    offset_loss = F.smooth_l1_loss(offset_output[on_object].float(), batch["offsets"][on_object])
    total = total + OFFSET_WEIGHT * offset_loss
    patches = torch.arange(GRID_SIDE * GRID_SIDE).repeat(len(labels))
    column_loss = F.cross_entropy(column_output.flatten(0, 1).float(), patches % GRID_SIDE)
    total = total + PLACE_WEIGHT * column_loss
    row_loss = F.cross_entropy(row_output.flatten(0, 1).float(), patches // GRID_SIDE)
    return total + PLACE_WEIGHT * row_loss


@torch.inference_mode()
def probe_tower(tower: SiglipVisionModel, heads: DenseHeads, split: str) -> dict[str, float]:
    """Accuracy per target on patches that show one, on scenes of a split of the benchmark."""
    hits = torch.zeros(len(TARGET_SIZES))
    counts = torch.zeros(len(TARGET_SIZES))
    for start in range(0, PROBED_SCENES, SCENES_PER_PROBE_BATCH):
        indices = range(start, start + SCENES_PER_PROBE_BATCH)
        batch = stack_scenes([make_scene(split, index)[0] for index in indices])
        outputs = heads(extract_patch_features(tower, to_pixels(batch["images"])))
        for target in range(len(TARGET_SIZES)):
            truth = batch["labels"][..., target]
            right = (outputs[target].argmax(-1) == truth) & (truth > 0)
            hits[target] += right.sum()
            counts[target] += (truth > 0).sum()
    accuracies = hits / counts
    return {name: round(float(accuracies[index]), 4) for index, name in enumerate(TARGET_SIZES)}


def train_tower(plan: training.PretrainingPlan) -> dict[str, dict[str, float]]:
    """Train for `plan.steps` batches; the probe accuracies by split and target."""
    torch.manual_seed(plan.seed)
    tower = build_untrained_tower()
    heads = DenseHeads(tower.config.hidden_size)
    modules: list[nn.Module] = [tower, heads]
    optimizer = training.build_optimizer(modules, plan.lr)
    start = training.load_state(plan, optimizer, modules)
    progress, advance = training.make_steps_bar(start, plan.steps)
    accuracies: dict[str, dict[str, float]] = {}
    with progress:
        batches = training.load_batches(partial(make_tower_batch, seed=plan.seed), start, plan.steps)
        for step, batch in enumerate(batches, start):
            training.seed_step(plan.seed, step)
            training.set_learning_rate(optimizer, plan.lr, step, plan.steps)
            pixels = _jitter_pixels(to_pixels(batch["images"]))
            # Half precision where the matrices are: a third faster on a CPU that has it.
            with torch.autocast("cpu", torch.bfloat16):
                outputs = heads(extract_patch_features(tower, pixels))
            loss = compute_dense_loss(outputs, batch)
            training.step_optimizer(loss, modules, optimizer)
            if (step + 1) % plan.every == 0 or step + 1 == plan.steps:
                accuracies = {split: probe_tower(tower, heads, split) for split in ("tune", "test_style")}
                _save_tower(tower, plan, {"steps": step + 1, "probe": accuracies})
                training.save_state(plan, step + 1, optimizer, modules)
            advance(f"loss {loss.item():.3f} {accuracies.get('tune', '')}")
    return accuracies


def _jitter_pixels(pixels: Tensor) -> Tensor:
    """Brightness, contrast and noise: the drawing style should matter less."""
    gain = 1 + 0.2 * (torch.rand(len(pixels), 1, 1, 1) - 0.5)
    shift = 0.2 * (torch.rand(len(pixels), 3, 1, 1) - 0.5)
    return pixels * gain + shift + 0.03 * torch.randn_like(pixels)


def _save_tower(tower: SiglipVisionModel, plan: training.PretrainingPlan, results: dict[str, Any]) -> None:
    record = {"of": plan.steps, "seed": plan.seed, "batch": SCENES_PER_BATCH, "lr": plan.lr, **results}
    texts = {
        "preprocessor_config.json": json.dumps(PROCESSOR_CONFIG, indent=1),
        "training.json": json.dumps(record, indent=1),
    }
    training.save_model(tower, plan.to, texts)


def run_training(line: CommandLine) -> int:
    """Train, and say how accurate the probes are; a step is a batch."""
    plan: TowerPlan = line.options
    torch.set_num_threads(1)  # more threads change the order of sums, and the weights with it
    accuracies = train_tower(plan)
    sys.stdout.write(f"{plan.to}: {json.dumps(accuracies)}\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(run_training, arguments)


if __name__ == "__main__":
    sys.exit(main())
