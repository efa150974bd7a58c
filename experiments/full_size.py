"""FlashSloth at full size with random weights: a prefill from pixels, a greedy generation, training steps.

The preset is built without weights (so400m and phi-2 from their configurations; nothing is downloaded), then
filled in bfloat16 in place: memory holds the weights once. The run checks that logits are finite, that EmbQ
changes the hidden states of the query tokens and no others, and that the token after next is the same with
the prefill's cache as without. The training steps are AdamW's on bfloat16 weights: at stage 2 eight bytes for
each parameter that is trained, beside activations.
"""

import argparse
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from connectors.tiling import Tiling
from experiments.config.schema import Config
from experiments.models import build
from experiments.models.random_model import build_random_model, make_random_batch, make_weightless_cells
from experiments.stages.module import list_model_parts, set_trainable
from llm_adapters.modeling import FlashSlothForConditionalGeneration

CheckedFact = tuple[str, bool]  # a line to print, and whether it is as it must be

TRAINED_STAGES = ("pretrain", "finetune")
NEW_TOKENS, OPTIMISER_STEPS = 4, 2
LOGIT_TOLERANCE = (
    0.25  # of the logits' standard deviation: how far two ways to a bfloat16 logit may end apart
)
SMALL_LLM = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 9,
    "num_attention_heads": 4,
}
SMALL_TOWER = {
    "image_size": 126,
    "patch_size": 14,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def build_full_size_parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser("python -m experiments.full_size", description=__doc__)
    made.formatter_class = argparse.RawDescriptionHelpFormatter
    made.add_argument("--hd", action="store_true", help="the preset flashsloth_hd: five crops, tower trained")
    made.add_argument("--device", help="cpu or cuda (cuda where there is one)")
    made.add_argument(
        "--train",
        choices=("both", "none", *TRAINED_STAGES),
        help="stages to train for two steps (both on a GPU, none on a CPU)",
    )
    made.add_argument("--quick", action="store_true", help="small sizes: to try the command")
    return made


@contextmanager
def open_preset_config(hd: bool, quick: bool) -> Iterator[Config]:
    """The preset, its backbones of their published sizes or small ones."""
    overrides = [f"preset=flashsloth{'_hd' if hd else ''}", *(["embq.dim=64"] if quick else [])]
    with make_weightless_cells(overrides, make_small_backbones() if quick else None) as (found,):
        yield found.config


def make_small_backbones() -> dict[str, PreTrainedConfig]:
    """Small backbones under the names of the preset's."""
    return {
        "microsoft/phi-2": AutoConfig.for_model("phi", tie_word_embeddings=False, **SMALL_LLM),
        "google/siglip-so400m-patch14-384": AutoConfig.for_model("siglip_vision_model", **SMALL_TOWER),
    }


@torch.inference_mode()
def check_inference(
    model: FlashSlothForConditionalGeneration, batch: dict[str, Tensor]
) -> Iterator[CheckedFact]:
    """A prefill, the step after it with and without cache, a generation."""
    batch = {name: value for name, value in batch.items() if name != "labels"}
    ids, mask, changed = batch["input_ids"], batch["attention_mask"], []
    handle = model.query_module.register_forward_hook(
        lambda _, given, out: changed.append((out != given[0]).any(-1))
    )
    prefill = model(**batch, use_cache=True)
    handle.remove()
    is_image, is_query = ids == model.config.image_token_id, ids == model.config.query_token_id
    yield (
        (
            f"prefill of {ids.shape[1]} tokens, {is_image.sum()} visual and {is_query.sum()} queries: "
            "logits are finite"
        ),
        bool(prefill.logits.isfinite().all()),
    )
    alone = len(changed) == 1 and torch.equal(changed[0], is_query)
    yield "EmbQ changes the hidden states of the query tokens alone", alone
    token = prefill.logits[:, -1:].argmax(-1)
    mask = nn.functional.pad(mask, (0, 1), value=1)
    longer = {"input_ids": torch.cat([ids, token], 1), "attention_mask": mask}
    whole = model(**{**batch, **longer}, use_cache=False).logits[:, -1].float()
    step = model(input_ids=token, attention_mask=mask, past_key_values=prefill.past_key_values)
    step = step.logits[:, -1].float()
    apart = ((whole - step).abs().max() / whole.std()).item()
    said = whole.argmax().item(), step.argmax().item()
    # of near-ties either may win
    near = bool(whole.max() - whole[0, said[1]] <= LOGIT_TOLERANCE * whole.std())
    yield (
        (
            f"token after next: {said[0]} without cache, {said[1]} with it; logits at most {apart:.4f} "
            "standard deviations apart"
        ),
        near and apart <= LOGIT_TOLERANCE,
    )
    out = model.generate(**batch, do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)
    new = out[0, ids.shape[1] :].tolist()
    yield f"generated, greedily: {new}", len(new) == NEW_TOKENS and new[0] == token.item()


def check_training(
    model: FlashSlothForConditionalGeneration, config: Config, stage: str, batch: dict[str, Tensor]
) -> Iterator[CheckedFact]:
    """Two optimiser steps of a stage: loss and each trained part's gradient norm."""
    set_trainable(model, stage, config.tower.train)
    trained = {
        name: list(part.parameters())
        for name, part in list_model_parts(model)
        if any(p.requires_grad for p in part.parameters())
    }
    recipe = getattr(config, stage)
    weights = [p for group in trained.values() for p in group]
    optimizer = torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    for number in range(1, OPTIMISER_STEPS + 1):
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        norms = {
            name: nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]).item()
            for name, group in trained.items()
        }
        nn.utils.clip_grad_norm_(weights, recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        told = ", ".join(f"{name} {norm:.3g}" for name, norm in norms.items())
        good = bool(loss.isfinite()) and all(0 < norm < float("inf") for norm in norms.values())
        yield f"{stage}, step {number}: loss {loss.item():.4f}; gradient norms: {told}", good


def describe_peak_memory(device: torch.device) -> str:
    """Peak memory of the process and of the GPU."""
    unit = 1 if sys.platform == "darwin" else 1024
    found = f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.2f} GiB"
    if device.type == "cuda":
        found += f", of the GPU {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
    return found


def check_full_size(given: argparse.Namespace) -> Iterator[CheckedFact]:
    """All facts in order."""
    device = torch.device(given.device or build.pick_device("auto"))
    with open_preset_config(given.hd, given.quick) as config:
        model, size = build_random_model(config, device)
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in list_model_parts(model)}
    for name, count in {**counts, "all": sum(counts.values())}.items():
        yield f"{name:15} {count:>13,} parameters", True
    yield describe_peak_memory(device), True
    yield from check_inference(model, make_random_batch(model, Tiling(config.tiles("test")).most_crops, size))
    yield describe_peak_memory(device), True
    chosen = given.train or ("both" if device.type == "cuda" else "none")
    for stage, role in (("pretrain", "pretrain"), ("finetune", "train")):
        if chosen in ("both", stage):
            batch = make_random_batch(model, Tiling(config.tiles(role)).most_crops, size)
            yield from check_training(model, config, stage, batch)
            yield describe_peak_memory(device), True


def main(arguments: list[str] | None = None) -> int:
    """The command line: 0, or 1 when something is not as it must be."""
    build.silence_libraries()
    failures = 0
    for fact, holds in check_full_size(build_full_size_parser().parse_args(arguments)):
        sys.stdout.write(fact + ("\n" if holds else "   <- WRONG\n"))
        sys.stdout.flush()
        failures += not holds
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
