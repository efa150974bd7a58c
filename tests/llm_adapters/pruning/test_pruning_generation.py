"""Pruned models behave as models: batches, padding, caches, beams, saving, training, and what is refused."""

import copy

import pytest
import torch
from factories import LLMS, make_batch, picture
from pruning_cases import CASES, DEPTH, ROWS, build, generate, inputs
from torch import nn
from transformers import AutoModelForImageTextToText, DynamicCache
from turns import take_turns

from compressors.errors import UsageError
from connectors.versions import CACHE, is_at_least
from llm_adapters.adapter import decoder_layers
from llm_adapters.conversation import IMAGE, Turn
from llm_adapters.pruning.run import PrunedPass

FAMILIES = (*LLMS, "qwen3", "gemma2", "gemma3", "gpt_neox")
ANSWERED = [
    (
        [Turn(f"{IMAGE}\nWhat is this?", "A dog."), Turn(f"And {IMAGE} that?", "The cat")],
        [picture(1), picture(2)],
    ),
    ([Turn("Hi", "no")], []),
    ([Turn(f"{IMAGE}?", "red")], [picture(3)]),
]


@torch.no_grad()
@pytest.mark.parametrize(("case", "llm"), take_turns(list(CASES), LLMS, one_in=3, always=["fastv"]))
def test_answers_batched_and_cached_are_those_of_single_rows_uncached(llm, case):
    model, processor = build(llm)
    batch = inputs(processor, ROWS)
    whole, logits = generate(model, batch), model(**batch).logits
    name, knobs = CASES[case]
    model.set_pruner(name, **knobs)
    expected = [generate(model, inputs(processor, [row]), use_cache=False)[0] for row in ROWS]
    assert generate(model, batch) == expected
    assert generate(model, batch, use_cache=False) == expected
    assert expected[1] == whole[1]  # no image, nothing to drop
    assert not torch.equal(model(**batch).logits, logits)
    assert expected != whole or not is_at_least("5.17")  # older versions draw other random weights


@torch.no_grad()
def test_a_decoding_step_asks_no_pruner_and_reads_no_signature(monkeypatch):
    model, processor = build("llama")
    model.set_pruner("fastv")
    batch = inputs(processor, ROWS)
    expected = generate(model, batch)

    monkeypatch.setattr("llm_adapters.pruning.apply.inspect", None)
    asked = []
    ask_pruner = PrunedPass.ask_pruner
    monkeypatch.setattr(
        PrunedPass, "ask_pruner", lambda run, *rest: (asked.append(run.total), ask_pruner(run, *rest))
    )
    options = {"attention_mask": batch["attention_mask"], "use_cache": True}
    cache = model(**{**batch, **options}).get(CACHE)
    count = len(asked)
    assert count
    ones = torch.ones(len(ROWS), 1, dtype=torch.long)
    mask = torch.cat([batch["attention_mask"], ones], 1)
    model(input_ids=5 * ones, attention_mask=mask, **{CACHE: cache})
    assert len(asked) == count
    monkeypatch.undo()
    assert generate(model, batch) == expected


@torch.no_grad()
@pytest.mark.parametrize("llm", FAMILIES)
def test_each_llm_answers_alike_with_and_without_a_cache(llm):
    """Windows shorter than the prompt where the family has them: they count dropped tokens, too."""
    changes = {"sliding_window": 16} if llm.startswith("gemma") else {}
    model, processor = build(llm, llm_changes=changes)
    model.set_pruner("pyramid_drop")
    batch = inputs(processor, ROWS)
    expected = generate(model, batch, use_cache=False)
    assert generate(model, batch) == expected
    model.set_attn_implementation("eager")
    assert generate(model, batch) == expected


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_logits_with_left_padding_are_those_with_right_padding(case):
    model, processor = build()
    name, knobs = CASES[case]
    model.set_pruner(name, **knobs)
    found = []
    for side in ("left", "right"):
        batch = inputs(processor, ROWS, side)
        found.append(model(**batch).logits[batch["attention_mask"].bool()])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_the_cache_shrinks_and_serves_a_later_turn():
    """A later turn without images continues from the pruned cache, token by token or several at once."""
    model, processor = build()
    model.set_pruner("pyramid_drop")
    batch = inputs(processor, ROWS[:3])
    new = torch.randint(20, 200, (3, 4))
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 4).long()], 1)
    start, found = batch["attention_mask"].sum(1, keepdim=True), []
    for sizes in ([4], [1, 1, 1, 1], [1, 3]):
        cache = model(**batch)[CACHE]
        kept = [cache.get_seq_length(layer) for layer in range(DEPTH)]
        assert kept[0] == batch["input_ids"].shape[1] and kept[-1] <= kept[1] == kept[0]
        parts, done = [], 0
        for size in sizes:
            columns = mask[:, : mask.shape[1] - 4 + done + size]
            parts.append(
                model(
                    input_ids=new[:, done : done + size],
                    attention_mask=columns,
                    **{CACHE: cache},
                    position_ids=start + torch.arange(done, done + size),
                ).logits
            )
            done += size
        found.append(torch.cat(parts, 1))
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("case", ["fastv", "pact"])
def test_the_cache_of_one_row_may_be_repeated(case):
    """Of several rows it is refused, as what each has dropped would be taken for what others have."""
    model, processor = build()
    name, knobs = CASES[case]
    model.set_pruner(name, **knobs)
    batch = inputs(processor, ROWS[:1])
    new, new_mask = torch.tensor([[20, 30], [40, 20]]), torch.tensor([[1, 1], [1, 0]])

    def step(words, mask, repeats):
        cache = model(**batch)[CACHE]
        cache.batch_repeat_interleave(repeats)
        mask = torch.cat([batch["attention_mask"].expand(len(words), -1), mask], 1)
        return model(input_ids=words, attention_mask=mask, **{CACHE: cache}).logits

    found = step(new, new_mask, 2)
    torch.testing.assert_close(found[:1], step(new[:1], new_mask[:1], 1))
    torch.testing.assert_close(found[1:, :1], step(new[1:, :1], new_mask[1:, :1], 1))
    batch = inputs(processor, ROWS[:3])
    cache = model(**batch)[CACHE]
    cache.batch_repeat_interleave(2)
    with pytest.raises(UsageError, match="KV cache has 6 rows and its pruned prompt has 3"):
        model(input_ids=new[:1, :1].expand(6, -1), **{CACHE: cache})


@torch.no_grad()
def test_one_row_has_no_mask_and_a_short_cache():
    """Without padding SDPA's own causal kernel is used, and nothing is kept of what was dropped."""
    model, processor = build()
    model.set_pruner("fastv", ratio=0.25)
    batch = inputs(processor, ROWS[:1])
    masks = []
    for layer in decoder_layers(model.language_model):
        layer.register_forward_pre_hook(
            lambda *given: masks.append(given[2]["attention_mask"]), with_kwargs=True
        )
    cache = model(**batch)[CACHE]
    assert masks == [None] * DEPTH
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    assert lengths == [lengths[0]] + [lengths[0] - 27] * (DEPTH - 1)


@torch.no_grad()
@pytest.mark.parametrize("case", ["fastv", "sparsevlm"])
def test_answers_of_beams_are_those_of_single_rows_uncached(case):
    model, processor = build()
    model.set_pruner(case)
    batch = inputs(processor, ROWS)
    found = generate(model, batch, num_beams=3)
    assert found == generate(model, batch, num_beams=3, use_cache=False)
    assert found == [generate(model, inputs(processor, [row]), num_beams=3)[0] for row in ROWS]


@torch.no_grad()
def test_prompt_lookup_changes_no_answer():
    """Prompt look-up runs several tokens at once and takes wrong ones out of the cache again."""
    model, processor = build()
    model.set_pruner("pyramid_drop")
    batch = inputs(processor, ROWS[2:3])
    assert generate(model, batch, prompt_lookup_num_tokens=3) == generate(model, batch)


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_a_pruned_model_is_saved_copied_and_loaded(case, tmp_path):
    model, processor = build()
    name, knobs = CASES[case]
    batch = inputs(processor, ROWS)
    whole = model(**batch).logits
    model.set_pruner(name, **knobs)
    expected = model(**batch).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    assert (loaded.config.pruner, type(loaded.pruner)) == (name, type(model.pruner))
    assert torch.equal(loaded(**batch).logits, expected)
    copied = copy.deepcopy(model)
    model.set_pruner(None)
    assert torch.equal(model(**batch).logits, whole)
    assert torch.equal(copied(**batch).logits, expected)
    copied.set_pruner(None)
    assert torch.equal(copied(**batch).logits, whole)


@pytest.mark.parametrize("case", CASES)
def test_backward_with_and_without_checkpointing(case):
    """Every part that is trained without a pruner still gets gradients, the same ones under checkpointing."""
    model, processor = build()
    name, knobs = CASES[case]
    model.set_pruner(name, **knobs)
    batch = make_batch(processor, ANSWERED, "right")
    model.train()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(**batch, use_cache=False).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = found
    parts = {n.split(".")[0] for n in plain}
    assert parts == {"vision_tower", "projector", "query_module", "language_model"}
    assert all(grad.isfinite().all() for grad in plain.values())
    assert plain.keys() == checkpointed.keys()
    for n, grad in plain.items():
        torch.testing.assert_close(checkpointed[n], grad, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("at", [1, 2, 3, [2, 4]])
def test_query_tokens_are_never_dropped(at):
    """EmbQ acts before, at and behind the drop, with a cache as without."""
    model, processor = build(at=at)
    batch = inputs(processor, ROWS)
    expected = {}
    for embq in (True, False):
        if not embq:
            model.query_module.forward = lambda hidden, *_: hidden
        model.set_pruner("fastv", layer=1, ratio=0.25)
        expected[embq] = generate(model, batch), generate(model, batch, use_cache=False)
        assert expected[embq][0] == expected[embq][1]
    assert expected[True] != expected[False]


def test_what_cannot_be_pruned_is_refused():
    model, processor = build()
    model.set_pruner("fastv")
    batch = inputs(processor, ROWS[:1])
    with pytest.raises(UsageError, match="StaticCache cannot differ in length"):
        generate(model, batch, cache_implementation="static")
    cache = model(**batch, **{CACHE: DynamicCache()})[CACHE]
    with pytest.raises(UsageError, match="a KV cache that is not empty"):
        model(**batch, **{CACHE: cache})
    cache.crop(-30)  # into the image
    with pytest.raises(UsageError, match="cut back into a pruned prompt"):
        model(input_ids=torch.tensor([[20]]), **{CACHE: cache})
    model.set_pruner("fitprune")
    with pytest.raises(UsageError, match="fitprune has no recipe yet"):
        model(**batch)


def test_an_llm_without_dispatched_attention_is_refused():
    model, _ = build()
    decoder_layers(model.language_model)[0].self_attn = nn.Identity()
    with pytest.raises(UsageError, match="no attention that transformers dispatches"):
        model.set_pruner("fastv")
    assert model.pruner is None
