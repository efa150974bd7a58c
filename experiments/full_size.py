"""FlashSloth at full size with random weights: a prefill from pixels, a greedy generation, training steps.

The preset is built without weights (so400m and phi-2 from their configurations; nothing is downloaded), then
filled in bfloat16 in place: memory holds the weights once. The run checks that logits are finite, that EmbQ
changes the hidden states of the query tokens and no others, and that the token after next is the same with
the prefill's cache as without. The training steps are AdamW's on bfloat16 weights: at stage 2 eight bytes for
each parameter that is trained, beside activations.
"""

import resource
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig

from compressors.command_line import Command, CommandLine
from compressors.setting_fields import setting
from connectors.tiling import Tiling
from experiments.config.schema import Config
from experiments.efficiency.conditions import parse_device
from experiments.models import build
from experiments.models.random_model import build_random_model, make_random_batch, make_weightless_cells
from experiments.stages.training.module import list_model_parts, set_trainable
from experiments.store.plan import TRAINING_ROLES
from llm_adapters.modeling import FlashSlothForConditionalGeneration

NEW_TOKENS = 4
OPTIMISER_STEPS = 2
# of the logits' standard deviation: how far two ways to a bfloat16 logit may end apart
LOGIT_TOLERANCE = 0.25
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


@dataclass(frozen=True)
class FullSizeOptions:
    hd: bool = setting(False, "the preset flashsloth_hd: five crops, tower trained")
    device: str | None = setting(None, "cpu or cuda (cuda where there is one)")
    train: str | None = setting(
        None,
        "stages to train for two steps (both on a GPU, none on a CPU)",
        choices=(None, "both", "none", *TRAINING_ROLES),
    )
    quick: bool = setting(False, "small sizes: to try the command")


COMMAND = Command(
    usage="python -m experiments.full_size [KEY=VALUE ...]", description=__doc__, options=FullSizeOptions
)


class CheckedFact(NamedTuple):
    """A line to print, and whether it is as it must be."""

    line: str
    holds: bool = True


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0, or 1 when something is not as it must be."""
    return COMMAND.run(run_full_size, arguments)


def run_full_size(line: CommandLine) -> int:
    """The command, with its exceptions."""
    build.silence_libraries()
    failures = 0
    for fact in check_full_size(line.options):
        mark = "" if fact.holds else "   <- WRONG"
        sys.stdout.write(f"{fact.line}{mark}\n")
        sys.stdout.flush()  # a process that runs out of memory is killed: what it has said must be there
        failures += not fact.holds
    return int(failures > 0)


def check_full_size(options: FullSizeOptions) -> Iterator[CheckedFact]:
    """All facts in order."""
    device = parse_device(options.device)
    with open_preset_config(options.hd, options.quick) as config:
        model, size = build_random_model(config, device)
    yield from count_parameters(model)
    yield describe_peak_memory(device)
    crops = Tiling(config.tiles("test")).most_crops
    yield from check_inference(model, make_random_batch(model, crops, size))
    yield describe_peak_memory(device)
    stages = options.train or ("both" if device.type == "cuda" else "none")
    for stage, role in TRAINING_ROLES.items():
        if stages in ("both", stage):
            crops = Tiling(config.tiles(role)).most_crops
            yield from check_training(model, config, stage, make_random_batch(model, crops, size))
            yield describe_peak_memory(device)


@contextmanager
def open_preset_config(hd: bool, quick: bool) -> Iterator[Config]:
    """The preset, its backbones of their published sizes or small ones."""
    overrides = ["preset=flashsloth_hd" if hd else "preset=flashsloth"]
    backbones = None
    if quick:
        overrides.append("embq.dim=64")
        backbones = make_small_backbones()
    with make_weightless_cells(overrides, backbones) as (cell,):
        yield cell.config


def make_small_backbones() -> dict[str, PreTrainedConfig]:
    """Small backbones under the names of the preset's."""
    return {
        "microsoft/phi-2": AutoConfig.for_model("phi", tie_word_embeddings=False, **SMALL_LLM),
        "google/siglip-so400m-patch14-384": AutoConfig.for_model("siglip_vision_model", **SMALL_TOWER),
    }


def count_parameters(model: FlashSlothForConditionalGeneration) -> Iterator[CheckedFact]:
    """A line for each part, and one for all."""
    counts = {}
    for name, part in list_model_parts(model):
        counts[name] = sum(parameter.numel() for parameter in part.parameters())
    counts["all"] = sum(counts.values())
    for name, count in counts.items():
        yield CheckedFact(f"{name:15} {count:>13,} parameters")


@torch.inference_mode()
def check_inference(
    model: FlashSlothForConditionalGeneration, batch: dict[str, Tensor]
) -> Iterator[CheckedFact]:
    """A prefill, the step after it with and without cache, a generation."""
    batch = dict(batch)
    del batch["labels"]  # nothing is learned here, and `generate` takes none
    ids = batch["input_ids"]  # (1, T)
    is_image = ids == model.config.image_token_id
    is_query = ids == model.config.query_token_id
    changes: list[Tensor] = []  # one for each call of EmbQ: (1, T), where it changed the hidden states

    def record_change(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        changes.append((output != inputs[0]).any(-1))

    assert model.query_module is not None  # both presets have EmbQ
    handle = model.query_module.register_forward_hook(record_change)
    prefill = model(**batch, use_cache=True)
    handle.remove()
    yield CheckedFact(
        f"prefill of {ids.shape[1]} tokens, {is_image.sum()} visual and {is_query.sum()} queries: "
        "logits are finite",
        bool(prefill.logits.isfinite().all()),
    )
    yield CheckedFact(
        "EmbQ changes the hidden states of the query tokens alone",
        len(changes) == 1 and torch.equal(changes[0], is_query),
    )
    next_token = prefill.logits[:, -1:].argmax(-1)  # (1, 1)
    # the prefill's cache is changed by this: nothing reads it afterwards
    yield compare_with_cache(model, batch, next_token, prefill.past_key_values)
    inputs: dict[str, Any] = dict(batch)
    output = model.generate(**inputs, do_sample=False, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS)
    answer = output[0, ids.shape[1] :].tolist()
    is_as_long = len(answer) == NEW_TOKENS
    yield CheckedFact(f"generated, greedily: {answer}", is_as_long and answer[0] == next_token.item())


def compare_with_cache(
    model: FlashSlothForConditionalGeneration,
    batch: dict[str, Tensor],
    next_token: Tensor,
    cache: Any,
) -> CheckedFact:
    """The token after next, from the prefill's cache and from all tokens at once."""
    ids = torch.cat([batch["input_ids"], next_token], 1)
    mask = nn.functional.pad(batch["attention_mask"], (0, 1), value=1)
    longer = {**batch, "input_ids": ids, "attention_mask": mask}
    whole = model(**longer, use_cache=False).logits[:, -1].float()  # (1, vocabulary)
    step_output = model(input_ids=next_token, attention_mask=mask, past_key_values=cache)
    step = step_output.logits[:, -1].float()
    apart = ((whole - step).abs().max() / whole.std()).item()
    whole_token = whole.argmax().item()
    step_token = step.argmax().item()
    # of near-ties either may win
    near = bool(whole.max() - whole[0, step_token] <= LOGIT_TOLERANCE * whole.std())
    return CheckedFact(
        f"token after next: {whole_token} without cache, {step_token} with it; logits at most {apart:.4f} "
        "standard deviations apart",
        near and apart <= LOGIT_TOLERANCE,
    )


def check_training(
    model: FlashSlothForConditionalGeneration, config: Config, stage: str, batch: dict[str, Tensor]
) -> Iterator[CheckedFact]:
    """Two optimiser steps of a stage: loss and each trained part's gradient norm."""
    set_trainable(model, stage, config.tower.train)
    trained_parts = {}
    for name, part in list_model_parts(model):
        if any(parameter.requires_grad for parameter in part.parameters()):
            trained_parts[name] = list(part.parameters())
    weights: list[nn.Parameter] = []
    for part_weights in trained_parts.values():
        weights += part_weights
    recipe = getattr(config, stage)
    optimizer = torch.optim.AdamW(weights, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=True)
    for number in range(1, OPTIMISER_STEPS + 1):
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        norms = {}
        for name, part_weights in trained_parts.items():
            gradients = [weight.grad for weight in part_weights if weight.grad is not None]
            norms[name] = nn.utils.get_total_norm(gradients).item()
        nn.utils.clip_grad_norm_(weights, recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        norm_words = ", ".join(f"{name} {norm:.3g}" for name, norm in norms.items())
        # a part that gets no gradient is as wrong as one that explodes
        all_trained = all(0 < norm < float("inf") for norm in norms.values())
        yield CheckedFact(
            f"{stage}, step {number}: loss {loss.item():.4f}; gradient norms: {norm_words}",
            bool(loss.isfinite()) and all_trained,
        )


def describe_peak_memory(device: torch.device) -> CheckedFact:
    """Peak memory of the process and of the GPU."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform != "darwin":  # there it counts bytes, elsewhere KiB
        peak *= 1024
    words = f"peak memory {peak / 2**30:.2f} GiB"
    if device.type == "cuda":
        words += f", of the GPU {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB"
    return CheckedFact(words)


if __name__ == "__main__":
    sys.exit(main())
