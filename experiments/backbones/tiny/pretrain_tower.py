"""Pretrains the tiny vision tower.

    python -m experiments.backbones.tiny.pretrain_tower --out experiments/assets/tiny/tower

A `SiglipVisionModel` learns to tell at every patch which object, character and colour is there, whose centre
it holds and where the object's centre lies. Linear heads read the raw output of the last layer and are thrown
away; their accuracy on unseen scenes is the linear-probe accuracy of the features.
"""

import json
import random
import sys
from functools import partial

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers import SiglipVisionConfig, SiglipVisionModel

from connectors.versions import find_vision_parts
from experiments.backbones.tiny import training
from experiments.backbones.tiny.dense_labels import (
    GRID_SIDE,
    TARGET_SIZES,
    label_patches,
    sample_crowded_scene,
)
from experiments.picture_vqa.dataset import make_scene
from experiments.picture_vqa.drawing import draw_scene
from experiments.picture_vqa.scenes import PATCH_SIZE, SCENE_SIZE, Scene, sample_scene

SCENES_PER_BATCH = 32
TARGET_WEIGHTS = {"object": 1.0, "character": 2.0, "colour": 0.5, "order": 0.5, "role": 0.5}
# Weight of the patches that show nothing of a kind, by far the most.
NOTHING_WEIGHTS = {"object": 0.2, "character": 0.05, "colour": 0.2, "order": 0.05, "role": 0.3}
PROCESSOR_CONFIG = {
    "image_processor_type": "SiglipImageProcessor",
    "do_resize": True,
    "size": {"height": SCENE_SIZE, "width": SCENE_SIZE},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "do_convert_rgb": True,
}


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
        self.sizes = [*TARGET_SIZES.values(), 2, GRID_SIDE, GRID_SIDE]
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, sum(self.sizes))

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.linear(self.norm(features)).split(self.sizes, dim=-1)


def extract_patch_features(tower: SiglipVisionModel, pixels: torch.Tensor) -> torch.Tensor:
    """The last layer's raw output, `hidden_states[-1]`: (B, 144, C)."""
    parts = find_vision_parts(tower)
    return parts.encoder(inputs_embeds=parts.embeddings(pixels)).last_hidden_state


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """(B, H, W, 3) bytes -> (B, 3, H, W) in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def make_tower_batch(step: int, seed: int) -> dict[str, torch.Tensor]:
    """Scenes of a step, three quarters of them crowded, drawn and labelled."""
    rng = random.Random(f"tower/{seed}/{step}")
    scenes = [sample_crowded_scene(rng) if i % 4 else sample_scene(rng) for i in range(SCENES_PER_BATCH)]
    return stack_scenes(scenes)


def stack_scenes(scenes: list[Scene]) -> dict[str, torch.Tensor]:
    """Images (B, H, W, 3) bytes, labels (B, 144, targets), offsets to the object's centre (B, 144, 2)."""
    images = np.stack([np.asarray(draw_scene(scene)) for scene in scenes])
    labels = np.stack([label_patches(scene) for scene in scenes]).reshape(
        len(scenes), GRID_SIDE * GRID_SIDE, -1
    )
    offsets = np.stack([_measure_offsets(scene) for scene in scenes])
    return {
        "images": torch.from_numpy(images),
        "labels": torch.from_numpy(labels).long(),
        "offsets": torch.from_numpy(offsets),
    }


def _measure_offsets(scene: Scene) -> np.ndarray:
    """From every patch's centre to the centre of the nearest object, in patches: (144, 2)."""
    steps = np.arange(GRID_SIDE) + 0.5
    patches = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 1, 2)  # x, y
    centres = np.array([(item.x / PATCH_SIZE, item.y / PATCH_SIZE) for item in scene.objects])
    away = centres - patches  # (144, objects, 2)
    nearest = (away**2).sum(-1).argmin(1)
    return away[np.arange(len(away)), nearest].astype(np.float32)


def compute_dense_loss(outputs: tuple[torch.Tensor, ...], batch: dict[str, torch.Tensor]) -> torch.Tensor:
    labels, total = batch["labels"], 0.0
    for index, (name, size) in enumerate(TARGET_SIZES.items()):
        weight = torch.ones(size)
        weight[0] = NOTHING_WEIGHTS[name]
        target = labels[..., index].flatten()
        total = total + TARGET_WEIGHTS[name] * F.cross_entropy(
            outputs[index].flatten(0, 1).float(), target, weight
        )
    shown = labels[..., 0] > 0
    total = total + 0.3 * F.smooth_l1_loss(outputs[-3][shown].float(), batch["offsets"][shown])
    cells = torch.arange(GRID_SIDE * GRID_SIDE).repeat(len(labels))
    for output, place in ((outputs[-2], cells % GRID_SIDE), (outputs[-1], cells // GRID_SIDE)):
        total = total + 0.05 * F.cross_entropy(output.flatten(0, 1).float(), place)
    return total


@torch.inference_mode()
def probe(tower: SiglipVisionModel, heads: DenseHeads, split: str, scenes: int = 200) -> dict[str, float]:
    """Accuracy per target on patches that show one, on scenes of a split of the benchmark."""
    hits, counts = torch.zeros(len(TARGET_SIZES)), torch.zeros(len(TARGET_SIZES))
    for first in range(0, scenes, 50):
        batch = stack_scenes([make_scene(split, index)[0] for index in range(first, min(scenes, first + 50))])
        outputs = heads(extract_patch_features(tower, to_pixels(batch["images"])))
        for index in range(len(TARGET_SIZES)):
            target = batch["labels"][..., index]
            right = (outputs[index].argmax(-1) == target) & (target > 0)
            hits[index] += right.sum()
            counts[index] += (target > 0).sum()
    return {name: round(float(h / c), 4) for name, h, c in zip(TARGET_SIZES, hits, counts, strict=True)}


def pretrain(plan: training.Plan) -> dict:
    """Trains for `plan.steps` batches; returns the probe accuracies."""
    torch.manual_seed(plan.seed)
    tower, heads = build_untrained_tower(), DenseHeads(128)
    modules: list[nn.Module] = [tower, heads]
    optimizer = training.build_optimizer(modules, plan.lr)
    start = training.load_state(plan, optimizer, modules)
    progress, advance = training.make_steps_bar(start, plan.steps)
    found: dict = {}
    with progress:
        for step, batch in enumerate(
            training.load_batches(partial(make_tower_batch, seed=plan.seed), start, plan.steps), start
        ):
            training.seed_step(plan.seed, step)
            training.set_learning_rate(optimizer, plan.lr, step, plan.steps)
            # Half precision where the matrices are: a third faster on a CPU that has it.
            with torch.autocast("cpu", torch.bfloat16):
                outputs = heads(extract_patch_features(tower, _jitter_pixels(to_pixels(batch["images"]))))
            loss = compute_dense_loss(outputs, batch)
            training.step_optimizer(loss, modules, optimizer)
            if (step + 1) % plan.every == 0 or step + 1 == plan.steps:
                found = {split: probe(tower, heads, split) for split in ("tune", "test_style")}
                _save_tower(tower, plan, {"steps": step + 1, "probe": found})
                training.save_state(plan, step + 1, optimizer, modules)
            advance(f"loss {loss.item():.3f} {found.get('tune', '')}")
    return found


def _jitter_pixels(pixels: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast and noise: the drawing style should matter less."""
    gain = 1 + 0.2 * (torch.rand(len(pixels), 1, 1, 1) - 0.5)
    shift = 0.2 * (torch.rand(len(pixels), 3, 1, 1) - 0.5)
    return pixels * gain + shift + 0.03 * torch.randn_like(pixels)


def _save_tower(tower: SiglipVisionModel, plan: training.Plan, record: dict) -> None:
    record = {"of": plan.steps, "seed": plan.seed, "batch": SCENES_PER_BATCH, "lr": plan.lr, **record}
    texts = {"preprocessor_config.json": PROCESSOR_CONFIG, "training.json": record}
    training.save_model(tower, plan.out, {name: json.dumps(data, indent=1) for name, data in texts.items()})


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    plan = training.Plan.from_command(arguments, __doc__, steps=3600, lr=1.5e-3)
    torch.set_num_threads(1)
    sys.stdout.write(f"{plan.out}: {json.dumps(pretrain(plan))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
