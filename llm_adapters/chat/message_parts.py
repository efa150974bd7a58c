"""Messages as chat templates have them, in parts of text and images: checked, and spelled alike."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compressors.errors import UsageError, quote
from llm_adapters.chat.media import find_media_key

# types of a message's parts, and where transformers looks for what they hold
PART_KEYS = {"text": ("text",), "image": ("image", "url", "path", "base64"), "video": ("video",)}


def spell_in_parts(conversation: Sequence[Any]) -> list[Any]:
    """A conversation, or several, whose messages are lists of parts. UsageError for media in a message that
    nothing would read."""
    if conversation and not isinstance(conversation[0], dict):
        return [spell_in_parts(one) for one in conversation]
    messages = []
    for message in conversation:
        refuse_unread_media(message, "message")
        content = message.get("content")
        if isinstance(content, str):
            message = {**message, "content": [{"type": "text", "text": content}]}
        else:
            parts: list[Any] = []
            for part in content or ():
                check_part(part)
                parts += spell_video(part)
            message = {**message, "content": parts}
        messages.append(message)
    return messages


def spell_video(part: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The frames of a part that is a video, each an image; another part as it is. UsageError for a video that
    is no frames."""
    if part["type"] != "video":
        return [part]
    frames = part.get("video")
    if isinstance(frames, np.ndarray) and frames.ndim == 4:  # (frames, h, w, 3)
        frames = list(frames)
    if not isinstance(frames, (list, tuple)) or not frames:
        raise UsageError(
            f"a message has a video that is no list of frames: {quote(part)}; read the file, choose frames, "
            'and give {"type": "video", "video": [picture, ...]}'
        )
    return [{"type": "image", "image": frame} for frame in frames]


def check_part(part: Any) -> None:
    """UsageError for a part of a message that is neither text nor image, or has other media beside it."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in PART_KEYS:
        raise UsageError(
            f"a message has a part of type {quote(repr(kind))}: {quote(part)}; parts are of type text "
            "or image, or video, a list of frames"
        )
    if kind == "text" and not isinstance(part.get("text"), str):
        raise UsageError(f"a message has a part of type text without a text: {quote(part)}; give it one")
    refuse_unread_media(part, f"part of type {kind}", PART_KEYS[kind])


def refuse_unread_media(holder: Mapping[str, Any], what: str, readable: Sequence[str] = ()) -> None:
    """UsageError for media that a message or a part has under a key that nobody reads."""
    key = find_media_key(holder, readable)
    if key is not None:
        raise UsageError(
            f'"{quote(key)}" of a {what} would not be read; give images as parts of its content, '
            '{"type": "image", "image": ...}'
        )
