"""The harness's requests -> batches, chat messages and settings of `generate`. Needs no lmms-eval."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from compressors.errors import UsageError
from llm_adapters.conversation import IMAGE
from llm_adapters.orientation import convert_to_upright_rgb

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


def collect_pictures(visuals: Sequence | None, task: str) -> list[Image.Image]:
    """A question's images upright and in RGB; UsageError for other media."""
    visual_list = [visual for visual in visuals or () if visual is not None]
    for visual in visual_list:
        if not isinstance(visual, Image.Image):
            raise UsageError(
                f"task {task} shows a {type(visual).__name__}; slothkit's models read images; "
                "choose a task of images or text"
            )
    return [convert_to_upright_rgb(picture) for picture in visual_list]


def identify_pictures(pictures: Sequence[Image.Image]) -> tuple[str, ...]:
    """What tells a question's pictures from others: the digests of their pixels."""
    digests = []
    for picture in pictures:
        content = hashlib.sha256(f"{picture.mode}{picture.size}".encode())
        content.update(picture.tobytes())
        digests.append(content.hexdigest())
    return tuple(digests)


def make_message(context: str, images: Sequence[Image.Image]) -> dict:
    """A user's turn. Images stand where the text says <image>; where it does not say so for each of them,
    before the text."""
    pieces = [piece.strip() for piece in context.split(IMAGE)]
    if len(pieces) != len(images) + 1:
        pieces = [""] * len(images) + [" ".join(filter(None, pieces))]
    parts: list[dict[str, Any]] = []
    for piece, image in zip(pieces, [*images, None]):  # one piece more than images
        if piece:
            parts.append({"type": "text", "text": piece})
        if image is not None:
            parts.append({"type": "image", "image": image})
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
