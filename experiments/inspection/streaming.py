"""Answers as they are generated: their words as soon as they are whole, and how fast their tokens came."""

from collections.abc import Callable
from time import perf_counter
from typing import Any

from transformers import TextStreamer


class TokenPace:
    """When an answer was asked for and when each of its tokens was there."""

    def __init__(self, clock: Callable[[], float] = perf_counter):
        self.clock = clock
        self.started = clock()
        self.came: list[float] = []

    def note_token(self) -> None:
        """A token is there."""
        self.came.append(self.clock())

    def __str__(self) -> str:
        """Time to the first token, and the rate of those after it."""
        if not self.came:
            return "no token"
        later = len(self.came) - 1
        seconds = self.came[-1] - self.came[0]
        rate = f", {later / seconds:.1f} tokens/s" if seconds > 0 else ""
        return f"TTFT {(self.came[0] - self.started) * 1e3:.0f} ms{rate}, {len(self.came)} tokens"


class AnswerStreamer(TextStreamer):
    """For `generate`: hands words to `write` and keeps them as `said`, tells `pace` of each token."""

    def __init__(self, tokenizer: Any, pace: TokenPace, write: Callable[[str], object]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.pace = pace
        self.write = write
        self.said = ""

    def put(self, value: Any) -> None:
        if not self.next_tokens_are_prompt:
            self.pace.note_token()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002
        if not self.said:  # an answer's first word often has a space before it
            text = text.lstrip()
        self.said += text
        self.write(text)
