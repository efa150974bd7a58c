"""PictureVQA: honest splits, answers that follow from the scene, balance, determinism."""

import json
import math
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.picture_vqa import dataset
from experiments.picture_vqa.__main__ import main as write_main
from experiments.picture_vqa.dataset import SPLITS, make_scene, write_picture_vqa
from experiments.picture_vqa.pictures import PLURALS, UNSEEN_STYLES, load_catalogue
from experiments.picture_vqa.questions import QUESTION_FAMILIES, TURNS_BY_FAMILY
from experiments.picture_vqa.signs import SEEN_FONTS, UNSEEN_FONTS

SIZES = {"train": 12, "tune": 4, "test": 8, "test_style": 4}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("data") / "vqa"
    write_picture_vqa(out, sizes=SIZES)
    return out


def load(folder: Path, name: str) -> list[dict]:
    return json.loads((folder / f"{name}.json").read_text())


# --- an oracle of its own: reads the question as text and the scene as JSON, shares no generator code


def oracle(scene: dict, question: str) -> str:
    for pattern, answer in RULES:
        if match := re.fullmatch(pattern, question):
            return answer(scene, *match.groups())
    raise AssertionError(f"no rule for {question!r}")


def only(found: list):
    assert len(found) == 1, f"ambiguous: {found}"
    return found[0]


def matching(scene: dict, word: str) -> list[dict]:
    return [
        o for o in scene["objects"] if word in (o["category"], o["colour"], o["name"], o["name"].split()[-1])
    ]


def anchor(scene: dict, words: str) -> dict:
    signs = {sign["kind"]: sign for sign in scene["signs"]}
    return signs[words] if words in signs else only([o for o in scene["objects"] if o["name"] == words])


def towards(scene: dict, direction: str, start: dict) -> dict:
    """The one object in the quadrant of the direction, with eight degrees to spare around its border."""
    middle = {"right of": 0, "below": 90, "left of": 180, "above": 270}[direction]
    inside = []
    for item in scene["objects"]:
        if item is start:
            continue
        angle = math.degrees(math.atan2(item["y"] - start["y"], item["x"] - start["x"]))
        off = abs((angle - middle + 180) % 360 - 180)
        assert not 37 < off < 53, "borderline direction"
        inside += [item] if off < 45 else []
    return only(inside)


def at_place(scene: dict, place: str) -> dict:
    words = ["middle", "center"] if place == "center" else place.split()
    row, column = ["top", "middle", "bottom"].index(words[0]), ["left", "center", "right"].index(words[1])
    return only([o for o in scene["objects"] if (o["y"] // 56, o["x"] // 56) == (row, column)])


def which_side(scene: dict, first: str, either: str, second: str) -> str:
    a, b = anchor(scene, first), anchor(scene, second)
    low, high, axis = {"left or right of": ("left", "right", "x"), "above or below": ("above", "below", "y")}[
        either
    ]
    assert abs(a[axis] - b[axis]) > 12, "borderline side"
    return low if a[axis] < b[axis] else high


def sign_text(scene: dict, kind: str) -> str:
    return only([s for s in scene["signs"] if s["kind"] == kind])["text"]


def present(scene: dict, name: str) -> str:
    assert name in load_catalogue()
    return "yes" if any(o["name"] == name for o in scene["objects"]) else "no"


def choice(scene: dict, options: str) -> str:
    pairs = [option.split(" : ") for option in options.split(" , ")]
    return only([letter for letter, name in pairs if present(scene, name) == "yes"])


SINGULAR = {plural: group for group, plural in PLURALS.items()}
THING = r"((?:left|right) of|above|below) the"
RULES = [
    (r"(?:is there|are there|can you see) (?:an? )?(.+?)(?: in the picture)? \?", present),
    (r"what object is at the (.+) \?", lambda s, place: at_place(s, place)["name"]),
    (r"what kind of object is at the (.+) \?", lambda s, place: at_place(s, place)["category"]),
    (r"which object is in the picture \? (.+) \.", choice),
    (r"which (.+) is in the picture \?", lambda s, category: only(matching(s, category))["name"]),
    (
        r"what colour is the (word|number) \?",
        lambda s, k: only([x for x in s["signs"] if x["kind"] == k])["colour"],
    ),
    (r"what colour is the (circle|square|heart) \?", lambda s, shape: only(matching(s, shape))["colour"]),
    (r"what shape is (.+) \?", lambda s, colour: only(matching(s, colour))["name"].split()[-1]),
    (r"what colour is the shape at the (.+) \?", lambda s, place: at_place(s, place)["colour"]),
    (r"how many objects are there \?", lambda s: str(len(s["objects"]))),
    (r"how many (\w+) shapes are there \?", lambda s, colour: str(len(matching(s, colour)))),
    (r"how many (.+) are there \?", lambda s, plural: str(len(matching(s, SINGULAR[plural])))),
    (
        rf"what object is {THING} object {THING} (.+) \?",
        lambda s, e, d, a: towards(s, e, towards(s, d, anchor(s, a)))["name"],
    ),
    (rf"what object is {THING} (.+) \?", lambda s, d, a: towards(s, d, anchor(s, a))["name"]),
    (rf"what colour is the object {THING} (.+) \?", lambda s, d, a: towards(s, d, anchor(s, a))["colour"]),
    (r"is the (.+) (left or right of|above or below) the (.+) \?", which_side),
    (r"what (word|number) is written \?", lambda s, kind: " ".join(sign_text(s, kind))),
    (
        r"what does the (.+) sign say \?",
        lambda s, c: " ".join(only([x for x in s["signs"] if x["colour"] == c])["text"]),
    ),
    (r"what is the first (?:letter|digit) of the (.+) \?", lambda s, kind: sign_text(s, kind)[0]),
    (r"what is the last (?:letter|digit) of the (.+) \?", lambda s, kind: sign_text(s, kind)[-1]),
]


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_follows_from_the_scene(split):
    for index in range(250):
        scene, turns = make_scene(split, index)
        for turn in turns:
            assert oracle(scene.to_dict(), turn.question) == turn.answer, turn


def test_questions_are_asked_once_and_cover_all_families():
    for index in range(100):
        _, turns = make_scene("train", index)
        assert len({turn.question for turn in turns}) == len(turns)
        assert {turn.family for turn in turns} == set(QUESTION_FAMILIES)
        assert len(turns) >= sum(TURNS_BY_FAMILY.values()) - 2


def test_splits_share_no_scene():
    def content(split: str, index: int) -> str:
        data = make_scene(split, index)[0].to_dict()
        for item in data["objects"] + data["signs"]:
            item.pop("style", None), item.pop("font", None)
        return json.dumps([data["objects"], data["signs"]])

    seen = [content(split, index) for split in SPLITS for index in range(500)]
    assert len(set(seen)) == len(seen)


def test_styles_and_fonts_of_test_style_are_unseen():
    for split in SPLITS:
        scenes = [make_scene(split, index)[0] for index in range(40)]
        styles = {item.style for scene in scenes for item in scene.objects}
        fonts = {sign.font for scene in scenes for sign in scene.signs}
        unseen = split == "test_style"
        assert styles == (set(UNSEEN_STYLES) if unseen else {"noto", "twemoji"})
        assert fonts == set(UNSEEN_FONTS if unseen else SEEN_FONTS)


def test_families_are_balanced():
    """Presence exactly half yes, with the three sorts of negatives; no answer dominates any other family."""
    turns = [turn for index in range(1200) for turn in make_scene("train", index)[1]]
    answers = {family: Counter(t.answer for t in turns if t.family == family) for family in QUESTION_FAMILIES}
    assert answers["presence"]["yes"] == answers["presence"]["no"] == 1200
    negatives = Counter(t.kind for t in turns if t.family == "presence" and t.answer == "no")
    assert set(negatives) == {"random", "popular", "adversarial"} and min(negatives.values()) > 300
    most = {family: max(c.values()) / c.total() for family, c in answers.items() if family != "presence"}
    assert most["counting"] < 0.35 and max(v for f, v in most.items() if f != "counting") < 0.15


def test_objects_keep_apart_and_follow_no_grid():
    lefts = Counter()
    for index in range(300):
        scene, _ = make_scene("train", index)
        boxes = [item.box for item in (*scene.objects, *scene.signs)]
        for i, a in enumerate(boxes):
            assert min(a) >= 0 and a[2] <= 168 and a[3] <= 168
            apart = (a[0] >= b[2] or b[0] >= a[2] or a[1] >= b[3] or b[1] >= a[3] for b in boxes[:i])
            assert all(apart)
        lefts.update(int(item.x) % 42 for item in scene.objects)  # the phase in a 3 x 3 pooling window
    assert len(lefts) == 42 and max(lefts.values()) < 3 * min(lefts.values())


def test_same_seed_same_bytes_and_other_seed_other_scenes(tmp_path):
    sizes = {split: 3 for split in SPLITS}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        write_picture_vqa(tmp_path / name, seed=seed, sizes=sizes)
    files = sorted(file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*") if file.is_file())
    assert len(files) == 12 + 7
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)
    same = [
        file for file in files if (tmp_path / "a" / file).read_bytes() == (tmp_path / "c" / file).read_bytes()
    ]
    assert same == []


def test_llava_format(folder):
    for split, size in SIZES.items():
        records = load(folder, split)
        assert len(records) == size
        for record in records:
            turns = record["conversations"]
            assert [t["from"] for t in turns] == ["human", "gpt"] * (len(turns) // 2)
            assert [t["value"].startswith("<image>\n") for t in turns] == [True] + [False] * (len(turns) - 1)
            assert len(record["families"]) == len(record["kinds"]) == len(turns) // 2
            with Image.open(folder / record["image"]) as picture:
                assert (
                    picture.size == (168, 168) and picture.mode == "RGB" and np.ptp(np.asarray(picture)) > 50
                )


def test_captions_name_everything_in_the_scene(folder):
    scenes = {record["id"]: record["scene"] for record in load(folder, "train")}
    captions = load(folder, "pretrain")
    assert len(captions) == len(scenes)
    for record in captions:
        scene, caption = scenes[record["id"]], record["conversations"][1]["value"]
        for item in scene["objects"]:
            assert f"{item['name']} at x{int(item['x'] // 14)} y{int(item['y'] // 14)} ." in caption
        for sign in scene["signs"]:
            assert f"{sign['colour']} {sign['kind']} {' '.join(sign['text'])} at" in caption


def test_manifest_counts_what_is_there(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["generator_version"] == dataset.GENERATOR_VERSION and manifest["sizes"] == SIZES
    for split in SIZES:
        families = Counter(f for record in load(folder, split) for f in record["families"])
        stated = manifest["splits"][split]["families"]
        assert {family: entry["questions"] for family, entry in stated.items()} == families
        assert stated["presence"]["majority"] == 0.5
        assert all(0 < entry["majority"] <= entry["majority_by_kind"] <= 1 for entry in stated.values())
    assert Image.open(folder / "contact_sheet.png").size[0] > 1000


def test_a_failed_write_leaves_nothing(tmp_path):
    def interrupt(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_picture_vqa(tmp_path / "out", sizes=SIZES, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sizes", [{"valid": 3}, {"test": 0}])
def test_bad_sizes_are_refused(tmp_path, sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        write_picture_vqa(tmp_path / "out", sizes=sizes)


def test_command_reports_bad_folders_in_one_line(tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    (tmp_path / "file").touch()
    for bad in (tmp_path / "full", tmp_path / "file" / "below", Path(os.devnull)):
        assert write_main([f"to={bad}", "scale=0.001"]) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ") and "\n" not in error
    assert write_main([f"to={tmp_path / 'good'}", "scale=0.001"]) == 0
    assert "9 scenes" in capsys.readouterr().out


def test_old_flags_are_answered_with_their_new_spelling(tmp_path, capsys):
    assert write_main(["--out", str(tmp_path / "data")]) == 2
    assert f"write to={tmp_path / 'data'}" in capsys.readouterr().err
    assert write_main(["--parquet"]) == 2
    assert "write parquet=true" in capsys.readouterr().err
    assert write_main([]) == 2
    assert capsys.readouterr().err == "error: to= is missing: new folder to write\n"
