"""Compressors without weights before a model's own projector: nothing is trained, and all goes on."""

import warnings

import pytest
import torch
from reuse_families import (
    BUDGET,
    SHUFFLED,
    answers,
    attach_training_free,
    attached_training_free,
    cache_agrees,
    count_hooks,
    family_params,
    inputs,
    make_model,
    make_processor,
    over_cue_families,
    over_training_free,
    picture,
    prompt,
    two_rows,
)
from reuse_models import GRID

from compressors.errors import UsageError
from llm_adapters import reuse
from llm_adapters.saved import load_saved_model


def test_identity_changes_no_bit():
    model, processor = make_model("llava"), make_processor("llava")
    rows = two_rows("llava")
    batch = inputs(processor, rows)
    with torch.no_grad():
        logits = model(**batch).logits
    said = answers(model, batch)
    reuse.attach(model, processor, "identity")
    after = inputs(processor, rows)
    assert all(torch.equal(batch[name], after[name]) for name in batch)
    with torch.no_grad():
        assert torch.equal(model(**after).logits, logits)
    assert answers(model, after) == said


@pytest.mark.parametrize("family", family_params("llava", "vipllava", "paligemma", "deepseek_vl"))
@pytest.mark.parametrize(
    ("name", "knobs"), [("visionzip", {"context": 0.0}), ("vispruner", {}), ("scope", {})]
)
def test_all_patches_are_the_plain_model(family, name, knobs):
    """A budget of every patch, in raster order: cues go along, and change nothing."""
    model, processor = make_model(family), make_processor(family)
    batch = inputs(processor, two_rows(family))
    with torch.no_grad():
        logits = model(**batch).logits
        reuse.attach(model, processor, name, tokens=GRID * GRID, **knobs)
        after = inputs(processor, two_rows(family))
        torch.testing.assert_close(model(**after).logits, logits, atol=1e-5, rtol=1e-5)


@over_training_free
def test_llava_generates(part_name):
    """The same with a KV cache as without, in a batch as alone."""
    model, processor = attached_training_free("llava", part_name)
    rows = two_rows("llava") + [(prompt("llava", images=2), [picture(3), picture(4)])]
    batch = inputs(processor, rows)
    said = answers(model, batch)
    if cache_agrees("llava", rows):
        assert answers(model, batch, use_cache=False) == said
    assert [answers(model, inputs(processor, [row]))[0] for row in rows] == said


@over_cue_families
def test_visionzip_generates_in_every_family(family):
    if family in SHUFFLED:
        pytest.skip("its projector does not fit: a new one is to be trained")
    model, processor = make_model(family), make_processor(family)
    with warnings.catch_warnings():
        warnings.simplefilter("error", reuse.NeedsTraining)
        attach_training_free(model, processor, "visionzip")
    assert model.slothkit.projector is None
    rows = two_rows(family)
    batch = inputs(processor, rows)
    said = answers(model, batch)
    if cache_agrees(family, rows):
        assert answers(model, batch, use_cache=False) == said
    assert [answers(model, inputs(processor, [row]))[0] for row in rows] == said


@pytest.mark.parametrize(("tokens", "count"), [(1, 1), (7, 7), (0.25, 9), (0.5, 18), (36, 36)])
@over_training_free
def test_budgets_are_counts_or_shares(tokens, count, part_name):
    model, processor = attached_training_free("llava", part_name, tokens=tokens)
    batch = inputs(processor, [(prompt("llava", images=2), [picture(1), picture(2)])])
    assert (batch["input_ids"] == model.config.image_token_id).sum() == 2 * count
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()


def test_a_budget_that_cannot_be_changes_nothing():
    model, processor = make_model("llava"), make_processor("llava")
    for tokens in (37, 0, 1.5):
        with pytest.raises(UsageError, match=f"tokens={tokens}"):
            reuse.attach(model, processor, "visionzip", tokens=tokens)
    assert not hasattr(model, "slothkit") and not hasattr(processor, "attached")


@over_training_free
def test_saved_and_loaded(part_name, tmp_path):
    """By `reuse.load`, and as the lmms-eval plug-in loads it."""
    model, processor = attached_training_free("llava", part_name)
    batch = inputs(processor, two_rows("llava"))
    with torch.no_grad():
        logits = model(**batch).logits
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", reuse.NeedsTraining)
        loaded = reuse.load(tmp_path)
        evaluated = load_saved_model(tmp_path, torch.device("cpu"), attached=True)
    for again, again_processor in (loaded, evaluated):
        again_batch = inputs(again_processor, two_rows("llava"))
        assert all(torch.equal(batch[name], again_batch[name]) for name in batch)
        with torch.no_grad():
            assert torch.equal(again.eval()(**again_batch).logits, logits)


@over_training_free
def test_detach_restores_exactly(part_name):
    plain, plain_processor = make_model("llava"), make_processor("llava")
    model, processor = attached_training_free("llava", part_name)
    with torch.no_grad():
        model(**inputs(processor, two_rows("llava")))
    reuse.detach(model, processor)
    batch = inputs(processor, two_rows("llava"))
    plain_batch = inputs(plain_processor, two_rows("llava"))
    assert all(torch.equal(batch[name], plain_batch[name]) for name in plain_batch)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, plain(**batch).logits)
    assert count_hooks(model) == count_hooks(plain)  # transformers leaves some of its own
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert model.config.to_dict() == plain.config.to_dict()


@over_training_free
def test_half_precision(part_name):
    model, processor = make_model("llava").to(torch.bfloat16), make_processor("llava")
    attach_training_free(model, processor, part_name)
    batch = inputs(processor, two_rows("llava"))
    batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
    with torch.no_grad():
        logits = model(**batch).logits
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()


@pytest.mark.parametrize("family", family_params(*SHUFFLED, "internvl"))
def test_a_projector_that_must_be_trained_is_told(family, tmp_path):
    """Once, at `attach`: not as it is loaded, nor where a projector is asked for."""
    model, processor = make_model(family), make_processor(family)
    with pytest.warns(reuse.NeedsTraining, match="tokens are 16 wide and the model's own projector takes 64"):
        reuse.attach(model, processor, "divprune", tokens=BUDGET)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    reuse.detach(model, processor)
    with warnings.catch_warnings():
        warnings.simplefilter("error", reuse.NeedsTraining)
        reuse.load(tmp_path)
        reuse.attach(model, processor, "divprune", tokens=BUDGET, new_projector="linear")
        reuse.detach(model, processor)
        reuse.attach(model, processor, "pixel_shuffle", rate=2)  # as wide as the projector


@pytest.mark.parametrize("family", family_params("llava_next", "llava_next_video"))
def test_tiles_stay_one_after_another(family):
    """The thumbnail's tokens, then each tile's, without newlines: they have no grid."""
    model, processor = attached_training_free(family, "visionzip")
    made = []
    model.slothkit.compressor.register_forward_hook(lambda *arguments: made.append(arguments[-1]))
    batch = inputs(processor, [(prompt(family), [picture(2, 40, 24)])])
    with torch.no_grad():
        found = model.get_image_features(batch["pixel_values"], batch["image_sizes"]).pooler_output[0]
        expected = model.model.multi_modal_projector(made[0]).flatten(0, 1)
    assert len(made[0]) > 1
    torch.testing.assert_close(found, expected)
