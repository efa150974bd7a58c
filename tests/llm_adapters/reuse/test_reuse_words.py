"""Compressors that read the question by the LLM's own embeddings, in multimodal models of transformers."""

import warnings

import pytest
import torch
from factories import KNOBS
from reuse_families import (
    BUDGET,
    EMBQ,
    answers,
    cache_agrees,
    family_params,
    inputs,
    make_model,
    make_processor,
    over_families,
    picture,
    prompt,
    train_loss,
    two_rows,
)

from llm_adapters import reuse

MMTOK = {"compressor": "mmtok", "tokens": BUDGET}
QFORMER = KNOBS["qformer"]
WORDS = ("What is this?", "And that, is it a cat or a dog?")


def attach(family, **options):
    """With MMTok, and its inputs call by call."""
    model, processor = make_model(family), make_processor(family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a projector to be trained, pictures of sizes that are refused
        reuse.attach(model, processor, **(options or MMTOK))
    calls = []
    model.slothkit.compressor.register_forward_pre_hook(lambda part, given: calls.append(given))  # noqa: ARG005
    return model, processor, calls


def ask(family, words):
    """A prompt as the processors' chat template has it."""
    return prompt(family, words).replace("USER:", "user:").replace(" ASSISTANT:", "\nassistant:")


def embed(model, processor, words):
    """Words by the LLM's embeddings, (T, D)."""
    ids = processor.tokenizer(words, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        return model.get_input_embeddings()(torch.tensor(ids))


@over_families
def test_generate_in_every_family(family):
    """Each image with the words of its question, beside the patches behind the projector; with a KV cache as
    without, in a batch as alone."""
    model, processor, calls = attach(family)
    rows = [(ask(family, WORDS[0]), [picture(1)]), (ask(family, WORDS[1]), [picture(2, 40, 24)])]
    batch = inputs(processor, rows)
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()
    expected = [embed(model, processor, words) for words in WORDS]
    llm_dim = expected[0].shape[1]
    read = set()
    for features, text, mask in list(calls):
        assert features.shape[-1] == model.slothkit.compressor.out_dim + llm_dim
        for words, is_word in zip(text, mask):
            question = [len(words) for words in expected].index(int(is_word.sum()))
            torch.testing.assert_close(words[is_word], expected[question])
            read.add(question)
    assert read == {0, 1}
    said = answers(model, batch)
    if cache_agrees(family, rows):
        assert answers(model, batch, use_cache=False) == said
    assert [answers(model, inputs(processor, [row]))[0] for row in rows] == said
    answers(model, batch, num_beams=2)


def test_a_question_decides_what_is_kept():
    model, processor, calls = attach("llava", **MMTOK, text_temperature=0.2)
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    for words in WORDS:
        with torch.no_grad():
            model(**inputs(processor, [(ask("llava", words), [picture(1)])]))
    first, second = (model.slothkit.compressor.kept(*call) for call in calls)
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("family", family_params("llava", "idefics3", "qwen2_vl", "llava_onevision"))
def test_each_image_has_the_question_of_its_turn(family):
    model, processor, calls = attach(family)
    chat = f"{ask(family, WORDS[0])} A dog.\n{ask(family, WORDS[1])}"
    rows = [(chat, [picture(1), picture(2)]), (ask(family, WORDS[1]), [picture(3)])]
    with torch.no_grad():
        model(**inputs(processor, rows))
    counts = []
    for _, _, mask in calls:
        counts += mask.sum(1).tolist()
    lengths = [len(embed(model, processor, words)) for words in WORDS]
    read = [lengths.index(count) for count in counts]
    changes = [number for place, number in enumerate(read) if place == 0 or read[place - 1] != number]
    assert changes == [0, 1]


@pytest.mark.parametrize("family", family_params("llava", "qwen2_5_vl"))
def test_half_precision_positions_and_a_query_module(family):
    model, processor, calls = attach(family, **MMTOK, **EMBQ, positions="keep")
    model.to(torch.bfloat16)
    batch = inputs(processor, two_rows(family, marked=True))
    batch["pixel_values"] = batch["pixel_values"].to(torch.bfloat16)
    with torch.no_grad():
        logits = model(**batch).logits
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    assert all(call[0].dtype == call[1].dtype == torch.float32 for call in calls)


@pytest.mark.parametrize("family", family_params("llava", "qwen2_5_vl"))
def test_fitprune_is_calibrated_beside_it(family):
    """Its prompts' images are encoded once and for all, with the questions of their prompts."""
    model, processor, calls = attach(family)
    batch = inputs(processor, two_rows(family))
    with torch.no_grad():
        model(**batch)
    expected = list(calls)
    calls.clear()
    reuse.prune(model, "fitprune", average=0.6, calibrate_on=batch)
    assert len(model.slothkit_pruning.pruner.known_shares()) == 2
    for call, expected_call in zip(calls, expected):
        assert all(map(torch.equal, call, expected_call))


def test_the_tower_is_trained_through_what_is_kept():
    model, processor, _ = attach("llava")
    train_loss(model, inputs(processor, two_rows("llava"))).backward()
    tower = model.model.vision_tower
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in tower.parameters())


def test_saved_loaded_and_detached(tmp_path):
    model, processor, _ = attach("llava")
    batch = inputs(processor, two_rows("llava"))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, _ = reuse.load(tmp_path)
    with torch.no_grad():
        assert again.eval()(**batch).logits.equal(model(**batch).logits)
    reuse.detach(model, processor)
    plain = make_model("llava")
    before = inputs(make_processor("llava"), two_rows("llava"))
    with torch.no_grad():
        assert model(**before).logits.equal(plain(**before).logits)


def test_a_learned_one_is_trained_with_the_embeddings():
    model, processor, calls = attach("llava", compressor="qformer", text=True, **QFORMER)
    batch = inputs(processor, two_rows("llava"))
    train_loss(model, batch).backward()
    assert all(call[1].requires_grad for call in calls)
    assert all(parameter.grad is not None for parameter in model.slothkit.compressor.parameters())
