"""Images with token counts of their own in the composed model: what one does not have is really absent."""

import pytest
import torch
from factories import LLMS, make_batch, make_model, make_processor, picture
from own_counts import VARYING
from transformers import GenerationConfig

from compressors.errors import UsageError
from llm_adapters import reuse
from llm_adapters.conversation import IMAGE, Turn
from llm_adapters.pruning.run import PrunedPass
from llm_adapters.shared_prefix import can_share_prefix

every_one = pytest.mark.parametrize("name", VARYING)
ROWS = [
    (
        [Turn(f"{IMAGE}\nWhat is this?", "A dog."), Turn(f"And {IMAGE} that?", "cat")],
        [picture(1), picture(2)],
    ),
    ([Turn(f"{IMAGE}\nWhat is that?", "red")], [picture(3)]),
    ([Turn("Hi", "no")], []),
]
ASKED = [
    ([Turn(f"{IMAGE}\nWhat is this?")], [picture(1)]),
    ([Turn(f"{IMAGE}\nIs that a cat or a dog? And {IMAGE} this?")], [picture(2), picture(3)]),
]


def make(name, llm="llama", query_module=None, **knobs):
    """Of 30 patches as many as their coverage or question asks for; words are as unlike as patches."""
    knobs = {**VARYING[name], "tokens": 30, **knobs}
    model = make_model(llm, name, query_module, compressor_knobs=knobs)
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    for parameter in model.projector.parameters():
        torch.nn.init.normal_(parameter.data, std=0.3)
    return model


def record_llm(model):
    calls = []

    def record(_module, _arguments, keywords):
        calls.append(keywords)

    model.language_model.register_forward_pre_hook(record, with_kwargs=True)
    return calls


def count_seen(calls):
    """Tokens of each row that the LLM sees."""
    return calls[0]["attention_mask"].sum(1).tolist()


@every_one
@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_what_is_absent_is_as_good_as_cut_out(name, llm, side):
    """With the positions of what is there, in rows with several images and none; the loss, too."""
    model = make(name, llm)
    batch = make_batch(make_processor(model), ROWS, side)
    calls = record_llm(model)
    output = model(**batch)
    (given,) = calls
    mask = given["attention_mask"].bool()
    is_image = batch["input_ids"] == model.config.image_token_id
    hidden = (batch["attention_mask"].bool() & ~mask).sum(1).tolist()
    assert hidden[0] > 0 and hidden[1] > 0 and hidden[2] == 0
    assert not (~mask & batch["attention_mask"].bool() & ~is_image).any()
    model.language_model._forward_pre_hooks.clear()
    for row, is_there in enumerate(mask):
        positions = given["position_ids"][row, is_there]
        assert positions.tolist() == list(range(len(positions)))
        with torch.no_grad():
            cut = model.language_model(inputs_embeds=given["inputs_embeds"][row : row + 1, is_there]).logits[
                0
            ]
        torch.testing.assert_close(output.logits[row, is_there], cut, atol=2e-4, rtol=2e-4)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(weight.grad.isfinite().all() for weight in model.projector.parameters())


@every_one
@pytest.mark.parametrize("query_module", ["embq", "llava_mini"])
def test_a_static_cache_hides_them_from_the_query_module_too(name, query_module):
    model = make(name, query_module=query_module)
    batch = make_batch(make_processor(model), ASKED[:1], "left")
    batch.pop("labels", None)
    options = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
    first, again = (
        model.generate(**batch, **options, **more).logits[0]
        for more in ({}, {"cache_implementation": "static", "disable_compile": True})
    )
    with torch.no_grad():
        plain = model(**batch).logits[:, -1]
    said = first.isfinite()  # placeholders are muted
    torch.testing.assert_close(again[said], first[said], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(plain[said], first[said], atol=1e-4, rtol=1e-4)


@every_one
def test_padding_is_seen_where_no_mask_is_given(name):
    """As `generate` sees it of a model whose images have all tokens."""
    model = make(name)
    batch = make_batch(make_processor(model), ASKED, "left")
    batch.pop("labels", None)
    mask = batch.pop("attention_mask")
    pad = batch["input_ids"][mask == 0].unique()
    assert len(pad) == 1
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": 9999}
    wanted = model.generate(**batch, attention_mask=mask, **options, pad_token_id=int(pad))
    config = GenerationConfig(**options, pad_token_id=int(pad))
    for found in (
        model.generate(**batch, **options, pad_token_id=int(pad)),
        model.generate(**batch, generation_config=config),
    ):
        assert found.equal(wanted)
    # a token that ends answers, too, does not tell
    same = {**options, "pad_token_id": int(pad), "eos_token_id": [int(pad), 9999]}
    unpadded = model.generate(**batch, attention_mask=torch.ones_like(mask), **same)
    assert model.generate(**batch, **same).equal(unpadded)


@every_one
def test_generate(name):
    """With a KV cache as without, in a batch as alone, by beams, and as what is cut out goes on."""
    model = make(name)
    processor = make_processor(model)
    batch = make_batch(processor, ASKED, "left")
    batch.pop("labels", None)
    options = {"max_new_tokens": 5, "do_sample": False}
    calls = record_llm(model)
    said = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    seen = count_seen(calls)
    assert len(set(seen)) > 1 and seen[0] < int(batch["attention_mask"][0].sum())
    given = calls[0]
    assert calls[1]["attention_mask"].sum(1).tolist() == [count + 1 for count in seen]
    last = [positions.flatten()[-1].item() for positions in calls[1]["position_ids"]]
    assert last == seen  # the first word behind the tokens that are there
    for options_more in ({"use_cache": False}, {"cache_implementation": "static"}):
        again = model.generate(**batch, **options, **options_more)[:, batch["input_ids"].shape[1] :]
        assert again.equal(said)
    beams = model.generate(**batch, **options, num_beams=2)
    assert beams.shape[0] == 2
    model.language_model._forward_pre_hooks.clear()
    for row, one in enumerate(ASKED):
        inputs = make_batch(processor, [one], "left")
        inputs.pop("labels", None)
        alone = model.generate(inputs.pop("input_ids"), **inputs, **options)
        assert alone[0, -5:].equal(said[row])
        is_there = given["attention_mask"][row].bool()
        cut = given["inputs_embeds"][row : row + 1, is_there]
        placeholders = [model.config.image_token_id, model.config.query_token_id]
        from_cut = model.language_model.generate(
            inputs_embeds=cut,
            attention_mask=torch.ones(cut.shape[:2], dtype=torch.long),
            suppress_tokens=placeholders,
            **options,
        )
        assert from_cut[0].equal(said[row])


@every_one
@pytest.mark.parametrize("query_module", ["embq", "llava_mini"])
def test_beside_a_query_module(name, query_module):
    model = make(name, query_module=query_module)
    processor = make_processor(model)
    batch = make_batch(processor, ASKED, "left")
    batch.pop("labels", None)
    with torch.no_grad():
        together = model(**batch).logits[:, -1]
        for row, one in enumerate(ASKED):
            inputs = make_batch(processor, [one], "left")
            inputs.pop("labels", None)
            torch.testing.assert_close(model(**inputs).logits[0, -1], together[row], atol=2e-4, rtol=2e-4)


@every_one
def test_beside_a_pruner(name):
    """Which leaves out a share of the tokens that are there."""
    model = make(name)
    model.set_pruner("fastv", layer=1, ratio=0.5)
    processor = make_processor(model)
    batch = make_batch(processor, ASKED, "left")
    batch.pop("labels", None)
    said = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, batch["input_ids"].shape[1] :]
    for row, one in enumerate(ASKED):
        inputs = make_batch(processor, [one], "left")
        inputs.pop("labels", None)
        alone = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert alone[0, -4:].equal(said[row])


@every_one
def test_cached_features_and_no_shared_prefix(name):
    model = make(name)
    batch = make_batch(make_processor(model), ASKED, "left")
    batch.pop("labels", None)
    said = model.generate(**batch, max_new_tokens=4, do_sample=False)
    features = model.get_image_features(batch.pop("pixel_values"))
    again = model.generate(**batch, vision_features=features, max_new_tokens=4, do_sample=False)
    assert again.equal(said) and not can_share_prefix(model)


def test_a_transformers_model_is_refused_in_one_line():
    from reuse_families import make_model as make_plain
    from reuse_families import make_processor as make_plain_processor

    model, processor = make_plain("llava"), make_plain_processor("llava")
    with pytest.raises(UsageError, match="compressor 'scope': the number of an image's tokens") as refused:
        reuse.attach(model, processor, "scope", tokens=5, coverage=0.5)
    assert "\n" not in str(refused.value) and not hasattr(model, "slothkit")


@every_one
@torch.no_grad()
def test_a_pruner_that_renumbers_leaves_no_gap_where_patches_are_absent(name, monkeypatch):
    """In rows with several images: what moves up past placeholders without a patch stands among none."""
    model = make(name)
    batch = make_batch(make_processor(model), ASKED)
    batch.pop("labels", None)
    model.set_pruner("fastv", layer=1, ratio=0.5, positions="renumber")
    calls = record_llm(model)
    cuts = []

    def record_cut(run, cut, embeddings):
        cuts.append(cut)
        return narrow_rotary(run, cut, embeddings)

    narrow_rotary = PrunedPass.narrow_rotary
    monkeypatch.setattr(PrunedPass, "narrow_rotary", record_cut)
    model(**batch)
    (given,) = calls
    cut = cuts[-1]
    is_seen = given["attention_mask"].bool().gather(1, cut.index)
    if cut.fill is not None:
        is_seen = is_seen & ~cut.fill
    positions = given["position_ids"].gather(1, cut.rotary)
    assert (given["attention_mask"].sum(1) > is_seen.sum(1)).all()  # some went
    for row, row_is_seen in enumerate(is_seen):
        found = positions[row, row_is_seen]
        last = int(given["position_ids"][row, -1])
        assert found.tolist() == list(range(last - len(found) + 1, last + 1))
