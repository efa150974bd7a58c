"""The Jinja chat template renders what `conversation.render` does, and refuses what that refuses."""

import itertools

import pytest
from factories import make_processor, picture
from jinja2.exceptions import TemplateError

from compressors.errors import UsageError
from llm_adapters.conversation import IMAGE, Template, Turn, render_turns
from llm_adapters.processing import FlashSlothProcessor

TEMPLATES = {
    "released": Template(),
    "plain": Template(system="", assistant="ASSISTANT:"),
    "quotes": Template('It\'s "quoted" \\n {{ x }} {% y %}\n', "<|u|>\n", "\n<|a|>\n", "<|e|>"),
}
PARTS = (f"{IMAGE}", " What is this? ", "{{ 'No' }}\n{% code %} & <b>")


@pytest.fixture(params=TEMPLATES.values(), ids=TEMPLATES, scope="module")
def processor(request, model) -> FlashSlothProcessor:
    plain = make_processor(model)
    return FlashSlothProcessor(plain.image_processor, plain.tokenizer, 4, 1, 3, prompt=vars(request.param))


def user(*pieces: str) -> dict:
    """A message of image and text parts."""
    parts = [{"type": "image"} if p == IMAGE else {"type": "text", "text": p} for p in pieces]
    return {"role": "user", "content": parts}


def assistant(text: str, string: bool = True) -> dict:
    return {"role": "assistant", "content": text if string else [{"type": "text", "text": text}]}


def rendered(processor: FlashSlothProcessor, messages: list[dict]) -> str:
    prompts = {processor.apply_chat_template(messages, add_generation_prompt=flag) for flag in (True, False)}
    assert len(prompts) == 1  # the assistant's words end the user's message already
    return prompts.pop()


def expected(processor: FlashSlothProcessor, turns: list[Turn]) -> str:
    return render_turns(turns, Template(**processor.prompt))


@pytest.mark.parametrize(
    "pieces", [p for n in (1, 2, 3, 4) for p in itertools.product(PARTS[:2], repeat=n) if PARTS[1] in p]
)
def test_images_and_texts_in_any_order(processor, pieces):
    question = " ".join(piece.strip() for piece in pieces)
    assert rendered(processor, [user(*pieces)]) == expected(processor, [Turn(question)])


def test_text_only_as_string_or_part(processor):
    turns = [Turn(PARTS[2])]
    assert rendered(processor, [{"role": "user", "content": PARTS[2]}]) == expected(processor, turns)
    assert rendered(processor, [user(PARTS[2])]) == expected(processor, turns)


@pytest.mark.parametrize("string", [True, False])
def test_several_turns(processor, string):
    messages = [
        user(IMAGE, "What?"),
        assistant(" A dog. ", string),
        user("And USER: that?"),
        assistant("red", string),
    ]
    turns = [Turn(f"{IMAGE}\nWhat?", "A dog."), Turn("And USER: that?", "red")]
    assert rendered(processor, messages) == expected(processor, turns)
    assert rendered(processor, messages[:3]) == expected(processor, [turns[0], Turn(turns[1].question)])


def test_continued_answer(processor):
    """A pipeline's prefill: the final message without its end."""
    messages = [user(IMAGE, "What?"), assistant("A red", string=False)]
    text = processor.apply_chat_template(messages, continue_final_message=True)
    assert text == expected(processor, [Turn(f"{IMAGE}What?")]) + " A red"


@pytest.mark.parametrize("marker", ["<image>", "<query>", "<question>", "end"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_reserved_markers(processor, marker, role):
    marker = processor.prompt["end"] if marker == "end" else marker
    messages = [user(f"What {marker}?" if role == "user" else "What?"), assistant(f"A {marker}")]
    with pytest.raises(TemplateError, match="reserved") as caught:
        rendered(processor, messages)
    assert marker in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([{"role": "system", "content": "Be nice."}, user("Hi")], "one fixed system prompt"),
        ([user("Hi"), user("What?")], "two in a row are from the user"),
        ([assistant("Hi"), user("What?")], "two in a row are from the assistant"),
        ([user(IMAGE)], "user has no text"),
        ([user("  ")], "user has no text"),
        ([user("What?"), assistant(" ")], "assistant has no text"),
    ],
)
def test_what_is_refused(processor, messages, message):
    with pytest.raises(TemplateError, match=message):
        rendered(processor, messages)


TEXT = {"type": "text", "text": "What?"}


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"content": [{"type": "input_image", "image_url": "a.png"}, TEXT]}, "part of type 'input_image'"),
        ({"content": [{"type": "image_url", "image_url": {"url": "a.png"}}, TEXT]}, "of type 'image_url'"),
        ({"content": [{"type": "video", "video": "a.mp4"}, TEXT]}, "a video that is no list of frames"),
        ({"content": [{"type": "file", "file": "x" * 9000}, TEXT]}, "part of type 'file'"),
        ({"content": [{"text": "What?"}]}, "part of type None"),
        ({"content": ["What?"]}, "part of type None"),
        ({"content": [{"type": "text"}]}, "part of type text without a text"),
        ({"content": [{**TEXT, "image": "a.png"}]}, '"image" of a part of type text would not be read'),
        ({"content": [{"type": "image", "image_url": "a.png"}, TEXT]}, '"image_url" of a part of type image'),
        ({"content": "What?", "images": ["a.png"]}, '"images" of a message would not be read'),
    ],
)
def test_parts_that_would_not_be_read(processor, message, words):
    with pytest.raises(UsageError, match=words) as caught:
        processor.apply_chat_template([[{"role": "user", **message}]])
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_the_template_alone_refuses_them_too(processor):
    """As other tools use it, without our processor."""
    messages = [{"role": "user", "content": [{"type": "video", "video": "a.mp4"}, TEXT]}]
    with pytest.raises(TemplateError, match="a part of type 'video'"):
        processor.tokenizer.apply_chat_template(
            messages, chat_template=processor.chat_template, tokenize=False
        )
    messages = [user("What?"), {"role": "assistant", "content": [{"type": "image"}, TEXT]}]
    with pytest.raises(TemplateError, match="an image in a message of the assistant"):
        rendered(processor, messages)


def test_ids_are_those_of_training(processor):
    messages = [user(IMAGE, "What?"), assistant("A dog."), user("And", IMAGE, "that?"), assistant("red")]
    turns = [Turn(f"{IMAGE}What?", "A dog."), Turn(f"And {IMAGE} that?", "red")]
    batch = processor(images=[picture(1), picture(2)], text=rendered(processor, messages))
    encoded = processor.encode(turns, 2)
    assert batch["input_ids"].tolist() == [encoded.ids]
    assert batch["turns"].tolist() == [encoded.turns]
    assert batch["image_turn"].tolist() == [[1, 2]]
