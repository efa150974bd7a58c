"""Compressors that compare patches with the question by the tower's own text encoder, in the composed model:
tiny random CLIP and SigLIP checkpoints, from the words of a conversation to the tokens that are kept."""

import copy
import json

import open_clip
import pytest
import torch
from factories import chat, make_batch, make_config, make_llm, make_processor, picture
from text_towers import LENGTHS, save_open_clip_model, save_text_tower
from torch import nn
from transformers import AutoModel

import compressors
from compressors.errors import UsageError
from connectors.towers.build import load_tower
from connectors.towers.build_text import build_text_encoder, load_text_encoder, read_text_config
from connectors.towers.text_tokenizer import (
    FOLDER,
    load_text_tokenizer,
    read_saved_text_tokenizer,
    split_text,
)
from llm_adapters.conversation import IMAGE, Turn
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.processing import FlashSlothProcessor
from llm_adapters.shared_prefix import can_share_prefix

KINDS = ("clip", "siglip")
NAMES = [name for name in compressors.names() if compressors.create(name, dim=8, llm_dim=8).needs_tower_text]
FIRST, SECOND = "what is the red dog ?", "where is a cat ?"
every_kind = pytest.mark.parametrize("kind", KINDS)
every_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Where the checkpoint of each kind is."""
    return {kind: save_text_tower(tmp_path_factory.mktemp(kind), kind) for kind in KINDS}


def make_pair(source, name, **knobs):
    """A model with that tower and compressor, and its processor."""
    tower = load_tower(source, dtype=torch.float32)
    tower.add_text_encoder(load_text_encoder(source, "here"))
    config = make_config(
        "llama", name, None, compressor_knobs={"tokens": 9, **knobs}, vision=copy.deepcopy(tower.config)
    )
    torch.manual_seed(0)
    model = FlashSlothForConditionalGeneration(config, tower, make_llm("llama")).eval()
    for parameter in model.projector.parameters():
        nn.init.normal_(parameter.data, std=0.3)
    processor = make_processor(model)
    processor.question_tokenizer = load_text_tokenizer(source, "here")
    return model, processor


def keep(model, batch):
    """The patches that a batch's images keep (B * I, N)."""
    seen = {}

    def note(part, arguments, output):  # noqa: ARG001
        seen["kept"] = part.kept(*arguments)

    with model.compressor.register_forward_hook(note), torch.no_grad():
        model(**{key: value for key, value in batch.items() if key != "labels"})
    return seen["kept"]


def test_there_are_some():
    assert {"cdpruner", "trim"} <= set(NAMES)


@every_kind
def test_encoder_is_the_whole_models(sources, kind):
    whole = AutoModel.from_pretrained(sources[kind]).eval()
    encoder = load_text_encoder(sources[kind], "here")
    tokenizer = load_text_tokenizer(sources[kind], "here")
    ids = tokenizer([FIRST, SECOND])[0][:, 0]
    expected = whole.get_text_features(input_ids=ids)
    expected = expected if isinstance(expected, torch.Tensor) else expected.pooler_output
    assert encoder.encode_text(ids).equal(expected)
    tower = load_tower(sources[kind], -1)
    tower.add_text_encoder(encoder)
    pixels = torch.randn(2, 3, 84, 84)
    features = tower.extract_features(pixels, (), ("joint",))
    assert features.shape == (2, 6, 6, tower.count_channels((), ("joint",)))
    states = whole.vision_model(pixels).last_hidden_state[:, -36:]
    for patch in (0, 17):
        if kind == "clip":
            joint = whole.visual_projection(whole.vision_model.post_layernorm(states[:, patch]))
        else:  # its last hidden state is behind the norm
            joint = whole.vision_model.head(states[:, patch : patch + 1])
        torch.testing.assert_close(features.flatten(1, 2)[:, patch, 24:], joint)
    twin = build_text_encoder(encoder.config)
    twin.load_state_dict(encoder.state_dict())
    assert twin.encode_text(ids).equal(expected)


@every_kind
def test_it_is_never_trained(sources, kind):
    model, processor = make_pair(sources[kind], "cdpruner")
    model.vision_tower.unfreeze()
    model.train()
    encoder = model.vision_tower.text_encoder
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not any(module.training for module in encoder.modules())
    batch = make_batch(processor, [([Turn(f"{IMAGE}\n{FIRST}", "A dog.")], [picture()])])
    model(**batch).loss.backward()
    assert all(parameter.grad is None for parameter in encoder.parameters())


@every_kind
@every_name
def test_kept_patches_follow_the_question(sources, kind, name):
    """What is kept is what the compressor keeps of the tower's patches and the question by the whole model,
    and another question keeps others."""
    model, processor = make_pair(sources[kind], name)
    image = picture()
    rows = [([Turn(f"{IMAGE}\n{question}")], [image]) for question in (FIRST, SECOND)]
    batch = make_batch(processor, rows)
    kept = keep(model, batch)
    assert kept[0].tolist() != kept[1].tolist()
    with torch.no_grad():
        features = model.add_projected(model.get_image_features(batch["pixel_values"])[:, 0])
        ids, _ = load_text_tokenizer(sources[kind], "here")([FIRST, SECOND])
        text = model.vision_tower.text_encoder.encode_text(ids[:, 0]).unsqueeze(1)
        assert kept.equal(model.compressor.kept(features, text))
    # a row alone, and one beside a longer conversation
    for row, one in enumerate(rows):
        assert keep(model, make_batch(processor, [one]))[0].equal(kept[row])
    longer = ([Turn(f"{IMAGE}\n{FIRST}", "A dog."), Turn(SECOND)], [image])
    assert keep(model, make_batch(processor, [longer, rows[1]])).equal(kept)


@every_name
def test_each_image_has_the_question_of_its_turn(sources, name):
    model, processor = make_pair(sources["clip"], name)
    image = picture()
    turns = [Turn(f"{IMAGE}\n{FIRST}", "A dog."), Turn(f"{IMAGE}\n{SECOND}")]
    batch = make_batch(processor, [(turns, [image, image])])
    alone = [make_batch(processor, [([Turn(f"{IMAGE}\n{q}")], [image])]) for q in (FIRST, SECOND)]
    assert keep(model, batch).equal(torch.cat([keep(model, one) for one in alone]))


@every_name
def test_the_chat_template_gives_the_same_questions(sources, name):
    model, processor = make_pair(sources["siglip"], name)
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    inputs = processor.apply_chat_template(chat(picture(), text=FIRST), **options)
    encoded = make_batch(processor, [([Turn(f"{IMAGE}\n{FIRST}")], [picture()])])
    assert inputs["question_ids"].equal(encoded["question_ids"])
    assert set(processor.model_input_names) == set(inputs)
    with torch.inference_mode():
        one = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        beams = model.generate(**inputs, max_new_tokens=4, do_sample=False, num_beams=2)
        cacheless = model.generate(**inputs, max_new_tokens=4, do_sample=False, use_cache=False)
    assert one.equal(cacheless) and beams.shape[0] == 1
    assert not can_share_prefix(model)


@every_kind
@every_name
def test_saved_and_loaded(sources, tmp_path, kind, name):
    model, processor = make_pair(sources[kind], name)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert (tmp_path / FOLDER).is_dir()
    again = FlashSlothForConditionalGeneration.from_pretrained(tmp_path).eval()
    processor_again = FlashSlothProcessor.from_pretrained(tmp_path)
    row = ([Turn(f"{IMAGE}\n{FIRST}")], [picture()])
    batch = make_batch(processor, [row])
    batch_again = make_batch(processor_again, [row])
    assert batch_again["question_ids"].equal(batch["question_ids"])
    assert processor_again.question_tokenizer.lowercase == (kind == "siglip")
    del batch["labels"], batch_again["labels"]
    with torch.no_grad():
        assert model(**batch).logits.equal(again(**batch_again).logits)


@every_kind
def test_a_repository_of_the_hub_brings_its_question_tokenizer(sources, tmp_path, monkeypatch, kind):
    """Of a revision, too; an upload as it is saved would leave it out, and is refused."""
    model, processor = make_pair(sources[kind], "trim")
    with pytest.raises(UsageError, match=r"use processor\.push_to_hub"):
        processor.save_pretrained(tmp_path / "upload", push_to_hub=True)
    with pytest.raises(UsageError, match="processor.push_to_hub"):
        processor.save_pretrained(tmp_path / "upload", True)
    root = tmp_path / "models--someone--trim"
    for revision in ("main", "v1"):
        commit = revision[0] * 40
        processor.save_pretrained(root / "snapshots" / commit)
        model.config.save_pretrained(root / "snapshots" / commit)
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / revision).write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    batch = make_batch(processor, [([Turn(f"{IMAGE}\n{FIRST}")], [picture()])])
    for place in ({}, {"revision": "v1"}):
        again = FlashSlothProcessor.from_pretrained("someone/trim", **place)
        found = make_batch(again, [([Turn(f"{IMAGE}\n{FIRST}")], [picture()])])
        assert found["question_ids"].equal(batch["question_ids"])


def test_a_plain_processor_has_no_second_tokenizer(sources, tmp_path):
    model, processor = make_pair(sources["clip"], "trim")
    processor.question_tokenizer = None
    processor.save_pretrained(tmp_path)
    assert read_saved_text_tokenizer(tmp_path) is None
    batch = make_batch(processor, [([Turn(f"{IMAGE}\n{FIRST}")], [picture()])])
    assert "question_ids" not in batch
    with pytest.raises(UsageError, match="own processor"):
        model(**batch)


@every_kind
@pytest.mark.parametrize("side", ["left", "right"])
def test_questions_are_filled_and_spelled_as_in_training(tmp_path, kind, side):
    """Whatever side the tokenizer was saved with: CLIP reads the first end that it finds."""
    save_text_tower(tmp_path, kind)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "padding_side": side}))
    tokenizer = load_text_tokenizer(tmp_path, "here")
    assert tokenizer.tokenizer.padding_side == side
    words = tokenizer.tokenizer.get_vocab()
    ids, is_there = tokenizer(["What is this", "", " "])
    assert ids.shape == (3, 1, LENGTHS[kind]) and is_there.tolist() == [[True], [False], [False]]
    assert words["what" if kind == "siglip" else "What"] in ids[0, 0].tolist()
    end = tokenizer.tokenizer.eos_token_id
    assert ids[0, 0, -1] == end  # filled with it
    start = [words["<start>"]] if kind == "clip" else []
    assert ids[1, 0].tolist() == start + [end] * (LENGTHS[kind] - len(start))


@every_kind
def test_a_long_question_is_read_in_pieces(sources, kind):
    """All its words, in their order, each piece with its end; and a word that is too long by itself."""
    tokenizer = load_text_tokenizer(sources[kind], "here")
    question = "what is the red dog this is a cat where is the dog what is a red cat ?"
    ids, is_there = tokenizer([question, FIRST])
    assert ids.shape[0] == 2 and ids.shape[1] > 1 and ids.shape[2] == LENGTHS[kind]
    assert is_there.sum(1).tolist() == [ids.shape[1], 1]
    specials = set(tokenizer.tokenizer.all_special_ids) - {tokenizer.tokenizer.unk_token_id}
    read = [one for one in ids[0].flatten().tolist() if one not in specials]
    assert tokenizer.tokenizer.convert_ids_to_tokens(read) == question.split()
    assert (ids[..., -1] == tokenizer.tokenizer.eos_token_id).all()
    assert ids[1, 0].equal(tokenizer([FIRST])[0][0, 0])
    assert split_text("abcdefg is", lambda text: len(text) < 3) == ["a", "bc", "de", "fg", "is"]


@every_name
def test_all_pieces_of_a_question_are_compared(sources, name):
    """Words behind the places of the text encoder decide, too; beside a shorter question, as alone."""
    model, processor = make_pair(sources["clip"], name)
    image = picture()
    common = "what is this what is this what is this what is this"
    rows = [([Turn(f"{IMAGE}\n{common} {end}")], [image]) for end in ("where the red dog ?", "a cat a cat")]
    rows.append(([Turn(f"{IMAGE}\n{FIRST}")], [image]))
    kept = keep(model, make_batch(processor, rows))
    assert kept[0].tolist() != kept[1].tolist()
    for row, one in enumerate(rows):
        assert keep(model, make_batch(processor, [one]))[0].equal(kept[row])


@every_kind
def test_a_half_precise_checkpoint_is_read_in_float32(sources, tmp_path, kind):
    """As patches whose features were computed before, and under autocast, too."""
    whole = AutoModel.from_pretrained(sources[kind])
    whole.half().save_pretrained(tmp_path)
    load_text_tokenizer(sources[kind], "here").tokenizer.save_pretrained(tmp_path)
    encoder = load_text_encoder(tmp_path, "here")
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    ids = load_text_tokenizer(tmp_path, "here")([FIRST])[0][:, 0]
    patches = torch.randn(2, 3, encoder.patch_dim)
    text, joint = encoder.encode_text(ids), encoder.project_patches(patches)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.encode_text(ids).equal(text) and encoder.project_patches(patches).equal(joint)


def test_joint_of_a_tower_in_half_precision_stays_in_float32(sources):
    tower = make_pair(sources["clip"], "trim")[0].vision_tower
    tower.backbone.bfloat16()
    side = tower.image_size
    with torch.no_grad():
        features = tower.extract_features(torch.rand(1, 3, side, side), (), ("joint",))
    patches, joint = features[..., : tower.dim], features[..., tower.dim :]
    assert torch.equal(patches, patches.bfloat16().float())
    assert torch.equal(joint, tower.text_encoder.project_patches(patches))


@every_name
def test_cached_features_and_a_cast_llm_keep_the_same(sources, name):
    """The compressor gets patches and question in one precision."""
    model, processor = make_pair(sources["siglip"], name)
    batch = make_batch(processor, [([Turn(f"{IMAGE}\n{FIRST}")], [picture()])])
    kept = keep(model, batch)
    with torch.no_grad():
        features = model.get_image_features(batch.pop("pixel_values"))
    seen = []
    model.compressor.register_forward_pre_hook(lambda part, given: seen.append(given))  # noqa: ARG005
    for dtype in (torch.float32, torch.bfloat16):
        again = keep(model.to(dtype), {**batch, "vision_features": features.half()})
        assert seen[-1][0].dtype == seen[-1][1].dtype == torch.float32
        shared = set(again[0].tolist()) & set(kept[0].tolist())
        assert len(shared) >= kept.shape[1] - 1


def test_a_tower_without_text_encoder_is_refused_in_one_line(sources, tmp_path):
    load_tower(sources["clip"]).backbone.save_pretrained(tmp_path)
    with pytest.raises(
        UsageError, match="no text encoder of its own; give a whole CLIP or SigLIP"
    ) as refused:
        read_text_config(tmp_path, "compressor 'trim', tower.source=X")
    assert "\n" not in str(refused.value)
    config = make_config("llama", "trim", None, compressor_knobs={"tokens": 9})
    config.tower_text_config = None
    with pytest.raises(UsageError, match="cue 'joint': this vision tower has no text encoder"):
        FlashSlothForConditionalGeneration(config)
    tower = load_tower(sources["clip"])
    encoder = load_text_encoder(sources["clip"], "here")
    encoder.model.config.vision_config.hidden_size = 32
    with pytest.raises(UsageError, match="32 channels, this one has 24"):
        tower.add_text_encoder(encoder)


@pytest.fixture(params=["native", "timm"])
def tiny_open_clip(request, tmp_path):
    """A tiny model under a name that open_clip knows, and its checkpoint; `open_clip:...` for it."""
    vision = {"width": 24, "layers": 3, "head_width": 8, "image_size": 84, "patch_size": 14}
    if request.param == "timm":
        vision = {"timm_model_name": "test_vit3", "timm_pool": "map", "image_size": 160}
        vision["timm_proj"] = "linear"
    text = {"width": 8, "heads": 1, "layers": 2, "context_length": 9, "vocab_size": 49408}
    model = {"embed_dim": 10, "quick_gelu": request.param == "native", "vision_cfg": vision, "text_cfg": text}
    return save_open_clip_model(tmp_path, f"slothkit-text-{request.param}", model)


@pytest.mark.slow
def test_open_clip_brings_its_text_encoder(tiny_open_clip, tmp_path):
    """As the whole model has question and patches, saved and loaded in a composed one, too."""
    _, name, path = tiny_open_clip.split(":")
    whole = open_clip.create_model(name, pretrained=path).eval()
    encoder = load_text_encoder(tiny_open_clip, "here")
    tokenizer = load_text_tokenizer(tiny_open_clip, "here")
    ids, is_there = tokenizer(["what is this", "where is the cat " * 5, ""])
    assert is_there.sum(1).tolist() == [1, 4, 0]
    ids = ids[:2].flatten(0, 1)[is_there[:2].flatten()]
    pieces = ["what is this", "where is the cat where", "is the cat where is", "the cat where is the"]
    pieces.append("cat where is the cat")
    assert ids.equal(open_clip.get_tokenizer(name)(pieces))
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode_text(ids), whole.encode_text(ids))
    tower = load_tower(tiny_open_clip, -1)
    tower.add_text_encoder(encoder)
    pixels = torch.randn(2, 3, tower.image_size, tower.image_size)
    with torch.no_grad():
        features = tower.extract_features(pixels, (), ("joint",))
        patch = features[:, 1, 2, : tower.dim].unsqueeze(1)
        if "native" in name:
            cls = tower.extract_features(pixels, (), ("cls",))[:, 0, 0, tower.dim :]
            # what the whole model does to CLS is done to each patch
            torch.testing.assert_close(encoder.project_patches(cls), whole.encode_image(pixels))
            joint = encoder.project_patches(patch)
        else:
            trunk = whole.visual.trunk
            joint = whole.visual.head(trunk.fc_norm(trunk.attn_pool(trunk.norm(patch))))
    torch.testing.assert_close(features[:, 1, 2, tower.dim :], joint.view(2, -1))
    model, processor = make_pair(tiny_open_clip, "trim")
    size = tower.image_size
    processor.image_processor.size = {"height": size, "width": size}
    processor.image_tokens = model.num_image_tokens()
    batch = make_batch(processor, [([Turn(f"{IMAGE}\n{FIRST}")], [picture(0, (size, size))])])
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    again = FlashSlothForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    assert FlashSlothProcessor.from_pretrained(tmp_path / "saved").question_tokenizer.name == name
    del batch["labels"]
    with torch.no_grad():
        assert again(**batch).logits.equal(model(**batch).logits)


def test_open_clip_towers_whose_patches_have_no_place_beside_the_text():
    with pytest.raises(UsageError, match="its image encoder pools patches together"):
        read_text_config("open_clip:coca_ViT-B-32", "here")
    with pytest.raises(UsageError, match="open_clip has no model 'ViT-B-33'; did you mean"):
        read_text_config("open_clip:ViT-B-33", "here")
