"""Hugging Face data sets: folders of `save_to_disk` and what `load_dataset` finds, images and all."""

import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import pytest
import torch
from fakes import stages
from PIL import Image
from small_runs import align, make_config, run, write_backbones

from compressors.errors import UsageError
from experiments.data import llava
from experiments.data.formats import is_file_entry
from experiments.runtime.memory import begin_request
from experiments.store import keys
from experiments.store.results import identify_questions
from llm_adapters.conversation import Turn

datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

COLOURS = ("red", "green", "blue")


def encode_png(image):
    file = BytesIO()
    image.save(file, "png")
    return file.getvalue()


def make_messages(*questions):
    messages = []
    for number, question in enumerate(questions):
        parts = [{"type": "text", "text": question}]
        if not number:
            parts.insert(0, {"type": "image", "text": None})
        messages.append({"role": "user", "content": parts})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": "a fox"}]})
    return messages


def make_set(rows=6):
    """Rows of one to two turns; the last one is text alone."""
    records = {"id": [], "messages": [], "images": []}
    for row in range(rows):
        messages = make_messages(*["what is this ?"] * (1 + row % 2))
        images = [Image.new("RGB", (24 + row, 20), COLOURS[row % 3])]
        if row == rows - 1:
            messages = [
                {"role": "user", "content": [{"type": "text", "text": "what is a fox ?"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "an animal"}]},
            ]
            images = []
        records["id"].append(f"r{row}")
        records["messages"].append(messages)
        records["images"].append(images)
    part = {"type": datasets.Value("string"), "text": datasets.Value("string")}
    message = {"role": datasets.Value("string"), "content": datasets.List(part)}
    features = datasets.Features(
        id=datasets.Value("string"),
        messages=datasets.List(message),
        images=datasets.List(datasets.Image()),
    )
    return datasets.Dataset.from_dict(records, features=features)


@pytest.fixture
def folder(tmp_path):
    make_set().save_to_disk(tmp_path / "mine")
    yield tmp_path / "mine"
    begin_request()


def test_a_folder_with_its_images(folder):
    samples = llava.load_samples(folder)
    assert [sample.id for sample in samples] == [f"r{row}" for row in range(6)]
    assert samples[1].turns == (Turn("<image> what is this ?", "a fox"), Turn("what is this ?", "a fox"))
    assert [len(sample.images) for sample in samples] == [1, 1, 1, 1, 1, 0]
    assert samples[3].place == f"{folder}, row 3"
    for row, sample in enumerate(samples[:5]):
        assert llava.read_image_size(sample) == (24 + row, 20)
        opened = llava.open_image(pickle.loads(pickle.dumps(sample)))  # as data loader workers get them
        assert opened.getpixel((0, 0)) == Image.new("RGB", (1, 1), COLOURS[row % 3]).getpixel((0, 0))
    assert len({os.path.abspath(sample.images[0]) for sample in samples[:5]}) == 5
    assert len(list(folder.iterdir())) == 3  # nothing was written beside them


def test_rows_that_were_chosen_and_shuffled(tmp_path):
    chosen = make_set().select([4, 5, 0, 2]).shuffle(seed=1)
    chosen.save_to_disk(tmp_path / "some")
    samples = llava.load_samples(tmp_path / "some")
    assert [sample.id for sample in samples] == list(chosen["id"])
    for sample in samples:
        if sample.images:
            assert llava.read_image_size(sample)[0] == 24 + int(sample.id[1:])


def test_llava_rows_with_an_image_column(tmp_path):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a fox"}]
    texts = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "a fox"}]
    features = datasets.Features(
        image=datasets.Image(),
        conversations=datasets.List({"from": datasets.Value("string"), "value": datasets.Value("string")}),
    )
    records = {"image": [None, Image.new("L", (9, 8))], "conversations": [texts, turns]}
    datasets.Dataset.from_dict(records, features=features).save_to_disk(tmp_path / "mine")
    text, picture = llava.load_samples(tmp_path / "mine")
    assert text.images == () and llava.read_image_size(picture) == (9, 8)


def test_splits_of_a_folder(tmp_path):
    splits = datasets.DatasetDict({"train": make_set(4), "test": make_set(2)})
    splits.save_to_disk(tmp_path / "both")
    assert len(llava.load_samples(f"{tmp_path / 'both'}:test")) == 2
    with pytest.raises(UsageError, match=r"several splits; write .*both:train, .*both:test"):
        llava.load_samples(tmp_path / "both")
    make_set().save_to_disk(tmp_path / "one")
    with pytest.raises(UsageError, match="the folder has no splits; write .*one"):
        llava.load_samples(f"{tmp_path / 'one'}:train")


def test_what_an_error_says_to_write_is_no_name_of_a_split(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_set(2).save_to_disk("one")
    datasets.DatasetDict({"train": make_set(2), "test": make_set(2)}).save_to_disk("both")
    for entry, advice in (
        ("./one:train", r"write \./one$"),
        ("./both", r"write \./both:train, \./both:test$"),
    ):
        with pytest.raises(UsageError, match=advice):
            llava.load_samples(Path(entry))


def test_bad_rows_are_named(tmp_path):
    good = make_set(2)
    records = good.to_dict()
    records["messages"][1][1]["content"][0]["text"] = ""
    datasets.Dataset.from_dict(records, features=good.features).save_to_disk(tmp_path / "bad")
    with pytest.raises(UsageError, match=r"bad, row 1 \(id r1\): message 1, from assistant, is empty"):
        llava.load_samples(tmp_path / "bad")


def test_a_picture_that_is_none(tmp_path):
    good = make_set(2)
    encoded = good.cast_column("images", datasets.List(datasets.Image(decode=False)))
    records = encoded.to_dict()
    records["images"][0][0]["bytes"] = b"no picture"
    datasets.Dataset.from_dict(records, features=good.features).save_to_disk(tmp_path / "bad")
    [sample, _] = llava.load_samples(tmp_path / "bad")
    with pytest.raises(UsageError, match=r"bad, row 0 \(id r0\): image .* is truncated or no image"):
        llava.open_image(sample)


def test_which_entries_are_data_sets():
    for entry in (
        "./mine",
        "a/b",
        "a/b:train",
        "hf:mine",
        "hf:owner/mine@main:all:test",
        "a.json",
        "a.jsonl",
    ):
        assert is_file_entry(entry)
    assert not is_file_entry("train")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("hf:", "expected hf:NAME"),
        ("hf:a@b@c", "expected hf:NAME"),
        ("hf:a:b:c:d", "expected hf:NAME"),
        ("hf:./no/such/folder", "cannot be loaded"),
        ("./no/such/folder", "no such file"),
        ("nothing.parquet", "nothing.parquet: no such file"),
    ],
)
def test_what_is_not_there(entry, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        llava.load_samples(entry)
    assert "\n" not in str(caught.value)


def test_parquet_files_by_load_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "mine").mkdir()
    make_set().to_parquet(tmp_path / "mine" / "train.parquet")
    entry = f"hf:{tmp_path / 'mine'}"
    samples = llava.load_samples(f"{entry}:train")
    assert len(samples) == 6 and llava.read_image_size(samples[2]) == (26, 20)
    assert [sample.turns for sample in llava.load_samples(entry)] == [sample.turns for sample in samples]
    with pytest.raises(UsageError, match="no split 'trian'; did you mean 'train'"):
        llava.load_samples(f"{entry}:trian")


@pytest.fixture
def parquet_file(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    make_set().to_parquet(tmp_path / "mine.parquet")
    yield tmp_path / "mine.parquet"
    begin_request()


def test_a_parquet_file_with_its_images(parquet_file):
    assert is_file_entry("mine.parquet")
    samples = llava.load_samples(parquet_file)
    assert [sample.id for sample in samples] == [f"r{row}" for row in range(6)]
    assert llava.open_image(samples[2]).size == (26, 20)
    assert samples[3].place == f"{parquet_file}, row 3"


def test_a_parquet_file_names_images_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    Image.new("RGB", (9, 8)).save(tmp_path / "fox.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "a fox"}]
    rows = {"image": ["fox.png"], "conversations": [turns]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "mine.parquet")
    [sample] = llava.load_samples(tmp_path / "mine.parquet")
    assert sample.images == (tmp_path / "fox.png",) and llava.read_image_size(sample) == (9, 8)
    datasets.Dataset.from_dict({**rows, "image": ["wolf.png"]}).to_parquet(tmp_path / "bad.parquet")
    with pytest.raises(UsageError, match=r"bad.parquet, row 0.*: no image .*wolf.png"):
        llava.load_samples(tmp_path / "bad.parquet")


@pytest.mark.parametrize("column", ["image", "images"])
def test_a_parquet_file_of_bytes_that_no_feature_calls_images(tmp_path, monkeypatch, column):
    """As pandas writes it."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    image = {"bytes": encode_png(Image.new("RGB", (9, 8))), "path": "fox.png"}
    messages = [{"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "a fox"}]
    row = {column: image if column == "image" else [image], "messages": messages}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "mine.parquet")
    [sample] = llava.load_samples(tmp_path / "mine.parquet")
    assert llava.read_image_size(sample) == (9, 8)


def test_keys_of_a_parquet_file_do_not_follow_its_cache(parquet_file, tmp_path):
    def digest():
        begin_request()
        return keys.digest_data_file(str(parquet_file), None, True)

    first = digest()
    shutil.rmtree(tmp_path / "cache")
    assert digest() == first
    os.utime(parquet_file, (1, 1))
    assert digest()["images"] != first["images"] and digest()["texts"] == first["texts"]


def test_a_damaged_parquet_file(parquet_file):
    parquet_file.write_bytes(parquet_file.read_bytes()[:200])
    with pytest.raises(UsageError, match=r"mine.parquet: cannot be opened \(") as caught:
        llava.load_samples(parquet_file)
    assert "\n" not in str(caught.value)


COMMIT = "0123456789abcdef0123456789abcdef01234567"
READ_OFFLINE = """
import sys
from pathlib import Path
from compressors.errors import UsageError
from experiments.data import llava
for entry in sys.argv[1:]:
    try:
        samples = llava.load_samples(entry)
        print(len(samples), llava.read_image_size(samples[2])[0], samples[2].place)
    except UsageError as error:
        print(error)
"""


def test_a_name_of_the_hub_from_the_cache_without_a_network(tmp_path):
    """The cache of an earlier download, as `load_dataset` lays it out: NAME/CONFIG/VERSION/COMMIT."""
    make_set().to_parquet(tmp_path / "train.parquet")
    files = {"train": str(tmp_path / "train.parquet")}
    datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "written"))
    [info] = (tmp_path / "written").rglob("dataset_info.json")
    target = tmp_path / "cache" / "owner___mine" / "default" / "0.0.0" / COMMIT
    target.mkdir(parents=True)
    content = {**json.loads(info.read_text()), "config_name": "default", "dataset_name": "mine"}
    (target / "dataset_info.json").write_text(json.dumps(content))
    (info.parent / "parquet-train.arrow").rename(target / "mine-train.arrow")

    names = ["hf:owner/mine", f"hf:owner/mine@{COMMIT}", "hf:owner/mine:default:train"]
    others = [f"hf:owner/mine@{COMMIT[::-1]}", "hf:owner/other", "hf:owner/mine:test"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HOME": str(tmp_path)}
    command = [sys.executable, "-c", READ_OFFLINE, *names, *others]
    done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[:3] == [f"6 26 {name}, row 2" for name in names]
    assert f"its cache has commit {COMMIT}" in lines[3] and "cannot be loaded" in lines[4]
    assert "no split 'test'" in lines[5] and len(lines) == 6


def test_keys_follow_texts_and_images(folder, tmp_path):
    def digest(path):
        begin_request()
        return keys.digest_data_file(str(path), None, True)

    first = digest(folder)
    folder.rename(tmp_path / "moved")
    assert digest(tmp_path / "moved") == first
    records = make_set()
    records.select(range(5)).save_to_disk(tmp_path / "fewer")
    assert digest(tmp_path / "fewer")["texts"] != first["texts"]
    [arrow] = (tmp_path / "moved").glob("*.arrow")
    os.utime(arrow, (1, 1))
    later = digest(tmp_path / "moved")
    assert later["images"] != first["images"] and later["texts"] == first["texts"]


def test_features_of_a_set_that_was_moved_are_others(folder, tmp_path):
    """They are found by the paths of their images, also where data.images says where files lie."""
    planned = []
    for path in (folder, tmp_path / "moved"):
        if planned:
            folder.rename(path)
        roles = [f"data.{role}={path}" for role in ("pretrain", "train", "test")]
        planned.append(stages("data.dataset=null", f"data.images={tmp_path}", *roles))
    before, after = planned
    assert before["finetune"].key == after["finetune"].key
    assert before["features pretrain"].key != after["features pretrain"].key


def test_keys_tell_files_of_one_name_in_two_folders_apart(tmp_path):
    digests = []
    for colour in COLOURS[:2]:
        (tmp_path / colour).mkdir()
        Image.new("RGB", (24, 20), colour).save(tmp_path / colour / "1.png")
    for number, names in enumerate((["red/1.png", "green/1.png"], ["green/1.png", "red/1.png"])):
        messages = [make_messages("what is this ?"), make_messages("and this ?")]
        records = {"images": [[name] for name in names], "messages": messages}
        path = tmp_path / str(number)
        datasets.Dataset.from_dict(records).save_to_disk(path)
        digests.append(keys.digest_data_file(str(path), str(tmp_path), True))
    assert digests[0]["texts"] != digests[1]["texts"]
    assert digests[0]["images"] == digests[1]["images"]


def test_questions_of_a_stored_set_are_told_from_others(tmp_path):
    """As the table needs, whose chance and blind rows are of the same questions."""
    identities = []
    for rows in (4, 5):
        make_set(rows).save_to_disk(tmp_path / str(rows))
        for compressor in ("sap", "none"):
            stage = stages(f"compressor={compressor}", f"data.test={tmp_path / str(rows)}")["evaluate"]
            identities.append(identify_questions(stage))
    assert identities[0] == identities[1] != identities[2] == identities[3]


def test_a_set_of_texts_alone_is_refused(tmp_path):
    records = make_set(3).select([2])
    records.save_to_disk(tmp_path / "texts")
    with pytest.raises(UsageError, match="no sample has an image"):
        stages("compressor=sap", f"data.train={tmp_path / 'texts'}")


def test_training_on_a_stored_set_is_training_on_the_same_files(folder, tmp_path):
    write_backbones(tmp_path)
    records = []
    for row, record in enumerate(make_set()):
        images = []
        for image in record["images"]:
            image.save(tmp_path / f"{row}.png")
            images.append(f"{row}.png")
        records.append(json.dumps({**record, "images": images}))
    (tmp_path / "files.jsonl").write_text("\n".join(records))
    config = make_config(tmp_path)
    inputs = align(config, tmp_path)
    weights = []
    for entry in (folder, tmp_path / "files.jsonl"):
        config.data.train = [str(entry)]
        config.finetune.max_steps = 2
        out = tmp_path / f"out-{entry.name}"
        weights.append(run("finetune", config, inputs, out))
    assert all(torch.equal(weights[0][name], value) for name, value in weights[1].items())


def test_the_example_of_the_readme(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "experiments" / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", page.partition("**Parquet and Hugging Face**")[2], re.S).group(1)
    (tmp_path / "coco").mkdir()
    Image.new("RGB", (9, 8)).save(tmp_path / "coco" / "7.jpg")
    exec(code, dict(vars(datasets)))
    [sample] = llava.load_samples("./saved")
    assert llava.read_image_size(sample) == (9, 8) and sample.turns[0].answer == "a fox"
