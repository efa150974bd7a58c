"""Which image-text-to-text classes of the installed transformers a pruner takes, and that it acts there."""

import inspect
from collections import Counter
from pathlib import Path

import pytest
import torch
from model_walk import LAYERS, build_on_meta, shrink_language_model
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from compressors.errors import UsageError
from connectors.versions import CACHE, is_at_least
from llm_adapters.pruning.apply import PruningAdapter
from llm_adapters.pruning.attention import PRUNING_CONTEXT
from llm_adapters.pruning.base import registry
from llm_adapters.pruning.deepstack import LISTED_NAMES, NUMBERED_NAMES, take_deepstack
from llm_adapters.pruning.prompt import make_prompt
from llm_adapters.reuse.families import FAMILIES
from llm_adapters.reuse.language_models import find_language_model
from llm_adapters.reuse.wrapping import VIDEO_TOKEN_NAMES, read_token_id

REASONS = (
    "per-layer",
    "sparse",
    "hybrid",
    "cross-attention",
    "encoder-decoder",
    "no language model",
    "image_token_id",
    "input_ids",
)
LENGTH = 12
IMAGE = slice(2, 10)
# What language models are handed of the tokens of a prompt beside what all of them take. For another one, see
# that it follows the tokens that are left before it joins these.
HANDED_ARGUMENTS = {"moe_mm_token_type_ids", *LISTED_NAMES, *NUMBERED_NAMES}
USUAL_ARGUMENTS = {
    *("input_ids", "attention_mask", "position_ids", "inputs_embeds", "use_cache"),
    *("cache", "kwargs", "labels", "logits_to_keep"),
}


def make_handed_arguments(language_model, is_image: torch.Tensor, embeds: torch.Tensor) -> dict:
    """What a model with an image hands its language model beside embeddings."""
    taken = list_arguments(language_model)
    handed = {}
    if "moe_mm_token_type_ids" in taken:
        handed["moe_mm_token_type_ids"] = is_image.long()
    features = embeds[is_image]
    if LISTED_NAMES[0] in taken:
        handed |= dict(zip(LISTED_NAMES, ([features], is_image)))
    if NUMBERED_NAMES[0] in taken:
        handed |= dict(zip(NUMBERED_NAMES, ({0: features, 2: features}, is_image.unsqueeze(-1))))
    return handed


def list_arguments(language_model) -> set[str]:
    return set(inspect.signature(language_model.forward).parameters)


@torch.no_grad()
def count_cached(language_model) -> list[int]:
    """Tokens in the cache of each layer after a prompt of which FastV drops half of eight visual tokens."""
    adapter = PruningAdapter()
    adapter.language_model = language_model
    adapter.use_pruner(registry.create("fastv", llm_layers=LAYERS, layer=1, ratio=0.5))
    embeds = language_model.get_input_embeddings()(torch.arange(LENGTH).unsqueeze(0))
    is_image = torch.zeros(1, LENGTH, dtype=torch.bool)
    is_image[:, IMAGE] = True
    prompt = make_prompt(is_image, ~is_image, LENGTH, None, None, embeds)
    run, cache = adapter.start_pruning(prompt, LENGTH, None, True)
    handed = make_handed_arguments(language_model, is_image, embeds)
    run.deepstack = take_deepstack(handed)
    language_model(inputs_embeds=embeds, **handed, **{PRUNING_CONTEXT: run, CACHE: cache})
    run.record_passed_tokens()
    return [cache.get_seq_length(layer) for layer in range(LAYERS)]


@pytest.fixture
def readme() -> str:
    """The room's, on one line."""
    return " ".join((Path(__file__).parents[3] / "llm_adapters" / "README.md").read_text().split())


@pytest.mark.skipif(not is_at_least("5.24"), reason="the classes of 5.24 were counted")
def test_the_readme_says_how_many_classes_attach_takes(readme):
    kinds = list(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    taken = [kind for kind in kinds if kind in FAMILIES]
    said = f"`reuse.attach` takes {len(taken)}; the other {len(kinds) - len(taken)} are refused by name"
    assert f"Of the {len(kinds)} image-text-to-text classes of transformers 5.24 {said}" in readme


@pytest.mark.slow
@pytest.mark.skipif(not is_at_least("5.24"), reason="the classes of 5.24 were counted")
def test_every_class_is_taken_or_refused_with_its_reason(readme):
    counts, failed = Counter(), {}
    for kind, model in build_on_meta():
        if model is None:
            counts["not built"] += 1
            continue
        try:
            language_model = find_language_model(model)
        except UsageError as error:
            assert "\n" not in str(error) and type(model).__name__ in str(error)
            counts[next(reason for reason in REASONS if reason in str(error))] += 1
            continue
        counts["taken"] += 1
        unknown = list_arguments(language_model) - USUAL_ARGUMENTS - HANDED_ARGUMENTS
        assert not unknown, (kind, unknown)
        if "pixel_values_videos" in inspect.signature(model.base_model.forward).parameters:
            counts["videos"] += 1
            assert read_token_id(model.config, VIDEO_TOKEN_NAMES) >= 0, kind  # of their placeholders
        try:
            small = shrink_language_model(language_model)
            with torch.no_grad():  # as it is, without a pruner
                small(input_ids=torch.arange(LENGTH).unsqueeze(0))
        except Exception:  # of any kind: its sizes are told otherwise
            counts["not shrunk"] += 1
            continue
        if count_cached(small) == [LENGTH, LENGTH - 4, LENGTH - 4]:
            counts["run"] += 1
        else:
            failed[kind] = type(language_model).__name__
    assert not failed, failed
    assert counts["run"] + counts["not shrunk"] == counts["taken"]
    enough = counts["taken"] > 55 and counts["run"] > 50 and counts["not built"] < 10
    assert enough, counts
    refused = sum(counts[reason] for reason in REASONS)
    said = f"takes {counts['taken']}; {refused} are refused, and {counts['not built']} have default"
    assert said in readme and f"{counts['videos']} of the {counts['taken']} take videos" in readme
    assert counts["hybrid"] and counts["cross-attention"] and counts["encoder-decoder"]
