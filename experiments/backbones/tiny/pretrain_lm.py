"""Pretrains the tiny language model.

    python -m experiments.backbones.tiny.pretrain_lm to=experiments/assets/tiny/llm

A `PhiForCausalLM` learns, from text alone, to answer questions about described scenes. Look-ups form late,
so drills and small scenes come first, conversations are long, and descriptions come in several forms (see
`slots`).
"""

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PhiConfig, PhiForCausalLM

from compressors.command_line import Command, CommandLine
from compressors.setting_fields import setting
from experiments.backbones.tiny import training
from experiments.backbones.tiny.lm_examples import DRILL_SHARE, collate_examples, make_training_example
from experiments.backbones.tiny.lm_scores import ScoreTable, embed_positions, score_lm
from experiments.backbones.tiny.tokenizer import build_vocabulary, save_tokenizer

POSITIONS_PER_BATCH = 2048
CONVERSATIONS_PER_ROUND = 32  # drawn together, sorted by length, learnt in about five batches
LENGTH_STEP = 32  # lengths of batches are multiples of it
COUNT_STEP = 256  # and so are counts of positions in the loss, of this one
SCORED_STYLES = ("prose", "slots")
SLOT_NOISE = 0.1  # in standard deviations of the embeddings


@dataclass(frozen=True)
class LmPlan(training.PretrainingPlan):
    """How long the language model is trained by default."""

    steps: int = setting(4500, "rounds of 32 conversations", low=1)


COMMAND = Command(
    usage="python -m experiments.backbones.tiny.pretrain_lm to=DIR [KEY=VALUE ...]",
    description="Pretrains the tiny language model on described scenes.",
    options=LmPlan,
    elsewhere="write to another place with to=DIR",
)


def get_token_table(model: PhiForCausalLM) -> Tensor:
    """(tokens, D): the embeddings, which are the output layer's weights as well."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)  # Phi's always is one
    return embedding.weight


def build_lm() -> PhiForCausalLM:
    """The untrained model: 6 layers of width 128.

    Input and output share their embeddings: copying a word from the text then needs no learning per word.
    """
    tokens = build_vocabulary()
    config = PhiConfig(
        vocab_size=len(tokens),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=6,
        num_attention_heads=4,
        hidden_act="gelu_pytorch_tanh",  # the function of gelu_new as one kernel
        max_position_embeddings=512,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokens.index("</s>"),
        pad_token_id=tokens.index("<pad>"),
    )
    model = PhiForCausalLM(config)
    nn.init.normal_(get_token_table(model), std=0.1)
    return model


def make_round(index: int, seed: int, rounds: int) -> list[dict[str, Tensor]]:
    """The conversations of a round as a few batches of similar length each, of at most `POSITIONS_PER_BATCH`.

    Lengths and batch sizes come in a dozen combinations only: a new shape costs the kernels a compilation.
    """
    rng = random.Random(f"lm/{seed}/{index}")
    progress = index / rounds
    count = CONVERSATIONS_PER_ROUND
    if progress < DRILL_SHARE:
        count *= 4  # drills are short
    examples = [make_training_example(rng, progress) for _ in range(count)]
    examples.sort(key=lambda example: len(example.ids))
    batches = []
    while examples:
        length = round_up(len(examples[-1].ids), LENGTH_STEP)
        rows = POSITIONS_PER_BATCH // max(length, 64)
        arrays = collate_examples(examples[-rows:], rows, length)
        examples = examples[:-rows]
        batches.append({name: torch.from_numpy(array) for name, array in arrays.items()})
    rng.shuffle(batches)
    return batches


def round_up(number: int, step: int) -> int:
    """The least multiple of `step` that is not below `number`."""
    return -(-number // step) * step


def compute_lm_loss(model: PhiForCausalLM, batch: dict[str, Tensor]) -> Tensor:
    """Weighted next-token loss; slots get noise and a random length, as a projector's output would have."""
    ids = batch["ids"]  # (B, T, SLOT_WIDTH)
    inputs = embed_positions(model, ids, batch["scales"])  # (B, T, D)
    is_slot = (ids[..., 1] > 0) | (ids[..., 0] == 0)  # several words, or none
    spread = get_token_table(model).detach().std()
    stretch = 1 + 0.2 * torch.randn(is_slot.shape).unsqueeze(-1)
    disturbed = inputs * stretch + SLOT_NOISE * spread * torch.randn_like(inputs)
    inputs = torch.where(is_slot.unsqueeze(-1), disturbed, inputs)
    hidden = model.get_decoder()(inputs_embeds=inputs).last_hidden_state[:, :-1]  # (B, T - 1, D)
    weights = batch["weights"][:, 1:].flatten()
    targets = ids[:, 1:, 0].flatten()
    # Only the positions that count, always a multiple of 256 of them (again for the sake of few shapes).
    count = min(round_up(int((weights > 0).sum()), COUNT_STEP), weights.numel())
    weights, positions = weights.topk(count, sorted=False)
    logits = model.lm_head(hidden.flatten(0, 1)[positions]).float()
    losses = F.cross_entropy(logits, targets[positions], reduction="none")
    return (losses * weights).sum() / weights.sum()


def train_lm(plan: training.PretrainingPlan) -> dict[str, ScoreTable]:
    """Train for `plan.steps` rounds; the accuracies on described scenes of `tune`, by style."""
    torch.manual_seed(plan.seed)
    model = build_lm()
    optimizer = training.build_optimizer([model], plan.lr)
    start = training.load_state(plan, optimizer, [model])
    progress, advance = training.make_steps_bar(start, plan.steps)
    scores: dict[str, ScoreTable] = {}
    with progress:
        make_batches = partial(make_round, seed=plan.seed, rounds=plan.steps)
        rounds = training.load_batches(make_batches, start, plan.steps)
        for index, batches in enumerate(rounds, start):
            training.seed_step(plan.seed, index)
            training.set_learning_rate(optimizer, plan.lr, index, plan.steps, warmup=25)
            loss = sum(_train_on_batch(model, batch, optimizer) for batch in batches) / len(batches)
            if (index + 1) % plan.every == 0 or index + 1 == plan.steps:
                scores = {style: score_lm(model, style, scenes=100) for style in SCORED_STYLES}
                _save_lm(model, plan, {"rounds": index + 1, "loss": round(loss, 4), "described": scores})
                training.save_state(plan, index + 1, optimizer, [model])
            totals = " ".join(f"{style} {table['all']['all']:.3f}" for style, table in scores.items())
            advance(f"loss {loss:.3f} {totals}")
    return scores


def _train_on_batch(
    model: PhiForCausalLM, batch: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> float:
    """One optimizer step; the loss before it."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = compute_lm_loss(model, batch)
    training.step_optimizer(loss, [model], optimizer)
    return loss.item()


def _save_lm(model: PhiForCausalLM, plan: training.PretrainingPlan, results: dict[str, Any]) -> None:
    record = {"of": plan.steps, "seed": plan.seed, "lr": plan.lr, **results}
    training.save_model(model, plan.to, {"training.json": json.dumps(record, indent=1)}, also=save_tokenizer)


def run_training(line: CommandLine) -> int:
    """Train, and say how many questions are answered rightly; a step is a round."""
    plan: LmPlan = line.options
    torch.set_num_threads(1)  # more threads change the order of sums, and the weights with it
    scores = train_lm(plan)
    totals = {style: table["all"] for style, table in scores.items()}
    sys.stdout.write(f"{plan.to}: {json.dumps(totals)}\n")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    return COMMAND.run(run_training, arguments)


if __name__ == "__main__":
    sys.exit(main())
