"""EmbQ in multimodal models of transformers reads its turn's images, or an error says why it cannot."""

from itertools import product

import pytest
import reuse_families
import reuse_models
import torch
from reuse_families import (
    EMBQ,
    PLACEHOLDER,
    SAP,
    attached,
    family_params,
    family_turns,
    inputs,
    make_model,
    make_processor,
    over_families,
    picture,
    prompt,
    two_rows,
)

from compressors.errors import UsageError
from connectors.versions import CACHE
from llm_adapters import reuse
from llm_adapters.conversation import QUERY, QUESTION
from llm_adapters.lmms_eval.requests import make_message

IMAGES_FIRST = (  # as LLaVA's own, whatever the order of a message's parts
    "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] if p['type'] == 'image' %}IMAGE\n"
    "{% endfor %}{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] }} {% endfor %}"
    "\n{% endfor %}"
)
BEHIND = "whole conversation without a KV cache"


def seen_by_queries(model, batch):
    """Arguments of the query module in a forward."""
    seen = []
    handle = model.slothkit.query_module.register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return seen[0]


CONTEXTS = ("What is in <image>", "Is <image> a cat or <image>", "<image> What?")
TEMPLATES = ("in order", "images first")


@pytest.mark.parametrize(
    ("family", "context", "template"),
    family_turns(reuse.FAMILIES, product(CONTEXTS, TEMPLATES), one_in=3),
)
def test_text_before_its_image(family, context, template):
    """Also what lmms-eval's contexts become."""
    model, processor = attached(family)
    if template == "images first":
        processor.chat_template = IMAGES_FIRST.replace("IMAGE", PLACEHOLDER.get(family, "<image>"))
    pictures = [picture(i) for i in range(context.count("<image>"))]
    chat = [make_message(context, pictures)]
    before = [dict(part) for part in chat[0]["content"]]
    text = processor.apply_chat_template(chat)
    assert (text.count(QUESTION), text.count(QUERY)) == (1, 1) and chat[0]["content"] == before
    batch = inputs(processor, [(text, pictures)])
    _, index, question, features, reads, _ = seen_by_queries(model, batch)
    assert features.shape[1] > 0 and reads.all()
    words = processor.tokenizer.decode(batch["input_ids"][0][question[0, 0]])
    assert all(piece.strip() in words for piece in context.split("<image>"))
    assert not (batch["input_ids"][0] == model.config.image_token_id)[question[0, 0]].any()
    assert index.shape[1] == model.slothkit.query_module.num_queries


@over_families
def test_text_before_its_image_in_each_turn(family):
    model, processor = attached(family)
    chat = [
        make_message("What is <image>", [picture(1)]),
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
        make_message("And <image>", [picture(2)]),
    ]
    batch = inputs(processor, [(processor.apply_chat_template(chat), [picture(1), picture(2)])])
    *_, features, reads, _ = seen_by_queries(model, batch)
    count, patches = model.slothkit.query_module.num_queries, features.shape[1]
    assert reads[0].sum(-1).tolist() == [patches // 2] * count + [patches] * count


def by_embeddings(model, batch):
    """The same batch with `inputs_embeds`."""
    rest = {name: value for name, value in batch.items() if name != "input_ids"}
    ids = batch["input_ids"]
    if getattr(model.config.get_text_config(), "hidden_size_per_layer_input", None):
        if model.config.model_type == "gemma4":  # to which images are padding there
            ids = ids.masked_fill(ids == model.config.image_token_id, 0)
        rest["per_layer_inputs"] = model.model.language_model.get_per_layer_inputs(ids).detach()
    return {**rest, "inputs_embeds": model.get_input_embeddings()(batch["input_ids"]).detach()}


@over_families
def test_images_with_embeddings_in_the_place_of_ids(family):
    """EmbQ needs ids; the compressor alone does not."""
    model, processor = attached(family)
    batch = by_embeddings(model, inputs(processor, two_rows(family, marked=True)))
    with pytest.raises(UsageError, match="give input_ids to a model with a query module"):
        model(**batch)
    if family == "llava":  # `generate` takes no embeddings for each of them
        with pytest.raises(UsageError, match="give input_ids to a model with a query module"):
            model.generate(**batch, max_new_tokens=2)
    if reuse.FAMILIES[family].rope:  # without ids it does not know the images' positions itself
        return
    model, processor = make_model(family), make_processor(family)
    reuse.attach(model, processor, **SAP)
    batch = inputs(processor, two_rows(family))
    with torch.no_grad():
        assert torch.equal(model(**by_embeddings(model, batch)).logits, model(**batch).logits)


@over_families
def test_embeddings_of_text_and_of_a_step(family):
    model, processor = attached(family)
    if family != "paligemma":  # its processor takes no text without an image
        text = dict(processor(text=[prompt(family, images=0, marked=True)], return_tensors="pt"))
        with torch.no_grad():
            assert torch.equal(model(**by_embeddings(model, text)).logits, model(**text).logits)
    batch = inputs(processor, two_rows(family, marked=True))
    step, logits = torch.tensor([[7], [8]]), []
    for given in ({"input_ids": step}, by_embeddings(model, {"input_ids": step})):
        with torch.no_grad():
            cache = model(**batch, use_cache=True)[CACHE]
            logits.append(model(**given, **{CACHE: cache}).logits)
    assert torch.equal(*logits)


def two_turns(family, processor):
    """Inputs of a conversation, and how many of its ids are the first turn's."""
    first, rows = prompt(family, marked=True), [picture(1)]
    whole = first + "\n" + prompt(family, "And that?", images=0, marked=True)
    length = inputs(processor, [(first, rows)])["input_ids"].shape[1]
    return inputs(processor, [(whole, rows)]), inputs(processor, [(first, rows)]), length


@over_families
def test_a_turn_behind_a_cache_is_refused(family):
    model, processor = attached(family)
    whole, first, length = two_turns(family, processor)
    with torch.no_grad():
        cache = model(**first, use_cache=True)[CACHE]
        with pytest.raises(UsageError, match=BEHIND) as caught:
            model(input_ids=whole["input_ids"][:, length:], **{CACHE: cache})
    assert "\n" not in str(caught.value)
    text = {name: whole[name] for name in ("input_ids", "attention_mask")}
    with pytest.raises(UsageError, match=BEHIND):
        model.generate(**text, **{CACHE: cache}, max_new_tokens=2)


def test_words_behind_a_cache_are_not():
    """Several ids at once, such as guesses, and all of it without a query module."""
    model, processor = attached("llava")
    whole, first, length = two_turns("llava", processor)
    ids = whole["input_ids"].masked_fill(model.slothkit.markers.find_markers(whole["input_ids"]), 7)
    ids[:, :length] = first["input_ids"]
    with torch.no_grad():
        cache = model(**first, use_cache=True)[CACHE]
        rest = model(input_ids=ids[:, length:], **{CACHE: cache}).logits
        expected = model(**{**whole, "input_ids": ids}).logits[:, length:]
    torch.testing.assert_close(rest, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", family_params("llava", "qwen2_vl"))
def test_guesses_from_the_prompt_may_have_markers_in_them(family):
    """A look-up guesses what followed in the prompt: here the question, and its query tokens."""
    model, processor = attached(family)
    model.resize_token_embeddings(2000)  # room for the markers, as in many released vocabularies
    text = prompt(family, marked=True).replace(":", "") + " now"  # its end is nowhere before
    batch, said = inputs(processor, [(text, [picture(1)])]), processor.tokenizer("What")["input_ids"][-1:]
    model.get_output_embeddings().register_forward_hook(
        lambda _, _args, logits: logits.index_fill(-1, torch.tensor(said), 1e4)
    )
    seen, query = [], model.slothkit.markers.query_id
    model.base_model.register_forward_pre_hook(
        lambda _, _args, kwargs: seen.append(kwargs["input_ids"] == query), with_kwargs=True
    )
    new = model.generate(
        **batch, max_new_tokens=8, do_sample=False, eos_token_id=9999, prompt_lookup_num_tokens=10
    )
    assert new[0, -8:].tolist() == said * 8
    assert any(is_query.any() for is_query in seen[1:])


PRUNER = {"layer": 1, "ratio": 0.5}
KEEP = {"compressor": "divprune", "positions": "keep", "tokens": 7}
GUESSERS = {
    "sap": (SAP, None),
    "keep": (KEEP, None),
    "embq": ({**SAP, **EMBQ}, None),
    "pruned": (None, PRUNER),
    "sap pruned": (SAP, PRUNER),
}


@pytest.mark.parametrize("case", GUESSERS)
def test_guesses_from_the_prompt_may_have_placeholders_in_them(case):
    """The model says the words that stand before the image, and a look-up guesses the image behind them."""
    options, pruner = GUESSERS[case]
    model, processor = make_model("llava"), make_processor("llava")
    if options is not None:
        reuse.attach(model, processor, **options)
    if pruner is not None:
        reuse.prune(model, "fastv", **pruner)
    text = prompt("llava", marked="query_module" in (options or {}))
    text = text.replace(" ASSISTANT:", " Zq")  # its end is nowhere before
    batch = inputs(processor, [(text, [picture(1)])])
    length, image = batch["input_ids"].shape[1], model.config.image_token_id
    start = int((batch["input_ids"][0] == image).nonzero()[0])
    words = batch["input_ids"][0, start - 3 : start]
    seen = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0] == image))

    def say_words(ids, scores):
        said = ids.shape[1] - length
        if said < len(words):
            return torch.full_like(scores, -1e9).index_fill(1, words[said], 0)
        return scores.index_fill(1, torch.tensor([image]), -1e9)

    told = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": 9999, "logits_processor": [say_words]}
    expected = model.generate(**batch, **told)
    seen.clear()
    assert torch.equal(model.generate(**batch, **told, prompt_lookup_num_tokens=4), expected)
    assert any(is_image.any() for is_image in seen[1:])


def test_a_language_model_that_keeps_keyword_arguments_to_itself(monkeypatch):
    """As Falcon does, which a released LLaVA-NeXT has: EmbQ would never be called, no token be dropped."""
    sizes = {
        "model_type": "falcon",
        "num_hidden_layers": 3,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "vocab_size": 320,
    }
    settings = {**reuse_models.make_settings("llava_next"), "text_config": sizes}
    monkeypatch.setattr(reuse_families, "make_settings", lambda _: settings)
    model, processor = attached("llava_next")
    batch = inputs(processor, two_rows("llava_next", marked=True))
    with pytest.raises(UsageError, match="FalconModel does not hand keyword arguments down"):
        model(**batch)
    reuse.detach(model, processor)
    reuse.prune(model, "fastv", ratio=0.25)
    with pytest.raises(UsageError, match="no visual token was dropped"):
        model(**inputs(processor, two_rows("llava_next")))
