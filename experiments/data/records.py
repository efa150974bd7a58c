"""One record of a data file -> a sample. Whatever is in it and would not be read is an error: a row of a
table must not stand on pictures that nobody has seen."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path, PureWindowsPath
from typing import NamedTuple

from compressors.errors import LONGEST_ECHO, UsageError, quote, refuse_lone_surrogates
from experiments.data.messages import IMAGE_COLUMNS, ROLES, read_messages
from experiments.data.stored_images import EncodedImage
from llm_adapters.chat.media import find_media_key, find_media_marker
from llm_adapters.conversation import IMAGE, MARKERS, QUERY, QUESTION, Turn, refuse_reserved

SPEAKERS = ("human", "gpt")
UNNAMED_FAMILY = "all"  # the family of questions that name none
# keys that a record may lack, so that nobody misses a misspelt one, each with what one is likely to write
OPTIONAL_KEYS = {"families": "families", "family": "families", "accepted": "accepted"}
SEPARATORS = re.compile(r"[/\\]")  # of folders, wherever the data were made


ImageFile = Path | EncodedImage


class Sample(NamedTuple):
    """One conversation. Its questions have exactly as many `<image>` markers as it has images."""

    id: str
    images: tuple[ImageFile, ...]
    turns: tuple[Turn, ...]
    families: tuple[str, ...] | None = None  # one for each turn
    accepted: tuple[tuple[str, ...], ...] | None = None  # answers that count as right, for each turn
    place: str = ""  # where it was read: "data.json, sample 7"

    def name_family(self, turn: int = 0) -> str:
        """The family of a turn's question."""
        return self.families[turn] if self.families else UNNAMED_FAMILY

    def describe_place(self) -> str:
        """Which sample it is, for an error."""
        if not self.place:
            return f"sample {quote(self.id)}"
        return f"{self.place} (id {quote(self.id)})"


def parse_record(
    record: object,
    index: int,
    root: Path,
    outside_images: bool = False,
    end: str = "",
    system: str | None = None,
) -> Sample:
    """A record as a Sample; a UsageError tells what is wrong with it. Images are named from `root`, which
    they may leave with `outside_images`; `end` is the word that ends an answer in the prompt, `system` what
    the prompt begins with."""
    if not isinstance(record, dict):
        raise UsageError(
            f'expected an object with "conversations" or "messages", found a {type(record).__name__}'
        )
    speakers = SPEAKERS
    if record.get("messages") is not None:
        if record.get("conversations") is not None:
            raise UsageError('both "conversations" and "messages"; give one of them')
        speakers = ROLES
        texts, named_images = read_messages(record, system)
        # without an image in it, the name of a file under any key may be one
        readable = (*IMAGE_COLUMNS, "messages") if named_images else IMAGE_COLUMNS
        refuse_media_keys(record, readable)
    elif "conversations" in record:
        refuse_media_keys(record, ("image",))
        texts = read_conversation_texts(record["conversations"])
        named_images = record.get("image")
    else:
        keys = quote(", ".join(map(str, record))) or "no key"
        raise UsageError(f'no "conversations" or "messages"; it has {keys}')
    refuse_misspelt_keys(record)
    names = parse_image_names(named_images, outside_images)
    turns = make_turns(texts, speakers, end)
    if not names:
        refuse_media_markers(turns)
    families = parse_families(record.get("families"), len(turns))
    images = tuple(name if isinstance(name, EncodedImage) else root / name for name in names)
    marked_turns = place_image_markers(turns, len(names))
    name = read_id(record, index)
    return Sample(name, images, marked_turns, families, parse_accepted(record.get("accepted"), len(turns)))


def read_id(record: object, index: int) -> str:
    """What a record is called, its number where it says nothing."""
    name = None
    if isinstance(record, dict):
        name = record.get("id")
    if name is None:
        return str(index)
    refuse_lone_surrogates(str(name), '"id"')
    return str(name)


@lru_cache(maxsize=1000)  # the records of a file have the same keys
def find_meant_key(key: str) -> str | None:
    """The optional key that another one is likely to stand for."""
    similar_keys = get_close_matches(key.lower(), OPTIONAL_KEYS, n=1, cutoff=0.85)
    if not similar_keys or key in OPTIONAL_KEYS.values():
        return None
    return OPTIONAL_KEYS[similar_keys[0]]


def refuse_misspelt_keys(record: Mapping[str, object]) -> None:
    """UsageError for a list under a key that is nearly an optional one that the record lacks. Anything else
    there is somebody's own: a "family" may be one of animals."""
    for key, value in record.items():
        if not isinstance(value, list) or not isinstance(key, str) or len(key) > LONGEST_ECHO:
            continue
        meant_key = find_meant_key(key)
        if meant_key is not None and meant_key not in record:
            raise UsageError(
                f'"{quote(key)}" would not be read; did you mean "{meant_key}", a list with an entry for '
                "each question? Rename it, or drop it"
            )


def refuse_media_keys(record: Mapping[str, object], keys: Sequence[str] = ()) -> None:
    """UsageError for media under a key that is not one of `keys`."""
    key = find_media_key(record, keys)
    if key is not None:
        raise UsageError(
            f'"{quote(key)}" would not be read, only pictures under "image" beside "conversations", or in '
            '"messages" and under "images" beside them, are; rename it, or drop the sample'
        )


def refuse_media_markers(turns: Sequence[Turn]) -> None:
    """UsageError for a conversation without pictures that speaks of some: `<Image>`."""
    for turn in turns:
        marker = find_media_marker(turn.question, images=True)
        if marker is not None and marker != IMAGE:
            raise UsageError(f'{marker} in its questions, but no "image"; write {IMAGE}, and name its file')


def parse_image_names(content: object, outside_images: bool = False) -> list[str | EncodedImage]:
    """The names in "image": one, several or none. Images of a stored data set are as good as names."""
    if content is None:
        return []
    if not isinstance(content, list):
        content = [content]
    names: list[str | EncodedImage] = []
    for name in content:
        if isinstance(name, EncodedImage):
            names.append(name)
            continue
        if not isinstance(name, str) or not name:
            raise UsageError(f'"image" must be a file name or a list of them, found {quote(repr(name))}')
        refuse_lone_surrogates(name, '"image"')
        if not outside_images and leaves_folder(name):
            raise UsageError(
                f"image {quote(name)} is outside of the image folder; put it there, or a link to it, or set "
                "outside_images=true (in a sweep data.outside_images=true) if you trust the file"
            )
        names.append(name)
    return names


def leaves_folder(name: str) -> bool:
    """Whether a name is absolute or climbs out of its folder. Links in the folder may lead anywhere: whoever
    made them has access to it."""
    path = PureWindowsPath(name)  # knows the roots of both kinds of systems
    return bool(path.drive or path.root) or ".." in SEPARATORS.split(name)


def read_conversation_texts(messages: object) -> list[str]:
    """The texts of human, gpt, human, gpt, ..."""
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise UsageError('"conversations" must be human and gpt messages in turn, ending with gpt')
    texts: list[str] = []
    for i, message in enumerate(messages):
        speaker = SPEAKERS[i % 2]
        if not isinstance(message, dict) or not isinstance(message.get("value"), str):
            raise UsageError(f'message {i} must be {{"from": "{speaker}", "value": TEXT}}')
        if message.get("from") != speaker:
            stranger = quote(repr(message.get("from")))
            raise UsageError(f'message {i} is from {stranger}, expected "{speaker}"')
        refuse_media_keys(message)
        texts.append(message["value"])
    return texts


def make_turns(texts: Sequence[str], speakers: Sequence[str], end: str = "") -> tuple[Turn, ...]:
    """Question, answer, question, answer, ... as turns, each text checked."""
    stripped: list[str] = []
    for i, text in enumerate(texts):
        text = text.strip()
        check_text(text, f"message {i}, from {speakers[i % 2]},", i % 2 == 0, end)
        stripped.append(text)
    return tuple(map(Turn, stripped[::2], stripped[1::2]))


def check_text(text: str, where: str, is_question: bool, end: str) -> None:
    """UsageError for a text that is empty, has words of the prompt, or speaks of media that are not read."""
    # a question of an image alone has nothing to answer
    if not text.replace(IMAGE, "").strip():
        raise UsageError(f"{where} is empty; fill it in or drop the turn")
    refuse_lone_surrogates(text, where)
    if is_question:
        refuse_reserved(text, where, (QUESTION, QUERY, end))
    else:
        refuse_reserved(text, where, (*MARKERS, end))
    marker = find_media_marker(text)
    if marker is not None:
        raise UsageError(f"{where} contains {marker}, and only pictures are read; drop the sample")


def parse_families(families: object, turns: int) -> tuple[str, ...] | None:
    """The names in "families", one for each turn; None where there are none."""
    if families is None:
        return None
    if not isinstance(families, list) or len(families) != turns:
        raise UsageError(f'"families" must be a list with one name for each of the {turns} questions')
    for name in families:
        if not isinstance(name, str):
            raise UsageError(f'"families" has {quote(repr(name))}; expected names, each a text in quotes')
        refuse_lone_surrogates(name, '"families"')
    return tuple(families)


def parse_accepted(accepted: object, turns: int) -> tuple[tuple[str, ...], ...] | None:
    """The answers in "accepted", a list for each turn; None where there are none."""
    if accepted is None:
        return None
    if not isinstance(accepted, list) or len(accepted) != turns:
        raise UsageError(f'"accepted" must have a list of answers for each of the {turns} questions')
    for answers in accepted:
        if not isinstance(answers, list) or not answers or not all(isinstance(text, str) for text in answers):
            raise UsageError(f'"accepted" has {quote(repr(answers))}; expected a list of answers')
        if not all(text.strip() for text in answers):
            raise UsageError('"accepted" has an empty answer, which whoever says nothing would give; drop it')
        refuse_lone_surrogates("".join(answers), '"accepted"')
    return tuple(map(tuple, accepted))


def place_image_markers(turns: tuple[Turn, ...], images: int) -> tuple[Turn, ...]:
    """The turns with one marker an image; those of a sample without any go before its first question."""
    markers = sum(turn.question.count(IMAGE) for turn in turns)
    if images and not markers:
        first = turns[0]._replace(question=f"{IMAGE}\n" * images + turns[0].question)
        return (first, *turns[1:])
    if markers != images:
        raise UsageError(f'{markers} {IMAGE} in its questions, but {images} image(s) in "image"')
    return turns
