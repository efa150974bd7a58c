"""Answers with a cache of fixed size are those with one that grows, token for token in float32."""

import pytest
import torch
from factories import LLMS, compiled_decoding, graphs_made, make_batch, make_model, make_processor, picture

import compressors
from compressors.errors import UsageError
from llm_adapters.conversation import IMAGE, Template, Turn
from llm_adapters.kv_cache import LENGTH_STEP, can_compile_step, pick_caches
from llm_adapters.shared_prefix import PictureKeeper, generate_behind_prefix, share_inputs

TEXTS = ("What is this?", "And that, is it a dog?", "What?")
OPTIONS = {"do_sample": False, "max_new_tokens": 8, "eos_token_id": 9999}


def make_inputs(processor, numbers=(0, 1, 0), texts=TEXTS):
    """A row a question, about the picture of that number; one without a picture where it is None."""
    rows = []
    for number, text in zip(numbers, texts, strict=True):
        images = [] if number is None else [picture(number)]
        rows.append(([Turn(f"{IMAGE}\n{text}" if images else text)], images))
    batch = make_batch(processor, rows, "left")
    del batch["labels"]
    return batch


def make_case(llm, compressor, query_module, **options):
    model = make_model(llm, compressor, query_module, prompt=Template(system=""), scale=1.0, **options)
    return model, make_processor(model)


@torch.no_grad()
def check_static_answers(model, processor):
    inputs = make_inputs(processor, (0, None, 1))
    expected = model.generate(**inputs, **OPTIONS)
    assert torch.equal(model.generate(**inputs, **OPTIONS, cache_implementation="static"), expected)


@pytest.mark.parametrize("name", compressors.names())
def test_every_compressor(name):
    check_static_answers(*make_case("llama", name, "embq"))


@pytest.mark.parametrize("query_module", [None, "embq", "llava_mini"])
@pytest.mark.parametrize("llm", [*LLMS, "gemma2", "gemma3", "gpt_neox"])
def test_llms_and_query_modules(llm, query_module):
    """Those with windows, too."""
    check_static_answers(*make_case(llm, "sap", query_module))


@pytest.mark.parametrize("query_module", [None, "embq"])
@pytest.mark.parametrize("llm", LLMS)
def test_a_lent_cache_holds_nothing_of_the_batch_before(llm, query_module):
    """Behind shared prefixes and of whole rows, in turns, with the same cache."""
    model, processor = make_case(llm, "sap", query_module)
    grown = PictureKeeper(model, processor)
    caches = pick_caches("static", model)
    static = PictureKeeper(model, processor, caches)
    lent = set()
    for numbers in ((0, 1, 0), (0, 1, 2), (2, 2, 2), (1, 0, 1)):
        inputs = make_inputs(processor, numbers)
        expected = grown.generate(inputs, numbers, **OPTIONS)
        assert torch.equal(static.generate(inputs, numbers, **OPTIONS), expected)
        lent.add(id(caches.cache))
    assert len(lent) == 1
    beams = {**OPTIONS, "num_beams": 2}
    expected = grown.generate(inputs, numbers, **beams)
    assert torch.equal(static.generate(inputs, numbers, **beams), expected)
    model.generation_config.num_beams = 2  # as the model was saved
    assert torch.equal(static.generate(inputs, numbers, **OPTIONS), expected)


def test_batches_behind_prefixes_are_one_graph():
    model, processor = make_case("llama", "sap", "embq")
    caches = pick_caches("static", model)
    options = {**OPTIONS, "compile_config": compiled_decoding()["compile_config"]}
    with graphs_made() as counts:
        for numbers in ((0, 1, 0), (2, 2, 2)):
            shared = share_inputs(processor, make_inputs(processor, numbers), numbers)
            expected = generate_behind_prefix(model, shared, **OPTIONS)
            found = generate_behind_prefix(model, shared, caches=caches, **options)
            assert torch.equal(found, expected)
    assert counts["unique_graphs"] == 1


def test_a_larger_batch_gets_a_larger_cache():
    caches = pick_caches("static", make_model("llama", "sap", None))
    first = caches.lend_cache(2, LENGTH_STEP)
    assert first.layers[0].max_cache_len == LENGTH_STEP
    assert caches.lend_cache(2, 5) is first
    longer = caches.lend_cache(2, LENGTH_STEP + 1)
    assert longer is not first and longer.layers[0].max_cache_len == 2 * LENGTH_STEP
    assert caches.lend_cache(3, 5) is not longer


def test_auto_leaves_the_cpu_as_it_was():
    model = make_model("llama", "sap", "embq")
    assert can_compile_step(model)
    assert pick_caches("auto", model) is None
    assert pick_caches("dynamic", model) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_auto_is_static_on_a_gpu():
    assert pick_caches("auto", make_model("llama", "sap", "embq").cuda()) is not None


def test_what_differs_in_length_or_keeps_a_state_is_refused_and_auto_is_dynamic():
    model = make_model("llama", "sap", None)
    model.set_pruner("fastv")
    with pytest.raises(UsageError, match="evaluate.cache=static: fastv drops tokens"):
        pick_caches("static", model, "evaluate.cache")
    assert pick_caches("auto", model) is None
    state = make_model("rwkv", "sap", None)
    with pytest.raises(UsageError, match="RwkvForCausalLM keeps a state"):
        pick_caches("static", state)
    assert not can_compile_step(state)


def test_flash_attention_does_not_compile():
    model = make_model("llama", "sap", None)
    model.language_model.config._attn_implementation = "flash_attention_2"
    assert not can_compile_step(model)
