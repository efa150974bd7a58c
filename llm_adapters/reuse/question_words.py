"""Where a question stands in a text: between the words that a processor's chat template has around one."""

import re
from os.path import commonprefix
from typing import Any, NamedTuple

from jinja2.exceptions import TemplateError
from transformers import ProcessorMixin

FIRST, ANSWER, SECOND = "Firstquestion", "Firstanswer", "Secondquestion"
IMAGE_SIGN = "\0"  # which is in no text that a tokenizer takes
# how processors call what they write around an image's parts, beside `tile_token`, which has a number
IMAGE_SIGN_NAMES = ("image_token", "img_token", "patch_token", "break_token", "global_token", "image_tag")


class TurnWords(NamedTuple):
    """What a chat template has before a question, and behind it; nothing where there is no template."""

    opening: str = ""
    closing: str = ""


def read_turn_words(processor: ProcessorMixin) -> TurnWords:
    """Those of a processor's chat template, which takes parts or plain text; none where it takes neither."""
    if not getattr(processor, "chat_template", None):
        return TurnWords()
    for takes_parts in (True, False):
        pieces = re.split("|".join((FIRST, ANSWER, SECOND)), render_turns(processor, takes_parts))
        if len(pieces) == 4:
            before, closing, between, _ = pieces
            backwards = commonprefix([before.rstrip()[::-1], between.rstrip()[::-1]])
            return TurnWords(backwards[::-1].strip(), closing.strip())
    return TurnWords()


def render_turns(processor: ProcessorMixin, takes_parts: bool) -> str:
    """Two questions and an answer by a processor's chat template; empty where it fails."""
    messages: list[Any] = []
    for role, text in (("user", FIRST), ("assistant", ANSWER), ("user", SECOND)):
        content: Any = [{"type": "text", "text": text}] if takes_parts else text
        messages.append({"role": role, "content": content})
    try:
        return str(processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except (TemplateError, TypeError, ValueError):
        return ""


class Question(NamedTuple):
    """The text of a question, and whether the words of the chat template were around it."""

    text: str
    is_framed: bool


def cut_question(text: str, place: int, words: TurnWords) -> Question:
    """The question of the turn in which the image at `place` of a text stands: what is between the words of a
    chat template, or from where the text begins, or up to its end, where these are not there."""
    begin = 0
    stop = len(text)
    is_framed = False
    if words.opening and words.closing:
        opening = text.rfind(words.opening, 0, place)
        closing = text.find(words.closing, place)
        is_framed = opening >= 0 and closing >= 0
        if opening >= 0:
            begin = opening + len(words.opening)
        if closing >= 0:
            stop = closing
    return Question(text[begin:stop], is_framed)


def make_sign_pattern(processor: ProcessorMixin) -> re.Pattern[str]:
    """What is no word of a question: tokens that a processor's tokenizer was given as special ones, named
    (`all_special_tokens`) or not, such as roles, and what the processor writes around parts of an image."""
    tokenizer: Any = getattr(processor, "tokenizer")  # noqa: B009  their base class has none
    signs = {IMAGE_SIGN, *tokenizer.all_special_tokens}
    for token in tokenizer.added_tokens_decoder.values():
        if token.special:
            signs.add(token.content)
    for name, value in vars(processor).items():
        if isinstance(value, str) and value and name.endswith(IMAGE_SIGN_NAMES):
            signs.add(value)
    # longest first: one may be another's beginning
    patterns = [re.escape(sign) for sign in sorted(signs, key=len, reverse=True)]
    tile_token = getattr(processor, "tile_token", None)
    if tile_token:  # Aya Vision's, with a number
        patterns.insert(0, rf"{re.escape(tile_token)}_\d+")
    return re.compile("|".join(patterns))
