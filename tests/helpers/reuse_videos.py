"""Prompts with videos, and with images beside them, for the families that take them."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image
from reuse_families import PLACEHOLDER
from reuse_models import PATCH, SIZE
from reuse_processors import GLM, video_placeholder
from transformers import PreTrainedModel, ProcessorMixin
from transformers.video_utils import VideoMetadata

from llm_adapters import reuse

# whose processors give frames as images
AS_IMAGES = ("internvl", "smolvlm")
ENCODED = [name for name, family in reuse.FAMILIES.items() if family.videos is not None]
# whose videos have tokens for rows of patches of their own size
GRID_VIDEOS = [name for name in ENCODED if reuse.FAMILIES[name].processor == "grid"]
# whose videos have as many frames within a batch; SmolVLM's answers are others beside a longer one
STACKED = [*(name for name in ENCODED if name not in GRID_VIDEOS), *AS_IMAGES]
FRAMES = 4
FPS = 2.0


class Row(NamedTuple):
    """A text with its images and videos."""

    text: str
    images: Sequence[Image.Image] = ()
    videos: Sequence[np.ndarray] = ()


def video(seed: int = 0, width: int = SIZE, height: int = SIZE, frames: int = FRAMES) -> np.ndarray:
    """Frames of noise (frames, height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 255, (frames, height, width, 3), dtype=np.uint8)


def prepare(family: str, processor: ProcessorMixin) -> ProcessorMixin:
    """A processor that does not enlarge small videos."""
    videos = processor.video_processor
    if family == "kimi_k25":
        videos.size = {"max_height": 12, "max_width": 12}
    elif family in GRID_VIDEOS:
        videos.size = {"shortest_edge": PATCH * PATCH, "longest_edge": 64 * SIZE * SIZE}
    return processor


def ask(
    family: str, question: str = "What is this?", videos: int = 1, images: int = 0, marked: bool = False
) -> str:
    """Images, then videos, then a question."""
    if marked:
        question = f"<question>{question}<query>"
    pictures = PLACEHOLDER.get(family, "<image>") * images
    return f"USER: {pictures}{video_placeholder(family) * videos}\n{question} ASSISTANT:"


def encode_rows(processor: ProcessorMixin, rows: Sequence[Row]) -> dict:
    """The inputs of a model, padded."""
    images = [list(row.images) for row in rows]
    videos = [one_video for row in rows for one_video in row.videos]
    settings: dict = {"do_sample_frames": False}
    metadata = []
    for one_video in videos:
        frames = len(one_video)
        metadata.append(VideoMetadata(total_num_frames=frames, fps=FPS, frames_indices=list(range(frames))))
    batch = processor(
        text=[row.text for row in rows],
        images=images if any(images) else None,
        videos=videos or None,
        video_metadata=metadata or None,
        padding=True,
        return_tensors="pt",
        **(settings if videos else {}),
    )
    batch.pop("labels", None)
    return dict(batch)


def two_videos(family: str, marked: bool = False) -> list[Row]:
    """Rows of other lengths, and videos of other sizes and lengths where these may be in one batch."""
    frames = FRAMES if family in STACKED else FRAMES + 2
    return [
        Row(ask(family, marked=marked), videos=[video(1)]),
        Row(
            ask(family, "And that, is it a cat or a dog?", marked=marked),
            videos=[video(2, 40, 24, frames)],
        ),
    ]


def is_video_placeholder(model: PreTrainedModel, batch: dict):
    """(B, T): where frames stand."""
    ids = batch["input_ids"]
    if model.config.model_type in (*GLM, *AS_IMAGES):
        return ids == model.config.image_token_id
    return ids == model.config.video_token_id
