"""The models of the paper's Table 1 as subjects: cells of this project, and other MLLMs as transformers'
classes at their published sizes (table1.yaml), all with random weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL.Image import Image
from torch import Tensor, nn
from transformers import Cache

from compressors.errors import UsageError
from compressors.registry import suggest
from connectors.versions import CACHE, find_pil_class, is_at_least
from experiments.config.presets import read_yaml
from experiments.config.schema import Config
from experiments.efficiency.subject import (
    LLM,
    PROJECTOR,
    TOWER,
    CellSubject,
    CostSubject,
    PictureRows,
    PixelInputs,
)
from experiments.models import build
from experiments.models.random_model import make_weightless_cells, split_text_tokens

TEXT_ID_LIMIT = 1000  # text tokens are ids below this: no model has a special token there


class PublishedSubject(CostSubject):
    """Base class of a family: a `model` inside with tower, projector and decoder, and an `lm_head`."""

    model: Any  # classes of transformers that have no base class in common with such a `model`

    def __init__(self, label: str, sizes: Mapping[str, Any], note: str = ""):
        """On the meta device. `sizes`: an entry of table1.yaml."""
        model_class = getattr(transformers, sizes["model_class"])
        with torch.device("meta"):
            model = model_class(model_class.config_class(**sizes["config"])).eval().requires_grad_(False)
        model.tie_weights()  # transformers 5.0 does not on the meta device
        model.generation_config.eos_token_id = None  # random weights say anything
        processor_class: Any = find_pil_class(sizes["image_processor"])
        self.processor = processor_class(**sizes["preprocessing"])
        tower, projector = self.find_vision_parts(model)
        parts = {TOWER: [tower], PROJECTOR: [projector], LLM: [model.model.language_model, model.lm_head]}
        super().__init__(label, model, parts, note=note)

    def find_vision_parts(self, model: Any) -> tuple[nn.Module, nn.Module]:
        """Its tower and its projector."""
        return model.model.vision_tower, model.model.multi_modal_projector

    def prepare_pixels(self, pictures: PictureRows) -> PixelInputs:
        # as one list: rows are told apart by the prompt alone
        flat: list[Image] = []
        for row in pictures:
            flat += row
        try:
            return dict(self.processor(images=flat, return_tensors="pt"))
        except ValueError as error:  # of a picture that is too narrow for it
            width, height = flat[0].size
            raise UsageError(
                f"pictures={width}x{height}: not for {self.label}: {error}; choose another size"
            ) from error

    def list_visual_runs(self, pixels: PixelInputs, rows: int) -> list[int]:
        """Visual tokens of a row that stand together, a text token after each run; all rows are alike."""
        return [self.count_visual_tokens(pixels) // rows]

    def prompt(self, pixels: PixelInputs, rows: int, text: int) -> dict[str, Tensor]:
        runs = self.list_visual_runs(pixels, rows)
        gaps = len(runs) - 1  # a text token each
        if text < gaps:
            raise UsageError(
                f"text={text}: {self.label} has a text token between two images, {gaps} in all; give as many"
            )
        before, _, _ = split_text_tokens(text)  # as much before the images as in a cell's prompt
        start = min(before, text - gaps)
        ids = torch.randint(TEXT_ID_LIMIT, (rows, sum(runs) + text))
        for run in runs:
            ids[:, start : start + run] = self.model.config.image_token_id
            start += run + 1
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def encode_images(self, pixels: PixelInputs, *_: int) -> None:
        self.model.model.get_image_features(pixel_values=pixels["pixel_values"])

    def language_model(
        self,
        embeds: Tensor,
        cache: Cache | None = None,
        keep: int = 1,
        visual: int = 0,  # noqa: ARG002  these drop none
    ) -> Cache:
        output = self.model.model.language_model(inputs_embeds=embeds, use_cache=True, **{CACHE: cache})
        self.model.lm_head(output.last_hidden_state[:, -keep:])
        return output[CACHE]


class Llava(PublishedSubject):
    """A visual token a patch, at a fixed size."""

    def count_visual_tokens(self, pixels: PixelInputs) -> int:
        vision = self.model.config.vision_config
        tokens_of_image = (vision.image_size // vision.patch_size) ** 2
        return len(pixels["pixel_values"]) * tokens_of_image


class InternVL(PublishedSubject):
    """Tiles; four patches a visual token."""

    def prepare_pixels(self, pictures: PictureRows) -> PixelInputs:
        # the processor also returns how many tiles there are, which the model does not take
        return {"pixel_values": super().prepare_pixels(pictures)["pixel_values"]}

    def count_visual_tokens(self, pixels: PixelInputs) -> int:
        vision = self.model.config.vision_config
        rows = vision.image_size[0] // vision.patch_size[0]
        columns = vision.image_size[1] // vision.patch_size[1]
        tokens_of_tile = int(rows * columns * self.model.config.downsample_ratio**2)
        return len(pixels["pixel_values"]) * tokens_of_tile


class Qwen2VL(PublishedSubject):
    """Any size; four patches a visual token, merged inside the tower."""

    @property
    def patches_per_token(self) -> int:
        return self.model.model.visual.spatial_merge_size**2

    def find_vision_parts(self, model: Any) -> tuple[nn.Module, nn.Module]:
        return model.model.visual, model.model.visual.merger

    def count_visual_tokens(self, pixels: PixelInputs) -> int:
        patches = pixels["image_grid_thw"].prod(1)  # (images,), of frames, rows and columns of each
        return int(patches.sum()) // self.patches_per_token

    def list_visual_runs(self, pixels: PixelInputs, rows: int) -> list[int]:
        grids = pixels["image_grid_thw"]
        first_row = grids[: len(grids) // rows]
        return [int(grid.prod()) // self.patches_per_token for grid in first_row]

    def prompt(self, pixels: PixelInputs, rows: int, text: int) -> dict[str, Tensor]:
        prompt = super().prompt(pixels, rows, text)
        # which tokens are of images, for the positions of its rotary embedding
        if is_at_least("5.3"):
            prompt["mm_token_type_ids"] = (prompt["input_ids"] == self.model.config.image_token_id).int()
        return prompt

    def encode_images(self, pixels: PixelInputs, *_: int) -> None:
        patches = pixels["pixel_values"]
        # positions are of the sizes, which are no tensors of the device
        positions = torch.empty(len(patches), 2)
        self.model.model.visual(patches, grid_thw=pixels["image_grid_thw"], position_ids=positions)


PUBLISHED_KINDS: dict[str, type[PublishedSubject]] = {
    "llava": Llava,
    "internvl": InternVL,
    "qwen2_vl": Qwen2VL,
}


def read_table1() -> dict[str, dict[str, Any]]:
    """What table1.yaml says of each model, by label."""
    content = read_yaml(Path(__file__).with_suffix(".yaml"))
    return {entry["label"]: entry for entry in content["models"]}


def find_table1_entry(label: str) -> dict[str, Any]:
    """One of them, or a UsageError."""
    entries = read_table1()
    if label not in entries:
        raise UsageError(f"only={label}: no model of Table 1{suggest(label, entries)}")
    return entries[label]


@contextmanager
def build_table1_subject(label: str) -> Iterator[CostSubject]:
    """A model without weights."""
    entry = find_table1_entry(label)
    if "cell" not in entry:
        yield PUBLISHED_KINDS[entry["kind"]](label, entry, entry["source"])
        return
    with make_weightless_cells(entry["cell"]) as (cell,):
        yield build_cell_subject(label, cell.config, entry["source"])


def build_cell_subject(label: str, config: Config, note: str = "") -> CellSubject:
    """A cell's model without weights."""
    with torch.device("meta"):
        model, size = build.build_skeleton(config)
    # an LLM's configuration may name another type, and not all operations take two; weights bring their own
    model = model.float().eval().requires_grad_(False)
    return CellSubject(label, config, model, size, note)
