"""Models with a compressor as they are served: from several threads, in several sequences, offloaded,
with counts told before there are images."""

import sys
import threading

import pytest
import torch
from accelerate import cpu_offload
from reuse_families import (
    EMBQ,
    LEADING_FAMILIES,
    SAP,
    answers,
    attached,
    family_params,
    inputs,
    make_model,
    make_processor,
    over_families,
    picture,
    prompt,
    two_rows,
)

from connectors.versions import is_at_least
from llm_adapters import reuse


@pytest.fixture
def eager_switching():
    """Threads take turns after a microsecond, so that each is interrupted while it encodes."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


# those with levels of the tower, inputs of each layer's own or a resampler, too
@pytest.mark.parametrize("family", family_params(*LEADING_FAMILIES, "qwen3_vl", "gemma3n", "idefics2"))
@pytest.mark.usefixtures("eager_switching")
def test_threads_have_their_own_images(family):
    model, processor = attached(family)
    batches = [inputs(processor, [row]) for row in two_rows(family, marked=True)] * 2
    alone = [answers(model, batch) for batch in batches]
    together: dict[int, list] = {}

    def answer(number: int) -> None:
        together[number] = answers(model, batches[number])

    threads = [threading.Thread(target=answer, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together.get(number) for number in range(len(batches))] == alone


@pytest.mark.skipif(not is_at_least("5.17"), reason="before, transformers mixes up the images of beams")
@over_families
def test_returned_sequences_have_the_images_of_their_row(family):
    model, processor = attached(family)
    pictures = [picture(3), picture(4, 24, 40)]
    rows = [*two_rows(family, marked=True)[:1], (prompt(family, images=2, marked=True), pictures)]
    batch = inputs(processor, rows)
    options = {"max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    one = model.generate(**batch, **options).logits[0]
    two = model.generate(**batch, **options, do_sample=True, num_return_sequences=2).logits[0]
    torch.testing.assert_close(two, one.repeat_interleave(2, 0), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("family", family_params("llava", "qwen2_5_vl"))
def test_offloaded_weights(family):
    """Parts are where the embeddings compute, whose weights are not there at other times."""
    model, processor = make_model(family), make_processor(family)
    batch = inputs(processor, two_rows(family))
    with torch.no_grad():
        logits = model(**batch).logits
    cpu_offload(model, execution_device="cpu")
    reuse.attach(model, processor, **SAP, **EMBQ)
    assert {parameter.device.type for parameter in model.slothkit.parameters()} == {"cpu"}
    assert answers(model, inputs(processor, two_rows(family, marked=True)))
    reuse.detach(model, processor)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, logits)


@pytest.mark.parametrize("family", family_params("pixtral", "mistral3", "lighton_ocr"))
@pytest.mark.parametrize(
    ("name", "knobs"),
    [("avg_pool", {"rate": 2}), ("resampler", {"num_queries": 4})],
    ids=["rows", "no order"],
)
def test_counts_of_sizes_of_their_own_are_told(family, name, knobs):
    """With the tokens that end rows and images, as the class tells them without a compressor."""
    model, processor = make_model(family), make_processor(family)
    reuse.attach(model, processor, name, **knobs)
    tokens = (processor.image_token, processor.image_break_token, processor.image_end_token)
    ids = torch.tensor(processor.tokenizer.convert_tokens_to_ids([*tokens]))
    for width, height in ((24, 24), (40, 24), (32, 64)):
        batch = inputs(processor, [(prompt(family), [picture(1, width, height)])])
        told = processor._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"]
        assert told == [int(torch.isin(batch["input_ids"], ids).sum())]
