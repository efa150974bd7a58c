"""Conversations as transformers, TRL and OpenAI write them -> texts with `<image>` markers and their images.

    {"messages": [{"role": "user", "content": [{"type": "image", "image": "coco/7.jpg"},
                                               {"type": "text", "text": "What is this?"}]},
                  {"role": "assistant", "content": "a fox"}, ...],
     "images": ["a.png", ...]}           optional: of parts that name none, and of `<image>` in texts

A content is a text or a list of parts; texts of parts are joined by a space, as the model's own chat template
does. A part names its image under "image", "path", "url" or "image_url" (OpenAI's, {"url": NAME}): a file,
since nothing is downloaded and no picture is read out of a text.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from compressors.errors import UsageError, quote, refuse_lone_surrogates
from llm_adapters.chat.media import find_media_key
from llm_adapters.conversation import IMAGE

ROLES = ("user", "assistant")
SYSTEM_ROLE = "system"
TEXT_TYPES = ("text", "input_text", "output_text")
IMAGE_TYPES = ("image", "image_url", "input_image")
IMAGE_KEYS = ("image", "path", "url", "image_url")
IMAGE_COLUMNS = ("image", "images")
FILE_SCHEME = "file://"
ADDRESSES = ("http://", "https://", "data:")


class MessageTexts(NamedTuple):
    """The texts of a conversation, user and assistant in turn, and the images that its markers stand for."""

    texts: list[str]
    images: Any  # a name, a list of names, or None


def read_messages(record: Mapping[str, Any], system: str | None = None) -> MessageTexts:
    """The texts and images of a record with "messages". UsageError for what would not be read: a system
    message other than `system` is such; None: any will do."""
    messages = record["messages"]
    if not isinstance(messages, list):
        raise UsageError(f'"messages" must be a list, found a {type(messages).__name__}')
    messages = drop_system(messages, system)
    if not messages or len(messages) % 2:
        raise UsageError('"messages" must be user and assistant messages in turn, ending with assistant')
    texts: list[str] = []
    part_images: list[str | None] = []
    for number, message in enumerate(messages):
        role = ROLES[number % 2]
        check_message(message, number, role)
        text, images = read_content(message["content"], f"message {number}, from {role},")
        texts.append(text)
        part_images += images
    return MessageTexts(texts, choose_images(record, part_images))


def drop_system(messages: Sequence[Any], system: str | None) -> Sequence[Any]:
    """The messages without the system's; UsageError if it says other than the prompt does."""
    if not messages or not isinstance(messages[0], dict) or messages[0].get("role") != SYSTEM_ROLE:
        return messages
    text, images = read_content(messages[0].get("content"), "the system message")
    if images:
        raise UsageError("the system message has an image; put it into a question")
    if system is not None and text.strip() != system.strip():
        raise UsageError(
            f"its system message {quote(repr(text))} would not be read: what stands before every row is "
            "prompt.system; set that to it, or drop the message"
        )
    return messages[1:]


def check_message(message: Any, number: int, role: str) -> None:
    """UsageError for a message that has another form or role, or media beside its content."""
    if not isinstance(message, dict) or message.get("content") is None:
        raise UsageError(f'message {number} must be {{"role": "{role}", "content": TEXT or a list of parts}}')
    if message.get("role") != role:
        stranger = quote(repr(message.get("role")))
        raise UsageError(f'message {number} is from {stranger}, expected "{role}"')
    if message.get("tool_calls"):
        raise UsageError(f'message {number} has "tool_calls", which would not be read; drop the sample')
    key = find_media_key(message, ("content",))
    if key is not None:
        raise UsageError(f'"{quote(key)}" of message {number} would not be read; make it a part of "content"')


def read_content(content: Any, where: str) -> tuple[str, list[str | None]]:
    """A content's text, with a marker for each image part, and the names of their images; None for a part
    that names none."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        raise UsageError(f"{where} has a content that is a {type(content).__name__}; give a text or parts")
    pieces: list[str] = []
    images: list[str | None] = []
    for part in content:
        kind = find_part_type(part, where)
        if kind in TEXT_TYPES:
            pieces.append(read_part_text(part, where))
        else:
            pieces.append(IMAGE)
            images.append(read_part_image(part, where))
    return " ".join(piece.strip() for piece in pieces), images


def find_part_type(part: Any, where: str) -> str:
    """What a part is; UsageError for another thing than a text or an image."""
    if isinstance(part, str):
        raise UsageError(f'{where} has a part that is a text; write {{"type": "text", "text": ...}}')
    if not isinstance(part, dict) or part.get("type") not in (*TEXT_TYPES, *IMAGE_TYPES):
        kind = part.get("type") if isinstance(part, dict) else part
        raise UsageError(f"{where} has a part of type {quote(repr(kind))}; texts and images are read")
    return part["type"]


def read_part_text(part: Mapping[str, Any], where: str) -> str:
    """The text of a part; UsageError for one without, and for an image that would not be read."""
    text = part.get("text")
    if not isinstance(text, str):
        raise UsageError(f'{where} has a text part without "text"')
    key = find_media_key(part)
    if key is not None:
        raise UsageError(f'{where} has a text part with "{quote(key)}"; make it a part of type image')
    return text


def read_part_image(part: Mapping[str, Any], where: str) -> str | None:
    """The name in an image part; None where it has none, as where "images" of the record has it."""
    names: list[Any] = []
    for key in IMAGE_KEYS:
        if part.get(key) is not None:
            names.append(part[key])
    other_key = find_media_key(part, IMAGE_KEYS)
    if other_key is not None or len(names) > 1:
        raise UsageError(f'{where} has an image part that names more than a file; give "image" alone')
    if not names:
        return None
    [name] = names
    if isinstance(name, dict) and isinstance(name.get("url"), str):
        name = name["url"]
    if not isinstance(name, str) or not name:
        raise UsageError(f"{where} has an image that is no file name, {quote(repr(name))}")
    refuse_lone_surrogates(name, where)
    if name.startswith(ADDRESSES):
        raise UsageError(
            f"{where} has the image {quote(name)}; only files are read: save it in the image folder, and "
            "name it"
        )
    return name.removeprefix(FILE_SCHEME)


def choose_images(record: Mapping[str, Any], part_images: Sequence[str | None]) -> Any:
    """Where the images of a record are named: in its parts, or in its "image" or "images"."""
    columns = [name for name in IMAGE_COLUMNS if record.get(name)]
    part_names = [name for name in part_images if name is not None]
    if len(columns) + bool(part_names) > 1:
        places = [f'"{name}"' for name in columns]
        if part_names:
            places.append('parts of "messages"')
        raise UsageError(f"its images are named in {' and in '.join(places)}; name them in one place")
    if columns:
        return record[columns[0]]
    if len(part_names) < len(part_images):
        raise UsageError('an image part names no file, and there is no "images" beside "messages"; add it')
    return part_names
