"""What is particular to Idefics 2, Gemma 3n and Gemma 4."""

import numpy as np
import pytest
import torch
from reuse_families import (
    EMBQ,
    SAP,
    answers,
    attached,
    family_params,
    inputs,
    make_model,
    make_processor,
    picture,
    prompt,
    train_loss,
    two_rows,
)
from reuse_models import GRID, make_settings
from timm.models._efficientnet_builder import decode_arch_def
from transformers import AutoConfig, AutoModelForImageTextToText

from compressors.errors import UsageError
from llm_adapters import reuse

over_gemma = pytest.mark.parametrize("family", family_params("gemma3n", "gemma4"))
SECOND_OF_SOUND = np.sin(np.linspace(0, 2000, 4000)).astype(np.float32)


def make_changed_model(family: str, **text_settings):
    """The family's tiny model with other settings of its LLM."""
    settings = make_settings(family)
    settings["text_config"] = {**settings["text_config"], **text_settings}
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **settings)).eval()


def count_images(model, batch) -> list[int]:
    return (batch["input_ids"] == model.config.image_token_id).sum(1).tolist()


@pytest.mark.parametrize("family", family_params("idefics2"))
def test_counts_do_not_depend_on_neighbours(family):
    """Also of sizes that are no multiple of a patch, padded to those of larger images."""
    model, processor = make_model(family), make_processor(family)
    reuse.attach(model, processor, "avg_pool", rate=2, grid_policy="ceil", new_projector="mlp2x_gelu")
    sizes = ((24, 24), (47, 30), (33, 48))
    rows = [(prompt(family), [picture(i, *size)]) for i, size in enumerate(sizes)]
    batch = inputs(processor, rows)
    assert count_images(model, batch) == [9, 6 * 4, 4 * 6]
    assert answers(model, batch) == [answers(model, inputs(processor, [row]))[0] for row in rows]


@pytest.mark.parametrize("family", family_params("idefics2"))
def test_sub_images(family):
    """Four quarters of an image, and itself, each with placeholders of its own."""
    model, processor = attached(family)
    processor.image_processor.do_image_splitting = True
    rows = two_rows(family, marked=True)
    rows[0] = (prompt(family, images=2, marked=True), [picture(1), picture(2)])
    batch = inputs(processor, rows)
    assert count_images(model, batch)[0] == 2 * 5 * 4
    assert train_loss(model, batch).isfinite()
    assert answers(model, batch) == [answers(model, inputs(processor, [row]))[0] for row in rows]


@pytest.mark.parametrize("family", family_params("idefics2"))
def test_texts_are_the_classs_own(family):
    """Boundaries and spaces as it writes them, where images have as many tokens as before."""
    plain, processor, model = make_processor(family), make_processor(family), make_model(family)
    reuse.attach(model, processor, "resampler", num_queries=plain.image_seq_len, heads=2, head_dim=4)
    texts = ["<image>What <image> is?", "<image><image>This", "<image>\n<query", "Hi <image>"]
    images = [[picture(i) for i in range(text.count("<image>"))] for text in texts]
    given = {"text": texts, "images": images, "padding": True, "return_tensors": "pt"}
    assert torch.equal(processor(**given)["input_ids"], plain(**given)["input_ids"])
    one = {"text": texts[0], "images": images[0]}
    assert processor(**one)["input_ids"] == plain(**one)["input_ids"]


@pytest.mark.parametrize("family", family_params("idefics2"))
def test_images_that_are_not_padded(family):
    model, processor = make_model(family), make_processor(family)
    reuse.attach(model, processor, **SAP)
    given = {"text": [prompt(family)], "images": [[picture(1, 40, 24)]], "return_tensors": "pt"}
    padded, bare = processor(**given), processor(**given, do_pad=False)
    assert "pixel_attention_mask" not in bare
    with torch.no_grad():
        torch.testing.assert_close(model(**bare).logits, model(**padded).logits)


@over_gemma
def test_markers_are_the_query_modules_own(family):
    """Their ids are an image's, a sound's or beyond the per-layer table to the model."""
    model, processor = attached(family)
    batch, seen = inputs(processor, two_rows(family, marked=True)), []
    model.model.language_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    with torch.no_grad():
        model(**batch)
    embeds, per_layer = seen[0]["inputs_embeds"], seen[0]["per_layer_inputs"]
    markers = model.slothkit.markers
    for row, ids in enumerate(batch["input_ids"]):
        is_query = ids == markers.query_id
        assert torch.equal(embeds[row, is_query], model.slothkit.query_module.tokens)
        assert torch.equal(embeds[row, ids == markers.question_id][0], markers.question)
        padding = model.model.language_model.get_per_layer_inputs(torch.zeros(1, 1, dtype=torch.long))
        assert torch.equal(per_layer[row, is_query][0], padding[0, 0])


@over_gemma
def test_layers_that_share_keys_refuse_a_query_module(family):
    """No token would read what it writes there; before them it acts, with `generate`'s short cut, too."""
    layers = {"layer_types": ["sliding_attention", "full_attention", "full_attention"]}
    model = make_changed_model(family, num_kv_shared_layers=1, **layers)
    processor = make_processor(family)
    late = {"query_module": "embq", "query_knobs": {"at": 3, "dim": 8, "num_queries": 3}}
    with pytest.raises(UsageError, match="at=3: from layer 3 on .* choose at most 2") as caught:
        reuse.attach(model, processor, **SAP, **late)
    assert "\n" not in str(caught.value)
    assert not hasattr(model, "slothkit") and not hasattr(processor, "attached")
    reuse.attach(model, processor, **SAP, **EMBQ)
    batch = inputs(processor, two_rows(family, marked=True))
    before = answers(model, batch)
    for parameter in model.slothkit.query_module.parameters():
        torch.nn.init.normal_(parameter.data)
    assert answers(model, batch) == answers(model, batch, use_cache=False)
    with torch.no_grad():
        last = model(**batch, logits_to_keep=1).logits[:, -1]
        torch.testing.assert_close(last, model(**batch).logits[:, -1], atol=1e-4, rtol=1e-4)
    assert answers(model, batch) != before


@over_gemma
def test_sounds_are_as_before(family):
    model, processor = make_model(family), make_processor(family)
    text = prompt(family) + " <audio> too?"

    def make_batch():
        sound = {"audio": [SECOND_OF_SOUND]}
        return dict(processor(text=[text], images=[[picture(1)]], **sound, return_tensors="pt"))

    batch = make_batch()
    assert (batch["input_ids"] == model.config.audio_token_id).sum() > 1
    with torch.no_grad():
        logits = model(**batch).logits
        name, knobs = {"gemma3n": ("identity", {}), "gemma4": ("avg_pool", {"rate": 2})}[family]
        reuse.attach(model, processor, name, **knobs)
        torch.testing.assert_close(model(**make_batch()).logits, logits, atol=1e-5, rtol=1e-5)
        silent = model(**{**batch, "input_features": 0 * batch["input_features"]}).logits
    assert not torch.allclose(silent, logits)


@pytest.mark.parametrize("family", family_params("gemma3n"))
def test_the_released_kind_of_tower(family):
    """MobileNet V5, narrow and shallow, whose output is as wide as ever."""
    settings = make_settings(family)
    stages = decode_arch_def([["er_r1_k3_s2_e1_c8"], ["uir_r1_a3_k3_s2_e2_c8"]])
    settings["vision_config"] |= {
        "architecture": "mobilenetv5_300m_enc",
        "hidden_size": 2048,
        "model_args": {"block_args": stages, "msfa_output_resolution": GRID, "stem_size": 8},
    }
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **settings)).eval()
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    processor = make_processor(family)
    batch = inputs(processor, two_rows(family))
    with torch.no_grad():
        logits = model(**batch).logits
        reuse.attach(model, processor, "identity")
        torch.testing.assert_close(model(**batch).logits, logits)
    reuse.detach(model, processor)
    reuse.attach(model, processor, **SAP)
    batch = inputs(processor, two_rows(family))
    assert count_images(model, batch) == [4, 4]
    train_loss(model, batch).backward()
    assert all(p.grad.isfinite().all() for p in model.slothkit.parameters())


@pytest.mark.parametrize("family", family_params("gemma4"))
def test_a_video_beside_an_image_is_refused(family):
    """Nothing says how its frames are compressed."""
    model, processor = make_model(family), make_processor(family)
    frames = np.random.default_rng(0).integers(0, 255, (2, 24, 24, 3), dtype=np.uint8)

    def make_batch():
        given = {"images": [[picture(1)]], "videos": [frames], "do_sample_frames": False}
        return dict(processor(text=[prompt(family) + " <|video|>?"], **given, return_tensors="pt"))

    batch = make_batch()
    assert (batch["input_ids"] == model.config.video_token_id).sum() > 2
    with torch.no_grad():
        logits = model(**batch).logits
    reuse.attach(model, processor, **SAP)
    with pytest.raises(UsageError, match="nothing says how the frames .* give the frames as images"):
        model(**make_batch())
    reuse.detach(model, processor)
    with torch.no_grad():
        torch.testing.assert_close(model(**make_batch()).logits, logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", family_params("gemma4"))
def test_visual_tokens_look_both_ways(family):
    """The first of an image changes with its last, as in the plain model."""
    model, processor = make_model(family), make_processor(family)
    reuse.attach(model, processor, "avg_pool", rate=2)
    batch = inputs(processor, two_rows(family)[:1])
    place = (batch["input_ids"][0] == model.config.image_token_id).nonzero()
    seen = []
    with torch.no_grad():
        outputs = model.model.get_image_features(batch["pixel_values"], batch["image_position_ids"])
        for factor in (1, -1):
            outputs.pooler_output[0][-1] *= factor
            given = {"input_ids": batch["input_ids"], "mm_token_type_ids": batch["mm_token_type_ids"]}
            hidden = model.model(**given, mm_encoder_outputs={"image": outputs}).last_hidden_state
            seen.append(hidden[0, : int(place[0]) + 1])
    assert torch.equal(seen[0][:-1], seen[1][:-1]) and not torch.allclose(seen[0][-1], seen[1][-1])


@pytest.mark.parametrize("family", family_params("gemma4"))
def test_sizes_without_per_layer_embeddings(family):
    """They have a query module and a pruner as any model."""
    model, processor = make_changed_model(family, hidden_size_per_layer_input=0), make_processor(family)
    reuse.attach(model, processor, **SAP, **EMBQ)
    reuse.prune(model, "fastv", layer=1, ratio=0.5)
    rows = two_rows(family, marked=True)
    batch = inputs(processor, rows)
    assert answers(model, batch) == [answers(model, inputs(processor, [row]))[0] for row in rows]
    assert model.slothkit_pruning.pruner.measured_visual_tokens() < max(count_images(model, batch))


@over_gemma
def test_per_layer_embeddings_refuse_a_pruner(family):
    with pytest.raises(UsageError, match=r"\A(?!.*\n)pruning: Gemma.*per-layer embeddings"):
        reuse.prune(make_model(family), "fastv", layer=1, ratio=0.5)


@pytest.mark.parametrize("family", family_params("gemma4"))
def test_a_model_without_a_tower_is_refused(family):
    settings = {**make_settings(family), "vision_config": None}
    model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(family, **settings))
    with pytest.raises(UsageError, match=r"\A(?!.*\n)Gemma4For.*: it has no vision tower"):
        reuse.attach(model, make_processor(family), **SAP)
    assert not hasattr(model, "slothkit")
