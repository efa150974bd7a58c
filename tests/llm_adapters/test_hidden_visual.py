"""Rows whose visual tokens the LLM does not see: they are really absent, and the query module works on."""

import pytest
import torch
from factories import LLMS, make_batch, make_model, make_processor, picture, word_tokenizer
from test_every_part import no_effect

from compressors.errors import UsageError
from connectors.versions import switch_checkpointing
from experiments.stages.training.module import set_trainable
from llm_adapters.conversation import IMAGE, Template, Turn

FAMILIES = (*LLMS, "qwen3", "gemma2", "gemma3", "gpt_neox")
IMAGE_FIRST = Template(system="", user="")  # a visual token that is hidden has nothing before it to read
ROWS = [
    (
        [Turn(f"{IMAGE}\nWhat is this?", "A dog."), Turn(f"And {IMAGE} that?", "cat")],
        [picture(1), picture(2)],
    ),
    ([Turn(f"{IMAGE}\nWhat is that?", "red")], [picture(3)]),
    ([Turn("Hi", "no")], []),
]
ALL = torch.tensor([True, True, True])
FIRST = torch.tensor([True, False, False])


def make(llm="llama", compressor="sap", query_module="embq", **options):
    """A model and a batch as the loader makes it: padded on the right, without a mask."""
    model = make_model(llm, compressor, query_module, prompt=IMAGE_FIRST, **options)
    # it has no token for the space before the image
    batch = make_batch(make_processor(model, word_tokenizer()), ROWS, "right")
    del batch["attention_mask"]
    return model, batch


def is_seen(model, batch):
    """(B, T): positions that are no visual token's; what these hold themselves is nobody's matter."""
    return batch["input_ids"] != model.config.image_token_id


def record_llm_inputs(model):
    """A list that gets the keyword arguments of each call of the LLM."""
    calls = []

    def record(_module, _arguments, keywords):
        calls.append(keywords)

    model.language_model.register_forward_pre_hook(record, with_kwargs=True)
    return calls


def disturb_compressor(model):
    """The compressor gets other features, the query module the same as before."""
    return model.compressor.register_forward_pre_hook(lambda _, args: (args[0].flip(1) + 1, *args[1:]))


@pytest.mark.parametrize("query_module", ["embq", "llava_mini"])
@pytest.mark.parametrize("attention", ["own", "eager"])  # of most families SDPA is their own
@pytest.mark.parametrize("llm", FAMILIES)
def test_what_the_compressor_makes_reaches_no_token_of_a_hidden_row(llm, attention, query_module):
    model, batch = make(llm, query_module=query_module)
    if attention == "eager":
        model.language_model.set_attn_implementation("eager")
    seen = is_seen(model, batch)
    before = model(**batch, hidden_visual=FIRST)
    all_before = model(**batch, hidden_visual=ALL)
    disturb_compressor(model)
    after = model(**batch, hidden_visual=FIRST)
    assert before.logits.isfinite().all() and before.loss.isfinite()
    assert torch.equal(before.logits[0][seen[0]], after.logits[0][seen[0]])
    assert not torch.allclose(before.logits[1][seen[1]], after.logits[1][seen[1]])
    assert torch.equal(before.logits[2], after.logits[2])
    assert not torch.equal(before.loss, after.loss)
    assert torch.equal(all_before.loss, model(**batch, hidden_visual=ALL).loss)


@pytest.mark.parametrize("llm", FAMILIES)
def test_hidden_tokens_are_as_good_as_cut_out_with_the_positions_kept(llm):
    model, batch = make(llm, query_module=None)
    seen = is_seen(model, batch)
    logits = model(**batch, hidden_visual=ALL).logits
    for row in range(2):
        ids = batch["input_ids"][row : row + 1, seen[row]]
        positions = seen[row].nonzero().T
        assert positions[0, 0] > 0  # the visual tokens stand first
        cut = model.language_model(input_ids=ids, position_ids=positions).logits
        torch.testing.assert_close(logits[row][seen[row]], cut[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("llm", FAMILIES)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_come_by_the_query_module_alone(llm, checkpointing):
    model, batch = make(llm)
    set_trainable(model, "finetune")
    model.train()
    if checkpointing:
        switch_checkpointing(model, "enable", {"use_reentrant": False})
    gradients = []
    for hidden_visual in (ALL, FIRST):
        model.zero_grad()
        model(**batch, hidden_visual=hidden_visual, use_cache=False).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in gradients[0].items():
        assert gradient.isfinite().all(), name
        if name.startswith(("compressor.", "projector.")):
            # zero and not None: processes that wait for each other's gradients get them in every step
            assert not gradient.any(), name
            assert gradients[1][name].any() or no_effect(name), name
        else:
            assert gradient.any() or no_effect(name), name


def test_a_query_module_reads_the_images_of_hidden_visual():
    model, batch = make()
    seen = is_seen(model, batch)
    logits = model(**batch, hidden_visual=ALL).logits
    model.query_module.register_forward_pre_hook(lambda _, args: (*args[:3], args[3] + 1, *args[4:]))
    changed = model(**batch, hidden_visual=ALL).logits
    for row in range(2):
        assert not torch.allclose(logits[row][seen[row]], changed[row][seen[row]])
    assert torch.equal(logits[2], changed[2])


@pytest.mark.parametrize("llm", FAMILIES)
def test_no_hidden_row_is_no_change(llm):
    model, batch = make(llm)
    shown = model(**batch, hidden_visual=~ALL)
    torch.testing.assert_close(shown.logits, model(**batch).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_and_given_positions_are_kept(side):
    model = make_model("llama", "sap", "embq", prompt=IMAGE_FIRST)
    batch = make_batch(make_processor(model), ROWS, side)
    calls = record_llm_inputs(model)
    model(**batch)
    model(**batch, hidden_visual=ALL)
    model(**batch, hidden_visual=ALL, position_ids=calls[0]["position_ids"] + 3)
    assert torch.equal(calls[1]["position_ids"], calls[0]["position_ids"])
    assert torch.equal(calls[2]["position_ids"], calls[0]["position_ids"] + 3)
    expected_mask = batch["attention_mask"] * is_seen(model, batch)
    assert torch.equal(calls[1]["attention_mask"], expected_mask)


def test_positions_of_a_drawn_scale_are_those_of_its_visible_tokens():
    model, batch = make("llama", "matryoshka", compressor_knobs={"scales": (1, 2)})
    model.compressor.train().draw()
    model.compressor.drawn = 2
    calls = record_llm_inputs(model)
    model(**batch)
    model(**batch, hidden_visual=ALL)
    assert torch.equal(calls[0]["position_ids"], calls[1]["position_ids"])
    assert torch.equal(calls[1]["attention_mask"], is_seen(model, batch).long())


def test_single_tokens_are_hidden():
    """Only where they are visual ones, and as rows are where all of a row's are."""
    model, batch = make()
    everywhere = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    everywhere[1:] = False
    assert torch.equal(
        model(**batch, hidden_visual=everywhere).logits, model(**batch, hidden_visual=FIRST).logits
    )
    is_image = batch["input_ids"] == model.config.image_token_id
    one = torch.zeros_like(is_image)
    one[0, is_image[0].nonzero()[0]] = True
    calls = record_llm_inputs(model)
    model(**batch, hidden_visual=one)
    assert torch.equal(calls[0]["attention_mask"], (~one).long())


@pytest.mark.parametrize("query_module", ["embq", "llava_mini"])
@pytest.mark.parametrize("llm", FAMILIES)
def test_nothing_reads_a_single_token_that_is_hidden(llm, query_module):
    model, batch = make(llm, query_module=query_module)
    is_image = ~is_seen(model, batch)
    every_other = torch.arange(is_image.shape[1]) % 2 == 0
    hidden = is_image & every_other
    assert hidden[:2].any(1).all() and (is_image & ~hidden)[:2].any(1).all()
    before = model(**batch, hidden_visual=every_other.expand_as(is_image))

    def disturb(_module, arguments, keywords):
        embeds = keywords["inputs_embeds"]
        return arguments, {**keywords, "inputs_embeds": torch.where(hidden.unsqueeze(2), embeds + 9, embeds)}

    model.language_model.register_forward_pre_hook(disturb, with_kwargs=True, prepend=True)
    after = model(**batch, hidden_visual=every_other.expand_as(is_image))
    assert torch.equal(before.logits[~hidden], after.logits[~hidden])
    assert torch.equal(before.loss, after.loss)
    assert not torch.equal(before.logits[:2], model(**batch).logits[:2])  # it is read where it is shown


def test_where_it_cannot_be():
    model, batch = make()
    del batch["labels"]
    with pytest.raises(UsageError, match="`hidden_visual` is for training"):
        model.generate(**batch, hidden_visual=ALL, max_new_tokens=1)
    embeds = model.get_input_embeddings()(batch["input_ids"].clamp(max=9))
    with pytest.raises(UsageError, match="`hidden_visual` needs `input_ids`"):
        model(inputs_embeds=embeds, hidden_visual=ALL)
