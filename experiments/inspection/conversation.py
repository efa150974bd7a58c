"""A conversation about one picture, turn by turn: answers as they are generated, and how fast they came."""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TextStreamer

from compressors.errors import UsageError
from llm_adapters.conversation import IMAGE, Encoded, Turn, find_reserved
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.orientation import convert_to_upright_rgb
from llm_adapters.processing import FlashSlothProcessor
from llm_adapters.shared_prefix import PictureKeeper


class TokenPace:
    """When an answer was asked for and when each of its tokens was there, in seconds of `clock`."""

    def __init__(self, clock: Callable[[], float] = perf_counter):
        self.clock = clock
        self.started = clock()
        self.token_times: list[float] = []

    def note_token(self) -> None:
        """A token is there."""
        self.token_times.append(self.clock())

    def __str__(self) -> str:
        """Time to the first token, and the rate of those after it."""
        if not self.token_times:
            return "no token"
        count = len(self.token_times)
        to_first = self.token_times[0] - self.started
        after_first = self.token_times[-1] - self.token_times[0]
        rate = ""
        if after_first > 0:
            rate = f", {(count - 1) / after_first:.1f} tokens/s"
        return f"TTFT {to_first * 1e3:.0f} ms{rate}, {count} tokens"


class AnswerStreamer(TextStreamer):
    """For `generate`: hands words to `write` as soon as they are whole, and tells `pace` of each token.

    answer   the words so far
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, pace: TokenPace, write: Callable[[str], object]):
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.pace = pace
        self.write = write
        self.answer = ""

    def put(self, value: Any) -> None:
        """Take the prompt's ids, which come first, or a token's."""
        if not self.next_tokens_are_prompt:
            self.pace.note_token()
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002
        """Take words that no later token changes."""
        if not self.answer:  # an answer's first word often has a space before it
            text = text.lstrip()
        self.answer += text
        self.write(text)


class Chat:
    """A conversation about one picture. Every turn has its question and a query slot of its own.

    Tower, compressor and LLM see the picture once, where its tokens do not depend on the question. When the
    conversation gets too long for the model, its first turns are forgotten; so is a turn whose answer cannot
    stand in a prompt.

    reserved   what the last answer contains of the prompt's own words, for which its turn is forgotten
    """

    def __init__(
        self,
        model: FlashSlothForConditionalGeneration,
        processor: FlashSlothProcessor,
        picture: Image.Image,
        max_new_tokens: int = 128,
    ):
        self.model = model
        self.processor = processor
        self.max_new_tokens = max_new_tokens
        self.picture = convert_to_upright_rgb(picture)
        self.turns: list[Turn] = []
        self.reserved: str | None = None
        self.pixels: Tensor | None = None  # (1, crops, 3, h, w), made when first asked for
        self.keeper = PictureKeeper(model, processor)

    def ask_question(self, question: str, write: Callable[[str], object]) -> TokenPace:
        """Answer a question; `write` gets the answer's words. UsageError if it cannot be asked."""
        pace = TokenPace()
        batch: dict[str, Any] = dict(self.make_inputs(question))
        stream = AnswerStreamer(self.processor.tokenizer, pace, write)
        options = {"max_new_tokens": self.max_new_tokens, "streamer": stream}
        # greedy, whatever the model was saved with: a streamer takes no beams
        self.keeper.generate(batch, ["picture"], do_sample=False, num_beams=1, **options)
        answer = stream.answer.strip()
        # placeholder ids are never generated, but a marker can be spelled in other tokens
        self.reserved = find_reserved(answer, self.processor.encoder.template.list_reserved())
        if answer and self.reserved is None:  # an empty answer makes no turn
            self.turns.append(Turn(question, answer))
        return pace

    def make_inputs(self, question: str) -> dict[str, Tensor]:
        """Inputs for a question after the turns before it, where the model is. UsageError for one that is too
        long even alone."""
        turns = [*self.turns, Turn(question)]
        encoded = self.encode_turns(turns)
        while len(turns) > 1 and len(encoded.ids) + self.max_new_tokens > self.position_limit:
            turns = turns[1:]
            encoded = self.encode_turns(turns)
        needed = len(encoded.ids) + self.max_new_tokens
        if needed > self.position_limit:
            raise UsageError(
                f"picture, question and max_new_tokens={self.max_new_tokens} of an answer are {needed} "
                f"tokens, the model has positions for {self.position_limit}; ask a shorter question"
            )
        self.turns = turns[:-1]
        # padded on the left: generation goes on from the last column
        batch = self.processor.collate([encoded], "left")
        del batch["labels"]
        if "image_turn" in batch:  # else the model is blind
            if self.pixels is None:
                self.pixels = self.processor.pixels([self.picture]).unsqueeze(0)
            batch["pixel_values"] = self.pixels
        return {name: value.to(self.model.device) for name, value in batch.items()}

    def encode_turns(self, turns: Sequence[Turn]) -> Encoded:
        """Turns with the picture before the first of them."""
        first = turns[0]._replace(question=f"{IMAGE}\n{turns[0].question}")
        return self.processor.encode([first, *turns[1:]], [self.processor.crops_of(self.picture)])

    @property
    def position_limit(self) -> float:
        """Tokens that the language model has positions for, beside those of patches that are left out."""
        left_out = self.model.num_left_out(*self.processor.crop_size)
        limit = self.model.config.position_limit or float("inf")
        return limit - left_out * self.processor.crops_of(self.picture)
