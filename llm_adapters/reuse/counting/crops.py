"""Processors of crops of one size: a thumbnail and tiles, or runs of placeholders in a text."""

from typing import Any, ClassVar

from transformers.image_processing_utils import select_best_resolution
from transformers.processing_utils import MultiModalData

from llm_adapters.reuse.counting.attached import AttachedProcessor


class TiledProcessor(AttachedProcessor):
    """LLaVA-NeXT's: a thumbnail, and tiles that are one picture with a newline after each row of tokens. A
    frame of a video has as many tokens as the thumbnail."""

    kind = "tiles"
    sets_counts = False
    video_newlines: ClassVar[int] = 0  # behind a video
    image_processor: Any
    video_token: str
    vision_feature_select_strategy: str
    _get_unpadded_features: Any

    def _get_number_of_features(self, orig_height: int, orig_width: int, height: int, width: int) -> int:
        assert self.attached.grid is not None  # of a crop: all have one
        compressor = self.attached.compressor
        grid = compressor.out_grid(*self.attached.grid)
        thumbnail = compressor.num_tokens(*self.attached.grid)
        pinpoints = self.image_processor.image_grid_pinpoints
        best_height, best_width = select_best_resolution((orig_height, orig_width), pinpoints)
        tile_rows = best_height // height
        tile_columns = best_width // width
        if grid is None:
            tiles = thumbnail * tile_rows * tile_columns
        else:
            # tokens of the unpadded picture, and its newlines
            tiles = sum(self._get_unpadded_features(orig_height, orig_width, *grid, tile_rows, tile_columns))
        # the caller takes the CLS token's away
        cls_token = self.vision_feature_select_strategy == "default"
        return thumbnail + tiles + cls_token

    def replace_video_token(self, video_inputs: dict[str, Any], video_idx: int, **kwargs: Any) -> str:  # noqa: ARG002
        return self.video_token * self._count_video_tokens(
            len(video_inputs["pixel_values_videos"][video_idx])
        )

    def _count_video_tokens(self, frames: int) -> int:
        """Of a video of so many frames."""
        assert self.attached.grid is not None  # as of crops
        return frames * self.attached.compressor.num_tokens(*self.attached.grid) + self.video_newlines

    def _get_num_multimodal_tokens(
        self, image_sizes: Any = None, video_sizes: Any = None, **kwargs: Any
    ) -> MultiModalData:
        plain: Any = super()
        data = plain._get_num_multimodal_tokens(image_sizes=image_sizes, **kwargs)
        if video_sizes is not None:
            data.num_video_tokens = [self._count_video_tokens(frames) for frames, _, _ in video_sizes]
        return data


class NewlineTiledProcessor(TiledProcessor):
    """LLaVA-OneVision's: the same, but of several images each is one crop, whose count is an attribute."""

    kind = "newline_tiles"
    sets_counts = True
    video_newlines = 1


class RunsProcessor(AttachedProcessor):
    """Aya Vision's and its like: in a text that the class makes, each run of as many placeholders as a crop
    has is one of as many as the compressor makes."""

    kind = "runs"
    sets_counts = False
    image_token_id: int
    video_token: str

    def replace_image_token(self, image_inputs: dict[str, Any], image_idx: int, **kwargs: Any) -> str:
        plain: Any = super()
        text = plain.replace_image_token(image_inputs, image_idx, **kwargs)
        token = self.tokenizer.convert_ids_to_tokens(self.image_token_id)
        before, after = self._count_crop_tokens()
        # no token of these texts is another's beginning, so that runs are found from the left
        return text.replace(token * before, token * after)

    def replace_video_token(self, video_inputs: dict[str, Any], video_idx: int, **kwargs: Any) -> str:
        plain: Any = super()
        text = plain.replace_video_token(video_inputs, video_idx, **kwargs)
        before, after = self._count_crop_tokens()  # frames are crops
        return text.replace(self.video_token * before, self.video_token * after)

    def _count_crop_tokens(self) -> tuple[int, int]:
        """Of a crop, without the compressor and with it."""
        assert self.attached.grid is not None  # all crops have one
        height, width = self.attached.grid
        before = (height // self.attached.own_rate) * (width // self.attached.own_rate)
        return before, self.attached.compressor.num_tokens(height, width)

    def _get_num_multimodal_tokens(self, image_sizes: Any = None, **kwargs: Any) -> MultiModalData:
        plain: Any = super()
        data = plain._get_num_multimodal_tokens(image_sizes=image_sizes, **kwargs)
        if image_sizes is not None:
            before, after = self._count_crop_tokens()
            counts = []
            for count, crops in zip(data.num_image_tokens, data.num_image_patches):
                counts.append(count + crops * (after - before))
            data.num_image_tokens = counts
        return data
