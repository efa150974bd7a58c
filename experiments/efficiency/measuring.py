"""What must be measured: time to the first token from pictures, time by part, decoding, peak memory.

All cells of a batch size and image count take turns, round by round (`timing`), so that a slow
minute of the machine hits all alike.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import StaticCache
from transformers.generation.streamers import BaseStreamer

from connectors.versions import CACHE
from experiments.efficiency.memory import count_weight_bytes, measure_peak_bytes
from experiments.efficiency.subject import CostSubject, PictureRows, PixelInputs
from experiments.efficiency.timing import (
    Ledger,
    Spread,
    find_spread,
    read_clock,
    run_in_turn,
    wait_for_accelerator,
)

PICTURE_PREPARATION = "preprocessing"


class TokenClock(BaseStreamer):
    """When each token has reached the host. `generate` hands over the prompt first, then token by token."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:  # noqa: ARG002
        self.times.append(perf_counter())

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class AnswerSeconds:
    """Seconds of one answer. `decode`: of a step after the first token; None where there is a single one."""

    ttft: float
    decode: float | None


@dataclass
class CaseMeasurements:
    """Of one case.

    ttft           seconds from pictures in memory to the first token on the host, all rows
    decode         seconds of a step after it, all rows
    parts          seconds by part on the way to the first token, each waited for
    peak_bytes     weights and the most that an answer holds beside them
    """

    ttft: Spread
    decode: Spread | None
    parts: dict[str, Spread]
    peak_bytes: int


class BenchmarkCase:
    """One subject with weights, a batch of pictures, a prompt."""

    def __init__(
        self, subject: CostSubject, pictures: PictureRows, text: int, new_tokens: int, static: bool = False
    ):
        """`static`: a cache of fixed size, with which transformers compiles the decoding step on a GPU."""
        self.subject = subject
        self.pictures = pictures
        self.new_tokens = new_tokens
        self.static = static
        prompt = subject.prompt(subject.prepare_pixels(pictures), len(pictures), text)
        self.prompt = self.move_to_model(prompt)

    def move_to_model(self, inputs: PixelInputs) -> PixelInputs:
        """Where and in the floating point type that the model is."""
        model = self.subject.model
        moved = {}
        for name, value in inputs.items():
            if value.is_floating_point():
                moved[name] = value.to(model.device, model.dtype)
            else:  # token ids stay whole numbers
                moved[name] = value.to(model.device)
        return moved

    def generate(self, pixels: PixelInputs, tokens: int, clock: TokenClock | None = None) -> Tensor:
        """Greedy answers of exactly `tokens` tokens: (B, T + tokens)."""
        model: Any = self.subject.model  # transformers gives models `generate` in a way that types do not see
        options = {}
        if self.static:
            # transformers would take the length of the longest case before; the last token is not read
            length = self.prompt["input_ids"].shape[1] + self.new_tokens - 1
            options[CACHE] = StaticCache(config=model.config.get_text_config(), max_cache_len=length)
        return model.generate(
            **self.prompt,
            **self.move_to_model(pixels),
            do_sample=False,
            num_beams=1,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            streamer=clock,
            **options,
        )

    def time_answer(self) -> AnswerSeconds:
        """From pictures to the last token."""
        clock = TokenClock()
        wait_for_accelerator()
        start = perf_counter()
        self.generate(self.subject.prepare_pixels(self.pictures), self.new_tokens, clock)
        _, first, *later = clock.times  # the first time is the prompt's
        ttft = first - start
        if not later:
            return AnswerSeconds(ttft, None)
        return AnswerSeconds(ttft, (later[-1] - first) / len(later))

    def time_parts(self) -> dict[str, float]:
        """Seconds by part, from pictures to the first token."""
        start = read_clock()
        pixels = self.subject.prepare_pixels(self.pictures)
        prepared = read_clock()
        with Ledger(self.subject.parts, read_clock, self.subject.methods) as ledger:
            self.generate(pixels, 1)
        return {PICTURE_PREPARATION: prepared - start, **ledger.shares}

    def measure_peak(self) -> int:
        """Weights, and the most that an answer needs beside them, in bytes."""
        pixels = self.subject.prepare_pixels(self.pictures)
        answer = partial(self.generate, pixels, self.new_tokens)
        weight_bytes = count_weight_bytes(self.subject.list_parameters())
        return weight_bytes + measure_peak_bytes(answer, self.subject.model.device)


@torch.inference_mode()
def measure_cases(
    cases: Mapping[str, BenchmarkCase], rounds: int, done: Callable[[], None] = lambda: None
) -> dict[str, CaseMeasurements]:
    """Every case, in turn; `done` is called `count_measuring_steps(cases, rounds)` times."""
    answer_steps = {}
    part_steps = {}
    for name, case in cases.items():
        answer_steps[name] = case.time_answer
        part_steps[name] = case.time_parts
    # in runs of their own: waiting for each part would make an answer longer
    answers = run_in_turn(answer_steps, rounds, done)
    parts = run_in_turn(part_steps, rounds, done)
    measurements = {}
    for name, case in cases.items():
        measurements[name] = summarise_case(answers[name], parts[name], case.measure_peak())
        done()
    return measurements


def summarise_case(
    answers: Sequence[AnswerSeconds], parts: Sequence[Mapping[str, float]], peak_bytes: int
) -> CaseMeasurements:
    """The spreads of one case over its rounds."""
    ttft_spread = find_spread(answer.ttft for answer in answers)
    decode_spread = None
    decode_seconds = [answer.decode for answer in answers if answer.decode is not None]
    if decode_seconds:
        decode_spread = find_spread(decode_seconds)
    part_spreads = {}
    for part in parts[0]:
        part_spreads[part] = find_spread(seconds[part] for seconds in parts)
    return CaseMeasurements(ttft_spread, decode_spread, part_spreads, peak_bytes)


def count_measuring_steps(cases: int, rounds: int) -> int:
    """How often `measure_cases` tells that a step is done: two runs of rounds with one that does not count,
    and one look at memory."""
    return cases * (2 * (rounds + 1) + 1)
