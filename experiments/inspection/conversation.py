"""A conversation about one picture, turn by turn."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from experiments.inspection.streaming import AnswerStreamer, TokenPace
from llm_adapters.conversation import IMAGE, Encoded, Turn


class Chat:
    """A conversation about one picture. Every turn has its question and a query slot of its own.

    When it gets too long for the model, its first turns are forgotten."""

    def __init__(self, model: Any, processor: Any, picture: Image.Image, max_new_tokens: int = 128):
        self.model = model
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.picture = picture.convert("RGB")
        self.turns: list[Turn] = []

    def ask_question(self, question: str, write: Callable[[str], object]) -> TokenPace:
        """Answer a question; `write` gets the answer's words. UsageError if it cannot be asked."""
        pace = TokenPace()
        batch = self.make_inputs(question)
        stream = AnswerStreamer(self.processor.tokenizer, pace, write)
        with torch.inference_mode():
            self.model.generate(**batch, do_sample=False, max_new_tokens=self.max_new_tokens, streamer=stream)
        if stream.said.strip():  # an empty answer makes no turn
            self.turns.append(Turn(question, stream.said.strip()))
        return pace

    def make_inputs(self, question: str) -> dict[str, Tensor]:
        """Inputs for a question after the turns before it."""
        turns = [*self.turns, Turn(question)]
        encoded = self.encode_turns(turns)
        while len(turns) > 1 and len(encoded.ids) + self.max_new_tokens > self.position_limit:
            turns = turns[1:]
            encoded = self.encode_turns(turns)
        self.turns = turns[:-1]
        batch = self.processor.collate([encoded], "left")
        del batch["labels"]
        if "image_turn" in batch:
            batch["pixel_values"] = self.processor.pixels([self.picture]).unsqueeze(0)
        return {name: value.to(self.model.device) for name, value in batch.items()}

    def encode_turns(self, turns: Sequence[Turn]) -> Encoded:
        """Turns with the picture before the first of them."""
        first = turns[0]._replace(question=f"{IMAGE}\n{turns[0].question}")
        return self.processor.encode([first, *turns[1:]], [self.processor.crops_of(self.picture)])

    @property
    def position_limit(self) -> float:
        """Tokens that the language model has positions for."""
        return getattr(self.model.config.text_config, "max_position_embeddings", None) or float("inf")
