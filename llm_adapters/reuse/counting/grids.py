"""Processors that give the patch grids of images and videos: Qwen-VL, GLM-V, Kimi."""

from typing import Any

import torch
from transformers.models.glm4v.image_processing_glm4v import smart_resize as smart_resize_frames
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize
from transformers.processing_utils import MultiModalData

from llm_adapters.reuse.counting.attached import AttachedProcessor


class GridProcessor(AttachedProcessor):
    """Qwen-VL's: an image has the patch grid that its size gives, and so has a video, whose frames may stand
    between other tokens."""

    kind = "grid"
    sets_counts = False
    image_processor: Any
    video_processor: Any
    image_token: str
    video_token: str

    def replace_image_token(
        self,
        image_inputs: dict[str, Any],
        image_idx: int,
        **kwargs: Any,  # noqa: ARG002
    ) -> str:
        frames, height, width = image_inputs["image_grid_thw"][image_idx]
        tokens_per_frame = self.attached.compressor.num_tokens(int(height), int(width))
        return self.image_token * (int(frames) * tokens_per_frame)

    def replace_video_token(self, video_inputs: dict[str, Any], video_idx: int, **kwargs: Any) -> str:
        plain: Any = super()
        text: str = plain.replace_video_token(video_inputs, video_idx, **kwargs)
        row = video_idx
        if "num_chunks_per_video" in video_inputs:  # Kimi's pieces of a video have a row each
            row = sum(video_inputs["num_chunks_per_video"][:video_idx])
        _, height, width = video_inputs["video_grid_thw"][row]
        before = int(height) * int(width) // self.video_processor.merge_size**2
        after = self.attached.compressor.num_tokens(int(height), int(width))
        # GLM-V's frames have the placeholders of images
        token = self.video_token if self.video_token in text else self.image_token
        return text.replace(token * before, token * after)

    def _get_num_multimodal_tokens(
        self, image_sizes: Any = None, video_sizes: Any = None, **kwargs: Any
    ) -> MultiModalData:
        plain: Any = super()  # Qwen-VL's own class: ProcessorMixin itself has no such method
        data = plain._get_num_multimodal_tokens(image_sizes=image_sizes, **kwargs)
        if video_sizes is not None:
            data.num_video_tokens = [self._count_video_tokens(*size) for size in video_sizes]
        if image_sizes is None:
            return data
        patch = self.image_processor.patch_size
        data.num_image_tokens = []
        for size in image_sizes:
            height, width = self._resize(size)
            count = self.attached.compressor.num_tokens(height // patch, width // patch)
            data.num_image_tokens.append(count)
        return data

    def _count_video_tokens(self, frames: int, height: int, width: int) -> int:
        """Of a video of so many frames, (height, width) in pixels."""
        # each video processor resizes in its own way: it is given one
        video = torch.zeros(frames, 3, height, width, dtype=torch.uint8)
        grids = self.video_processor([video], do_sample_frames=False, return_tensors="pt")["video_grid_thw"]
        compressor = self.attached.compressor
        if type(self.video_processor).__name__.startswith("Kimi"):  # the times of a piece become one
            grids[:, 0] = 1
        return sum(times * compressor.num_tokens(rows, columns) for times, rows, columns in grids.tolist())

    def _resize(self, size: tuple[int, int]) -> tuple[int, int]:
        """(height, width) in pixels -> the same as the image processor makes them."""
        images = self.image_processor
        if type(images).__name__.startswith("Kimi"):
            from transformers.models.kimi_k25.image_processing_kimi_k25 import (
                navit_resize,
            )  # not in older ones

            most = images.size["max_height"]
            _, padded = navit_resize(*size, images.patch_size, images.merge_size, images.max_patches, most)
            return padded
        factor = images.patch_size * images.merge_size
        least = images.size["shortest_edge"]
        most = images.size["longest_edge"]
        if type(self.image_processor).__name__.startswith("Glm"):  # counts frames, too
            frames = self.image_processor.temporal_patch_size
            return smart_resize_frames(frames, *size, frames, factor, least, most)
        return smart_resize(*size, factor, least, most)
