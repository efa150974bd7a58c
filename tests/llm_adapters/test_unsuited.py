"""What query modules and pruners cannot do is refused: they never act on nothing in silence."""

import pytest
import torch
from factories import byte_tokenizer, chat, make_batch, make_config, make_model, make_processor, picture
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from compressors.errors import UsageError
from connectors.versions import CACHE, is_at_least
from llm_adapters.conversation import Turn
from llm_adapters.modeling import FlashSlothForConditionalGeneration

DEAF = ("falcon", "bloom")  # decoders that take any keyword argument and keep it from their layers


def inputs(model, images: int = 1, text: str = "What is this?") -> dict:
    processor = make_processor(model)
    shown = [picture(i) for i in range(images)]
    given = processor.apply_chat_template(
        chat(*shown, text=text), tokenize=True, return_dict=True, return_tensors="pt"
    )
    return dict(given)


@pytest.mark.parametrize("llm", DEAF)
def test_a_query_module_needs_layers_that_are_told(llm):
    model = make_model(llm, query_module="embq")
    with pytest.raises(UsageError, match="does not hand keyword arguments down to its decoder layers"):
        model(**inputs(model))
    model = make_model(llm, query_module=None)
    assert model(**inputs(model)).logits.isfinite().all()


@pytest.mark.parametrize("llm", DEAF)
def test_a_pruner_needs_layers_that_are_told(llm):
    if llm == "falcon" and not is_at_least("5.10"):
        pytest.skip("Falcon's own attention fails without a mask before 5.10")
    model = make_model(llm, query_module=None)
    with pytest.raises(UsageError, match="pruning: "):
        model.set_pruner("fastv", ratio=0.5)
        model(**inputs(model))


def test_layers_with_inputs_of_their_own_are_refused():
    """Gemma 3n's and 4's, which an LLM makes from token ids."""
    config = make_config("phi")
    config.text_config.hidden_size_per_layer_input = 8
    with pytest.raises(UsageError, match="PhiForCausalLM: each of its layers reads inputs of its own"):
        FlashSlothForConditionalGeneration(config)


@pytest.mark.parametrize("name", ["image_token_id", "query_token_id"])
def test_a_configuration_without_placeholders_is_refused(name):
    model = make_model()
    batch = inputs(model)
    setattr(model.config, name, None)
    with pytest.raises(UsageError, match=f"config.{name} is None; set it to the id that the tokenizer has"):
        model(**batch)


def test_images_with_embeddings_are_refused():
    model = make_model()
    batch = inputs(model)
    ids = batch.pop("input_ids")
    embeds = model.get_input_embeddings()(ids)
    with pytest.raises(UsageError, match="images were given with `inputs_embeds`"):
        model(inputs_embeds=embeds, **batch)
    assert model(inputs_embeds=embeds).logits.shape[:2] == ids.shape


def pack_rows(model) -> dict:
    """Two conversations in one row, whose positions begin again."""
    processor = make_processor(model)
    rows = []
    for number, question in enumerate(("What is this?", "And that?")):
        turns = [Turn(f"<image>{question}", "A dog.")]
        rows.append(make_batch(processor, [(turns, [picture(number)])], "right"))
    packed = {}
    for name in ("input_ids", "turns", "image_turn", "pixel_values"):
        packed[name] = torch.cat([row[name] for row in rows], 1)
    lengths = [row["input_ids"].shape[1] for row in rows]
    packed["position_ids"] = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0)
    return packed


@pytest.mark.parametrize(
    ("compressor", "query_module", "knobs"),
    [
        ("sap", "embq", None),
        ("trim", None, None),
        ("divprune", None, {"tokens": 9, "positions": "keep"}),
    ],
)
def test_packed_texts_are_refused_where_they_would_read_each_other(compressor, query_module, knobs):
    model = make_model("llama", compressor, query_module, compressor_knobs=knobs)
    packed = pack_rows(model)
    if compressor == "trim":
        packed |= {name: value for name, value in inputs(model, 2).items() if name.startswith("question_")}
    with pytest.raises(UsageError, match="begin again within a row.*; give one conversation a row"):
        model(**packed, use_cache=False)


def test_packed_texts_that_the_llm_keeps_apart():
    model = make_model("llama", "sap", None)
    packed = pack_rows(model)
    second = int((packed["position_ids"][0] == 0).nonzero()[1])
    with torch.no_grad():
        whole = model(**packed, use_cache=False).logits[:, second:]
        alone = {name: packed[name][:, second:] for name in ("input_ids", "turns")}
        alone |= {name: packed[name][:, 1:] for name in ("image_turn", "pixel_values")}
        torch.testing.assert_close(whole, model(**alone, use_cache=False).logits)


def test_a_new_question_behind_a_cache_is_refused():
    """Its query tokens could read neither patches nor question."""
    model = make_model()
    processor = make_processor(model)
    first, second = Turn("<image>\nWhat is this?", "A dog."), Turn("And that?")
    whole = processor.collate([processor.encode([first, second], 1)], "left")["input_ids"]
    batch = inputs(model)
    seen = batch["input_ids"].shape[1]
    with torch.no_grad():
        cache = model(**batch, use_cache=True)[CACHE]
        with pytest.raises(UsageError, match="a new turn behind a cache"):
            model(input_ids=whole[:, seen:], **{CACHE: cache})
        words = torch.tensor([byte_tokenizer()(" A dog.")["input_ids"]])
        assert model(input_ids=words, **{CACHE: cache}).logits.shape[:2] == words.shape


def test_a_tokenizer_may_begin_texts_by_its_post_processor():
    """As Llama 3's does, which says nothing of it in `add_bos_token`."""
    plain = byte_tokenizer()
    backend = type(plain.backend_tokenizer).from_str(plain.backend_tokenizer.to_str())
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", plain.bos_token_id)])
    begins = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    model, turns = make_model(), [Turn("What?", "A dog.")]
    found, without = (make_processor(model, each).encode(turns, 0).ids for each in (begins, plain))
    assert found == [plain.bos_token_id, *without]
