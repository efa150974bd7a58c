"""LLaVA-format files: what is read, and what is said about what cannot be."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers.image_utils import load_image

from compressors.errors import UsageError
from experiments.data import llava
from experiments.data.llava import Sample, Turn
from experiments.models import saved


def turns(*texts):
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def record(*texts, **keys):
    return {"id": "7", "conversations": turns(*texts), **keys}


@pytest.fixture
def load(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("L", (8, 8)).save(tmp_path / name)

    def write_and_load(*records, **keywords):
        path = tmp_path / "data.json"
        path.write_text(json.dumps(list(records)))
        return llava.load_samples(path, **keywords)

    return write_and_load


def test_one_image(load, tmp_path):
    (sample,) = load(record("<image>\nWhat?", "A fox. ", image="a.png"))
    turn = Turn("<image>\nWhat?", "A fox.")
    place = f"{tmp_path / 'data.json'}, sample 0"
    assert sample == Sample("7", (tmp_path / "a.png",), (turn,), place=place)


def test_no_image(load):
    (sample,) = load({"conversations": turns("What?", "A fox.")})
    assert sample.images == () and sample.id == "0" and sample.turns[0].question == "What?"


def test_markers_are_added_before_the_first_question(load):
    one, two = load(
        record("What?", "A fox.", "Sure?", "Yes.", image="a.png"),
        record("Both?", "Yes.", image=["a.png", "b.png"]),
    )
    assert [t.question for t in one.turns] == ["<image>\nWhat?", "Sure?"]
    assert two.turns[0].question == "<image>\n<image>\nBoth?"


def test_markers_stay_where_they_are(load):
    texts = ("Hello", "Hello", "This <image>, and this <image>?", "Yes")
    (sample,) = load(record(*texts, image=["a.png", "b.png"]))
    assert [t.question for t in sample.turns] == ["Hello", "This <image>, and this <image>?"]


def test_image_folder(load, tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "pictures" / "c.png")
    (sample,) = load(record("What?", "A fox.", image="c.png"), images=tmp_path / "pictures")
    assert sample.images[0].exists()


def test_families(load):
    (sample,) = load(record("A?", "a", "B?", "b", families=["one", "two"]))
    assert sample.families == ("one", "two")


BAD = [
    (["x"], "found a str"),
    ([{"id": 1}], 'no "conversations" or "messages"; it has id'),
    ([record("What?")], "ending with gpt"),
    ([record()], "ending with gpt"),
    ([{"conversations": list(reversed(turns("What?", "Fox")))}], "message 0 is from 'gpt', expected "),
    ([{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt"}]}], "message 1 must be"),
    ([{"conversations": ["x", "y"]}], "message 0 must be"),
    ([record("What?", " ")], "message 1, from gpt, is empty"),
    ([record("", "A fox")], "message 0, from human, is empty"),
    ([record("<image>\n", "A fox", image="a.png")], "message 0, from human, is empty"),
    ([record("<image>What?", "A fox")], "1 <image> in its questions, but 0 image"),
    ([record("<image>What?", "A fox", image=["a.png", "b.png"])], "1 <image> in its questions, but 2 image"),
    ([record("What?", "A fox", image=3)], '"image" must be a file name'),
    ([record("What?", "A fox", families=["a", "b"])], '"families" must be a list with one name'),
    ([record("What?", "A fox", families=[None])], '"families" has None; expected names'),
    ([record("What?", "A fox", families=[3])], '"families" has 3; expected names'),
    ([record("What?", "A fox", image="c.png")], "no image .*c.png; is data.images right"),
]


@pytest.mark.parametrize(("records", "message"), BAD, ids=[m[:24] for _, m in BAD])
def test_bad_samples_are_named(load, records, message):
    good = record("What?", "A fox", image="a.png")
    with pytest.raises(UsageError, match=rf"data.json, sample 2( \(id \d\))?: .*{message}") as caught:
        load(good, good, *records)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("{}", "expected a JSON list of samples, found a dict"),
        ("[]", "no sample"),
        ("\x00", "not JSON"),
    ],
)
def test_files_that_are_not_llava(tmp_path, text, message):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UsageError, match=f"x.json: .*{message}") as caught:
        llava.load_samples(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_before_a_list_and_before_lines(tmp_path):
    row = json.dumps(record("What?", "A fox."))
    for name, text in (("x.json", f"[{row}]"), ("x.jsonl", f"{row}\n{row}\n")):
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
        assert llava.load_samples(tmp_path / name)[0].turns == (Turn("What?", "A fox."),)


def test_questions(load):
    texts = ("<image>A?", "a", "B?", "b", "And <image>?", "c", "D?", "d")
    found = llava.split_questions(load(record(*texts, image=["a.png", "b.png"], families=list("wxyz"))))
    assert [q.id for q in found] == ["7#0", "7#1", "7#2", "7#3"]
    assert [q.turns for q in found] == [
        (Turn("<image>A?", "a"),),
        (Turn("<image>\nB?", "b"),),
        (Turn("<image>\nAnd <image>?", "c"),),
        (Turn("<image>\n<image>\nD?", "d"),),
    ]
    assert [len(q.images) for q in found] == [1, 1, 2, 2]
    assert [q.families for q in found] == [("w",), ("x",), ("y",), ("z",)]


def test_open_image(load, tmp_path):
    (sample,) = load(record("What?", "A fox.", image="a.png"))
    Image.effect_noise((32, 32), 50).save(tmp_path / "a.png")
    image = llava.open_image(sample)
    assert image.mode == "RGB" and image.size == (32, 32)
    whole = (tmp_path / "a.png").read_bytes()
    for content in (whole[:40], whole[: len(whole) // 2], b"no image", b""):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(
            UsageError, match=r"data.json, sample 0 \(id 7\): image .*a.png is truncated or no image"
        ):
            llava.open_image(sample)
    (tmp_path / "a.png").unlink()
    with pytest.raises(UsageError, match=r"data.json, sample 0 \(id 7\): no image .*a.png"):
        llava.open_image(sample)


def test_images_are_upright_as_transformers_loads_them(load, tmp_path):
    (sample,) = load(record("What?", "A fox.", image="a.png"))
    picture, exif = Image.effect_noise((40, 24), 60), Image.Exif()
    for orientation in range(1, 9):
        exif[0x0112] = orientation
        picture.save(tmp_path / "a.png", exif=exif)
        found, theirs = llava.open_image(sample), load_image(str(tmp_path / "a.png"))
        assert np.array_equal(found, theirs) and llava.read_image_size(sample) == theirs.size
        assert saved.open_picture(tmp_path / "a.png").size == theirs.size


def test_16_bits_are_scaled_and_32_refused(load, tmp_path):
    (sample,) = load(record("What?", "A fox.", image="a.png"))
    ramp = np.tile(np.arange(256, dtype=np.uint16) * 257, (4, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert np.array_equal(np.asarray(llava.open_image(sample))[0, :, 0], np.arange(256))
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "a.tiff")
    (sample,) = load(record("What?", "A fox.", image="a.tiff"))
    with pytest.raises(UsageError, match="32-bit numbers .mode F.; save it with 8 bits"):
        llava.open_image(sample)
