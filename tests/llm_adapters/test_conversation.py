"""The conversation builder: one layout for training and inference, spans that are exactly what they say."""

import copy
import pickle

import pytest
from factories import TOKENIZERS, byte_tokenizer

from compressors.errors import UsageError
from llm_adapters.conversation import (
    IGNORE,
    IMAGE,
    QUERY,
    Encoder,
    Template,
    Turn,
    render_turns,
    truncate_encoded,
)

IMAGE_ID, QUERY_ID, Q, N = 4, 5, 3, 4
PLACEHOLDERS = (IMAGE_ID, QUERY_ID)
PLAIN = Template(system="")
TEMPLATES = {
    "released": Template(),
    "plain": PLAIN,
    "chatml": Template(
        system="",
        user="<|im_start|>user\n",
        assistant="<|im_end|>\n<|im_start|>assistant\n",
        end="<|im_end|>",
    ),
}
ASKED = {  # question -> (what is encoded between images and slot, images before it, images inside)
    f"{IMAGE}\nWhat is this?": ("What is this?", 1, 0),
    "What is this?": (" What is this?", 0, 0),
    f"What is this?\n{IMAGE}": ("What is this?", 1, 0),
    f"{IMAGE}{IMAGE} And that?": ("And that?", 2, 0),
    f"Is {IMAGE} the cat?": (None, 0, 1),
    f"{IMAGE} Is {IMAGE} {IMAGE} the cat? {IMAGE}": (None, 1, 3),
}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


def make_encoder(tokenizer, template: Template = PLAIN) -> Encoder:
    return Encoder(tokenizer, template, IMAGE_ID, QUERY_ID, Q)


def encode(tokenizer, turns: list[Turn], template: Template = PLAIN, max_length: int | None = None):
    images = sum(turn.question.count(IMAGE) for turn in turns)
    return make_encoder(tokenizer, template).encode_turns(turns, [N] * images, max_length)


def span(encoded, turn: int) -> list[int]:
    """What the queries of a turn read: its ids without placeholders."""
    return [i for i, t in zip(encoded.ids, encoded.turns) if t == turn and i not in (IMAGE_ID, QUERY_ID)]


def letters(text: str) -> str:
    """What both tokenizers keep of a text."""
    return "".join(text.lower().split())


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("question", ASKED)
def test_prompt_is_a_prefix_of_training(tokenizer, template, question):
    turns = [Turn(question, "A dog."), Turn("And that?", "The cat"), Turn(question, "red")]
    whole = encode(tokenizer, turns, template)
    for last in range(len(turns)):
        asked = encode(tokenizer, [*turns[:last], Turn(turns[last].question)], template)
        length = len(asked.ids)
        assert asked.ids == whole.ids[:length]
        assert asked.turns == whole.turns[:length]
        assert whole.labels[length] == whole.ids[length]  # the very next token is learned
        assert whole.labels[length - 1] == IGNORE


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
def test_labels_are_answers_and_their_ends(tokenizer, template):
    answers = ["A dog.", "USER: no", "two\nlines"]
    questions = [f"{IMAGE} What?", "And", "And"]
    encoded = encode(tokenizer, [Turn(*turn) for turn in zip(questions, answers)], template)
    learned = [i for i in encoded.labels if i != IGNORE]
    text = [
        t
        for a in answers
        for piece in (f" {a}", template.end)
        for t in tokenizer(piece, add_special_tokens=False)["input_ids"]
    ]
    assert learned == text
    assert all(label in (IGNORE, i) for i, label in zip(encoded.ids, encoded.labels))
    assert len(encoded.ids) == len(encoded.labels) == len(encoded.turns)


@pytest.mark.parametrize("question", ASKED)
def test_spans_images_and_slots(tokenizer, question):
    text, before, inside = ASKED[question]
    encoded = encode(tokenizer, [Turn("Hi", "The cat"), Turn(question, "red"), Turn("And that?")])
    assert [t for i, t in zip(encoded.ids, encoded.turns) if i == QUERY_ID] == [1] * Q + [2] * Q + [3] * Q
    assert encoded.image_turns == [2] * (before + inside)
    assert [t for i, t in zip(encoded.ids, encoded.turns) if i == IMAGE_ID] == [2] * N * (before + inside)
    wanted = question.replace(IMAGE, "") if text is None else text
    assert letters(tokenizer.decode(span(encoded, 2))) == letters(wanted)
    if text is not None:
        ids = tokenizer(f"{text} ", add_special_tokens=False)["input_ids"]
        assert span(encoded, 2) == ids


def test_layout_of_the_released_code():
    encoded = encode(byte_tokenizer(), [Turn(f"{IMAGE}\nWhat?", "A dog."), Turn("And?", "Red.")], Template())
    text = byte_tokenizer().decode(encoded.ids)
    assert text == (
        Template().system + f"USER: {IMAGE * N}\nWhat? {QUERY * Q} ASSISTANT: A dog.</s>"
        f"USER: And? {QUERY * Q} ASSISTANT: Red.</s>"
    )


def test_marked_string():
    assert render_turns([Turn(f"{IMAGE}\nWhat?", "A dog."), Turn("And?")], PLAIN) == (
        "USER: <image>\n<question>What? <query> ASSISTANT: A dog.</s>USER:<question> And? <query> ASSISTANT:"
    )
    middle = render_turns([Turn(f"{IMAGE} Is {IMAGE} or{IMAGE}{IMAGE} it? {IMAGE}")], PLAIN)
    assert middle == "USER: <image>\n<question>Is <image> or <image> <image> it? <image> <query> ASSISTANT:"


@pytest.mark.parametrize(
    "question",
    [
        f"Is this {IMAGE} larger than that: {IMAGE}",
        f"A: {IMAGE} B: {IMAGE} C: {IMAGE}",
        f"Like {IMAGE} ? {IMAGE}{IMAGE}",
        f"{IMAGE} Is it {IMAGE} or {IMAGE} ?",
        f"{IMAGE} What changed? {IMAGE}",
        f"What changed? {IMAGE} {IMAGE}",
    ],
)
def test_the_words_around_a_picture_are_its_own(question):
    """Pictures come in the order of their places: each, but those that come first, stands behind the words
    that it stood behind."""
    written = [piece.strip() for piece in question.split(IMAGE)]
    rendered = render_turns([Turn(question)], PLAIN).partition("USER:")[2].partition("<query>")[0]
    front, _, text = rendered.partition("<question>")
    moved = front.count(IMAGE)
    shown = [piece.strip() for piece in text.split(IMAGE)]
    if len(shown) == 1:  # none inside: all come first
        assert moved == question.count(IMAGE) and shown[0] == "".join(written)
    else:
        assert shown == written[moved:]


def test_no_slots_without_a_query_module():
    encoder = Encoder(byte_tokenizer(), PLAIN, IMAGE_ID, QUERY_ID, 0)
    encoded = encoder.encode_turns([Turn("What?", "A dog.")], [])
    assert QUERY_ID not in encoded.ids
    with_slots = encode(byte_tokenizer(), [Turn("What?", "A dog.")])
    assert encoded.ids == [i for i in with_slots.ids if i != QUERY_ID]


@pytest.mark.parametrize("word", ["ASSISTANT:", " ASSISTANT: yes", "USER:", "USER: hi ASSISTANT: no"])
def test_template_words_in_text_add_nothing(tokenizer, word):
    encoded = encode(tokenizer, [Turn(f"What {word} ?", f"A {word} dog"), Turn("And that?", "red")])
    assert encoded.ids.count(QUERY_ID) == 2 * Q
    assert set(encoded.turns) == {0, 1, 2}
    slots = [i for i, token in enumerate(encoded.ids) if token == QUERY_ID]
    first = encoded.labels.index(next(label for label in encoded.labels if label != IGNORE))
    assert all(label == IGNORE for label in encoded.labels[: slots[Q - 1]]) and first > slots[Q - 1]
    assert letters(tokenizer.decode(span(encoded, 1))) == letters(f"what {word} ?")


@pytest.mark.parametrize("marker", ["<query>", "<question>", "</s>"])
def test_reserved_markers_in_questions_are_refused(marker):
    with pytest.raises(UsageError, match=f"turn 2 contains the reserved '{marker}'") as caught:
        render_turns([Turn("Hi", "The cat"), Turn(f"What {marker} is?")], PLAIN)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("marker", ["<image>", "<query>", "<question>", "</s>"])
def test_reserved_markers_in_answers_are_refused(marker):
    with pytest.raises(UsageError, match=f"turn 1 contains the reserved '{marker}'"):
        render_turns([Turn("What?", f"a{marker}")], PLAIN)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([Turn("  ", "a")], "turn 1 has an empty question"),
        ([Turn(f"{IMAGE}\n", "a")], "turn 1 has an empty question"),
        ([Turn("What?", "a"), Turn("And?", " ")], "turn 2 has an empty answer"),
        ([Turn("What?"), Turn("And?", "a")], "turn 1 has no answer but is not the last of 2"),
        ([], "a conversation with no turns"),
    ],
)
def test_incomplete_turns_are_refused(turns, message):
    with pytest.raises(UsageError, match=message) as caught:
        render_turns(turns, PLAIN)
    assert "\n" not in str(caught.value)


def test_image_count_must_agree():
    with pytest.raises(UsageError, match=r"the text has 2 <image> marker\(s\) but 1 image\(s\) were given"):
        make_encoder(byte_tokenizer()).encode_turns([Turn(f"{IMAGE}{IMAGE}What?")], [N])


@pytest.mark.parametrize(
    "text",
    [
        "USER:<question> What <query> <query> ASSISTANT:",
        "USER:<question> What <question> more <query> ASSISTANT:",
        "USER: What <query> ASSISTANT:",
        "USER:<question> What",
        "USER:<query> What <question>",
    ],
)
def test_marked_string_out_of_order_is_refused(text):
    with pytest.raises(UsageError, match="not one <question> and then one <query> a turn"):
        make_encoder(byte_tokenizer()).encode(text, [])


def test_image_behind_the_last_question_is_refused():
    with pytest.raises(UsageError, match="an <image> stands after the last question"):
        make_encoder(byte_tokenizer()).encode("USER:<question> What <query> ASSISTANT: <image>", [N])


def test_image_in_a_text_without_turns_asks_for_the_chat_template():
    with pytest.raises(UsageError, match=r"no <question>.*the chat template"):
        make_encoder(byte_tokenizer()).encode("What <image>", [N])


def test_words_that_cannot_work_are_refused():
    with pytest.raises(UsageError, match=r"prompt\.end=''"):
        Template(end="")
    with pytest.raises(UsageError, match=r"prompt\.system='a <image>'.*'<image>'"):
        Template(system="a <image>")


@pytest.mark.parametrize("assistant", ["", "\n"])
def test_assistant_words_may_look_like_what_stands_between_images(assistant):
    template = Template(system="", assistant=assistant)
    encoded = encode(byte_tokenizer(), [Turn("Hi", "The cat"), Turn(f"{IMAGE}{IMAGE}And?", "red")], template)
    learned = byte_tokenizer().decode([i for i in encoded.labels if i != IGNORE])
    assert learned == " The cat</s> red</s>"


def test_beginning_of_sequence():
    with_bos, without = (encode(byte_tokenizer(bos), [Turn("What?", "A dog.")]) for bos in (True, False))
    assert with_bos.ids == [2, *without.ids]
    assert with_bos.labels == [IGNORE, *without.labels]


def conversation() -> list[Turn]:
    first, second = (f"{IMAGE}\nWhat is this?", "A dog."), (f"{IMAGE}And that?", "The cat is red.")
    return [Turn(*first), Turn(*second), Turn("Hi", "no")]


def lengths(encoded) -> list[int]:
    """Tokens of text up to the end of each turn."""
    return [sum(i not in PLACEHOLDERS for i in encoded.ids[:end]) for end in encoded.turn_ends]


@pytest.mark.parametrize("slack", [0, 1])
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_truncation_drops_whole_turns(tokenizer, keep, slack):
    whole = encode(tokenizer, conversation())
    limit = lengths(whole)[keep - 1] + slack
    short = encode(tokenizer, conversation(), max_length=limit)
    kept = encode(tokenizer, conversation()[:keep])
    assert (short.ids, short.labels, short.turns) == (kept.ids, kept.labels, kept.turns)
    assert (short.image_turns, short.turn_ends) == (kept.image_turns, kept.turn_ends)


def test_truncation_of_one_turn_takes_from_its_answer_alone(tokenizer):
    whole = encode(tokenizer, conversation()[:1])
    prompt = len(encode(tokenizer, [Turn(conversation()[0].question)]).ids)
    for cut in range(1, len(whole.ids) - prompt):
        short = truncate_encoded(whole, lengths(whole)[0] - cut, PLACEHOLDERS)
        assert short.ids == whole.ids[:-cut] and short.labels == whole.labels[:-cut]
        assert short.image_turns == [1] and short.turn_ends == [len(short.ids)]
    text = prompt - N - Q
    with pytest.raises(UsageError, match=rf"max_length={text} .*its prompt alone has {text} ") as caught:
        truncate_encoded(whole, text, PLACEHOLDERS)
    assert "\n" not in str(caught.value)


def test_truncation_counts_neither_visual_nor_query_tokens():
    turns = conversation()
    limit = lengths(encode(byte_tokenizer(), turns))[1]
    text = []
    for visual, queries in ((1, 0), (50, 9)):
        encoder = Encoder(byte_tokenizer(), PLAIN, IMAGE_ID, QUERY_ID, queries)
        encoded = encoder.encode_turns(turns, [visual] * 2, limit)
        assert encoded.ids.count(IMAGE_ID) == 2 * visual and encoded.ids.count(QUERY_ID) == 2 * queries
        text.append([i for i in encoded.ids if i not in PLACEHOLDERS])
    assert text[0] == text[1]


def test_encoder_travels():
    """To data loader processes that are spawned, and into copies."""
    encoder = make_encoder(byte_tokenizer())
    before = encoder.encode_turns(conversation(), [N, N])
    for other in (pickle.loads(pickle.dumps(encoder)), copy.deepcopy(encoder)):
        assert other.encode_turns(conversation(), [N, N]) == before
        assert other.tokenizer is not encoder.tokenizer
