"""Other MLLMs as subjects: transformers' classes at published sizes, with random weights."""

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import Cache

from connectors.versions import CACHE, find_pil_class, is_at_least
from experiments.efficiency.subject import LLM, PROJECTOR, TOWER, CostSubject, PictureRows, PixelInputs

TEXT_ID_LIMIT = 1000  # text tokens are ids below this: no model has a special token there


class PublishedSubject(CostSubject):
    """Base class of a family: a `model` inside with tower, projector and decoder, and an `lm_head`."""

    def __init__(self, label: str, sizes: Mapping[str, Any], note: str = ""):
        """On the meta device. `sizes`: an entry of table1.yaml."""
        model_class = getattr(transformers, sizes["model_class"])
        with torch.device("meta"):
            model = model_class(model_class.config_class(**sizes["config"])).eval().requires_grad_(False)
        model.tie_weights()  # transformers 5.0 does not on the meta device
        model.generation_config.eos_token_id = None  # random weights say anything
        self.processor = find_pil_class(sizes["image_processor"])(**sizes["preprocessing"])
        tower, projector = self.find_vision_parts(model)
        parts = {TOWER: [tower], PROJECTOR: [projector], LLM: [model.model.language_model, model.lm_head]}
        super().__init__(label, model, parts, note=note)

    def find_vision_parts(self, model) -> tuple:
        """Its tower and its projector."""
        return model.model.vision_tower, model.model.multi_modal_projector

    def prepare_pixels(self, pictures: PictureRows) -> PixelInputs:
        flat = [picture for row in pictures for picture in row]
        return dict(self.processor(images=flat, return_tensors="pt"))

    def list_visual_runs(self, pixels: PixelInputs, rows: int) -> list[int]:
        """Visual tokens of a row that stand together, a text token after each run; all rows are alike."""
        return [self.count_visual_tokens(pixels) // rows]

    def prompt(self, pixels: PixelInputs, rows: int, text: int) -> dict[str, Tensor]:
        runs, start = self.list_visual_runs(pixels, rows), 3 * text // 10
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
        found = self.model.model.language_model(inputs_embeds=embeds, use_cache=True, **{CACHE: cache})
        self.model.lm_head(found.last_hidden_state[:, -keep:])
        return found[CACHE]


class Llava(PublishedSubject):
    """A visual token a patch, at a fixed size."""

    def count_visual_tokens(self, pixels: PixelInputs) -> int:
        vision = self.model.config.vision_config
        return len(pixels["pixel_values"]) * (vision.image_size // vision.patch_size) ** 2


class InternVL(PublishedSubject):
    """Tiles; four patches a visual token."""

    def prepare_pixels(self, pictures: PictureRows) -> PixelInputs:
        return {"pixel_values": super().prepare_pixels(pictures)["pixel_values"]}

    def count_visual_tokens(self, pixels: PixelInputs) -> int:
        vision = self.model.config.vision_config
        patches = vision.image_size[0] // vision.patch_size[0] * vision.image_size[1] // vision.patch_size[1]
        return len(pixels["pixel_values"]) * int(patches * self.model.config.downsample_ratio**2)


class Qwen2VL(PublishedSubject):
    """Any size; four patches a visual token, merged inside the tower."""

    def find_vision_parts(self, model) -> tuple:
        return model.model.visual, model.model.visual.merger

    def count_visual_tokens(self, pixels: PixelInputs) -> int:
        return int(pixels["image_grid_thw"].prod(1).sum()) // self.model.model.visual.spatial_merge_size**2

    def list_visual_runs(self, pixels: PixelInputs, rows: int) -> list[int]:
        images = pixels["image_grid_thw"][: len(pixels["image_grid_thw"]) // rows]
        return [int(image.prod()) // self.model.model.visual.spatial_merge_size**2 for image in images]

    def prompt(self, pixels: PixelInputs, rows: int, text: int) -> dict[str, Tensor]:
        made = super().prompt(pixels, rows, text)
        if is_at_least("5.3"):
            made["mm_token_type_ids"] = (made["input_ids"] == self.model.config.image_token_id).int()
        return made

    def encode_images(self, pixels: PixelInputs, *_: int) -> None:
        patches = pixels["pixel_values"]  # positions are of the sizes, which are no tensors of the device
        self.model.model.visual(
            patches, grid_thw=pixels["image_grid_thw"], position_ids=torch.empty(len(patches), 2)
        )


PUBLISHED_KINDS: dict[str, type[PublishedSubject]] = {
    "llava": Llava,
    "internvl": InternVL,
    "qwen2_vl": Qwen2VL,
}
