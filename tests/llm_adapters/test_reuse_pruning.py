"""In-LLM pruners in multimodal models of transformers, as they are and with a compressor and EmbQ."""
import copy
from statistics import mean

import pytest
import torch
from pruning_cases import CASES
from reuse_families import (
    EMBQ,
    SAP,
    answers,
    attached,
    cache_agrees,
    inputs,
    make_model,
    make_processor,
    over_families,
    picture,
    pieces_refused,
    prompt,
    two_rows,
)

from compressors.errors import UsageError
from llm_adapters import reuse
from llm_adapters.adapter import decoder_layers
from llm_adapters.pruning.schedule import count as share

LAYER, SHARE = 1, 0.5  # of the models' three decoder layers
FASTV = {"layer": LAYER, "ratio": SHARE}


def pruned(family, **knobs):
    model = make_model(family)
    reuse.prune(model, "fastv", **(knobs or FASTV))
    return model, make_processor(family)


def visual_tokens(model, batch):
    """Of each row."""
    return (batch["input_ids"] == model.config.image_token_id).sum(1).tolist()


@over_families
@pytest.mark.parametrize("case", CASES)
def test_batched_is_one_by_one(family, case):
    model, processor = make_model(family), make_processor(family)
    name, knobs = CASES[case]
    reuse.prune(model, name, **({"recipe": (0.6, 0.3)} if name == "fitprune" else knobs))
    rows = two_rows(family)
    batch, endless = inputs(processor, rows), {"eos_token_id": 9999}
    single = [answers(model, inputs(processor, [row]), **endless)[0] for row in rows]
    assert answers(model, batch, **endless) == single


@over_families
def test_it_is_fastv(family):
    """The definition, slowly: from layer LAYER on nothing sees a token that is not among the best of the last
    token's attention there."""
    model, processor = pruned(family)
    batch = inputs(processor, two_rows(family)[1:])
    with torch.no_grad():
        found = model(**batch).logits[:, -1]
        reuse.prune(model, None)
        torch.testing.assert_close(found, slow_fastv(model, batch), atol=1e-4, rtol=1e-4)
        assert (found - model(**batch).logits[:, -1]).abs().max() > 1e-3


def slow_fastv(model, batch):
    model.set_attn_implementation("eager")
    llm, seen = getattr(model.base_model, reuse.FAMILIES[model.config.model_type].language_model), []
    handles = [decoder_layers(llm)[LAYER - 1].self_attn.register_forward_hook(
        lambda module, args, output: seen.append(output[1]))]  # noqa: ARG005

    def hide(layer, args, kwargs):  # noqa: ARG001
        [weights] = seen
        is_image = batch["input_ids"][0] == model.config.image_token_id
        scores = weights[0, :, -1].mean(0).masked_fill(~is_image, -1)
        keep = scores.topk(share(int(is_image.sum()), SHARE)).indices
        gone = is_image.index_fill(0, keep, False)
        mask = kwargs["attention_mask"]
        lowest = torch.finfo(mask.dtype).min
        own = torch.eye(mask.shape[-1], dtype=torch.bool)
        return args, {**kwargs, "attention_mask": mask.masked_fill(gone & ~own, lowest)}

    handles += [layer.register_forward_pre_hook(hide, with_kwargs=True)
                for layer in decoder_layers(llm)[LAYER:]]
    logits = model(**batch).logits[:, -1]
    for handle in handles:
        handle.remove()
    return logits


@over_families
def test_the_cache_shrinks_and_all_is_as_before_afterwards(family):
    model, processor = pruned(family)
    batch = inputs(processor, two_rows(family)[:1])
    [images] = visual_tokens(model, batch)
    length, fresh = batch["input_ids"].shape[1], make_model(family)
    with torch.no_grad():
        cache = model(**batch, use_cache=True).past_key_values
        left = length - images + share(images, SHARE)
        assert [cache.get_seq_length(i) for i in range(3)] == [length, left, left]
        reuse.prune(model, None)
        assert torch.equal(model(**batch).logits, fresh(**batch).logits)
    for ours, plain in zip(model.modules(), fresh.modules(), strict=True):
        assert vars(ours).keys() == vars(plain).keys()
        assert len(ours._forward_pre_hooks) == len(plain._forward_pre_hooks)
        assert len(ours._forward_hooks) == len(plain._forward_hooks)


@over_families
def test_nothing_dropped_changes_nothing(family):
    model, processor = pruned(family, ratio=1.0)
    batch = inputs(processor, two_rows(family))
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, make_model(family)(**batch).logits)


@over_families
@pytest.mark.parametrize("first", ["attach", "prune"])
def test_with_a_compressor_and_embq(family, first):
    if first == "attach":
        model, processor = attached(family)
        reuse.prune(model, "fastv", **FASTV)
    else:
        model, processor = pruned(family)
        reuse.attach(model, processor, **SAP, **EMBQ)
    rows = two_rows(family, marked=True)
    batch = inputs(processor, rows)
    said = answers(model, batch)
    assert said == [answers(model, inputs(processor, [row]))[0] for row in rows]
    assert said == answers(copy.deepcopy(model), batch)
    images = visual_tokens(model, batch)
    with torch.no_grad():
        cache = model(**batch, use_cache=True).past_key_values
    # the row that drops fewest; padding is not dropped
    assert cache.get_seq_length(0) - cache.get_seq_length(2) == min(n - share(n, SHARE) for n in images) > 0


@over_families
def test_fitprune_is_calibrated(family):
    model, processor = make_model(family), make_processor(family)
    batch = inputs(processor, two_rows(family))
    with pytest.raises(UsageError, match="pruner=fitprune: has to be calibrated: give calibrate_on"):
        reuse.prune(model, "fitprune", average=0.6)
    assert not hasattr(model, "slothkit_pruning")
    reuse.prune(model, "fitprune", average=0.6, calibrate_on=[batch])
    held = model.slothkit_pruning.pruner
    blank = {"calibrate_on": [{"input_ids": batch["input_ids"][:, -3:]}]}
    with pytest.raises(UsageError, match="none of the samples"):
        reuse.prune(model, "fitprune", **blank)
    assert model.slothkit_pruning.pruner is held
    model(**batch)
    assert held.measured_visual_tokens() / mean(visual_tokens(model, batch)) == pytest.approx(0.6, abs=0.05)


def test_beams_and_several_images():
    model, processor = pruned("llava")
    rows = two_rows("llava")
    rows[0] = (prompt("llava", images=2), [picture(1), picture(2)])
    batch = inputs(processor, rows)
    if not cache_agrees("llava", rows, num_beams=3):
        pytest.skip("this version of transformers mixes up the images of beams")
    assert answers(model, batch, num_beams=3) == [
        answers(model, inputs(processor, [row]), num_beams=3)[0] for row in rows]


def test_what_cannot_be():
    model, processor = make_model("llava"), make_processor("llava")
    with pytest.raises(UsageError, match="fast_v"):
        reuse.prune(model, "fast_v")
    with pytest.raises(UsageError, match="pruner=fastv: is not calibrated"):
        reuse.prune(model, "fastv", calibrate_on=[{}])
    assert not hasattr(model, "slothkit_pruning")
    with pytest.raises(UsageError, match="a compressor can be put into"):
        reuse.prune(torch.nn.Linear(1, 1), "fastv")
    reuse.prune(model, "fastv", **FASTV)
    batch = inputs(processor, two_rows("llava"))
    with pieces_refused("without prefill_chunk_size"):
        answers(model, batch, prefill_chunk_size=8)
    with pytest.raises(UsageError, match="generate without cache_implementation"):
        answers(model, batch, cache_implementation="static", disable_compile=True)
