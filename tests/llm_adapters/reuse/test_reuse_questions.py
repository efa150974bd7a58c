"""Compressors that compare patches with the question by the text encoder of the tower's own CLIP or SigLIP,
in LLaVA and its like."""

import copy

import pytest
import torch
from reuse_families import inputs, make_model, make_processor, picture, train_loss
from reuse_models import VISION
from text_towers import save_text_tower
from tiny_tokenizer import tokenizer
from transformers import AddedToken

from compressors.errors import UsageError
from connectors.towers.build_text import load_text_encoder
from connectors.towers.text_tokenizer import load_text_tokenizer
from llm_adapters import reuse
from llm_adapters.reuse.parts.visual_parts import GENERATION_ENCODER
from llm_adapters.reuse.question_words import TurnWords, cut_question
from llm_adapters.reuse.questions import QuestionReader

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


def embed(source):
    """Both questions by the whole checkpoint's text model, in pieces."""
    ids, is_there = load_text_tokenizer(source, "")(WORDS)
    embedded = load_text_encoder(source, "").encode_text(ids.flatten(0, 1))
    return embedded.unflatten(0, is_there.shape), is_there


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
    masks = torch.cat([call[2] for call in calls])
    expected, is_there = embed(source)
    crops = [(text - expected).abs().amax((1, 2)).argmin().item() for text in texts]
    assert sorted(set(crops)) == [0, 1] and crops == sorted(crops)
    for text, mask, row in zip(texts, masks, crops):
        torch.testing.assert_close(text, expected[row])
        assert mask.equal(is_there[row])
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
def test_the_tower_is_trained_through_what_is_kept(sources, name):
    model, processor = attach("llava", name, sources["clip"])
    train_loss(model, inputs(processor, two_rows())).backward()
    tower = model.model.vision_tower
    assert any(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in tower.parameters())
    encoder = model.slothkit.question_reader.encoder
    assert all(weight.grad is None for weight in encoder.parameters())


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
    ids = load_text_tokenizer(sources["clip"], "")(["Look: What is this?"])[0][:, 0]
    torch.testing.assert_close(calls[0][1][:, 0], encoder.encode_text(ids))


def test_the_chat_template_tells_where_a_question_is():
    words = TurnWords("USER:", "ASSISTANT:")
    text = "System. USER: \0\nWhat is it? ASSISTANT: A dog.</s>USER: And \0 this? ASSISTANT:"
    assert cut_question(text, text.index("\0"), words) == (" \0\nWhat is it? ", True)
    assert cut_question(text, text.rindex("\0"), words) == (" And \0 this? ", True)
    assert cut_question("\0 What is it?", 0, words) == ("\0 What is it?", False)
    assert cut_question("\0 What is it?", 0, TurnWords()) == ("\0 What is it?", False)
    assert cut_question("System. USER: \0 What?", 14, words) == (" \0 What?", False)
    assert cut_question("\0 What? ASSISTANT: A dog.", 0, words) == ("\0 What? ", False)


LOOP = "{% for m in messages %}"
PARTS = "{% for p in m.content %}{{ '<image>' if p.type == 'image' else p.text }}{% endfor %}"
ROLE = "{{ 'model' if m.role == 'assistant' else m.role }}"
TEMPLATES = {  # as those of families are, written from how their prompts look
    "vicuna": LOOP + "{{ m.role.upper() }}: " + PARTS + " {% endfor %}ASSISTANT:",
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n"
    + LOOP
    + "<|im_start|>{{ m.role }}\n"
    + PARTS
    + "<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
    "turns": "<s>" + LOOP + "<turn>" + ROLE + "\n" + PARTS + "</turn>\n{% endfor %}<turn>model\n",
    "brackets": "<s>"
    + LOOP
    + "{% if m.role == 'user' %}[INST]"
    + PARTS
    + "[/INST]{% else %}"
    + PARTS
    + "</s>{% endif %}{% endfor %}",
    "plain text": LOOP + "### {{ m.role }}: {{ '' + m.content }}\n{% endfor %}### assistant:",
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_templates_of_every_look(kind):
    """The question of each turn, whatever a template has around it; one that fails is none."""
    processor = make_processor("llava")
    processor.chat_template = TEMPLATES[kind]
    reader = QuestionReader(processor, make_model("llava").config)
    messages = []
    for role, words in (("user", "What is this?"), ("assistant", "A dog."), ("user", "And that?")):
        content = [{"type": "image"}, {"type": "text", "text": words}]
        if role == "assistant":
            content = content[1:]
        if kind == "plain text":
            content = "<image>" * (role == "user") + words
        messages.append({"role": role, "content": content})
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    first, second, third = text.split("<image>")
    for before, behind, asked in (
        (first, second + third, "What is this?"),
        (first + second, third, "And that?"),
    ):
        question = cut_question(f"{before}\0{behind}", len(before), reader.words)
        assert question.is_framed and reader._strip_signs(question.text) == asked
    processor.chat_template = "{{ raise_exception('alternate') }}"
    assert QuestionReader(processor, make_model("llava").config).words == TurnWords()


def test_roles_and_placeholders_are_no_words_of_a_question():
    """Tokens that a tokenizer has beside the named special ones: of roles, as Llama 3's, and of images."""
    added = tokenizer()
    added.add_tokens([AddedToken("<|user|>", special=True), AddedToken("<image_soft>", special=True)])
    added.add_tokens(["pelican"])
    assert "<|user|>" not in added.all_special_tokens
    processor = make_processor("llava")
    processor.tokenizer = added
    reader = QuestionReader(processor, make_model("llava").config)
    said = "<s><|user|><image_soft> \0What does a pelican eat?</s>"
    assert reader._strip_signs(said) == "What does a pelican eat?"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_text_encoder_stays_as_it_is(sources, dtype):
    """In float32, where it is, forward by forward, beside a model that is cast."""
    model, processor = attach("llava", "cdpruner", sources["clip"])
    model.to(dtype)
    reader = model.slothkit.question_reader
    before = {name: (value.clone(), value.data_ptr()) for name, value in reader.encoder.named_parameters()}
    batch = inputs(processor, two_rows())
    batch["pixel_values"] = batch["pixel_values"].to(dtype)
    calls = record_inputs(model)
    with torch.no_grad():
        for _ in range(2):
            assert model(**batch).logits.dtype == dtype
    for name, value in reader.encoder.named_parameters():
        weight, place = before[name]
        assert value.equal(weight) and value.dtype == torch.float32 and value.data_ptr() == place
    assert all(call[0].dtype == call[1].dtype == torch.float32 for call in calls)


@every_name
def test_pieces_empty_questions_and_rows_without_pictures(sources, name):
    """In a batch as alone."""
    model, processor = attach("llava", name, sources["clip"])
    long = "What is this? where is the red dog a cat is this the red cat what is a dog ?"
    rows = [(ask(long), [picture(1)]), (ask(""), [picture(2)]), (ask("What is this?"), [picture(2)])]
    calls = record_inputs(model)
    with torch.no_grad():
        together = model(**inputs(processor, rows)).logits[:, -1]
        for row, one in enumerate(rows):
            alone = model(**inputs(processor, [one])).logits[0, -1]
            torch.testing.assert_close(alone, together[row], atol=1e-5, rtol=1e-5)
    assert calls[0][2].sum(1).tolist() == [calls[0][1].shape[1], 0, 1]
    beside = dict(
        processor(
            text=["user: What?\nassistant:", ask(WORDS[0])],
            images=[picture(1)],
            padding=True,
            return_tensors="pt",
        )
    )
    with torch.no_grad():
        assert model(**beside).logits.isfinite().all()


def test_each_of_several_images_has_the_question_of_its_turn(sources):
    """A picture of one crop has a newline behind it in LLaVA-OneVision."""
    model, processor = attach("llava_onevision", "trim", sources["siglip"])
    chat = f"{ask(WORDS[0])} A dog.\n{ask(WORDS[1])}"
    calls = record_inputs(model)
    batch = inputs(processor, [(chat, [picture(1), picture(2)])])
    with torch.no_grad():
        model(**batch)
    expected, _ = embed(sources["siglip"])
    torch.testing.assert_close(torch.cat([call[1] for call in calls]), expected)


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
