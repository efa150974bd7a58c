"""Videos of models with a compressor attached: frames go through it as images do."""

import copy
import dataclasses
import inspect
from functools import partial

import pytest
import torch
from factories import KNOBS
from reuse_families import (
    EMBQ,
    PREFUSION,
    SAP,
    answers,
    assert_same,
    attached,
    family_params,
    family_turns,
    make_model,
    make_processor,
    picture,
    train_loss,
)
from reuse_models import GRID, VISION
from reuse_videos import (
    AS_IMAGES,
    ENCODED,
    FRAMES,
    GLM,
    GRID_VIDEOS,
    STACKED,
    Row,
    ask,
    encode_rows,
    is_video_placeholder,
    prepare,
    two_videos,
    video,
)
from text_towers import save_text_tower

import compressors
from compressors.errors import UsageError
from llm_adapters import reuse

over_video_families = pytest.mark.parametrize("family", family_params(*ENCODED, *AS_IMAGES))
over_encoded_families = pytest.mark.parametrize("family", family_params(*ENCODED))
# GLM-V's placeholders are the same for both
over_mixing_families = pytest.mark.parametrize(
    "family", family_params(*(name for name in ENCODED if name not in GLM))
)
FRAME_FAMILIES = ("qwen2_5_vl", "qwen3_vl", "glm4v", "llava_onevision", "llava_next_video")
PROMPTED = ("cdpruner", "trim")
UNTOLD = ("gemma4",)  # families whose videos are refused
# what a model does with a frame itself; pixel shuffle where it is not named
OWN = {
    "llava_next_video": ("avg_pool", {"rate": 2}),
    "llava_onevision": ("identity", {}),  # where it does not pool
    "perception_lm": ("identity", {}),
}
SHUFFLE = ("pixel_shuffle", {"rate": 2})
# whose own reduction is not that of their images
POOLED = ("llava_next_video", "llava_onevision")


def make_pair(family: str) -> tuple:
    return make_model(family), prepare(family, make_processor(family))


def attached_pair(family: str, **options) -> tuple:
    model, processor = attached(family, **options)
    return model, prepare(family, processor)


def mixed(family: str, marked: bool = False) -> list[Row]:
    """An image and two videos, an image alone, a video alone."""
    return [
        Row(ask(family, "What?", 2, 1, marked), [picture(1)], [video(1), video(2)]),
        Row(ask(family, "And is it a cat?", 0, 1, marked), [picture(2)]),
        Row(ask(family, "Is it?", 1, 0, marked), [], [video(3)]),
    ]


@over_video_families
def test_models_own_reduction_changes_nothing(family):
    """Grids, frames, times and newlines are right where the model's own reduction, as a compressor of ours,
    gives the model's own logits."""
    model, processor = make_pair(family)
    rows = two_videos(family)
    if family not in (*GLM, *POOLED, *AS_IMAGES):
        rows += mixed(family)
    name, knobs = OWN.get(family, SHUFFLE)
    reuse.attach(model, processor, name, **knobs)
    after = encode_rows(processor, rows)
    with torch.no_grad():
        logits = model(**after).logits
    reuse.detach(model, processor)
    if family == "llava_onevision":
        model.model.apply_pooling = lambda features: features
    else:
        before = encode_rows(processor, rows)
        assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    with torch.no_grad():
        torch.testing.assert_close(logits, model(**after).logits, atol=1e-5, rtol=1e-5)


def test_resized_frames_are_those_of_onevision():
    """Its pooling and a projector that is linear may change places."""
    model, processor = make_pair("llava_onevision")
    model.model.multi_modal_projector.act = torch.nn.Identity()
    rows = two_videos("llava_onevision")
    before = encode_rows(processor, rows)
    with torch.no_grad():
        logits = model(**before).logits
        reuse.attach(model, processor, "interpolate", rate=2)
        after = encode_rows(processor, rows)
        assert torch.equal(before["input_ids"], after["input_ids"])
        torch.testing.assert_close(model(**after).logits, logits, atol=1e-4, rtol=1e-4)


@over_video_families
def test_detach_restores_exactly(family):
    model, processor = make_pair(family)
    before = encode_rows(processor, two_videos(family))
    with torch.no_grad():
        logits = model(**before).logits
        attributes = {name: set(vars(module)) for name, module in model.named_modules()}
        reuse.attach(model, processor, **SAP, **EMBQ)
        reuse.detach(model, processor)
        after = encode_rows(processor, two_videos(family))
        assert all(torch.equal(before[k], after[k]) for k in before)
        assert_same(family, model(**after).logits, logits)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes


@over_video_families
def test_frames_are_fewer_tokens_and_train(family):
    """As many placeholders for each frame as for a crop of its size; a gradient for all that is attached."""
    model, processor = attached_pair(family)
    batch = encode_rows(processor, [Row(ask(family, marked=True), videos=[video()])])
    frames = {"kimi_k25": 1, "smolvlm": None}.get(family, FRAMES // 2 if family in GRID_VIDEOS else FRAMES)
    found = int(is_video_placeholder(model, batch).sum())
    each = model.slothkit.compressor.num_tokens(GRID, GRID)
    if frames is None:  # SmolVLM cuts frames, and has one of the whole
        assert found % each == 0 and found >= FRAMES * each
    else:
        assert found == frames * each + (family == "llava_onevision")
    train_loss(model, batch).backward()
    for name, parameter in model.slothkit.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    for part in (model.slothkit.compressor, model.slothkit.query_module):
        assert any(parameter.grad.abs().sum() > 0 for parameter in part.parameters())


@over_video_families
@pytest.mark.parametrize("options", [{}, PREFUSION], ids=["embq", "llava_mini"])
def test_generate(family, options):
    """Cached is uncached, batched is single, beams over rows with different videos."""
    model, processor = attached_pair(family, **options)
    rows = two_videos(family, marked=True)
    batch = encode_rows(processor, rows)
    said = answers(model, batch)
    assert answers(model, batch, use_cache=False) == said
    assert said == [answers(model, encode_rows(processor, [row]))[0] for row in rows]
    if family in GLM:  # transformers counts video tokens that are not there as it repeats rows
        with pytest.raises(UsageError, match=r"\A(?!.*\n).* has lost the videos of .* leave out num_beams"):
            answers(model, batch, num_beams=2)
        return
    beams = answers(model, batch, num_beams=2)
    assert beams == [answers(model, encode_rows(processor, [row]), num_beams=2)[0] for row in rows]


@over_mixing_families
def test_images_and_videos_in_one_batch(family):
    model, processor = attached_pair(family)
    rows = mixed(family, marked=True)
    batch = encode_rows(processor, rows)
    said = answers(model, batch)
    assert answers(model, batch, use_cache=False) == said
    assert said == [answers(model, encode_rows(processor, [row]))[0] for row in rows]
    beams = answers(model, batch, num_beams=2)
    assert beams == [answers(model, encode_rows(processor, [row]), num_beams=2)[0] for row in rows]
    told = model.generate(**batch, max_new_tokens=1, output_logits=True, return_dict_in_generate=True)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits[:, -1], told.logits[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", family_params(*GLM))
def test_images_beside_videos_are_refused_where_the_model_mixes_them_up(family):
    model, processor = make_pair(family)
    rows = [Row(ask(family, images=1), [picture(1)], [video(1)])]
    with pytest.raises(ValueError, match="do not match"), torch.no_grad():
        model(**encode_rows(processor, rows))
    reuse.attach(model, processor, **SAP)
    for call in (model, partial(model.generate, max_new_tokens=1)):
        with pytest.raises(UsageError, match=r"\A(?!.*\n).* does not tell images from videos in one batch"):
            call(**encode_rows(processor, rows))


@over_encoded_families
@pytest.mark.parametrize("options", [EMBQ, PREFUSION], ids=["embq", "llava_mini"])
def test_query_tokens_read_the_videos_of_their_turns(family, options):
    """What a query module is given: the images and videos of each turn and of those before."""
    model, processor = attached_pair(family, **options)
    mixes = family not in GLM
    first = ask(family, "What is this?", 1, int(mixes), marked=True)
    text = "\n".join([first, ask(family, "And that?", marked=True)])
    pictures = [picture(1)] * mixes
    rows = [
        Row(ask(family, "Hi there, what?", marked=True), videos=[video(3)]),
        Row(text, pictures, [video(1), video(2)]),
    ]
    batch, seen = encode_rows(processor, rows), []
    model.slothkit.query_module.register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.no_grad():
        model(**batch)
        alone = encode_rows(processor, rows[:1])
        model(**alone)
    features, patch = seen[0][3:5]
    single, _ = seen[1][3:5]
    frames = 1 if family == "kimi_k25" else FRAMES // 2 if family in GRID_VIDEOS else FRAMES
    of_video = frames * GRID * GRID
    assert single.shape[1] == of_video
    torch.testing.assert_close(features[0, :of_video], single[0])
    reads = patch.sum(-1)
    count = model.slothkit.query_module.num_queries
    assert reads[0, :count].tolist() == [of_video] * count
    of_image = int(reads[1, 0]) - of_video
    assert (of_image > 0) == mixes and of_image % (GRID * GRID) == 0
    assert reads[1].tolist() == [of_image + of_video] * count + [of_image + 2 * of_video] * count


@over_encoded_families
def test_query_module_acts_on_videos(family):
    model, processor = attached_pair(family)
    batch = encode_rows(processor, two_videos(family, marked=True))
    told = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
    before = model.generate(**batch, **told).logits[0]
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits[:, -1], before, atol=1e-4, rtol=1e-4)
        for parameter in model.slothkit.query_module.parameters():
            parameter.mul_(-1)
    assert (model.generate(**batch, **told).logits[0] - before).abs().amax(1).min() > 1e-3


@pytest.fixture(scope="module")
def text_encoders(tmp_path_factory):
    sources = {}
    for kind in ("clip", "siglip"):
        sources[f"{kind}_vision_model"] = save_text_tower(tmp_path_factory.mktemp(kind), kind, **VISION)
    return sources


@pytest.mark.filterwarnings("ignore::llm_adapters.reuse.NeedsTraining")
@pytest.mark.parametrize(("family", "name"), family_turns(FRAME_FAMILIES, compressors.names(), one_in=3))
def test_every_compressor_takes_frames(family, name, text_encoders):
    model, processor = make_pair(family)
    knobs, dim = dict(KNOBS.get(name, {})), model.config.get_text_config().hidden_size
    if "block" in compressors.knobs(name):
        knobs["block"] = 1
    part = compressors.create(name, dim=16, llm_dim=dim, **knobs)
    has_cues = reuse.FAMILIES[family].feature_layer is not None
    if part.needs_text or (part.needs_cues and not has_cues) or part.image_rate != 1:
        pytest.skip("refused as it is attached, see test_reuse.py")
    if part.needs_tower_text:
        tower = model.model.get_submodule(reuse.FAMILIES[family].tower)
        knobs["text_encoder"] = text_encoders[tower.config.model_type]
    reuse.attach(model, processor, name, **knobs)
    rows = [Row(ask(family), videos=[video(1)]), Row(ask(family, "And that?"), videos=[video(2)])]
    batch = encode_rows(processor, rows)
    model.slothkit.compressor.train(name != "matryoshka")
    train_loss(model, batch).backward()
    model.slothkit.compressor.eval()
    for key, parameter in model.slothkit.compressor.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert len(answers(model, batch)[0]) > 0


@pytest.mark.parametrize("family", family_params(*POOLED))
@pytest.mark.parametrize("name", PROMPTED)
def test_each_video_has_its_question(family, name, text_encoders):
    """In batches of one image or video, in one of all, and in `generate`, the same patches are kept."""
    model, processor = make_pair(family)
    tower = model.model.get_submodule(reuse.FAMILIES[family].tower)
    reuse.attach(model, processor, name, tokens=5, text_encoder=text_encoders[tower.config.model_type])
    words = ("What is this?", "And that, is it a cat?")
    rows = []
    for number, question in enumerate(words):
        rows.append(Row(f"user: <image><video>{question}\nassistant:", [picture(number)], [video(number)]))
    calls: list[torch.Tensor] = []
    model.slothkit.compressor.register_forward_pre_hook(lambda _, args: calls.append(args[1]))
    with torch.no_grad():
        model(**encode_rows(processor, rows))
    together, calls[:] = torch.cat(calls), []
    with torch.no_grad():
        model.generate(**encode_rows(processor, rows), max_new_tokens=1)
    torch.testing.assert_close(torch.cat(calls), together)
    # crops of both images, then frames of both videos; questions differ
    frames = together[-2 * FRAMES :]
    assert torch.equal(frames[0], together[0]) and torch.equal(frames[FRAMES - 1], frames[0])
    assert torch.equal(frames[FRAMES], frames[-1]) and not torch.allclose(frames[FRAMES], frames[0])


@pytest.mark.parametrize("family", family_params(*POOLED, "qwen2_5_vl", "qwen3_vl", "kimi_k25"))
def test_levels_of_frames(family):
    """A level of the tower that is its output has the same patches as the output."""
    model, processor = make_pair(family)
    depth = {"llava_next_video": -2}.get(family, -1)
    reuse.attach(model, processor, "token_packer", rate=3, grid_policy="ceil", levels=(1, depth))
    seen = []
    model.slothkit.compressor.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    train_loss(model, encode_rows(processor, two_videos(family))).backward()
    features = seen[0]
    assert features.shape[-1] == 3 * 16
    output, first, last = features.split(16, -1)
    assert not torch.equal(first, last)
    if family in POOLED:
        assert torch.equal(output, last)


# families whose positions follow grids, with Qwen2-VL's times in a run of tokens and Qwen3-VL's in words
ROPES = [name for name in ENCODED if reuse.FAMILIES[name].rope]


def find_positions(model, batch):
    """(3, B, T), as a forward asks for them."""
    names = ("mm_token_type_ids", "image_grid_thw", "video_grid_thw", "second_per_grid_ts", "attention_mask")
    arguments = {name: batch[name] for name in names if name in batch}
    return model.model.get_rope_index(batch["input_ids"], **arguments)


@pytest.mark.parametrize("family", family_params(*ROPES))
@pytest.mark.parametrize("name", ["avg_pool", "qformer"])
def test_positions_of_compressed_frames(family, name):
    """Times of frames are the model's own, rows and columns those of the tokens."""
    model, processor = make_pair(family)
    rows = [Row(ask(family), videos=[video(1, 32, 24, 6)])]
    knobs = KNOBS.get(name, {"rate": 2})
    plain, _ = find_positions(model, encode_rows(processor, rows))
    reuse.attach(model, processor, name, **knobs)
    batch = encode_rows(processor, rows)
    positions, delta = find_positions(model, batch)
    is_frame = is_video_placeholder(model, batch)[0]
    tokens = positions[:, 0, is_frame].unflatten(1, (3, -1))  # times
    places = is_frame.nonzero().flatten().unflatten(0, (3, -1))
    if name == "qformer":
        height, width = 1, 4  # a row of tokens without spatial order
    else:
        height, width = 3, 4
    down, across = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    has_times = family.startswith("qwen2")
    for time in range(3):
        first = places[time, 0]
        start = tokens[:, time, 0]
        assert torch.equal(tokens[:, time] - start[:, None], torch.stack([down * 0, down, across]).flatten(1))
        if has_times:  # seconds by Qwen2.5-VL, each one position by Qwen2-VL
            seconds = 4 if family == "qwen2_5_vl" else 1
            assert torch.equal(start - tokens[:, 0, 0], torch.tensor([time * seconds, 0, 0]))
        else:
            assert start.unique().numel() == 1 and torch.equal(start, positions[:, 0, first - 1] + 1)
            assert torch.equal(positions[:, 0, places[time, -1] + 1], start + max(height, width))
    if has_times:
        assert torch.equal(positions[:, 0, places[-1, -1] + 1], tokens[1:, 0, 0].max().expand(3) + width)
    assert delta.item() == positions.max() + 1 - batch["input_ids"].shape[1]
    if name == "avg_pool":  # with its own reduction, too
        assert torch.equal(positions, plain)


@pytest.mark.filterwarnings("ignore::llm_adapters.reuse.NeedsTraining")
@pytest.mark.parametrize("family", family_params(*ROPES))
def test_kept_patches_have_their_places_and_times(family):
    """positions=keep: those that `identity` has, in a forward and in `generate`, of images and text, too."""
    model, processor = make_pair(family)
    rows = two_videos(family)
    if family not in GLM:
        rows += mixed(family)
    reuse.attach(model, processor, "divprune", tokens=7, positions="keep")
    batch = encode_rows(processor, rows)
    seen: list[torch.Tensor] = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda _module, _arguments, keywords: seen.append(keywords["position_ids"]), with_kwargs=True
    )
    said = answers(model, batch)
    with torch.no_grad():
        output = model.model(**batch)
    is_token = batch["attention_mask"].bool()
    together = seen[0][-3:, is_token]
    assert torch.equal(together, seen[-1][-3:, is_token])
    assert said == [answers(model, encode_rows(processor, [row]))[0] for row in rows]
    assert answers(model, batch, use_cache=False) == said
    handle.remove()
    reuse.detach(model, processor)
    reuse.attach(model, processor, "identity")
    full = encode_rows(processor, rows)
    whole, _ = find_positions(model, full)
    is_there = full["attention_mask"].bool().clone()
    is_video = is_video_placeholder(model, full)
    masks = {"video": is_video}
    if family not in GLM:
        masks["image"] = full["input_ids"] == model.config.image_token_id
    for kind, mask in masks.items():
        kept = getattr(output, f"{kind}_outputs").kept
        is_kept = []
        for places, (height, width) in zip(kept.places, kept.grids):
            is_kept.append(torch.zeros(height * width).scatter(0, places, 1.0).bool())
        is_there[mask] = torch.cat(is_kept)
    assert torch.equal(together, whole[:, is_there])


@pytest.mark.parametrize("family", family_params("perception_lm"))
def test_kept_patches_have_their_places_among_text(family):
    """The same where positions are those of text: the last one of a prompt is as far as with all patches."""
    model, processor = make_pair(family)
    rows = mixed(family)
    full = encode_rows(processor, rows)["attention_mask"].sum(1)
    reuse.attach(model, processor, "divprune", tokens=7, positions="keep")
    batch = encode_rows(processor, rows)
    seen: list[torch.Tensor] = []
    model.get_decoder().register_forward_pre_hook(
        lambda _module, _arguments, keywords: seen.append(keywords["position_ids"]), with_kwargs=True
    )
    said = answers(model, batch)
    for step, positions in enumerate(seen):
        assert torch.equal(positions[:, -1], full - 1 + step)
    with torch.no_grad():
        model(**batch)
    assert torch.equal(seen[-1], seen[0])
    assert answers(model, batch, use_cache=False) == said
    assert said == [answers(model, encode_rows(processor, [row]))[0] for row in rows]


@pytest.mark.parametrize("family", family_params("qwen3_vl", "qwen3_vl_moe"))
@pytest.mark.parametrize("name", ["sap", "divprune"])
def test_deepstack_features_of_frames_and_images(family, name):
    """One for each visual token of each level, at its place."""
    model, processor = make_pair(family)
    knobs = {"rate": 3, "grid_policy": "ceil"} if name == "sap" else {"tokens": 4}
    reuse.attach(model, processor, name, new_projector="mlp2x_gelu", **knobs)
    batch, levels = encode_rows(processor, mixed(family)), []

    def keep(hidden, masks, embeds):
        levels.append((masks, embeds))
        return add(hidden, masks, embeds)

    add = model.model.language_model._deepstack_process
    model.model.language_model._deepstack_process = keep
    train_loss(model, batch).backward()
    ids = batch["input_ids"]
    is_visual = (ids == model.config.image_token_id) | (ids == model.config.video_token_id)
    assert len(levels) == len(model.slothkit.level_projectors) == 2
    for masks, embeds in levels:
        assert torch.equal(masks, is_visual) and len(embeds) == is_visual.sum()
    assert all(p.grad.abs().sum() > 0 for p in model.slothkit.level_projectors.parameters())


@over_encoded_families
def test_a_wrong_count_names_both_numbers(family):
    model, processor = make_pair(family)
    rows = [Row(ask(family), videos=[video()])]
    batch = encode_rows(processor, rows)
    reuse.attach(model, processor, **SAP)
    right = encode_rows(processor, rows)
    old, new = (int(is_video_placeholder(model, b).sum()) for b in (batch, right))
    line = rf"\A(?!.*\n)the text has {old} video placeholders but its videos make {new} visual tokens"
    for call in (model, partial(model.generate, max_new_tokens=1)):
        with pytest.raises(UsageError, match=line):
            call(**batch)
    assert old != new


@over_encoded_families
def test_placeholders_without_videos_are_refused(family):
    model, processor = attached_pair(family)
    batch = encode_rows(processor, two_videos(family, marked=True))
    for name in ("pixel_values_videos", "video_grid_thw"):
        batch.pop(name, None)
    with pytest.raises(
        UsageError, match="video placeholders but no videos came with it; give pixel_values_v"
    ):
        model(**batch)


@over_encoded_families
def test_where_nothing_says_how_videos_are_refused(family, monkeypatch):
    monkeypatch.setitem(reuse.FAMILIES, family, dataclasses.replace(reuse.FAMILIES[family], videos=None))
    model, processor = make_pair(family)
    rows = [Row(ask(family), videos=[video()])]
    plain = encode_rows(processor, rows)
    with torch.no_grad():
        logits = model(**plain).logits
    reuse.attach(model, processor, **SAP)
    for call in (model, partial(model.generate, max_new_tokens=1)):
        with pytest.raises(UsageError, match=r"\A(?!.*\n)\w+: nothing says how .* give the frames as images"):
            call(**plain)
    reuse.detach(model, processor)
    with torch.no_grad():
        assert_same(family, model(**plain).logits, logits)


@pytest.mark.parametrize("family", family_params(*reuse.FAMILIES))
def test_models_that_encode_videos_say_how(family):
    """So that none of them is refused by an oversight."""
    base = make_model(family).model
    takes_videos = "pixel_values_videos" in inspect.signature(base.forward).parameters
    assert (takes_videos and family not in UNTOLD) == (reuse.FAMILIES[family].videos is not None)


@pytest.mark.parametrize("family", family_params(*(name for name in ENCODED if name != "perception_lm")))
def test_processors_tell_counts_of_sizes(family):
    """Without a video, as servers ask."""
    model, processor = make_pair(family)
    reuse.attach(model, processor, **SAP)
    for height, width, frames in ((24, 24, 4), (24, 40, 6), (48, 24, 4)):
        batch = encode_rows(processor, [Row(ask(family), videos=[video(0, width, height, frames)])])
        told = processor._get_num_multimodal_tokens(video_sizes=[(frames, height, width)])
        assert told["num_video_tokens"] == [int(is_video_placeholder(model, batch).sum())]


@over_video_families
def test_frames_of_every_size(family):
    """The processor's count is the model's, or this is an error."""
    model, processor = make_pair(family)
    for name in ("avg_pool", "qformer"):
        reuse.attach(model, processor, name, **KNOBS.get(name, {"rate": 4, "grid_policy": "ceil"}))
        for width, height in ((25, 60), (100, 30), (47, 48), (13, 44)):
            batch = encode_rows(processor, [Row(ask(family), videos=[video(1, width, height)])])
            with torch.no_grad():
                assert model(**batch).logits.isfinite().all()
        reuse.detach(model, processor)


@over_encoded_families
def test_pruners_beside(family):
    """They drop tokens of frames, too; a batch answers as its rows do."""
    if family.startswith("qwen3_5"):
        pytest.skip("its LLM is a hybrid, which pruners refuse")
    model, processor = attached_pair(family)
    reuse.prune(model, "fastv", layer=1, ratio=0.5)
    rows = two_videos(family, marked=True)
    batch = encode_rows(processor, rows)
    said = answers(model, batch)
    assert said == [answers(model, encode_rows(processor, [row]))[0] for row in rows]
    visual = is_video_placeholder(model, batch).sum(1)
    with torch.no_grad():
        pruned = model(**batch).logits
        reuse.prune(model, None)
        assert (model(**batch).logits - pruned).abs().max() > 1e-3
    assert visual.min() > 1


@over_encoded_families
def test_a_step_is_one_step(family):
    """Of a compressor that counts them, with images and videos in it."""
    model, processor = make_pair(family)
    reuse.attach(model, processor, **SAP)
    begun = []
    model.slothkit.compressor.begin_step = lambda: begun.append(1)
    rows = two_videos(family) if family in GLM else mixed(family)
    batch = encode_rows(processor, rows)
    train_loss(model.train(), batch)
    assert begun == [1]
    train_loss(model, batch)
    assert begun == [1, 1]
    model.eval()
    answers(model, batch)
    assert begun == [1, 1]


@over_encoded_families
def test_saved_and_copied(family, tmp_path):
    model, processor = attached_pair(family)
    rows = two_videos(family, marked=True)
    batch = encode_rows(processor, rows)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded, again = reuse.load(tmp_path)
    assert torch.equal(encode_rows(again, rows)["input_ids"], batch["input_ids"])
    copied = copy.deepcopy(model)
    with torch.no_grad():
        logits = model(**batch).logits
        assert_same(family, loaded(**batch).logits, logits)
        assert_same(family, copied(**batch).logits, logits)


@over_video_families
def test_chat_templates_mark_questions_about_videos(family):
    model, processor = attached_pair(family)
    content = [{"type": "video"}, {"type": "text", "text": "What?"}]
    processor.chat_template = processor.chat_template.replace(
        "{% if p['type'] == 'image' %}", "{% if p['type'] == 'video' %}<video>{% elif p['type'] == 'image' %}"
    )
    text = processor.apply_chat_template([{"role": "user", "content": content}])
    assert "<video><question>What?<query>" in text
    batch = encode_rows(processor, [Row(text, videos=[video()])])
    assert (batch["input_ids"] == model.slothkit.markers.query_id).sum() == 3


def test_stacked_families_are_those_of_one_size():
    assert set(STACKED) == {"llava_next_video", "llava_onevision", "perception_lm", *AS_IMAGES}
