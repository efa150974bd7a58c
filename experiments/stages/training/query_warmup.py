"""Query warm-up: in the first steps of stage 2 the LLM does not see the visual tokens, or few of them.

The query module reads the uncompressed features all the same. While the visual tokens are there from the
start, the LLM answers most questions from them and asks little of the query tokens; while they are hidden,
what an answer needs has to come through the query tokens, and the LLM goes on reading them afterwards.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.config.schema_sections import FinetuneSettings

# of its visual tokens a row sees in a warm-up of the form `thin`: behind four of sixteen EmbQ forms by itself
THIN_SHARE = 0.25

# Keeps the draws apart from those of a step (dropout, a compressor's), which count seeds up from
# seed * 1_000_003. It fits into 32 bits: torch's generator on the CPU looks at no more of a seed.
SEED_OFFSET = 2_654_435_769


@dataclass(frozen=True)
class QueryWarmup:
    """Which visual tokens of a micro-batch the LLM is trained without.

    steps   optimiser steps of the warm-up, from the first step of the stage on
    form    step: all rows of these steps; fade: each row with a probability that falls from 1 to 0;
            thin: in all rows of these steps each token but a random quarter
    pieces  micro-batches of an optimiser step
    seed    what is hidden follows from it and the micro-batch's number, so a resumed run hides the same
    """

    steps: int
    form: str
    pieces: int
    seed: int

    def find_probability(self, step: int) -> float:
        """With which probability a row, or a token, of an optimiser step, counted from 0, is hidden."""
        if step >= self.steps:
            return 0.0
        if self.form == "fade":
            return 1 - step / self.steps
        if self.form == "thin":
            return 1 - THIN_SHARE
        return 1.0

    def draw_hidden(self, rows: int, tokens: int, number: int, rank: int = 0) -> Tensor:
        """True (rows,) where a row's visual tokens are hidden, on the CPU; of the form `thin` (rows, tokens)
        where a token is, if it is a visual one. `number` counts the stage's micro-batches; of several
        processes, number `rank` draws for rows of its own."""
        # a generator of its own: what a step draws otherwise is the same with and without a warm-up
        generator = torch.Generator()
        generator.manual_seed(SEED_OFFSET + self.seed * 1_000_003 + number + rank * 1_000_000_007)
        shape: tuple[int, ...] = (rows,)
        if self.form == "thin":
            shape = (rows, tokens)
        return torch.rand(shape, generator=generator) < self.find_probability(number // self.pieces)


def make_query_warmup(settings: FinetuneSettings, steps: int, seed: int) -> QueryWarmup | None:
    """The warm-up of a stage 2 of so many optimiser steps; None where none is set."""
    if not settings.query_warmup:
        return None
    # at least one step where it is set at all; the last one is always as an evaluation will be
    hidden_steps = max(1, round(settings.query_warmup * steps))
    hidden_steps = min(hidden_steps, steps - 1)
    return QueryWarmup(hidden_steps, settings.query_warmup_form, settings.accumulate, seed)
