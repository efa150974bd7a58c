"""Data that would not be read are refused, with file and sample: no row stands on unseen pictures."""

import json

import pytest
from PIL import Image

from compressors.errors import UsageError
from experiments.config.schema import Config
from experiments.data import llava
from experiments.store.plan import plan_stages


def record(question="What?", answer="A fox.", **keys):
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "7", "conversations": turns, **keys}


@pytest.fixture
def load(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "a.png")

    def write_and_load(*records, **keywords):
        path = tmp_path / "data.json"
        path.write_text(json.dumps(list(records)))
        return llava.load_samples(path, **keywords)

    return write_and_load


def refuse(load, message, *records, **keywords):
    """Loading must fail with one line that names file and sample."""
    with pytest.raises(UsageError, match=rf"data.json, sample 1( \(id [^)]*\))?: .*{message}") as caught:
        load(record(), *records, **keywords)
    assert "\n" not in str(caught.value) and str(caught.value).isprintable()
    return str(caught.value)


KEYS = ["images", "image_path", "Image", "IMAGE", "imagePath", "img", "image_url", "pictures", "photo"]
KEYS += ["image_name", "video", "videos", "videoFile", "audio", "frames", "media", "images2"]


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", ["a.png", ["a.png"], {"bytes": "abc"}])
def test_media_keys(load, key, value):
    refuse(load, f'"{key}" would not be read', record(**{key: value}))
    refuse(load, f'"{key}" would not be read', record(image="a.png", **{key: value}))


@pytest.mark.parametrize("key", ["file", "path", "filename", "visual"])
def test_names_of_media_files_where_there_is_no_image(load, key):
    refuse(load, f'"{key}" would not be read', record(**{key: "coco/7.JPG"}))
    assert load(record(image="a.png", **{key: "coco/7.JPG"}))[0].images


@pytest.mark.parametrize("key", ["family", "familly", "Families", "familes", "acepted", "Accepted"])
def test_misspelt_keys(load, key):
    meant_key = "families" if key.lower().startswith("fam") else "accepted"
    refuse(load, f'"{key}" would not be read; did you mean "{meant_key}"', record(**{key: ["reading"]}))


@pytest.mark.parametrize("key", ["family", "Accepted"])
def test_a_text_under_a_similar_key_is_somebody_s_own(load, key):
    """The family of an animal is no list with an entry for each question."""
    assert load(record(**{key: "Felidae"}))


@pytest.mark.parametrize("key", ["similar", "category", "answers", "family", "x" * 100_000])
def test_keys_of_their_own_are_welcome(load, key):
    assert load(record(families=["reading"], accepted=[["A fox."]], **{key: ["reading"]}))


def test_an_empty_answer_is_not_accepted(load):
    refuse(load, '"accepted" has an empty answer', record(accepted=[["a fox", " "]]))


def test_media_in_a_message(load):
    bad = record()
    bad["conversations"][0]["image"] = "a.png"
    refuse(load, '"image" would not be read', bad)


@pytest.mark.parametrize(
    "keys",
    [
        {"images": []},
        {"video": None},
        {"image_id": "7.jpg"},
        {"num_images": 2},
        {"image_size": [8, 8]},
        {"imageWidth": 8},
        {"source": "coco/7.jpg"},
        {"has_image": True},
        {"scene": {"items": []}},
        {"text": "image.png is a file of mine"},
    ],
)
def test_what_only_describes_media_is_welcome(load, keys):
    assert load(record(**keys))


@pytest.mark.parametrize(
    "marker", ["<video>", "<VIDEO>", "<audio>", "<video_1>", "<|video_pad|>", "<speech>"]
)
def test_markers_of_other_media(load, marker):
    refuse(load, "only pictures are read", record(f"{marker}\nWhat?"))
    refuse(load, "only pictures are read", record(answer=f"In {marker}.", image="a.png"))


def test_markers_of_images_that_are_not_there(load):
    refuse(load, "<Image> in its questions, but no", record("<Image>\nWhat?"))
    refuse(load, "1 <image> in its questions, but 0 image", record("<image>\nWhat?"))
    assert load(record("As <image_1> shows, what?", image="a.png"), record("What is a <b>?"))


@pytest.mark.parametrize("marker", ["<image>", "<question>", "<query>", "</s>"])
def test_reserved_words(load, marker):
    message = f"message 1, from gpt, contains the reserved '{marker}'"
    refuse(load, message, record(answer=f"It is {marker}."), end="</s>")
    if marker != "<image>":
        message = f"message 0, from human, contains the reserved '{marker}'"
        refuse(load, message, record(f"What is {marker}?"), end="</s>")


def test_a_later_turn(load):
    bad = record()
    bad["conversations"] += record("And?", "It is <image>.")["conversations"]
    refuse(load, "message 3, from gpt, contains the reserved '<image>'", bad)


def test_lone_surrogates(load):
    half = "\ud83d"
    for bad in (
        record(f"What {half}?"),
        record(answer=f"A fox {half}"),
        record(image=f"{half}.png"),
        record(families=[half]),
        {**record(), "id": half},
    ):
        refuse(load, r"contains '\\ud83d' at character \d+", bad)
    assert load(record("What \U0001f98a?"))


NAMES = ["/etc/passwd", "../a.png", "a/../../a.png", "a/..", "..\\a.png", "C:\\a.png", "\\\\host\\a.png"]


@pytest.mark.parametrize("name", NAMES)
def test_names_that_leave_the_folder(load, name):
    line = refuse(load, "is outside of the image folder", record(image=name), check_images=False)
    assert "outside_images=true" in line
    assert load(record(image=name), check_images=False, outside_images=True)


def test_names_that_look_like_it(load, tmp_path):
    (tmp_path / "..a").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "..a" / "b..png")
    assert load(record(image="..a/b..png"))


def test_links_in_the_folder_are_followed(load, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "elsewhere" / "a.png")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    (pictures / "coco").symlink_to(tmp_path / "elsewhere")
    [sample] = load(record(image="coco/a.png"), images=pictures)
    assert llava.open_image(sample).size == (8, 8)


def test_all_wrong_samples_are_counted(load):
    line = refuse(load, "contains the reserved", *[record(answer="An <image>.")] * 30)
    assert "(30 samples are wrong: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, ...)" in line


def test_all_missing_images_are_counted(load, tmp_path):
    records = [record(image=f"{number // 2}.png") for number in range(40)]
    line = refuse(load, "no image", *records)
    assert "(20 images are missing: " in line and str(tmp_path / "9.png") in line


def test_all_broken_images_are_counted(load, tmp_path):
    content = (tmp_path / "a.png").read_bytes()
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(content[: 40 if number % 2 else None])
    samples = load(*[record(image=[f"{number}.png", "a.png"]) for number in range(5)])
    message = r"data.json, sample 1 \(id 7\): image .*1.png is truncated or no image"
    with pytest.raises(UsageError, match=message) as caught, llava.report_all_broken_images(samples):
        llava.open_image(samples[3])
    assert f"(2 images cannot be read: {tmp_path / '1.png'}, {tmp_path / '3.png'})" in str(caught.value)


LONG = "x" * 100_000


@pytest.mark.parametrize(
    "bad",
    [
        record(image=LONG),
        record(image=f"/{LONG}"),
        record(image={LONG: 1}),
        {LONG: 1},
        {**record(image="b.png"), "id": LONG},
        record(**{f"image_{LONG}": "a.png"}),
        {"conversations": [{"from": LONG, "value": "a"}, {"from": "gpt", "value": "a"}]},
    ],
)
def test_errors_stay_short(load, bad):
    assert len(refuse(load, "", bad)) < 600


def test_a_set_without_any_image(tmp_path):
    """A compressor has nothing to compress; a blind cell needs none, and texts may stand beside pictures."""
    Image.new("L", (8, 8)).save(tmp_path / "a.png")
    for name, records in {"text": [record()], "mixed": [record(), record(image="a.png")]}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(records))
    text, mixed = str(tmp_path / "text.json"), str(tmp_path / "mixed.json")
    for role in ("pretrain", "train", "test"):
        config = Config(compressor="sap")
        setattr(config.data, role, [text])
        with pytest.raises(UsageError, match=rf"data.{role}=.*text.json: no sample has an image"):
            plan_stages(config)
        setattr(config.data, role, [text, mixed])
        plan_stages(config)
    plan_stages(Config(compressor="none"))


@pytest.mark.parametrize("content", [b"[" * 100_000, b"9" * 5000, b"\xff\xfe", b"[1, \x00]", b""])
def test_files_that_are_no_json(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UsageError, match="x.json: not") as caught:
        llava.load_samples(tmp_path / "x.json")
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UsageError, match="not a regular file"):
        llava.load_samples(tmp_path)
