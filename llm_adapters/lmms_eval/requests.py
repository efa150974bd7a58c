"""The harness's requests -> batches, chat messages and settings of `generate`. Needs no lmms-eval."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from compressors.errors import UsageError
from llm_adapters.chat.video_files import VideoClip, read_video
from llm_adapters.conversation import IMAGE
from llm_adapters.images import load_picture
from llm_adapters.orientation import IMAGE_ERRORS, convert_to_upright_rgb

PLACEHOLDERS = re.compile(f"{IMAGE}|<video>")
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MAX_NEW_TOKENS = 128  # of an answer, where the task does not say
SAMPLING = ("temperature", "top_p", "top_k")


def batch_requests(requests: Sequence[tuple], size: int, in_order: bool = False) -> Iterator[list[int]]:
    """Numbers of requests (context, settings, ...) with the same settings, the longest first: what does not
    fit into memory shows at once, and little is padded. `in_order`: as they come, since benchmarks ask about
    a picture several times in a row."""
    groups = defaultdict(list)
    for number, request in enumerate(requests):
        groups[repr(sorted(request[1].items()))].append(number)
    for group in groups.values():
        if not in_order:
            group.sort(key=lambda number: -len(requests[number][0]))
        yield from (group[start : start + size] for start in range(0, len(group), size))


Medium = Image.Image | VideoClip


def collect_media(visuals: Sequence | None, task: str, most_frames: int) -> list[Medium]:
    """A question's images, upright and in RGB, and at most so many frames of each of its videos, which the
    harness names by their files; UsageError for other media, and for videos without frames.

    Frames are images where a question has images, too, or videos of other lengths, which not every family
    takes together."""
    media: list[Medium] = []
    for visual in visuals or ():
        if isinstance(visual, Image.Image):
            media.append(convert_to_upright_rgb(visual))
        elif isinstance(visual, (str, Path)):
            media += read_media_file(Path(visual), task, most_frames)
        elif visual is not None:
            raise UsageError(
                f"task {task} shows a {type(visual).__name__}; slothkit's models read images and videos; "
                "choose a task of them or of text"
            )
    lengths = {len(clip.frames) for clip in find_clips(media)}
    if len(find_clips(media)) < len(media) or len(lengths) > 1:
        return show_frames_as_images(media)
    return media


def read_media_file(path: Path, task: str, most_frames: int) -> list[Medium]:
    """The picture or the video in a file; of a single frame, an image."""
    if is_still_picture(path):
        return [load_picture(path)]
    if not most_frames:
        raise UsageError(f"task {task} shows {path}, and max_num_frames=0; give it some frames")
    clip = read_video(path, most_frames)
    return [*clip.pictures] if len(clip.frames) == 1 else [clip]


def is_still_picture(path: Path) -> bool:
    """Whether a file is no video: by its name, and, since a GIF may be either, by its frames."""
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        return False
    try:
        with Image.open(path) as picture:
            return not getattr(picture, "is_animated", False)
    except IMAGE_ERRORS:
        return True  # whoever reads it says what is wrong


def show_frames_as_images(media: Sequence[Medium]) -> list[Medium]:
    """The same, for a model that reads images alone."""
    images: list[Medium] = []
    for medium in media:
        images += medium.pictures if isinstance(medium, VideoClip) else [medium]
    return images


def sort_out_rows(rows: Sequence[tuple[str, Sequence[Medium]]]) -> list[list[int]]:
    """Numbers of rows (context, media) that may be in one batch: not every processor takes rows with images
    beside rows without, or videos of other lengths."""
    groups = defaultdict(list)
    for number, (_, media) in enumerate(rows):
        clips = find_clips(media)
        lengths = tuple(len(clip.frames) for clip in clips)
        groups[len(media) > len(clips), lengths].append(number)
    return list(groups.values())


def find_clips(media: Sequence[Medium]) -> list[VideoClip]:
    """The videos among a question's media."""
    return [medium for medium in media if isinstance(medium, VideoClip)]


def identify_pictures(pictures: Sequence[Medium]) -> tuple[str, ...]:
    """What tells a question's pictures from others: the digests of their pixels."""
    digests = []
    for picture in pictures:
        assert isinstance(picture, Image.Image)  # of a composed model, which reads images alone
        content = hashlib.sha256(f"{picture.mode}{picture.size}".encode())
        content.update(picture.tobytes())
        digests.append(content.hexdigest())
    return tuple(digests)


def make_message(context: str, media: Sequence[Medium]) -> dict:
    """A user's turn. Media stand where the text says <image> or <video>; where it does not say so for each of
    them, before the text."""
    pieces = [piece.strip() for piece in PLACEHOLDERS.split(context)]
    if len(pieces) != len(media) + 1:
        pieces = [""] * len(media) + [" ".join(filter(None, pieces))]
    parts: list[dict[str, Any]] = []
    for piece, medium in zip(pieces, [*media, None]):  # one piece more than media
        if piece:
            parts.append({"type": "text", "text": piece})
        if isinstance(medium, VideoClip):
            parts.append({"type": "video", "video": medium.frames})
        elif medium is not None:
            parts.append({"type": "image", "image": medium})
    return {"role": "user", "content": parts}


def read_generation_settings(settings: Mapping) -> dict:
    """A task's settings as `generate` takes them. Greedy unless it asks for a temperature or for sampling."""
    temperature = settings.get("temperature")
    sample = settings.get("do_sample", bool(temperature)) and temperature != 0
    arguments: dict[str, Any] = {
        "do_sample": bool(sample),
        "max_new_tokens": int(settings.get("max_new_tokens") or MAX_NEW_TOKENS),
        "num_beams": int(settings.get("num_beams") or 1),
    }
    if sample:
        arguments |= {name: settings[name] for name in SAMPLING if settings.get(name)}
    if settings.get("repetition_penalty"):
        arguments["repetition_penalty"] = float(settings["repetition_penalty"])
    return arguments


def cut_answer(answer: str, until: str | Sequence[str] | None) -> str:
    """An answer up to the first of its task's stop strings, without spaces around it."""
    for stop in [until] if isinstance(until, str) else until or ():
        answer = answer.partition(stop)[0] if stop else answer
    return answer.strip()
