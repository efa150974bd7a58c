"""The processor: what it returns, what it refuses, and that transformers' own tools work with it."""

import copy
import pickle

import numpy as np
import pytest
import torch
from factories import (
    CROP_TOKENS,
    SIZE,
    TOKENIZERS,
    assert_same,
    chat,
    make_processor,
    picture,
    prompt,
    saved_settings,
)
from tokenizers import Tokenizer
from tokenizers.models import BPE
from transformers import AutoProcessor, PreTrainedTokenizerFast, pipeline

from compressors.errors import UsageError
from connectors.tiling import Tiling
from llm_adapters.conversation import IMAGE
from llm_adapters.processing import FlashSlothProcessor


@pytest.fixture
def processor(model) -> FlashSlothProcessor:
    return make_processor(model)


def test_row_of_one_image(processor):
    out = processor(images=picture(), text=prompt(processor, f"{IMAGE}What?"))
    assert set(out) == set(processor.model_input_names)
    ids = out["input_ids"]
    assert ids.dtype == torch.long and ids.shape[0] == 1
    assert (ids == processor.image_token_id).sum() == CROP_TOKENS
    assert out["query_index"].tolist() == [(ids[0] == processor.query_token_id).nonzero().flatten().tolist()]
    assert out["pixel_values"].shape == (1, 1, 3, SIZE, SIZE) and out["image_turn"].tolist() == [[1]]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_batch_is_its_rows_padded(model, tokenizer, side):
    processor = make_processor(model, TOKENIZERS[tokenizer]())
    questions = [f"{IMAGE}{IMAGE}What is this?", "Hi", f"{IMAGE} And that?"]
    images = [[picture(1), picture(2)], [], [picture(3)]]
    batch = processor(images=images, text=[prompt(processor, q) for q in questions], padding_side=side)
    assert batch["image_turn"].tolist() == [[1, 1], [0, 0], [1, 0]]
    for i, question in enumerate(questions):
        alone = processor(images=images[i] or None, text=prompt(processor, question))
        real = batch["attention_mask"][i].bool()
        length = real.sum()
        assert real[-length:].all() if side == "left" else real[:length].all()
        for name in ("input_ids", "turns"):
            assert torch.equal(batch[name][i][real], alone[name][0])
        assert torch.equal(batch["query_index"][i], alone["query_index"][0] + real.int().argmax())
        assert not batch["turns"][i][~real].any()
        assert (batch["input_ids"][i][~real] == processor.tokenizer.pad_token_id).all()
        if images[i]:
            assert torch.equal(batch["pixel_values"][i, : len(images[i])], alone["pixel_values"][0])
        assert not batch["pixel_values"][i, len(images[i]) :].any()


def test_fewer_turns_leave_fill_slots(processor):
    messages = [*chat(text="Hi"), {"role": "assistant", "content": "red"}, *chat(text="And?")]
    texts = processor.apply_chat_template([messages, chat(text="Hi")])
    batch = processor(text=texts)
    assert (batch["query_index"] >= 0).sum(1).tolist() == [6, 3]
    assert "pixel_values" not in batch and "image_turn" not in batch


@pytest.mark.parametrize(
    "images",
    [
        picture(),
        [picture()],
        [[picture()]],
        (picture(),),
        np.array(picture()),
    ],
    ids=["image", "list", "nested", "tuple", "array"],
)
def test_ways_to_give_one_image(processor, images):
    text = prompt(processor, f"{IMAGE}What?")
    assert_same(processor(images=images, text=text), processor(images=[[picture()]], text=[text]))


def test_ways_to_give_images_of_two_texts(processor):
    texts = [prompt(processor, f"{IMAGE}What?"), prompt(processor, f"{IMAGE}And?")]
    nested = processor(images=[[picture(1)], [picture(2)]], text=texts)
    assert_same(processor(images=[picture(1), picture(2)], text=texts), nested)
    mixed = processor(images=[[picture(1)], None], text=[texts[0], prompt(processor, "Hi")])
    assert mixed["image_turn"].tolist() == [[1], [0]]


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "LA"])
def test_every_kind_of_picture(processor, mode):
    image = picture().convert(mode)
    text = prompt(processor, f"{IMAGE}What?")
    assert_same(processor(images=image, text=text), processor(images=image.convert("RGB"), text=text))


@pytest.mark.parametrize(
    ("images", "question", "message"),
    [
        (None, f"{IMAGE}What?", r"1 <image> marker\(s\) but 0 image"),
        ([picture()], "What?", r"0 <image> marker\(s\) but 1 image"),
        ([picture()] * 3, f"{IMAGE}{IMAGE}What?", r"2 <image> marker\(s\) but 3 image"),
        ([[picture()], [picture()]], f"{IMAGE}What?", r"2 lists of images for 1 text"),
    ],
)
def test_counts_that_disagree(processor, images, question, message):
    with pytest.raises(UsageError, match=message) as caught:
        processor(images=images, text=prompt(processor, question))
    assert "\n" not in str(caught.value)


def test_flat_images_for_texts(processor):
    with pytest.raises(UsageError, match=r"3 .*images for 2 text"):
        processor(images=[picture()] * 3, text=[prompt(processor, f"{IMAGE}What?")] * 2)


def test_what_is_no_input(processor):
    with pytest.raises(UsageError, match="text=None"):
        processor(images=picture())
    for wrong, name in ((picture(), "Image"), ([picture()], "Image"), (5, "int")):
        with pytest.raises(UsageError, match=f"^text={name}: give text, .* the order is images, text$"):
            processor("What?", wrong)
    with pytest.raises(UsageError, match="max_length"):  # visual tokens must not be cut, so nothing is
        processor(text=prompt(processor, "Hi"), max_length=8)
    with pytest.raises(UsageError, match="padding_side='top'"):
        processor(text=prompt(processor, "Hi"), padding_side="top")


def test_tokenizer_without_placeholders(model):
    bare = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE()), unk_token="<unk>")
    with pytest.raises(UsageError, match="no token '<image>'; add it with"):
        make_processor(model, bare)


def test_blind_processor_takes_images_but_shows_none(model):
    plain = make_processor(model)
    blind = FlashSlothProcessor(plain.image_processor, plain.tokenizer, image_tokens=0, num_queries=3)
    out = blind(images=picture(), text=prompt(blind, f"{IMAGE}What?"))
    assert "pixel_values" not in out and "image_turn" not in out
    model(**out)


@pytest.mark.parametrize("tiles", [1, 2])
@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_save_and_load(model, tokenizer, tiles, tmp_path):
    processor = make_processor(model, TOKENIZERS[tokenizer](), tiles)
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is FlashSlothProcessor
    assert loaded.chat_template == processor.chat_template
    text = processor.apply_chat_template(chat(picture()))
    image = picture(0, (200, 130))  # to be resized
    assert_same(loaded(images=image, text=text), processor(images=image, text=text))
    assert saved_settings(loaded) == saved_settings(processor)


def test_other_prompt_survives_saving(model, tmp_path):
    plain = make_processor(model)
    words = {"system": "", "user": "Q:", "assistant": " A:", "end": "</s>"}
    FlashSlothProcessor(plain.image_processor, plain.tokenizer, 4, 1, 3, words).save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.prompt == words
    assert loaded.apply_chat_template(chat(text="Hi")) == "Q:<question> Hi <query> A:"


def test_copies_and_pickles(processor):
    text = prompt(processor, f"{IMAGE}What?")
    for other in (copy.deepcopy(processor), pickle.loads(pickle.dumps(processor))):
        assert_same(other(images=picture(), text=text), processor(images=picture(), text=text))


def test_chat_to_tensors(processor, tmp_path):
    picture(3).save(tmp_path / "a.png")
    from_path = [
        {
            "role": "user",
            "content": [{"type": "image", "path": str(tmp_path / "a.png")}, {"type": "text", "text": "And?"}],
        }
    ]
    chats = [chat(picture(1), picture(2)), chat(text="Hi"), from_path]
    batch = processor.apply_chat_template(chats, add_generation_prompt=True, tokenize=True, return_dict=True)
    texts = processor.apply_chat_template(chats)
    assert_same(batch, processor(images=[[picture(1), picture(2)], [], [picture(3)]], text=texts))
    one = processor.apply_chat_template(chats[0], tokenize=True, return_dict=True, return_tensors="pt")
    assert_same(one, processor(images=[[picture(1), picture(2)]], text=texts[0]))
    ids = processor.apply_chat_template(chats[1], tokenize=True)
    assert torch.equal(torch.as_tensor(ids), processor(text=texts[1])["input_ids"])


def test_decode_leaves_placeholders_out(processor):
    ids = processor(images=picture(), text=prompt(processor, f"{IMAGE}\nWhat?"))["input_ids"]
    wanted = processor.encoder.template.system + "USER: \nWhat?  ASSISTANT:"
    assert processor.batch_decode(ids, skip_special_tokens=True) == [wanted]
    assert processor.decode(ids[0], skip_special_tokens=True) == wanted
    assert processor.post_process_image_text_to_text(ids) == [wanted]


def test_pipeline(model, processor):
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    messages = chat(picture())
    (out,) = pipe(text=messages, max_new_tokens=5)
    said = out["generated_text"][-1]
    assert said["role"] == "assistant"
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=5)[:, inputs["input_ids"].shape[1] :]
    assert said["content"] == processor.batch_decode(ids, skip_special_tokens=True)[0]
    two = pipe(text=[messages, chat(text="Hi")], max_new_tokens=5, batch_size=1, return_full_text=False)
    assert two[0][0]["generated_text"] == said["content"]
    (plain,) = pipe(images=picture(), text=processor.apply_chat_template(messages), max_new_tokens=5)
    assert plain["generated_text"].endswith(said["content"])
    begun = [*messages, {"role": "assistant", "content": [{"type": "text", "text": "A"}]}]
    (more,) = pipe(text=begun, max_new_tokens=5)
    assert more["generated_text"][-1]["content"][0]["text"].startswith("A")


def test_tiles(model):
    processor, image = make_processor(model, tiles=2), picture(0, (100, 60))
    assert processor.crops == 5
    out = processor(images=image, text=prompt(processor, f"{IMAGE}What?"))
    assert out["pixel_values"].shape == (1, 5, 3, SIZE, SIZE)
    assert out["image_turn"].tolist() == [[1] * 5]
    assert (out["input_ids"] == processor.image_token_id).sum() == 5 * CROP_TOKENS
    pieces = Tiling(2, SIZE).crop(image)
    expected = processor.image_processor(pieces, return_tensors="pt")["pixel_values"]
    assert torch.equal(out["pixel_values"][0], expected)  # in the order of test_tiling.py


def test_tiles_of_several_images_and_rows(model):
    processor = make_processor(model, tiles=2)
    said = {"role": "assistant", "content": "red"}
    messages = [*chat(picture(1), picture(2)), said, *chat(picture(3), text="And?")]
    batch = processor.apply_chat_template(
        [messages, chat(picture(4)), chat(text="Hi")], tokenize=True, return_dict=True
    )
    assert batch["image_turn"].tolist() == [[1] * 10 + [2] * 5, [1] * 5 + [0] * 10, [0] * 15]
    logits = model(**batch).logits
    alone = model(**processor.apply_chat_template(chat(picture(4)), tokenize=True, return_dict=True)).logits
    torch.testing.assert_close(logits[1, -alone.shape[1] :], alone[0], atol=1e-4, rtol=1e-4)


def test_tile_seen_by_embq_alone(model):
    """The fifth crop reaches the answer through its visual tokens and through EmbQ."""
    processor = make_processor(model, tiles=2)
    batch = processor(images=picture(), text=prompt(processor, f"{IMAGE}What?"))
    before = model(**batch).logits[:, -1]
    batch["pixel_values"][:, 4] = -batch["pixel_values"][:, 4]
    assert not torch.allclose(model(**batch).logits[:, -1], before)
