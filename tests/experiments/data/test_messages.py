"""The `messages` format, and JSON lines beside JSON: one reader, which looks into the file."""

import json
import re
from pathlib import Path

import pytest
from factories import make_model, make_processor
from PIL import Image

from compressors.errors import UsageError
from experiments.data import llava
from llm_adapters.conversation import Template, Turn, render_turns

TEXT = {"type": "text", "text": "What is this?"}
ANSWER = {"role": "assistant", "content": "a fox"}


def user(*parts, **keys):
    return {"role": "user", "content": list(parts), **keys}


def image(**keys):
    return {"type": "image", **keys}


@pytest.fixture
def load(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)

    def write_and_load(*records, suffix="jsonl", **keywords):
        path = tmp_path / f"data.{suffix}"
        lines = [json.dumps(record) for record in records]
        path.write_text("\n".join(lines) if suffix == "jsonl" else f"[{','.join(lines)}]")
        return llava.load_samples(path, **keywords)

    return write_and_load


FORMS = {
    "transformers": {"messages": [user(image(image="a.png"), TEXT), ANSWER]},
    "path": {"messages": [user(image(path="a.png"), TEXT), ANSWER]},
    "url of a file": {"messages": [user(image(url="a.png"), TEXT), ANSWER]},
    "TRL": {"messages": [user(image(), TEXT), ANSWER], "images": ["a.png"]},
    "TRL, one image": {"messages": [user(image(), TEXT), ANSWER], "image": "a.png"},
    "OpenAI": {"messages": [user({"type": "image_url", "image_url": {"url": "a.png"}}, TEXT), ANSWER]},
    "texts": {
        "messages": [{"role": "user", "content": "<image>What is this?"}, ANSWER],
        "images": ["a.png"],
    },
    "answer in parts": {
        "messages": [
            user(image(image="a.png"), TEXT),
            {"role": "assistant", "content": [{"type": "text", "text": "a fox"}]},
        ]
    },
    "keys of all parts, as Arrow has them": {
        "messages": [
            user(image(image="a.png", text=None), {**TEXT, "image": None}),
            {"role": "assistant", "content": [{"type": "text", "text": "a fox", "image": None}]},
        ],
        "images": None,
        "conversations": None,
    },
}


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("form", FORMS)
def test_forms(load, tmp_path, form, suffix):
    [sample] = load(FORMS[form], suffix=suffix)
    assert sample.images == (tmp_path / "a.png",) and sample.id == "0"
    [turn] = sample.turns
    assert turn.question.replace("<image>", "<image> ").split() == ["<image>", "What", "is", "this?"]
    assert turn.answer == "a fox"


def test_texts_alone(load):
    [sample] = load({"messages": [{"role": "user", "content": "What?"}, ANSWER], "id": "x"})
    assert sample.images == () and sample.turns == (Turn("What?", "a fox"),) and sample.id == "x"


def test_images_stand_where_their_parts_do(load, tmp_path):
    [sample] = load(
        {
            "messages": [
                user({"type": "text", "text": "Left"}, image(), {"type": "text", "text": "or"}, image()),
                ANSWER,
                user(TEXT),
                ANSWER,
            ],
            "images": ["b.png", "a.png"],
            "families": ["one", "two"],
            "accepted": [["a fox"], ["a fox", "fox"]],
        }
    )
    assert sample.images == (tmp_path / "b.png", tmp_path / "a.png")
    assert [turn.question for turn in sample.turns] == ["Left <image> or <image>", "What is this?"]
    assert sample.families == ("one", "two") and sample.accepted == (("a fox",), ("a fox", "fox"))


@pytest.fixture(scope="module")
def processor():
    return make_processor(make_model("phi", "sap", "embq"))


@pytest.mark.parametrize(
    "parts",
    [
        [image(), TEXT],
        [TEXT, image()],
        [TEXT, TEXT],
        [{"type": "text", "text": " Left "}, image(), {"type": "text", "text": "or\nright"}, image()],
    ],
)
def test_rows_are_what_the_models_chat_template_says(load, processor, parts):
    messages = [user(*parts), ANSWER, user(TEXT), ANSWER]
    images = sum(part["type"] == "image" for part in parts)
    [sample] = load({"messages": messages, "images": ["a.png"] * images})
    rendered = processor.apply_chat_template(messages)
    assert render_turns(sample.turns, Template(**processor.prompt)) == rendered


def test_a_system_message_is_that_of_the_prompt(load):
    record = {"messages": [{"role": "system", "content": "Be short."}, user(TEXT), ANSWER]}
    assert load(record, system="Be short. ") == load(record)
    with pytest.raises(UsageError, match=r"line 1: its system message 'Be short.' .* set that to it"):
        load(record, system="Be long.")


BAD = [
    ({"messages": "x"}, '"messages" must be a list'),
    ({"messages": [user(TEXT)]}, "ending with assistant"),
    ({"messages": [ANSWER, user(TEXT)]}, "message 0 is from 'assistant', expected \"user\""),
    ({"messages": [user(TEXT), {"role": "tool", "content": "x"}]}, "message 1 is from 'tool'"),
    ({"messages": [user(TEXT), {"role": "assistant"}]}, "message 1 must be"),
    ({"messages": ["x", "y"]}, "message 0 must be"),
    ({"messages": [user(TEXT), {**ANSWER, "tool_calls": [{}]}]}, '"tool_calls", which would not be read'),
    ({"messages": [user(TEXT), {"role": "assistant", "content": ""}]}, "message 1, from assistant, is empty"),
    ({"messages": [user(image(image="a.png")), ANSWER]}, "message 0, from user, is empty"),
    ({"messages": [user("What?"), ANSWER]}, "message 0, from user, has a part that is a text"),
    ({"messages": [user({"type": "video", "video": "a.mp4"}), ANSWER]}, "a part of type 'video'"),
    ({"messages": [user({"type": "text"}), ANSWER]}, 'a text part without "text"'),
    ({"messages": [user({**TEXT, "image": "a.png"}), ANSWER]}, 'a text part with "image"'),
    ({"messages": [user(image(), TEXT), ANSWER]}, 'names no file, and there is no "images"'),
    ({"messages": [user(image(image="a.png", url="b.png"), TEXT), ANSWER]}, "names more than a file"),
    ({"messages": [user(image(base64="abc"), TEXT), ANSWER]}, "names more than a file"),
    ({"messages": [user(image(image={"bytes": "x"}), TEXT), ANSWER]}, "an image that is no file name"),
    ({"messages": [user(image(url="https://x.org/a.png"), TEXT), ANSWER]}, "only files are read"),
    ({"messages": [user(image(url="data:image/png;base64,AA"), TEXT), ANSWER]}, "only files are read"),
    ({"messages": [user(image(url="file:///etc/a.png"), TEXT), ANSWER]}, "outside of the image folder"),
    ({"messages": [user(image(image="a.png"), TEXT), ANSWER], "images": ["a.png"]}, "name them in one place"),
    ({"messages": [user(TEXT), ANSWER], "images": ["a.png"], "image": "a.png"}, "name them in one place"),
    ({"messages": [user(image(), TEXT), ANSWER], "images": ["a.png", "b.png"]}, "1 <image> in .* 2 image"),
    ({"messages": [user(TEXT), ANSWER], "video": "a.mp4"}, '"video" would not be read'),
    ({"messages": [user(TEXT), ANSWER], "file": "a.png"}, '"file" would not be read'),
    ({"messages": [user(TEXT, image_file="a.png"), ANSWER]}, '"image_file" of message 0 would not be read'),
    ({"messages": [user(TEXT), ANSWER], "conversations": []}, 'both "conversations" and "messages"'),
    ({"messages": [user(TEXT), {"role": "assistant", "content": "<image>"}]}, "message 1, from assistant,"),
    ({"prompt": [], "completion": []}, 'no "conversations" or "messages"; it has id, prompt, completion'),
]


@pytest.mark.parametrize(("record", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_bad_rows_are_named(load, record, message):
    good = {"messages": [user(TEXT), ANSWER]}
    for suffix, place in (("jsonl", "data.jsonl, line 3"), ("json", "data.json, sample 2")):
        with pytest.raises(UsageError, match=rf"{place} \(id 7\): .*{message}") as caught:
            load(good, good, {"id": 7, **record}, suffix=suffix)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_both_formats_in_one_file(load):
    llava_record = {"conversations": [{"from": "human", "value": "A?"}, {"from": "gpt", "value": "a"}]}
    for suffix in ("json", "jsonl"):
        samples = load(FORMS["TRL"], llava_record, suffix=suffix)
        assert [sample.turns[0].answer for sample in samples] == ["a fox", "a"]


def test_lines_are_found_by_looking(tmp_path):
    """Whatever the name says: a list is JSON, objects on lines are JSON lines, and empty lines count."""
    line = json.dumps({"messages": [{"role": "user", "content": "A\u2028B?"}, ANSWER]}, ensure_ascii=False)
    for name in ("a.json", "a.jsonl"):
        path = tmp_path / name
        path.write_text(f"{line}\n\n{line}\r\n")
        assert [sample.place for sample in llava.load_samples(path)] == [f"{path}, line 1", f"{path}, line 3"]
        path.write_text(f"[{line}]")
        assert [sample.place for sample in llava.load_samples(path)] == [f"{path}, sample 0"]
        path.write_text(f"{line}\n\n{line[:-3]}\n")
        with pytest.raises(UsageError, match=f"{name}, line 3: not JSON"):
            llava.load_samples(path)
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(UsageError, match="no sample in it"):
        llava.load_samples(tmp_path / "a.jsonl")


def test_the_examples_of_the_readme(tmp_path):
    page = (Path(__file__).parents[3] / "experiments" / "README.md").read_text()
    text = re.search(r"```text\n(.*?)```", page.partition("## Own data")[2], re.S).group(1)
    lines = re.sub(r"\n +", " ", text)
    assert len(lines.splitlines()) == 5
    (tmp_path / "coco").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "coco" / "7.jpg")
    (tmp_path / "data.jsonl").write_text(lines)
    samples = llava.load_samples(tmp_path / "data.jsonl")
    assert [len(sample.images) for sample in samples] == [1, 1, 1, 1, 0]
    assert {sample.turns[0].question.split(maxsplit=1)[1] for sample in samples[:4]} == {"What is this?"}
