"""Turns -> token ids, labels, query slots and question spans; the only place that knows the prompt's layout.

Training and inference go the same way: turns are rendered to one string with three markers, and that string
is encoded. A chat template that renders the same string therefore gives the same ids.

    USER: <image>\\n<question>What is this? <query> ASSISTANT: A dog.</s>USER:<question> And ...

`<image>` becomes the visual tokens of the next image and `<query>` the turn's query tokens. `<question>`
leaves no token: it says where the question starts, so spans never come from labels, constants or padding.
"""

import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

from compressors.errors import UsageError, quote

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IMAGE, QUESTION, QUERY = "<image>", "<question>", "<query>"
MARKERS = (IMAGE, QUESTION, QUERY)
IGNORE = -100


@dataclass(frozen=True)
class Template:
    """The words around turns; the defaults are FlashSloth's (arXiv 2412.04317, released code)."""

    system: str = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    )
    user: str = "USER:"
    assistant: str = " ASSISTANT:"
    end: str = "</s>"

    def __post_init__(self) -> None:
        if not self.end:
            raise UsageError("prompt.end='': an answer needs an end; name the token that ends it")
        for name, text in vars(self).items():
            for marker in MARKERS:
                if marker in text:
                    raise UsageError(
                        f"prompt.{name}={quote(repr(text))} contains the reserved {marker!r}; remove it"
                    )

    def list_reserved(self) -> tuple[str, ...]:
        """What no answer may contain: it would be read as the prompt's own words."""
        return (*MARKERS, self.end)


class Turn(NamedTuple):
    """One question, with `<image>` where its images stand, and its answer; None: to be generated."""

    question: str
    answer: str | None = None


@dataclass
class Encoded:
    """One row. Lists of equal length T, and a number per image.

    ids          token ids; each image and each query slot already has all its placeholder ids
    labels       the ids of answers (their end token included), -100 elsewhere
    turns        1-based turn on question, image and query tokens; 0 elsewhere
    image_turns  turn in which each image stands
    turn_ends    position after each turn's last token
    questions    the text of each turn's question
    """

    ids: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    image_turns: list[int] = field(default_factory=list)
    turn_ends: list[int] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)

    def extend(self, ids: Sequence[int], turn: int = 0, answer: bool = False) -> None:
        self.ids += ids
        self.labels += ids if answer else [IGNORE] * len(ids)
        self.turns += [turn] * len(ids)


def render_turns(turns: Sequence[Turn], template: Template) -> str:
    """The marked string of a conversation; the last turn may have no answer yet."""
    if not turns:
        raise UsageError("a conversation with no turns; give at least one question")
    parts = [template.system]
    for number, (question, answer) in enumerate(turns, 1):
        parts.append(_render_user(question, template, number))
        parts.append(template.assistant)
        if answer is not None:
            refuse_reserved(answer, f"the text of turn {number}", template.list_reserved())
            if not answer.strip():
                raise UsageError(f"turn {number} has an empty answer; fill it in, or drop the turn")
            parts.append(f" {answer.strip()}{template.end}")
        elif number < len(turns):
            raise UsageError(f"turn {number} has no answer but is not the last of {len(turns)}; give it one")
    return "".join(parts)


def _render_user(question: str, template: Template, number: int) -> str:
    """Images at either end of the turn come first, each on a line; inside the text they stay, and so do those
    behind a text with images inside: pictures come in the order of their places."""
    pieces = [piece.strip() for piece in question.split(IMAGE)]
    for piece in pieces:
        refuse_reserved(piece, f"the text of turn {number}", (QUESTION, QUERY, template.end))
    filled = [i for i, piece in enumerate(pieces) if piece]
    if not filled:
        raise UsageError(f"turn {number} has an empty question; give it a text")
    first, last = filled[0], filled[-1]
    outside = first
    behind = len(pieces) - 1 - last
    if first == last:
        outside += behind
        behind = 0
    inside = [pieces[first], *(part for piece in pieces[first + 1 : last + 1] for part in (IMAGE, piece))]
    text = " ".join([*filter(None, inside), *[IMAGE] * behind])
    if outside:
        return f"{template.user} {f'{IMAGE}{chr(10)}' * outside}{QUESTION}{text} {QUERY}"
    return f"{template.user}{QUESTION} {text} {QUERY}"


def find_reserved(text: str, markers: Sequence[str]) -> str | None:
    """The first of the markers that a text contains, if any."""
    for marker in markers:
        if marker and marker in text:
            return marker
    return None


def refuse_reserved(text: str, where: str, markers: Sequence[str]) -> None:
    """UsageError for a text that would be read as the prompt's own words."""
    marker = find_reserved(text, markers)
    if marker is not None:
        raise UsageError(f"{where} contains the reserved {marker!r}; rephrase it")


class Encoder:
    """Marked strings -> Encoded, for one tokenizer that has the ids of `<image>` and `<query>`."""

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        template: Template,
        image_token_id: int,
        query_token_id: int,
        num_queries: int,
    ):
        self.tokenizer = tokenizer
        self.template = template
        self.num_queries = num_queries
        self.image_token_id = image_token_id
        self.query_token_id = query_token_id
        self._split = re.compile("(" + "|".join(map(re.escape, MARKERS)) + ")")
        self._remember()

    def _remember(self) -> None:
        """What is made anew where an encoder is unpickled."""
        # questions and answers come again and again
        self._tokenize = lru_cache(maxsize=1 << 16)(self._tokenize_new)
        # some tokenizers say by `add_bos_token` that texts begin with BOS, others by what they do
        bos = self.tokenizer.bos_token_id
        adds_bos = getattr(self.tokenizer, "add_bos_token", False)
        begins_with_bos = adds_bos or self.tokenizer("")["input_ids"][:1] == [bos]
        self._start = [bos] if begins_with_bos and bos is not None else []

    def __getstate__(self) -> dict[str, Any]:
        # a cache does not pickle
        return {name: value for name, value in vars(self).items() if name != "_tokenize"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._remember()

    def encode_turns(
        self, turns: Sequence[Turn], image_tokens: Sequence[int], max_length: int | None = None
    ) -> Encoded:
        """A conversation with `image_tokens[i]` visual tokens for image i and at most `max_length` others."""
        encoded = self.encode(render_turns(turns, self.template), image_tokens)
        placeholders = (self.image_token_id, self.query_token_id)
        return truncate_encoded(encoded, max_length, placeholders) if max_length else encoded

    def encode(self, text: str, image_tokens: Sequence[int]) -> Encoded:
        """A marked string -> ids, labels and turns. UsageError where images and markers differ."""
        out, turn, asking, answering = Encoded(), 0, False, False
        out.extend(self._start)
        images = iter(image_tokens)
        for piece in self._pieces(text, len(image_tokens)):
            if piece == IMAGE:
                # an image before its turn's <question> belongs to that turn
                out.image_turns.append(turn if asking else turn + 1)
                out.extend([self.image_token_id] * next(images), out.image_turns[-1])
            elif piece == QUESTION:
                turn, asking = turn + 1, True
                out.questions.append("")
            elif piece == QUERY:
                out.extend([self.query_token_id] * self.num_queries, turn)
                asking, answering = False, True
            elif answering:
                self._answer(out, piece)
                answering = False
            else:
                out.extend(self._tokenize(piece), turn if asking else 0)
                if asking:
                    out.questions[-1] = f"{out.questions[-1]} {piece.strip()}".strip()
        if len(out.turn_ends) < turn:
            out.turn_ends.append(len(out.ids))
        return out

    def _pieces(self, text: str, images: int) -> list[str]:
        """Markers and the text between them. They must be those of a conversation with so many images."""
        pieces = self._split.split(text)
        image_count = pieces.count(IMAGE)
        if image_count != images:
            raise UsageError(f"the text has {image_count} {IMAGE} marker(s) but {images} image(s) were given")
        turns = [piece for piece in pieces if piece in (QUESTION, QUERY)]
        if turns != [QUESTION, QUERY] * (len(turns) // 2):
            raise UsageError(
                f"the text's markers are not one {QUESTION} and then one {QUERY} a turn; make "
                "it with the chat template"
            )
        if IMAGE in pieces and not turns:
            raise UsageError(
                f"the text has an {IMAGE} and no {QUESTION}: it is no conversation; make it with the chat "
                "template (`apply_chat_template`, or `render_turns`)"
            )
        if turns and IMAGE in pieces[len(pieces) - pieces[::-1].index(QUERY) :]:
            raise UsageError(f"an {IMAGE} stands after the last question; put it before or into a question")
        return pieces

    def _answer(self, out: Encoded, text: str) -> None:
        """What stands between a query slot and the next marker: assistant words, answer, end, user words."""
        if not text.startswith(self.template.assistant):
            out.extend(self._tokenize(text))
            return
        out.extend(self._tokenize(self.template.assistant))
        answer, ended, rest = text[len(self.template.assistant) :].partition(self.template.end)
        out.extend(self._tokenize(answer), answer=True)
        if ended:
            out.extend(self._tokenize(ended), answer=True)
            out.turn_ends.append(len(out.ids))
        out.extend(self._tokenize(rest))

    def _tokenize_new(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []


def truncate_encoded(encoded: Encoded, max_length: int, placeholders: Sequence[int]) -> Encoded:
    """At most `max_length` tokens of text; visual and query tokens (ids `placeholders`) do not count, so that
    every compressor and query module sees the same text.

    Whole turns are dropped from the end; a single turn that is too long loses the end of its answer, never an
    image, a question or its queries. Raises UsageError when no answer token would be left."""
    # text tokens before each position
    text = list(accumulate((token not in placeholders for token in encoded.ids), initial=0))
    if text[-1] <= max_length:
        return encoded
    whole_ends = [end for end in encoded.turn_ends if text[end] <= max_length]
    length = whole_ends[-1] if whole_ends else bisect_right(text, max_length) - 1
    turns = len(whole_ends) or 1
    prompt = next((i for i, label in enumerate(encoded.labels) if label != IGNORE), len(encoded.ids))
    if length <= prompt:
        raise UsageError(
            f"max_length={max_length} cuts the whole answer away: its prompt alone has "
            f"{text[prompt]} text tokens; raise data.max_length or shorten the sample"
        )
    return Encoded(
        encoded.ids[:length],
        encoded.labels[:length],
        encoded.turns[:length],
        [turn for turn in encoded.image_turns if turn <= turns],
        encoded.turn_ends[: len(whole_ends)] or [length],
        encoded.questions[:turns],
    )
