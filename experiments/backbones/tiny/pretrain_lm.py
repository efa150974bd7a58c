"""Pretrains the tiny language model.

    python -m experiments.backbones.tiny.pretrain_lm --out experiments/assets/tiny/llm

A `PhiForCausalLM` learns, from text alone, to answer questions about described scenes. Look-ups form late,
so drills and small scenes come first, conversations are long, and descriptions come in several forms (see
`slots`).
"""

import json
import random
import sys
from functools import partial

import torch
from torch.nn import functional as F
from transformers import PhiConfig, PhiForCausalLM

from experiments.backbones.tiny import training
from experiments.backbones.tiny.lm_examples import DRILL_SHARE, collate_examples, make_training_example
from experiments.backbones.tiny.lm_scores import embed_positions, scores
from experiments.backbones.tiny.tokenizer import build_vocabulary, save_tokenizer

POSITIONS_PER_BATCH = 2048  # positions in a batch
CONVERSATIONS_PER_ROUND = 32  # in a round: drawn together, sorted by length, learnt in about five batches


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
    torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.1)
    return model


def make_round(index: int, seed: int, rounds: int) -> list[dict[str, torch.Tensor]]:
    """`CONVERSATIONS` examples as a few batches of similar length each, of at most `TOKENS` positions.

    Lengths and batch sizes come in a dozen combinations only: a new shape costs the kernels a compilation.
    """
    rng = random.Random(f"lm/{seed}/{index}")
    progress = index / rounds
    count = CONVERSATIONS_PER_ROUND * (4 if progress < DRILL_SHARE else 1)  # drills are short
    examples = [make_training_example(rng, progress) for _ in range(count)]
    examples.sort(key=lambda example: len(example.ids))
    made = []
    while examples:
        length = -(-len(examples[-1].ids) // 32) * 32
        rows = POSITIONS_PER_BATCH // max(length, 64)
        chunk, examples = examples[-rows:], examples[:-rows]
        made.append({name: torch.from_numpy(a) for name, a in collate_examples(chunk, rows, length).items()})
    rng.shuffle(made)
    return made


def compute_lm_loss(
    model: PhiForCausalLM, batch: dict[str, torch.Tensor], noise: float = 0.1
) -> torch.Tensor:
    """Weighted next-token loss; slots get noise and a random length, as a projector's output would have."""
    inputs = embed_positions(model, batch["ids"], batch["scales"])
    slots = (batch["ids"][..., 1] > 0) | (batch["ids"][..., 0] == 0)  # several words, or none
    spread = model.get_input_embeddings().weight.detach().std()
    stretch = 1 + 0.2 * torch.randn(slots.shape).unsqueeze(-1)
    disturbed = inputs * stretch + noise * spread * torch.randn_like(inputs)
    inputs = torch.where(slots.unsqueeze(-1), disturbed, inputs)
    hidden = model.get_decoder()(inputs_embeds=inputs).last_hidden_state[:, :-1]
    weights, targets = batch["weights"][:, 1:], batch["ids"][:, 1:, 0]
    # Only the positions that count, always a multiple of 256 of them (again for the sake of few shapes).
    count = -(-int((weights > 0).sum()) // 256) * 256
    weights, chosen = weights.flatten().topk(min(count, weights.numel()), sorted=False)
    logits = model.lm_head(hidden.flatten(0, 1)[chosen]).float()
    losses = F.cross_entropy(logits, targets.flatten()[chosen], reduction="none")
    return (losses * weights).sum() / weights.sum()


def pretrain(plan: training.Plan) -> dict:
    """Trains for `plan.steps` rounds; returns the accuracies on described scenes of `tune`."""
    torch.manual_seed(plan.seed)
    model = build_lm()
    optimizer = training.build_optimizer([model], plan.lr)
    start = training.load_state(plan, optimizer, [model])
    progress, advance = training.make_steps_bar(start, plan.steps)
    found: dict = {}
    with progress:
        data = training.load_batches(
            partial(make_round, seed=plan.seed, rounds=plan.steps), start, plan.steps
        )
        for index, batches in enumerate(data, start):
            training.seed_step(plan.seed, index)
            training.set_learning_rate(optimizer, plan.lr, index, plan.steps, warmup=25)
            loss = sum(_train_on_batch(model, batch, optimizer) for batch in batches) / len(batches)
            if (index + 1) % plan.every == 0 or index + 1 == plan.steps:
                found = {style: scores(model, style, scenes=100) for style in ("prose", "slots")}
                _save_lm(model, plan, {"rounds": index + 1, "loss": round(loss, 4), "described": found})
                training.save_state(plan, index + 1, optimizer, [model])
            totals = " ".join(f"{style} {table['all']['all']:.3f}" for style, table in found.items())
            advance(f"loss {loss:.3f} {totals}")
    return found


def _train_on_batch(
    model: PhiForCausalLM, batch: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer
) -> float:
    with torch.autocast("cpu", torch.bfloat16):
        loss = compute_lm_loss(model, batch)
    training.step_optimizer(loss, [model], optimizer)
    return loss.item()


def _save_lm(model: PhiForCausalLM, plan: training.Plan, record: dict) -> None:
    record = {"of": plan.steps, "seed": plan.seed, "lr": plan.lr, **record}
    training.save_model(model, plan.out, {"training.json": json.dumps(record, indent=1)}, also=save_tokenizer)


def main(arguments: list[str] | None = None) -> int:
    """The command; a step is a round of `CONVERSATIONS` conversations."""
    plan = training.Plan.from_command(arguments, __doc__, steps=4500, lr=1.5e-3)
    torch.set_num_threads(1)
    found = pretrain(plan)
    sys.stdout.write(f"{plan.out}: {json.dumps({style: s['all'] for style, s in found.items()})}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
