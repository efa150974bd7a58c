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

from experiments.efficiency.memory import peak_bytes
from experiments.efficiency.subject import Pictures, Pixels, Subject
from experiments.efficiency.timing import Ledger, Spread, clock, in_turn, settle, spread

PREPARING = "preprocessing"


class Stamps(BaseStreamer):
    """When each token has reached the host. `generate` hands over the prompt first, then token by token."""

    def __init__(self):
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:  # noqa: ARG002
        self.times.append(perf_counter())

    def end(self) -> None:
        pass


@dataclass(frozen=True)
class Lap:
    """Seconds of one answer. `decode`: of a step after the first token; None where there is a single one."""

    ttft: float
    decode: float | None


@dataclass
class Measured:
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


class Case:
    """One subject with weights, a batch of pictures, a prompt."""

    def __init__(
        self, subject: Subject, pictures: Pictures, text: int, new_tokens: int, static: bool = False
    ):
        """`static`: a cache of fixed size, with which transformers compiles the decoding step on a GPU."""
        self.subject, self.pictures, self.new_tokens = subject, pictures, new_tokens
        self.options = {"cache_implementation": "static"} if static else {}
        prompt = subject.prompt(subject.pixels(pictures), len(pictures), text)
        self.prompt = self.placed(prompt)

    def placed(self, inputs: Pixels) -> Pixels:
        """Where and in the floating point type that the model is."""
        model = self.subject.model
        return {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }

    def generate(self, pixels: Pixels, tokens: int, stamps: Stamps | None = None) -> Tensor:
        """Greedy answers of exactly `tokens` tokens."""
        return self.subject.model.generate(
            **self.prompt,
            **self.placed(pixels),
            do_sample=False,
            num_beams=1,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            streamer=stamps,
            **self.options,
        )

    def answer(self) -> Lap:
        """From pictures to the last token."""
        stamps = Stamps()
        settle()
        start = perf_counter()
        self.generate(self.subject.pixels(self.pictures), self.new_tokens, stamps)
        _, first, *rest = stamps.times
        return Lap(first - start, (rest[-1] - first) / len(rest) if rest else None)

    def by_part(self) -> dict[str, float]:
        """Seconds by part, from pictures to the first token."""
        start = clock()
        pixels = self.subject.pixels(self.pictures)
        prepared = clock()
        with Ledger(self.subject.parts, clock) as ledger:
            self.generate(pixels, 1)
        return {PREPARING: prepared - start, **ledger.shares}

    def peak(self) -> int:
        """Weights, and the most that an answer needs beside them."""
        model, pixels = self.subject.model, self.subject.pixels(self.pictures)
        weights = sum(p.nbytes for p in model.parameters())
        return weights + peak_bytes(partial(self.generate, pixels, self.new_tokens), model.device)


@torch.inference_mode()
def measure(
    cases: Mapping[str, Case], rounds: int, done: Callable[[], None] = lambda: None
) -> dict[str, Measured]:
    """Every case, in turn; `done` is called `steps(cases, rounds)` times."""
    laps = in_turn({name: case.answer for name, case in cases.items()}, rounds, done)
    parts = in_turn({name: case.by_part for name, case in cases.items()}, rounds, done)
    found = {}
    for name, case in cases.items():
        decode = [lap.decode for lap in laps[name] if lap.decode is not None]
        found[name] = Measured(
            spread(lap.ttft for lap in laps[name]),
            spread(decode) if decode else None,
            {part: spread(share[part] for share in parts[name]) for part in parts[name][0]},
            case.peak(),
        )
        done()
    return found


def steps(cases: int, rounds: int) -> int:
    """How often `measure` tells that a step is done."""
    return cases * (2 * (rounds + 1) + 1)
