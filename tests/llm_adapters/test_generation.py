"""Batched, left-padded, cached generation is one-by-one, uncached generation, token for token, with every
query module."""

import copy
import itertools

import pytest
import torch
from factories import (
    CROP_TOKENS,
    LLMS,
    compiled_decoding,
    graphs_made,
    make_batch,
    make_model,
    make_processor,
    picture,
)
from torch import Tensor
from transformers import GenerationConfig

from compressors.errors import UsageError
from connectors.query_module import registry as query_modules
from connectors.versions import CACHE, is_at_least
from llm_adapters.conversation import IMAGE, Template, Turn
from llm_adapters.modeling import FlashSlothForConditionalGeneration as Model
from llm_adapters.processing import FlashSlothProcessor
from llm_adapters.visual_prompt import mute_tokens

NEW = 8
CHATS = {  # turns of which the last is to be answered, and how many images
    "image first": ([Turn(f"{IMAGE}\nWhat is this?")], 1),
    "text only": ([Turn("Hi")], 0),
    "image in the first turn": ([Turn(f"{IMAGE}\nWhat is this?", "A dog."), Turn("And that?")], 1),
    "image in the second turn": ([Turn("Hi", "The cat is red."), Turn(f"{IMAGE}What is it?")], 1),
    "an image a turn": ([Turn(f"{IMAGE}What?", "A dog"), Turn("no", "so"), Turn(f"And {IMAGE} that?")], 2),
    "three images": ([Turn(f"{IMAGE}{IMAGE}Is this {IMAGE} a longer question than the others?")], 3),
    "text only, two turns": ([Turn("What is what?", "no"), Turn("And?")], 0),
}


def rows() -> list[tuple[list[Turn], list]]:
    """Every chat with pictures of its own."""
    numbers = itertools.count()
    return [(turns, [picture(next(numbers)) for _ in range(images)]) for turns, images in CHATS.values()]


def without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in batch.items() if name != "labels"}


def one_by_one(model: Model, processor: FlashSlothProcessor, row: tuple) -> list[int]:
    """Greedy tokens of one row by whole forward passes: no cache, no padding, no `generate`."""
    inputs, new = without_labels(make_batch(processor, [row])), []
    banned = [model.config.image_token_id, model.config.query_token_id]
    for _ in range(NEW):
        logits = model(**inputs, use_cache=False).logits[0, -1]
        logits[banned] = -torch.inf
        new.append(int(logits.argmax()))
        inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[new[-1]]])], 1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    return new


def generate(model: Model, batch: dict[str, Tensor], **options) -> list[list[int]]:
    """New tokens of each row, all of them as long: nothing ends an answer here."""
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": 9999, **options}
    out = model.generate(**without_labels(batch), **options)
    return out[:, batch["input_ids"].shape[1] :].tolist()


OTHERS = [name for name in query_modules.names() if name != "embq"]


@pytest.fixture(params=[*LLMS, *(("llama", name) for name in OTHERS)], scope="module", ids=str)
def pair(request) -> tuple[Model, FlashSlothProcessor]:
    llm, query_module = (request.param, "embq") if isinstance(request.param, str) else request.param
    # a short prompt and large weights: query tokens must matter for the next token
    model = make_model(llm, "sap", query_module, prompt=Template(system=""), scale=1.0)
    return model, make_processor(model)


@torch.no_grad()
def test_batched_cached_is_one_by_one_uncached(pair):
    model, processor = pair
    expected = [one_by_one(model, processor, row) for row in rows()]
    assert len({tuple(tokens) for tokens in expected}) == len(expected)  # the chats do differ
    batch = make_batch(processor, rows())
    assert generate(model, batch) == expected
    assert generate(model, batch, use_cache=False) == expected
    assert generate(model, batch, cache_implementation="static") == expected


@torch.no_grad()
def test_decoding_compiles_in_one_piece(pair):
    model, processor = pair
    batch = make_batch(processor, rows())
    with graphs_made() as counts:
        assert generate(model, batch, **compiled_decoding()) == generate(model, batch)
        assert generate(model, batch, **compiled_decoding()) == generate(model, batch)
    assert counts["unique_graphs"] == 1


@torch.no_grad()
@pytest.mark.parametrize("step", [1, -1], ids=["forward", "backward"])
def test_batch_of_24_rows(pair, step):
    """The released code laid out batches of 20 and more differently."""
    model, processor = pair
    chats = rows()[::step]
    singles = [generate(model, make_batch(processor, [row]))[0] for row in chats]
    many = list(itertools.islice(itertools.cycle(range(7)), 24))
    assert generate(model, make_batch(processor, [chats[i] for i in many])) == [singles[i] for i in many]


@torch.no_grad()
def test_beams(pair):
    model, processor = pair
    expected = [generate(model, make_batch(processor, [row]), num_beams=2)[0] for row in rows()]
    assert generate(model, make_batch(processor, rows()), num_beams=2) == expected
    assert expected != [generate(model, make_batch(processor, [row]))[0] for row in rows()]


@torch.no_grad()
def test_prompt_lookup(pair):
    """Candidate tokens are checked several at once, after a prefill like any other."""
    model, processor = pair
    batch = make_batch(processor, [rows()[0]])
    assert generate(model, batch, prompt_lookup_num_tokens=2) == generate(model, batch)


def test_an_assistant_is_refused(pair):
    model, processor = pair
    batch = without_labels(make_batch(processor, [rows()[0]]))
    with pytest.raises(UsageError, match="`assistant_model` is not supported"):
        model.generate(**batch, assistant_model=model.language_model)


@torch.no_grad()
def test_prompt_lookup_guesses_no_placeholders_by_a_configuration_without_its_name(pair):
    model, processor = pair
    batch = without_labels(make_batch(processor, [rows()[0]]))
    ids = batch.pop("input_ids")
    options = {"do_sample": False, "max_new_tokens": NEW, "eos_token_id": 9999}
    lookup = GenerationConfig(prompt_lookup_num_tokens=2, **options)
    assert torch.equal(model.generate(ids, lookup, **batch), model.generate(ids, **batch, **options))


@torch.no_grad()
@pytest.mark.parametrize("name", sorted({CACHE, "past_key_values"}))
def test_chat_goes_on_with_its_cache(pair, name):
    """Given by its name of today and by the older one."""
    model, processor = pair
    batch = without_labels(make_batch(processor, [rows()[0]]))
    expected = generate(model, batch)[0]
    options = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": 9999}
    first = model.generate(**batch, **options, return_dict_in_generate=True)
    more = model.generate(first.sequences, **{name: first[CACHE]}, **options)
    assert more[0, -8:].tolist() == expected


@torch.no_grad()
def test_padding_side_does_not_matter(pair):
    model, processor = pair
    logits = {}
    for side in ("left", "right"):
        batch = make_batch(processor, rows(), side)
        logits[side] = model(**batch).logits[batch["attention_mask"].bool()]
    torch.testing.assert_close(logits["left"], logits["right"], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_row_does_not_depend_on_its_neighbours(pair):
    model, processor = pair
    batch = make_batch(processor, rows())
    together, real = model(**batch).logits, batch["attention_mask"].bool()
    for i, row in enumerate(rows()):
        alone = model(**make_batch(processor, [row])).logits[0]
        torch.testing.assert_close(together[i][real[i]], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_answers_rest_on_image_question_and_query_module(pair):
    """The tests above would pass for a model that ignores what is at stake here."""
    model, processor = pair
    (turns, images), deaf = rows()[0], copy.deepcopy(model)
    deaf.query_module.forward = lambda hidden, *_, **__: hidden
    said = model(**make_batch(processor, [(turns, images)])).logits[:, -1]
    others = [
        model(**make_batch(processor, [(turns, [picture(99)])])),
        model(**make_batch(processor, [([Turn(f"{IMAGE}\nWhat is that?")], images)])),
        deaf(**make_batch(processor, [(turns, images)])),
    ]
    for other in others:
        assert (other.logits[:, -1] - said).abs().max() > 1


@torch.no_grad()
def test_query_module_reads_its_own_turn_and_images_up_to_it(pair, monkeypatch):
    """Released inference reads the first question in every slot."""
    model, processor = pair
    turns = [Turn(f"{IMAGE}What is this?", "A dog"), Turn(f"{IMAGE}And that?", "red"), Turn("Hi")]
    seen = []

    def spy(hidden, *given, **_):
        seen.append((given[1], given[3]))  # question and feature masks
        return hidden

    batch = make_batch(processor, [(turns, [picture(1), picture(2)]), ([Turn("no")], [])])
    monkeypatch.setattr(model.query_module, "forward", spy)
    model(**batch)
    ((question, patches),) = seen
    q = model.num_queries
    for turn, text in enumerate(("What is this? ", "And that? ", " Hi ")):
        for slot in range(turn * q, turn * q + q):
            assert processor.decode(batch["input_ids"][0][question[0, slot]]) == text
            per_image = patches[0, slot].unflatten(0, (2, 36))
            assert per_image.all(1).tolist() == per_image.any(1).tolist() == [True, turn > 0]
    assert not question[1, q:].any() and not patches[1].any()


@torch.no_grad()
def test_placeholders_are_never_said(pair):
    model, processor = pair
    head = model.get_output_embeddings()
    banned = [model.config.image_token_id, model.config.query_token_id]
    kept = head.weight[banned].clone()
    head.weight[banned] = 50 * torch.randn_like(kept)  # so that greedy would often take one
    try:
        batch = make_batch(processor, rows())
        logits = model(**batch).logits[:, -1]
        assert torch.isin(logits.argmax(-1), torch.tensor(banned)).any()
        for options in ({}, {"do_sample": True, "top_k": 0}, {"num_beams": 2}, {"use_cache": False}):
            said = generate(model, batch, **options)
            assert not {token for row in said for token in row} & set(banned)
    finally:
        head.weight[banned] = kept


def test_inputs_of_a_cached_step(model):
    processor = make_processor(model)
    batch = without_labels(make_batch(processor, rows()[:2]))
    ends = {} if is_at_least("5.4") else {"cache_position": torch.arange(batch["input_ids"].shape[1])[-1:]}
    step = model.prepare_inputs_for_generation(**batch, **ends, is_first_iteration=False, use_cache=True)
    assert not {"pixel_values", "image_turn", "turns", "query_index", "vision_features"} & set(step)
    first = model.prepare_inputs_for_generation(**batch, **ends, is_first_iteration=True, use_cache=True)
    assert {"pixel_values", "image_turn", "turns", "query_index"} <= set(first)


@torch.no_grad()
def test_a_decoding_step_is_the_llms_own(pair, monkeypatch):
    """A prompt is made into a sequence once; its words after that go to the LLM as they are."""
    model, processor = pair
    batch = make_batch(processor, rows())
    expected = generate(model, batch)
    build_sequence = model.build_sequence
    lengths = []

    def note_length(inputs, *rest):
        lengths.append(inputs.input_ids.shape[1])
        return build_sequence(inputs, *rest)

    monkeypatch.setattr(model, "build_sequence", note_length)
    assert generate(model, batch) == expected
    assert lengths == [batch["input_ids"].shape[1]]


@pytest.mark.parametrize("tokens", [(3, 4), (4, 3), (1, 5), (2, None), (None, None), (2, 9), (8, 9)], ids=str)
def test_muted_tokens_are_those_that_there_are(tokens):
    logits = torch.zeros(2, 3, 6)
    mute_tokens(logits, tokens)
    muted = {token for token in tokens if token is not None and token < 6}
    assert set(logits[0, 0].isinf().nonzero().flatten().tolist()) == muted
    assert torch.equal(logits, logits[:1, :1].expand_as(logits))


@torch.no_grad()
def test_cached_features_are_the_pixels(pair):
    model, processor = pair
    batch = make_batch(processor, rows())
    expected = generate(model, batch)
    batch["vision_features"] = model.get_image_features(batch.pop("pixel_values"))
    assert batch["vision_features"].shape == (7, 3, 6, 6, 24)
    assert (batch["input_ids"] == processor.image_token_id).sum().item() == 8 * CROP_TOKENS
    assert generate(model, batch) == expected
    assert generate(model, batch, num_beams=2) != expected
