"""A training step never waits for a value from the device: on the meta device there is none to read."""

import pytest
from factories import KNOBS, LLMS, make_batch, make_model, make_processor, picture

import compressors
from connectors.query_module import registry as query_modules
from connectors.versions import allow_meta_forward
from llm_adapters.conversation import IMAGE, Turn

CHATS = [
    ([Turn(f"{IMAGE}\nWhat is this?", "A dog.")], [picture(0)]),
    ([Turn("Hi", "The cat"), Turn(f"{IMAGE}And that?", "A dog.")], [picture(1)]),
]

# matryoshka hides what it has not drawn by a mask, and transformers reads masks; who reads the question is
# given as many places as the longest one has, which is a value of the device
SILENT = [
    name
    for name in compressors.names()
    if name != "matryoshka"
    and not compressors.create(name, dim=24, llm_dim=32, **KNOBS.get(name, {})).needs_text
]


@pytest.fixture
def no_packing(monkeypatch):
    """transformers' own read: whether positions tell of packed rows, once a step where there is no mask."""
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda *_: None)


CASES = {*((llm, "sap", "embq") for llm in LLMS), *(("llama", name, "embq") for name in SILENT)}
CASES |= {("llama", "sap", name) for name in query_modules.names()}


@pytest.mark.usefixtures("no_packing")
@pytest.mark.parametrize(("llm", "compressor", "query_module"), sorted(CASES))
def test_a_training_step_reads_nothing(llm, compressor, query_module):
    model = make_model(llm, compressor, query_module).train()
    batch = make_batch(make_processor(model), CHATS)
    del batch["attention_mask"]  # as the loader does
    model.to("meta")
    with allow_meta_forward():
        loss = model(
            **{name: value.to("meta") for name, value in batch.items()}, num_items_in_batch=5, use_cache=False
        ).loss
    loss.backward()
    assert all(p.grad is not None for p in model.query_module.parameters())


@pytest.mark.usefixtures("no_packing")
def test_reading_is_noticed():
    model = make_model("llama", "sap", "embq")
    batch = make_batch(make_processor(model), CHATS)  # its mask is read: is anything masked?
    model.to("meta")
    with pytest.raises(RuntimeError, match="meta tensor"), allow_meta_forward():
        model(**{name: value.to("meta") for name, value in batch.items()}, use_cache=False)
