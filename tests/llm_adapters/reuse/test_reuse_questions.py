"""Compressors that compare patches with the question by the text encoder of the tower's own CLIP or SigLIP,
in LLaVA and its like."""

import copy

import pytest
import torch
from reuse_families import inputs, make_model, make_processor, picture
from reuse_models import VISION
from text_towers import save_text_tower

from compressors.errors import UsageError
from connectors.towers.build_text import load_text_encoder
from connectors.towers.text_tokenizer import load_text_tokenizer
from llm_adapters import reuse
from llm_adapters.reuse.parts import GENERATION_ENCODER
from llm_adapters.reuse.questions import TurnWords, cut_question

FAMILIES = {"llava": "clip", "llava_next": "clip", "llava_onevision": "siglip"}
NAMES = ("cdpruner", "trim")
WORDS = ("What is this?", "And that, is it a cat or a dog?")
TOKENS = 5
every_family = pytest.mark.parametrize("family", FAMILIES)
every_name = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Whole checkpoints for towers of these families' width."""
    return {
        kind: save_text_tower(tmp_path_factory.mktemp(kind), kind, **VISION) for kind in FAMILIES.values()
    }


def ask(words):
    """A prompt as the processors' chat template has it."""
    return f"user: <image>{words}\nassistant:"


def two_rows():
    return [(ask(WORDS[0]), [picture(1)]), (ask(WORDS[1]), [picture(2, 40, 24)])]


def attach(family, name, source, **knobs):
    model, processor = make_model(family), make_processor(family)
    reuse.attach(model, processor, name, tokens=TOKENS, text_encoder=source, **knobs)
    return model, processor


def record_inputs(model):
    """What the compressor gets, call by call."""
    calls = []
    model.slothkit.compressor.register_forward_pre_hook(lambda part, args: calls.append(args))  # noqa: ARG005
    return calls


@every_name
@every_family
def test_each_image_has_its_question(sources, family, name):
    source = sources[FAMILIES[family]]
    model, processor = attach(family, name, source)
    calls = record_inputs(model)
    batch = inputs(processor, two_rows())
    with torch.no_grad():
        logits = model(**batch).logits
    assert logits.isfinite().all()
    texts = torch.cat([call[1] for call in calls])
    expected = load_text_encoder(source, "").encode_text(load_text_tokenizer(source, "")(WORDS))
    crops = [(text - expected[:, None]).abs().amax((1, 2)).argmin().item() for text in texts]
    assert sorted(set(crops)) == [0, 1] and crops == sorted(crops)
    for text, row in zip(texts, crops):
        torch.testing.assert_close(text[0], expected[row])
    assert all(call[2].all() for call in calls)
    # the patches themselves in the same space, behind the tower's output
    features = calls[0][0]
    encoder = load_text_encoder(source, "")
    width = VISION["hidden_size"]
    joint = encoder.project_patches(features[..., :width])
    torch.testing.assert_close(features[..., width : width + encoder.dim], joint)


@every_name
@every_family
def test_generate_has_them_too(sources, family, name):
    """Where `generate` encodes images itself, where it searches with beams, and without a cache."""
    model, processor = attach(family, name, sources[FAMILIES[family]])
    batch = inputs(processor, two_rows())
    options = {"max_new_tokens": 3, "do_sample": False}
    calls = record_inputs(model)
    with torch.no_grad():
        said = model.generate(**batch, **options)
        cacheless = model.generate(**batch, **options, use_cache=False)
        model.generate(**batch, **options, num_beams=2)
    assert said.equal(cacheless)
    texts = [call[1] for call in calls]
    assert all(text.equal(texts[0]) for text in texts if text.shape == texts[0].shape)
    first = model(**batch).logits[:, -1].argmax(-1)
    assert said[:, batch["input_ids"].shape[1]].equal(first)


@every_name
def test_several_images_in_a_row_have_newlines_and_a_question(sources, name):
    """LLaVA-OneVision's, each of which is one crop with a newline behind it."""
    model, processor = attach("llava_onevision", name, sources["siglip"])
    text = f"user: <image><image>{WORDS[0]}\nassistant:"
    batch = inputs(processor, [(text, [picture(1), picture(2)])])
    assert (batch["input_ids"] == model.config.image_token_id).sum() == 2 * (TOKENS + 1)
    calls = record_inputs(model)
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()
    assert len(calls[0][1]) == 2 and torch.equal(calls[0][1][0], calls[0][1][1])


@every_name
def test_a_question_decides_what_is_kept(sources, name):
    model, processor = attach("llava", name, sources["clip"])
    calls = record_inputs(model)
    for words in ("What is this?", "Where is the red dog"):
        with torch.no_grad():
            model(**inputs(processor, [(ask(words), [picture(1)])]))
    part = model.slothkit.compressor
    first, second = (part.kept(*call) for call in calls)
    assert first.tolist() != second.tolist()


def test_other_words_around_a_question_are_told(sources):
    model, processor = attach("llava", "trim", sources["clip"])
    batch = inputs(processor, [("Look: <image> What is this?", [picture(1)])])
    calls = record_inputs(model)
    with (
        torch.no_grad(),
        pytest.warns(UserWarning, match="words of its chat template around a question") as told,
    ):
        model(**batch)
        model(**batch)
    assert len([one for one in told if "chat template" in str(one.message)]) == 1
    encoder = model.slothkit.question_reader.encoder
    ids = load_text_tokenizer(sources["clip"], "")(["Look: What is this?"])
    torch.testing.assert_close(calls[0][1][:, 0], encoder.encode_text(ids))


def test_the_chat_template_tells_where_a_question_is():
    words = TurnWords("USER:", "ASSISTANT:")
    text = "System. USER: \0\nWhat is it? ASSISTANT: A dog.</s>USER: And \0 this? ASSISTANT:"
    assert cut_question(text, text.index("\0"), words) == " \0\nWhat is it? "
    assert cut_question(text, text.rindex("\0"), words) == " And \0 this? "
    assert cut_question("\0 What is it?", 0, words) is None
    assert cut_question("\0 What is it?", 0, TurnWords()) is None


@every_name
def test_saved_loaded_and_detached(sources, tmp_path, name):
    model, processor = attach("llava", name, sources["clip"])
    batch = inputs(processor, two_rows())
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for options in ({}, {"text_encoder": sources["clip"]}):
        again, _ = reuse.load(tmp_path, **options)
        with torch.no_grad():
            assert again(**batch).logits.equal(model(**batch).logits)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        assert twin(**batch).logits.equal(model(**batch).logits)
    assert reuse.name_trained_parts(model) == []
    plain = make_model("llava")
    reuse.detach(model, processor)
    assert GENERATION_ENCODER not in vars(model)
    before = inputs(make_processor("llava"), two_rows())
    with torch.no_grad():
        assert model(**before).logits.equal(plain(**before).logits)


def test_a_pruner_may_come_and_go(sources):
    """Before and behind it, in any order."""
    options = {"max_new_tokens": 3, "do_sample": False}
    model, processor = make_model("llava"), make_processor("llava")
    reuse.prune(model, "fastv", layer=1, ratio=0.5)
    reuse.attach(model, processor, "trim", tokens=TOKENS, text_encoder=sources["clip"])
    batch = inputs(processor, two_rows())
    with torch.no_grad():
        pruned = model.generate(**batch, **options)
        reuse.prune(model, None)
        said = model.generate(**batch, **options)
        alone = attach("llava", "trim", sources["clip"])[0].generate(**batch, **options)
    assert said.equal(alone) and pruned.shape[0] == 2


def test_what_cannot_be_is_refused_in_one_line(sources, tmp_path):
    model, processor = make_model("llava"), make_processor("llava")

    def refuse(match, compressor="trim", **options):
        with pytest.raises(UsageError, match=match) as refused:
            reuse.attach(model, processor, compressor, **options)
        assert "\n" not in str(refused.value)
        assert not hasattr(model, "slothkit") and not hasattr(processor, "attached")

    refuse("give text_encoder=, a folder or hub id of the whole CLIP or SigLIP")
    refuse("compressor 'divprune' reads none; leave it out", "divprune", text_encoder=sources["clip"])
    refuse("no text encoder of its own", text_encoder=_save_plain_tower(tmp_path))
    with pytest.raises(UsageError, match="are read from a clip_vision_model or siglip_vision_model"):
        reuse.attach(make_model("qwen2_vl"), make_processor("qwen2_vl"), "trim", text_encoder=sources["clip"])
    reuse.attach(model, processor, "trim", tokens=TOKENS, text_encoder=sources["clip"])
    batch = inputs(processor, two_rows())
    with pytest.raises(UsageError, match="give input_ids together with pixel_values"):
        model.model.get_image_features(batch["pixel_values"])


def _save_plain_tower(folder):
    """The tower of a model alone, as LLaVA's own weights have it."""
    tower = make_model("llava").model.vision_tower
    tower.save_pretrained(folder)
    return folder
