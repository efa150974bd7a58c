"""Tiles by the shape of each image: counts, batches, features and files, from pixels to logits."""

import json

import numpy as np
import pytest
import torch
from factories import CROP_TOKENS, SIZE, assert_same, chat, make_processor, picture, prompt, saved_settings
from transformers import AutoProcessor, pipeline

from compressors.errors import UsageError
from connectors.tiling import Tiling
from llm_adapters.conversation import IMAGE, Turn
from llm_adapters.processing import FlashSlothProcessor

SHAPES = ((84, 84), (168, 84), (84, 170), (300, 90), (200, 200), (500, 40), (10, 9), (1, 60), (333, 211))


@pytest.fixture
def anyres(model) -> FlashSlothProcessor:
    plain, words = make_processor(model), model.config.prompt
    return FlashSlothProcessor(plain.image_processor, plain.tokenizer, CROP_TOKENS, 2, 3, words, "anyres")


def test_layouts_by_shape_give_as_many_placeholders_as_visual_tokens(model, anyres):
    """The model counts both; the crops of a turn stand in its order."""
    images = [picture(i, size) for i, size in enumerate(SHAPES)]
    crops = [anyres.tiling.num_crops(*size) for size in SHAPES]
    assert len(set(crops)) > 3 and anyres.crops == 5
    for image, count in zip(images, crops):
        out = anyres(images=image, text=prompt(anyres, f"{IMAGE}What?"))
        assert (out["input_ids"] == anyres.image_token_id).sum() == CROP_TOKENS * count
        assert anyres.num_image_tokens(image.height, image.width) == CROP_TOKENS * count
        assert out["pixel_values"].shape[1] == count and out["image_turn"].tolist() == [[1] * count]
        model(**out)
    said = {"role": "assistant", "content": "red"}
    messages = [*chat(*images[:4]), said, *chat(*images[4:], text="And?")]
    out = anyres.apply_chat_template(messages, tokenize=True, return_dict=True)
    assert out["image_turn"].tolist() == [[1] * sum(crops[:4]) + [2] * sum(crops[4:])]
    assert out["pixel_values"].shape[1] == sum(crops)
    model(**out)


@pytest.mark.parametrize("side", ["left", "right"])
def test_batch_of_mixed_layouts_is_its_rows_one_by_one(model, anyres, side):
    shapes = [[(84, 84)], [(300, 90), (84, 170)], [], [(200, 200)]]
    images = [[picture(i, size) for i, size in enumerate(row)] for row in shapes]
    texts = [prompt(anyres, IMAGE * len(row) + "What is this?") for row in images]
    batch = anyres(images=images, text=texts, padding_side=side)
    assert batch["image_turn"].sum(1).tolist() == [1, 9, 0, 5]
    padding = batch["image_turn"] == 0
    assert not batch["pixel_values"][padding].any()
    together = model(**batch).logits
    for i, text in enumerate(texts):
        alone = model(**anyres(images=[images[i]], text=text)).logits[0]
        real = batch["attention_mask"][i].bool()
        torch.testing.assert_close(together[i][real], alone, atol=1e-4, rtol=1e-4)
    # what fills shorter rows is read by nobody, visual tokens and EmbQ included
    features = model.get_image_features(batch.pop("pixel_values"))
    features[padding] = torch.nan
    kept = batch["attention_mask"].bool()
    torch.testing.assert_close(model(**batch, vision_features=features).logits[kept], together[kept])


def test_last_tile_of_a_layout_is_seen_by_embq(model, anyres):
    batch = anyres(images=picture(0, (84, 300)), text=prompt(anyres, f"{IMAGE}What?"))
    features = model.get_image_features(batch.pop("pixel_values"))
    assert features.shape[1] == 5
    seen = []
    handle = model.query_module.register_forward_pre_hook(lambda _, given: seen.append((given[3], given[4])))
    model(**batch, vision_features=features)
    handle.remove()
    ((patches, mask),) = seen
    assert patches.shape[1] == 5 * 36 and mask.all()


def test_layouts_survive_saving(model, anyres, tmp_path):
    anyres.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert (loaded.layout, loaded.tiles, loaded.tiling) == ("anyres", 2, anyres.tiling)
    text, image = prompt(anyres, f"{IMAGE}What?"), picture(0, (200, 50))
    assert_same(loaded(images=image, text=text), anyres(images=image, text=text))
    assert saved_settings(loaded) == saved_settings(anyres)
    # a folder written before there were layouts
    make_processor(model, tiles=2).save_pretrained(tmp_path / "before")
    config = tmp_path / "before/processor_config.json"
    values = json.loads(config.read_text())
    assert values.pop("layout") == "square"
    config.write_text(json.dumps(values))
    assert AutoProcessor.from_pretrained(tmp_path / "before").tiling == Tiling(2, SIZE, "square")


def test_pipeline_and_arrays_with_layouts(model, anyres, tmp_path):
    image = picture(0, (84, 170))
    pipe = pipeline("image-text-to-text", model=model, processor=anyres)
    (out,) = pipe(text=chat(image), max_new_tokens=4)
    inputs = anyres.apply_chat_template(chat(image), tokenize=True, return_dict=True)
    ids = model.generate(**inputs, max_new_tokens=4)[:, inputs["input_ids"].shape[1] :]
    assert out["generated_text"][-1]["content"] == anyres.batch_decode(ids, skip_special_tokens=True)[0]
    image.save(tmp_path / "a.png")
    text = prompt(anyres, f"{IMAGE}What?")
    for other in (np.array(image), str(tmp_path / "a.png"), torch.from_numpy(np.array(image))):
        assert_same(anyres(images=other, text=text), anyres(images=image, text=text))


def test_truncation_keeps_all_crops_of_an_image(anyres):
    turns = [Turn(f"{IMAGE}What is this?", "A dog."), Turn(f"{IMAGE}And that?", "The cat is red.")]
    whole = anyres.encode(turns, [5, 3])
    length = next(i for i, turn in enumerate(whole.turns) if turn == 2)
    text = sum(token not in (anyres.image_token_id, anyres.query_token_id) for token in whole.ids[:length])
    cut = anyres.encode(turns, [5, 3], max_length=text + 1)
    assert anyres.collate([cut, whole])["image_turn"].tolist() == [[1] * 5 + [0] * 3, [1] * 5 + [2] * 3]


def test_counts_without_shapes_are_refused(model, anyres):
    with pytest.raises(UsageError, match="images=1: with layout=anyres their crops differ; give the number"):
        anyres.encode([Turn(f"{IMAGE}What?", "A dog.")], 1)
    assert anyres.encode([Turn("What?", "A dog.")], 0).image_turns == []
    batch = anyres(images=picture(), text=prompt(anyres, f"{IMAGE}What?"))
    batch["pixel_values"] = batch["pixel_values"].repeat(1, 2, 1, 1, 1)
    with pytest.raises(UsageError, match=r"images of \(1, 2\) \(rows, crops\) but `image_turn` of \(1, 1\)"):
        model(**batch)
    with pytest.raises(UsageError, match="layout=round: must be one of square, anyres"):
        FlashSlothProcessor(anyres.image_processor, anyres.tokenizer, 4, 2, layout="round")
