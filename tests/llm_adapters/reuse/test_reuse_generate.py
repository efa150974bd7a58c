"""Query modules in multimodal models of transformers, and `generate`: cached, batched, with beams."""

import pytest
import torch
from factories import compiled_decoding, graphs_made
from reuse_families import (
    PLACEHOLDER,
    PREFUSION,
    answers,
    attached,
    cache_agrees,
    family_params,
    family_turns,
    inputs,
    over_families,
    picture,
    prompt,
    two_rows,
)

from compressors.errors import UsageError
from llm_adapters import reuse
from llm_adapters.conversation import QUERY, QUESTION

# each compiles a decoder of its own for seven seconds: plain, with windows, with positions in three
# dimensions, with levels of the tower added, and with inputs of each layer's own
COMPILED_FAMILIES = ("llava", "gemma3", "qwen2_vl", "qwen3_vl", "gemma3n")


@pytest.mark.parametrize(("family", "options"), family_turns(reuse.FAMILIES, [{}, PREFUSION], one_in=2))
def test_generate(family, options):
    model, processor = attached(family, **options)
    rows = two_rows(family, marked=True)
    batch = inputs(processor, rows)
    said = answers(model, batch)
    if cache_agrees(family, two_rows(family)):
        assert answers(model, batch, use_cache=False) == said
    single = [answers(model, inputs(processor, [row]))[0] for row in rows]
    assert single == said
    beams = answers(model, batch, num_beams=3)
    assert beams == [answers(model, inputs(processor, [row]), num_beams=3)[0] for row in rows]


@over_families
@pytest.mark.parametrize("options", [{}, PREFUSION], ids=["embq", "llava_mini"])
def test_query_module_acts_in_generate(family, options):
    model, processor = attached(family, **options)
    batch = inputs(processor, two_rows(family, marked=True))
    told = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
    before = model.generate(**batch, **told).logits[0]
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits[:, -1], before, atol=1e-4, rtol=1e-4)
        for parameter in model.slothkit.query_module.parameters():
            parameter.mul_(-1)
    assert (model.generate(**batch, **told).logits[0] - before).abs().amax(1).min() > 1e-3


@over_families
def test_beams_over_rows_with_different_images(family):
    model, processor = attached(family)
    rows = two_rows(family, marked=True)
    rows[0] = (prompt(family, images=2, marked=True), [picture(1), picture(2)])
    both = answers(model, inputs(processor, rows), num_beams=2)
    assert both == [answers(model, inputs(processor, [row]), num_beams=2)[0] for row in rows]


@over_families
def test_query_tokens_read_their_own_turn(family):
    """Two turns, an image each: what EmbQ is given is each turn's question and the images up to it."""
    model, processor = attached(family)
    turns = ["What is this?", "And that?"]
    text = "\n".join(prompt(family, turn, marked=True) for turn in turns)
    rows = [(prompt(family, "Hi there, what?", marked=True), [picture(3)]), (text, [picture(1), picture(2)])]
    batch, seen = inputs(processor, rows), []
    model.slothkit.query_module.register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.no_grad():
        model(**batch)
    _, index, question, features, patch, _ = seen[0]
    ids, count = batch["input_ids"][1], model.slothkit.query_module.num_queries
    assert torch.equal(index[1], (ids == model.slothkit.markers.query_id).nonzero().flatten())
    assert index[0, count:].tolist() == [-1] * count
    for turn, words in enumerate(turns):
        for query in range(turn * count, (turn + 1) * count):
            assert processor.tokenizer.decode(ids[question[1, query]]) == words
    reads = patch[1].sum(1).tolist()
    patches = reads[-1]
    assert reads == [patches // 2] * count + [patches] * count
    # of several images LLaVA-OneVision's have no tiles, so that the other row has more
    assert patches == features.shape[1] or family == "llava_onevision"
    alone = inputs(processor, rows[:1])
    with torch.no_grad():
        model(**alone)
    torch.testing.assert_close(seen[1][3][0], features[0, : seen[1][3].shape[1]])


@over_families
def test_chat_template_marks_questions(family):
    model, processor = attached(family)
    chat = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A dog."}]},
        {"role": "user", "content": "And?"},
    ]
    text = processor.apply_chat_template(chat)
    assert f"{QUESTION}What?{QUERY}" in text and f"{QUESTION}And?{QUERY}" in text and text.count(QUERY) == 2
    batch = inputs(processor, [(text, [picture(1)])])
    assert (batch["input_ids"] == model.slothkit.markers.query_id).sum() == 2 * 3
    assert chat[0]["content"][1]["text"] == "What?"


SEARCHES = {
    "lookup": {"prompt_lookup_num_tokens": 10, "max_matching_ngram_size": 1},
    "biased_lookup": {
        "prompt_lookup_num_tokens": 10,
        "max_matching_ngram_size": 1,
        "sequence_bias": [[[21], 2.0]],
    },
    "encoder_penalty": {"encoder_repetition_penalty": 1.3},
    "penalty": {"repetition_penalty": 1.3},
    "no_repeats": {"no_repeat_ngram_size": 2, "encoder_no_repeat_ngram_size": 2},
}


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("family", family_params("llava", "qwen2_5_vl", "internvl"))
def test_markers_have_no_scores(family, search):
    """Their ids may lie beyond the output layer's rows. A row answers alone as in a batch; looked up words
    are those that are said without."""
    model, processor = attached(family)
    question = "is it is it is it<query> it is it is ASSISTANT: is it"
    text = prompt(family).replace("What is this? ASSISTANT:", f"<question>{question}")
    rows = [(text, [picture(1)]), *two_rows(family, marked=True)]
    words = model.get_output_embeddings().out_features
    assert inputs(processor, rows)["input_ids"].max() >= words
    options = {**SEARCHES[search], "eos_token_id": 9999, "renormalize_logits": True}
    alone = [answers(model, inputs(processor, [row]), **options)[0] for row in rows]
    for name in ("prompt_lookup_num_tokens", "max_matching_ngram_size"):
        options.pop(name, None)
    assert alone == [answers(model, inputs(processor, [row]), **options)[0] for row in rows]


TAKES_TEXT = (  # as Qwen's own, whether its type is there or not
    "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}{% if 'text' in p %}{{ p['text'] }}"
    "{% else %}IMAGE{% endif %}{% endfor %}{% endfor %}"
)


@pytest.mark.parametrize("family", family_params("llava", "qwen2_5_vl", "gemma3", "pixtral"))
def test_parts_of_a_message_without_their_type(family):
    """Where templates take them; processors that tokenize do not."""
    _, processor = attached(family)
    processor.chat_template = TAKES_TEXT.replace("IMAGE", PLACEHOLDER.get(family, "<image>"))
    for content in (
        [{"type": "image"}, {"text": "What?"}],
        [{"text": "What?"}, {"type": "image"}],
        [{"text": "What?"}, {"image": None}, {"type": "text"}],
    ):
        chat = [{"role": "user", "content": content}]
        text = processor.apply_chat_template(chat)
        assert f"{QUESTION}What?" in text and text.endswith(QUERY) and text.count(QUERY) == 1
        for tokenized in (chat, [chat]):
            with pytest.raises(UsageError, match=r"a part of a message has \w+ and no type: give it one"):
                processor.apply_chat_template(tokenized, tokenize=True, return_dict=True)


@over_families
def test_text_alone_is_left_alone(family):
    if family == "paligemma":
        pytest.skip("its processor takes no text without an image")
    model, processor = attached(family)
    batch = processor(text=[prompt(family, images=0, marked=True)], return_tensors="pt")
    with torch.no_grad():
        logits = model(**batch).logits
        model.slothkit.query_module.blocks[0].up.weight.data.mul_(-1)
        assert torch.equal(model(**batch).logits, logits)


@over_families
def test_rows_without_images(family):
    if family == "paligemma":
        pytest.skip("its processor takes no text without an image")
    model, processor = attached(family)
    texts = [prompt(family, "Hi?", images=0, marked=True), prompt(family, marked=True)]
    nested = family in ("idefics3", "smolvlm", "gemma3", "gemma4")
    images = [[], [picture(1)]] if nested else [picture(1)]
    batch = dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))
    said = answers(model, batch)
    assert said[0] == answers(model, dict(processor(text=texts[:1], return_tensors="pt")))[0]
    assert said[1] == answers(model, inputs(processor, [(texts[1], [picture(1)])]))[0]


@over_families
def test_static_cache(family):
    model, processor = attached(family)
    batch = inputs(processor, two_rows(family, marked=True))
    options = {**compiled_decoding(), "disable_compile": True}
    assert answers(model, batch, **options) == answers(model, batch)


@pytest.mark.parametrize("family", COMPILED_FAMILIES)
def test_compiled_decoding(family):
    model, processor = attached(family)
    batch = inputs(processor, two_rows(family, marked=True))
    with graphs_made() as counts:
        assert answers(model, batch, **compiled_decoding()) == answers(model, batch)
    assert counts["unique_graphs"] > 0


def test_context_of_beams_is_that_of_their_row():
    model, processor = attached("llava")
    rows = two_rows("llava", marked=True)
    rows[0] = (prompt("llava", images=2, marked=True), [picture(1), picture(2)])
    batch, markers = inputs(processor, rows), model.slothkit.markers
    images = model.get_image_features(batch["pixel_values"]).images
    one, beams = (
        markers.build_context(ids, ids == model.config.image_token_id, images)
        for ids in (batch["input_ids"], batch["input_ids"].repeat_interleave(3, 0))
    )
    assert one.feature_mask[0].sum() == 2 * one.feature_mask[1].sum() > 0
    for name, value in vars(one).items():
        if not isinstance(value, torch.Tensor):
            continue
        assert torch.equal(vars(beams)[name], value.repeat_interleave(3, 0)), name
