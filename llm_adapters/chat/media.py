"""Media that a record, a message or a text speaks of and that would not be read. No torch."""

import re
from collections.abc import Mapping, Sequence

MEDIA_WORDS = {"image", "img", "picture", "pic", "photo", "pixel", "frame", "video", "movie", "clip"}
MEDIA_WORDS |= {"audio", "sound", "speech", "voice", "media", "base64", "jpeg", "jpg", "png", "wav"}
# In a key they say that it describes media and has none: image_id, num_images, video_width.
DESCRIBING_WORDS = {"id", "index", "title", "caption", "description", "category", "tag", "dataset"}
DESCRIBING_WORDS |= {"split", "source", "license", "hash", "format", "mode", "type", "has", "n", "num"}
DESCRIBING_WORDS |= {"number", "count", "width", "height", "size", "shape", "resolution", "ratio", "length"}
MEDIA_FILES = re.compile(
    r"\.(?:png|jpe?g|webp|gif|bmp|tiff?|heic|avif|mp4|avi|mov|mkv|webm|wav|mp3|flac|ogg)$", re.I
)
KEY_WORDS = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")  # image_path, ImagePath and IMAGE
MARKER = r"<\|?(?:{words})(?:[ _-]?(?:\d+|pad|placeholder|here))?\|?>"  # <video>, <image_1>, <|image_pad|>
UNREAD_MARKERS = re.compile(MARKER.replace("{words}", "video|audio|speech|sound"), re.I)
IMAGE_MARKERS = re.compile(MARKER.replace("{words}", "image|img"), re.I)


def find_media_key(record: Mapping[str, object], readable: Sequence[str] = ()) -> str | None:
    """A key that holds media and is not one of `readable`; None where there is none, or nothing in it. Where
    nothing is under `readable`, the name of a media file is one under any key."""
    may_be_elsewhere = bool(readable) and not any(may_be_media(record.get(key)) for key in readable)
    for key, value in record.items():
        if key in readable or not may_be_media(value):
            continue
        words = split_key(str(key))
        if not words.isdisjoint(DESCRIBING_WORDS):
            continue
        if not words.isdisjoint(MEDIA_WORDS) or (may_be_elsewhere and names_media_file(value)):
            return key
    return None


def may_be_media(value: object) -> bool:
    """Whether there is anything: numbers say how much there is elsewhere."""
    if isinstance(value, (str, list, tuple, dict)):
        return bool(value)
    return value is not None and not isinstance(value, (int, float))


def names_media_file(value: object) -> bool:
    """Whether a value, or the first of a list, is the name of a picture, a video or a sound."""
    if isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, str) and MEDIA_FILES.search(value) is not None


def split_key(key: str) -> set[str]:
    """The words of a key, as they are and in the singular: image_paths, ImagePath, IMAGE2."""
    words = set()
    for word in KEY_WORDS.findall(key):
        words.add(word.lower())
        words.add(word.lower().rstrip("s0123456789"))
    return words


def find_media_marker(text: str, images: bool = False) -> str | None:
    """The first word of a text that stands for a video or a sound, with `images` for an image."""
    if "<" not in text:  # as in nearly all texts
        return None
    match = (IMAGE_MARKERS if images else UNREAD_MARKERS).search(text)
    if match is None:
        return None
    return match[0]
