"""positions=keep in models of transformers, where positions are those of text."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from reuse_families import (
    answers,
    cache_agrees,
    family_params,
    inputs,
    make_model,
    make_processor,
    over_families,
    picture,
    prompt,
    two_rows,
)
from reuse_models import GRID

from compressors.errors import UsageError
from connectors.versions import CACHE, read_cache
from llm_adapters import reuse
from llm_adapters.reuse.parts.positions import RUNS

PLAIN = [
    name
    for name, family in reuse.FAMILIES.items()
    if family.processor in RUNS and not family.rope and not family.whole_images
]
GRID_KEEPING = [name for name, family in reuse.FAMILIES.items() if family.rope]
PATCHES = GRID * GRID
BUDGET = 7
KEEP = {"compressor": "divprune", "positions": "keep", "tokens": BUDGET}


def test_llava_is_the_plain_model_that_does_not_see_the_others():
    model, processor = make_model("llava"), make_processor("llava")
    rows = two_rows("llava")
    rows[1] = (prompt("llava", "And that, is it a cat?", images=2), [picture(2), picture(3)])
    full = inputs(processor, rows)
    reuse.attach(model, processor, **KEEP)
    batch = inputs(processor, rows)
    outputs = model.model.get_image_features(batch["pixel_values"])
    kept = torch.stack(outputs.kept.places)
    assert kept.shape == (3, BUDGET) and outputs.kept.grids == [(GRID, GRID)] * 3
    with torch.no_grad():
        logits = model(**batch).logits[batch["attention_mask"].bool()]
    reuse.detach(model, processor)
    is_image = full["input_ids"] == model.config.image_token_id
    positions = (full["attention_mask"].cumsum(1) - 1).clamp(min=0)
    stays = torch.zeros(3, PATCHES, dtype=torch.long).scatter(1, kept, 1)
    mask = full["attention_mask"].clone()
    mask[is_image] = stays.flatten()
    with torch.no_grad():
        whole = model(**{**full, "attention_mask": mask}, position_ids=positions).logits
    torch.testing.assert_close(logits, whole[mask.bool()], atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore::llm_adapters.reuse.NeedsTraining")
@pytest.mark.parametrize("family", family_params(*PLAIN, *GRID_KEEPING))
def test_embeddings_with_images_are_refused(family):
    """They do not tell where images stand: positions would be those of text, in silence."""
    model, processor = make_model(family), make_processor(family)
    reuse.attach(model, processor, **KEEP)
    batch = inputs(processor, two_rows(family))
    embeds = model.get_input_embeddings()(batch.pop("input_ids"))
    if getattr(model.config.get_text_config(), "hidden_size_per_layer_input", None):
        ids = torch.zeros_like(embeds[..., 0], dtype=torch.long)
        batch["per_layer_inputs"] = model.model.language_model.get_per_layer_inputs(ids)
    with pytest.raises(UsageError, match=r"\A(?!.*\n)positions=keep: .* give input_ids"):
        model(inputs_embeds=embeds, **batch)


@pytest.mark.filterwarnings("ignore::llm_adapters.reuse.NeedsTraining")
@pytest.mark.parametrize("family", family_params(*PLAIN))
def test_generation_continues_behind_the_patches(family):
    model, processor = make_model(family), make_processor(family)
    try:
        reuse.attach(model, processor, **KEEP)
    except UsageError as error:
        assert "has no rotary positions" in str(error)
        return
    rows = two_rows(family)
    rows[0] = (prompt(family, images=2), [picture(1), picture(2)])
    batch = inputs(processor, rows)
    said = answers(model, batch)
    assert said == [answers(model, inputs(processor, [row]))[0] for row in rows]
    if cache_agrees(family, two_rows(family)):
        assert answers(model, batch, use_cache=False) == said
    beams = answers(model, batch, num_beams=2)
    assert beams == [answers(model, inputs(processor, [row]), num_beams=2)[0] for row in rows]
    seen = record_positions(model)
    answers(model, batch)
    crops = (batch["input_ids"] == image_id(model)).sum(1) // BUDGET
    last = seen[0][:, -1]
    first = int(family == "paligemma")  # it counts from 1
    tokens = batch["attention_mask"].sum(1)
    assert torch.equal(last, tokens - 1 + first + crops * (PATCHES - BUDGET))
    for step, positions in enumerate(seen[1:], 1):
        assert torch.equal(positions[:, 0], last + step)


def image_id(model) -> int:
    return getattr(model.config, "image_token_id", None) or model.config.image_token_index


GRIDS = [name for name, family in reuse.FAMILIES.items() if family.rope]


@pytest.mark.filterwarnings("ignore::llm_adapters.reuse.NeedsTraining")
@pytest.mark.parametrize("family", family_params(*GRIDS))
def test_grids_keep_the_places_of_the_whole_image(family):
    """Positions are those that `identity` has, of kept patches and of all text."""
    model, processor = make_model(family), make_processor(family)
    rows = two_rows(family)
    rows[0] = (prompt(family, images=2), [picture(1), picture(3, 40, 24)])
    knobs = {"compressor": "divprune", "tokens": BUDGET}
    reuse.attach(model, processor, **knobs, positions="keep")
    batch = inputs(processor, rows)
    seen = record_positions(model)
    said = answers(model, batch)
    with torch.no_grad():
        logits = model(**batch).logits[batch["attention_mask"].bool()]
    together = seen[0][-3:, batch["attention_mask"].bool()]
    assert torch.equal(together, seen[-1][-3:, batch["attention_mask"].bool()])  # generate and forward
    steps = [positions[-3:, :, 0] for positions in seen[1:-1]]
    kept = model.model.get_image_features(batch["pixel_values"], batch["image_grid_thw"]).kept
    for step, positions in enumerate(steps, 1):
        assert torch.equal(positions, seen[0][-3:, :, -1] + step)
    assert said == [answers(model, inputs(processor, [row]))[0] for row in rows]
    if cache_agrees(family, two_rows(family)):
        assert answers(model, batch, use_cache=False) == said
    beams = answers(model, batch, num_beams=2)
    assert beams == [answers(model, inputs(processor, [row]), num_beams=2)[0] for row in rows]
    assert logits.isfinite().all()
    reuse.detach(model, processor)
    reuse.attach(model, processor, "identity")
    full = inputs(processor, rows)
    whole = record_positions(model)
    model(**full)
    is_there = full["attention_mask"].bool().clone()
    is_kept = []
    for places, (height, width) in zip(kept.places, kept.grids):
        is_kept.append(torch.zeros(height * width).scatter(0, places, 1.0).bool())
    is_there[full["input_ids"] == image_id(model)] = torch.cat(is_kept)
    assert torch.equal(together, whole[0][-3:, is_there])


@pytest.mark.parametrize("family", family_params("qwen2_5_vl"))
def test_threads_keep_patches_of_their_own(family):
    """One asks for an answer between what the other has encoded and its decoder."""
    model, processor = make_model(family), make_processor(family)
    reuse.attach(model, processor, "divprune", tokens=BUDGET, positions="keep")
    batch = inputs(processor, two_rows(family))
    other = inputs(processor, [(prompt(family), [picture(7)])])
    with torch.no_grad():
        alone = model(**batch).logits
    worker = ThreadPoolExecutor(1)
    interrupting = [True]

    def interrupt(*_: object) -> None:
        if interrupting and interrupting.pop():
            worker.submit(answers, model, other).result()

    model.model.register_forward_pre_hook(interrupt)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, alone)
    assert not interrupting


@pytest.mark.parametrize("family", family_params("qwen2_5_vl", "glm4v"))
def test_images_without_types_of_tokens_are_refused(family):
    """The model would count its visual tokens as text; what it has refused does not reach the next prompt."""
    model, processor = make_model(family), make_processor(family)
    reuse.attach(model, processor, "divprune", tokens=4, positions="keep")
    batch = inputs(processor, [(prompt(family, "And that?"), [picture(5, 40, 24)])])
    options = {"max_new_tokens": 3, "do_sample": False, "output_logits": True}
    expected = model.generate(**batch, **options, return_dict_in_generate=True).logits
    other = inputs(processor, [(prompt(family), [picture(3)])])
    del other["mm_token_type_ids"]
    with pytest.raises(UsageError, match=r"\A(?!.*\n)positions=keep: .*mm_token_type_ids"):
        model(**other)
    found = model.generate(**batch, **options, return_dict_in_generate=True).logits
    assert torch.equal(torch.stack(found), torch.stack(expected))


def test_images_behind_a_cache_need_positions():
    """The model would count on from the words behind the cache."""
    model, processor = make_model("qwen2_5_vl"), make_processor("qwen2_5_vl")
    reuse.attach(model, processor, "divprune", tokens=4, positions="keep")
    batch = inputs(processor, [(prompt("qwen2_5_vl"), [picture(1)])])
    cache = read_cache(model(**batch, use_cache=True))
    del batch["attention_mask"]
    with pytest.raises(UsageError, match=r"\A(?!.*\n)positions=keep: images behind a KV cache"):
        model(**batch, **{CACHE: cache})


def test_a_prompt_in_pieces_is_refused():
    model, processor = make_model("llava"), make_processor("llava")
    reuse.attach(model, processor, **KEEP)
    with pytest.raises(UsageError, match="leave out prefill_chunk_size"):
        answers(model, inputs(processor, two_rows("llava")), prefill_chunk_size=16)


def record_positions(model) -> list[torch.Tensor]:
    """Positions of each call of the LLM's decoder."""
    seen: list[torch.Tensor] = []
    model.get_decoder().register_forward_pre_hook(
        lambda _module, _arguments, keywords: seen.append(keywords["position_ids"]), with_kwargs=True
    )
    return seen


@over_families
def test_where_positions_are_others_it_is_refused(family):
    if family in PLAIN or reuse.FAMILIES[family].rope:
        pytest.skip("it can be done")
    model, processor = make_model(family), make_processor(family)
    with pytest.raises(
        UsageError, match=r"\A(?!.*\n)compressor 'divprune': positions=keep: in models of type"
    ):
        reuse.attach(model, processor, **KEEP)
    assert not hasattr(model, "slothkit")


def test_a_pruner_that_renumbers_is_refused():
    line = r"\A(?!.*\n)pyramid_drop.positions=renumber: the compressor has positions=keep"
    model, processor = make_model("llava"), make_processor("llava")
    reuse.prune(model, "pyramid_drop")
    with pytest.raises(UsageError, match=line):
        reuse.attach(model, processor, **KEEP)
    assert not hasattr(model, "slothkit")
    reuse.prune(model, None)
    reuse.attach(model, processor, **KEEP)
    with pytest.raises(UsageError, match=line):
        reuse.prune(model, "pyramid_drop")
    reuse.prune(model, "pyramid_drop", positions="keep")


def test_saved_and_detached(tmp_path):
    model, processor = make_model("llava"), make_processor("llava")
    before = answers(model, inputs(processor, two_rows("llava")))
    reuse.attach(model, processor, **KEEP)
    batch = inputs(processor, two_rows("llava"))
    said = answers(model, batch)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, again_processor = reuse.load(tmp_path)
    assert answers(again, inputs(again_processor, two_rows("llava"))) == said
    reuse.detach(model, processor)
    assert answers(model, inputs(processor, two_rows("llava"))) == before


def test_a_cache_without_positions_is_refused():
    model, processor = make_model("llava"), make_processor("llava")
    reuse.attach(model, processor, **KEEP)
    batch = inputs(processor, two_rows("llava"))
    output = model(**batch, use_cache=True)
    last = batch["input_ids"][:, -1:]
    for tokens in ({"input_ids": last}, {"inputs_embeds": model.get_input_embeddings()(last)}):
        with pytest.raises(UsageError, match="tokens behind a KV cache need `position_ids`"):
            model(**tokens, **{CACHE: read_cache(output)})


@torch.no_grad()
def test_text_and_steps_by_their_embeddings_have_the_positions_of_ids():
    model, processor = make_model("llava"), make_processor("llava")
    reuse.attach(model, processor, **KEEP)
    embed = model.get_input_embeddings()
    text = {"input_ids": torch.tensor([[0, 20, 30], [20, 30, 40]])}
    mask = torch.tensor([[0, 1, 1], [1, 1, 1]])
    for options in ({}, {"attention_mask": mask}):
        by_embeddings = model(inputs_embeds=embed(text["input_ids"]), **options).logits
        assert torch.equal(by_embeddings, model(**text, **options).logits)
    batch = inputs(processor, [(prompt("llava"), [picture(1)])])
    positions, word = record_positions(model), torch.tensor([[20]])
    whole = torch.cat([batch["input_ids"], word], 1)
    expected = model(input_ids=whole, pixel_values=batch["pixel_values"]).logits[:, -1]
    cache = read_cache(model(**batch, use_cache=True))
    last = positions[0][:, -1:]
    found = model(inputs_embeds=embed(word), position_ids=last, **{CACHE: cache}).logits[:, -1]
    torch.testing.assert_close(found, expected)
