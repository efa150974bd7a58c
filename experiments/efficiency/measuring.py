"""What must be measured: time to the first token from pictures, time by part, decoding, peak memory.

All cells of a batch size and image count take turns, round by round (`timing`), so that a slow
minute of the machine hits all alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from time import perf_counter

import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from experiments.efficiency.memory import measure_peak_bytes
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

    def __init__(self):
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
        self.subject, self.pictures, self.new_tokens = subject, pictures, new_tokens
        self.options = {"cache_implementation": "static"} if static else {}
        prompt = subject.prompt(subject.prepare_pixels(pictures), len(pictures), text)
        self.prompt = self.move_to_model(prompt)

    def move_to_model(self, inputs: PixelInputs) -> PixelInputs:
        """Where and in the floating point type that the model is."""
        model = self.subject.model
        return {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }

    def generate(self, pixels: PixelInputs, tokens: int, stamps: TokenClock | None = None) -> Tensor:
        """Greedy answers of exactly `tokens` tokens."""
        return self.subject.model.generate(
            **self.prompt,
            **self.move_to_model(pixels),
            do_sample=False,
            num_beams=1,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            streamer=stamps,
            **self.options,
        )

    def time_answer(self) -> AnswerSeconds:
        """From pictures to the last token."""
        stamps = TokenClock()
        wait_for_accelerator()
        start = perf_counter()
        self.generate(self.subject.prepare_pixels(self.pictures), self.new_tokens, stamps)
        _, first, *rest = stamps.times
        return AnswerSeconds(first - start, (rest[-1] - first) / len(rest) if rest else None)

    def time_parts(self) -> dict[str, float]:
        """Seconds by part, from pictures to the first token."""
        start = read_clock()
        pixels = self.subject.prepare_pixels(self.pictures)
        prepared = read_clock()
        with Ledger(self.subject.parts, read_clock) as ledger:
            self.generate(pixels, 1)
        return {PICTURE_PREPARATION: prepared - start, **ledger.shares}

    def measure_peak(self) -> int:
        """Weights, and the most that an answer needs beside them."""
        model, pixels = self.subject.model, self.subject.prepare_pixels(self.pictures)
        weights = sum(p.nbytes for p in model.parameters())
        return weights + measure_peak_bytes(partial(self.generate, pixels, self.new_tokens), model.device)


@torch.inference_mode()
def measure_cases(
    cases: Mapping[str, BenchmarkCase], rounds: int, done: Callable[[], None] = lambda: None
) -> dict[str, CaseMeasurements]:
    """Every case, in turn; `done` is called `count_measuring_steps(cases, rounds)` times."""
    laps = run_in_turn({name: case.time_answer for name, case in cases.items()}, rounds, done)
    parts = run_in_turn({name: case.time_parts for name, case in cases.items()}, rounds, done)
    found = {}
    for name, case in cases.items():
        decode = [lap.decode for lap in laps[name] if lap.decode is not None]
        found[name] = CaseMeasurements(
            find_spread(lap.ttft for lap in laps[name]),
            find_spread(decode) if decode else None,
            {part: find_spread(share[part] for share in parts[name]) for part in parts[name][0]},
            case.measure_peak(),
        )
        done()
    return found


def count_measuring_steps(cases: int, rounds: int) -> int:
    """How often `measure_cases` tells that a step is done."""
    return cases * (2 * (rounds + 1) + 1)
