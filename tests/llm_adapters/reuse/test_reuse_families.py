"""Families: what is particular to some, and how packages offer more."""

import dataclasses

import pytest
import torch
from outside import offer_parts
from reuse_families import (
    SAP,
    attached,
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
from reuse_models import VISION
from reuse_videos import encode_rows, prepare, two_videos

from compressors.errors import UsageError
from connectors.versions import is_at_least
from llm_adapters import reuse
from llm_adapters.reuse import families

OUTSIDE = dataclasses.replace(reuse.FAMILIES["llava"], since="5.0")  # what the entry point below names
over_deepstack_families = pytest.mark.parametrize("family", family_params("qwen3_vl", "qwen3_vl_moe"))


def test_a_package_offers_a_family(monkeypatch):
    model, processor = make_model("llava"), make_processor("llava")
    monkeypatch.setattr(type(model.config), "model_type", "llava_of_mine")
    with pytest.raises(
        UsageError, match="model of type 'llava_of_mine': a compressor can be put into llava,"
    ):
        reuse.attach(model, processor, **SAP)
    offer_parts(monkeypatch, families.GROUP, ("llava_of_mine", f"{__name__}:OUTSIDE"))
    assert families.list_families()[-1] == "llava_of_mine"
    reuse.attach(model, processor, **SAP)
    assert train_loss(model, inputs(processor, two_rows("llava"))).isfinite()


@pytest.mark.parametrize(
    ("value", "message"),
    [("torch.nn:Linear", "it is a type; offer a"), ("torch.nn:Lineal", "does not load: .*Lineal")],
)
def test_an_offer_that_is_no_family_is_refused(monkeypatch, value, message):
    model, processor = make_model("llava"), make_processor("llava")
    monkeypatch.setattr(type(model.config), "model_type", "mine")
    offer_parts(monkeypatch, families.GROUP, ("mine", value))
    with pytest.raises(UsageError, match=f"family 'mine' .*{message}") as caught:
        reuse.attach(model, processor, **SAP)
    assert "\n" not in str(caught.value) and not hasattr(model, "slothkit")


class Asked(Exception):
    """The arguments of a method."""


@pytest.mark.skipif(not is_at_least("5.24"), reason="earlier ones hand on less")
@over_families
def test_whether_a_forward_hands_options_to_its_tower_is_noted(family):
    """Where the plain model hands on what it does not name."""
    model, processor = make_model(family), make_processor(family)

    def tell(*_, **arguments):
        raise Asked("tower_option" in arguments)

    model.model.get_image_features = tell
    with pytest.raises(Asked) as caught:
        model(**inputs(processor, two_rows(family)), tower_option=True)
    assert caught.value.args == (reuse.FAMILIES[family].hands_options,)


@torch.no_grad()
def test_a_tower_gets_the_options_of_a_forward():
    """Pictures of another size than the tower's own, which it takes with one."""
    model, processor = make_model("llava"), make_processor("llava")
    patches = (48 // VISION["patch_size"]) ** 2
    image = [model.config.image_token_id] * patches
    batch = {"pixel_values": torch.randn(1, 3, 48, 48), "input_ids": torch.tensor([[20, *image, 30, 31]])}
    options = {"interpolate_pos_encoding": True, "output_attentions": True, "return_dict": True}
    expected = model(**batch, **options).logits
    reuse.attach(model, processor, "identity")
    torch.testing.assert_close(model(**batch, **options).logits, expected)


@pytest.mark.skipif(not is_at_least("5.24"), reason="earlier ones take no such tensors")
@pytest.mark.parametrize("word", ["image", "video"])
@torch.no_grad()
def test_a_tower_gets_tensors_that_were_computed_before(word):
    """Those of the other kind do not reach it."""
    model, processor = attached("qwen2_5_vl")
    batch = inputs(processor, two_rows("qwen2_5_vl", marked=True))
    if word == "video":
        batch = encode_rows(prepare("qwen2_5_vl", processor), two_videos("qwen2_5_vl", marked=True))
    seen = []
    model.model.visual.register_forward_pre_hook(
        lambda _module, _arguments, keywords: seen.append(keywords.keys()), with_kwargs=True
    )
    model(**batch, image_given=torch.ones(1), video_told=torch.ones(1))
    assert len(seen) == 1
    assert ("given" in seen[0], "told" in seen[0]) == (word == "image", word == "video")


@pytest.mark.parametrize("kind", families.REFUSED)
def test_a_family_that_cannot_be_is_refused_with_the_reason(monkeypatch, kind):
    model, processor = make_model("llava"), make_processor("llava")
    monkeypatch.setattr(type(model.config), "model_type", kind)
    with pytest.raises(UsageError, match=f"model of type '{kind}': .*; [a-z0-9]+.* can$") as caught:
        reuse.attach(model, processor, **SAP)
    assert "\n" not in str(caught.value) and not hasattr(model, "slothkit")
    assert kind not in reuse.FAMILIES


def test_a_pixtral_tower_alone_is_no_family():
    tower = make_model("pixtral").model.vision_tower
    with pytest.raises(UsageError, match="model of type 'pixtral': .* put into llava, ") as caught:
        reuse.attach(tower, make_processor("pixtral"), **SAP)
    assert "pixtral" not in str(caught.value).partition("put into")[2]


@over_deepstack_families
@pytest.mark.parametrize("name", ["avg_pool", "sap"])
def test_deepstack_features_are_compressed_as_the_tokens_are(family, name):
    """A token of each level for each visual token, at its place, through projectors of their own."""
    model, processor = make_model(family), make_processor(family)
    reuse.attach(model, processor, name, rate=3, grid_policy="ceil")
    batch, levels = inputs(processor, two_rows(family)), []

    def keep(hidden, masks, embeds):
        levels.append((masks, embeds))
        return add(hidden, masks, embeds)

    add = model.model.language_model._deepstack_process
    model.model.language_model._deepstack_process = keep
    train_loss(model, batch).backward()
    is_image = batch["input_ids"] == model.config.image_token_id
    assert len(levels) == len(model.slothkit.level_projectors) == 2
    for masks, embeds in levels:
        assert torch.equal(masks, is_image) and len(embeds) == is_image.sum()
    assert not torch.allclose(levels[0][1], levels[1][1])
    assert all(p.grad.abs().sum() > 0 for p in model.slothkit.level_projectors.parameters())
    parts = reuse.name_trained_parts(model)
    assert "slothkit.level_projectors.0" in parts and "slothkit.level_projectors.1" in parts


@over_deepstack_families
@pytest.mark.parametrize("name", ["divprune", "random"])
def test_deepstack_features_are_those_of_the_kept_patches(family, name):
    """The tower's own for each visual token, not of patches that a level would have chosen by itself."""
    model, processor = make_model(family), make_processor(family)
    batch = inputs(processor, two_rows(family))
    arguments = {"pixel_values": batch["pixel_values"], "image_grid_thw": batch["image_grid_thw"]}
    found = {}
    for compressor, knobs in (("identity", {}), (name, {"tokens": 4, "positions": "keep"})):
        reuse.attach(model, processor, compressor, new_projector="mlp2x_gelu", **knobs)
        for projector in model.slothkit.level_projectors:
            for number, parameter in enumerate(projector.parameters()):
                torch.manual_seed(number)
                torch.nn.init.normal_(parameter)
        with torch.no_grad():
            found[compressor] = model.train().model.get_image_features(**arguments, return_dict=True)
        reuse.detach(model, processor)
    places = found[name].kept.places
    for whole, chosen in zip(found["identity"].deepstack_features, found[name].deepstack_features):
        for whole_entry, entry, kept in zip(whole, chosen, places, strict=True):
            torch.testing.assert_close(entry, whole_entry[kept])


@over_deepstack_families
def test_deepstack_goes_through_the_models_own_mergers_where_widths_agree(family):
    """As the model does it: a compressor of the same windows changes no level."""
    model, processor = make_model(family), make_processor(family)
    batch = inputs(processor, two_rows(family))
    arguments = {"pixel_values": batch["pixel_values"], "image_grid_thw": batch["image_grid_thw"]}
    with torch.no_grad():
        before = model.model.get_image_features(**arguments, return_dict=True).deepstack_features
        reuse.attach(model, processor, "pixel_shuffle", rate=2)
        after = model.model.get_image_features(**arguments, return_dict=True).deepstack_features
    assert model.slothkit.level_projectors is None
    for level_before, level_after in zip(before, after, strict=True):
        for entry_before, entry_after in zip(level_before, level_after, strict=True):
            torch.testing.assert_close(entry_after, entry_before)


@pytest.mark.parametrize("family", family_params("pixtral", "mistral3"))
def test_rows_of_ragged_images_end_in_breaks(family):
    """A row of tokens, then its break; the last one's is the image's end."""
    model, processor = make_model(family), make_processor(family)
    reuse.attach(model, processor, "avg_pool", rate=2)
    ids = inputs(processor, [(prompt(family), [picture(1, 40, 24)])])["input_ids"][0].tolist()
    image, row_end, image_end = processor.tokenizer.convert_tokens_to_ids(["<image>", "<break>", "<end>"])
    row = [image] * 5
    start = ids.index(image)
    assert ids[start : start + 18] == row + [row_end] + row + [row_end] + row + [image_end]
    reuse.detach(model, processor)
    reuse.attach(model, processor, "resampler", num_queries=4)
    ids = inputs(processor, [(prompt(family), [picture(1, 40, 24)])])["input_ids"][0].tolist()
    start = ids.index(image)
    assert ids[start : start + 5] == [image] * 4 + [image_end] and row_end not in ids


@pytest.mark.parametrize("family", family_params("llava_onevision"))
def test_several_images_in_a_row_are_one_crop_each(family):
    model, processor = make_model(family), make_processor(family)
    reuse.attach(model, processor, "avg_pool", rate=2)
    batch = inputs(processor, [(prompt(family, images=2), [picture(1), picture(2, 40, 24)])])
    count = int((batch["input_ids"] == model.config.image_token_id).sum())
    assert count == 2 * (9 + 1)  # a newline each
    assert train_loss(model, batch).isfinite()


@pytest.mark.parametrize("how", ["softmax", "st_argmax", "gumbel_argmax"])
@pytest.mark.parametrize("family", family_params("ovis2"))
def test_visual_words_are_chosen_as_the_model_does(family, how):
    model, processor = make_model(family), make_processor(family)
    model.model.vision_tower.config.tokenize_function = how
    batch = inputs(processor, two_rows(family))
    with torch.no_grad():
        before = model.model.get_image_features(batch["pixel_values"], return_dict=True)
        reuse.attach(model, processor, "pixel_shuffle", rate=2)
        after = model.model.get_image_features(batch["pixel_values"], return_dict=True).pooler_output
    assert after.shape == before.pooler_output.shape
    if how == "gumbel_argmax":  # other noise: a word of the table all the same
        distances = torch.cdist(after.flatten(0, 1), model.model.visual_embeddings_table.weight)
        assert distances.min(-1).values.max() < 1e-3
    else:
        torch.testing.assert_close(after, before.pooler_output)


@pytest.mark.parametrize("family", family_params("fast_vlm"))
def test_a_convolutional_tower_pads_images_of_other_sizes(family):
    """Seven places of four pixels for 26, all of which come through."""
    model, processor = make_model(family), make_processor(family)
    pixels = torch.randn(2, 3, 26, 30, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.model.get_image_features(pixels, return_dict=True).pooler_output
        reuse.attach(model, processor, "identity")
        after = model.model.get_image_features(pixels, return_dict=True).pooler_output
    assert after.shape[1] == 7 * 8
    torch.testing.assert_close(after, before)
