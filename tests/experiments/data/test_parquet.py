"""LLaVA-format data as Parquet: what a harness reads is what the JSON says."""

import json
import sys

import pytest
from factories import picture

from compressors.errors import UsageError
from experiments.data import parquet
from experiments.data.llava import Sample
from experiments.picture_vqa.__main__ import main as write_main

ROWS = [
    {
        "id": "a",
        "image": ["one.png", "two.png"],
        "families": ["reading", "counting"],
        "conversations": [
            {"from": "human", "value": "<image>\nWhat is this?"},
            {"from": "gpt", "value": "a fox"},
            {"from": "human", "value": "Is <image> another?"},
            {"from": "gpt", "value": "no"},
        ],
    },
    {"id": "b", "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]},
]


@pytest.fixture
def source(tmp_path):
    for seed, name in enumerate(("one.png", "two.png")):
        picture(seed=seed).save(tmp_path / name)
    (tmp_path / "data.json").write_text(json.dumps(ROWS))
    return tmp_path / "data.json"


@pytest.mark.parametrize(
    ("question", "written"),
    [
        ("<image>\nWhat is this?", "What is this?"),
        ("<image> What is this?", "What is this?"),
        ("What is this?\n<image>", "What is this?"),
        ("<image>\n<image>\nWhich?", "Which?"),
        ("Is <image> as <image> is?", "Is <image> as <image> is?"),
    ],
)
def test_a_marker_at_an_end_is_no_part_of_a_question(source, question, written):
    """As in a conversation, where images at either end come first."""
    images = (source.parent / "one.png",) * question.count("<image>")
    sample = Sample("a", images, ((question, "a fox"),))
    [row] = parquet.make_question_rows([sample])
    assert row["question"] == written


def test_a_row_a_question(source, capsys):
    reader = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    out = source.parent / "new" / "data.parquet"
    assert parquet.main([str(source), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 3 questions\n"
    one, two = (
        {"bytes": (source.parent / name).read_bytes(), "path": name} for name in ("one.png", "two.png")
    )
    assert reader.read_table(out).to_pylist() == [
        {"id": "a#0", "images": [one], "question": "What is this?", "answer": "a fox", "family": "reading"},
        {
            "id": "a#1",
            "images": [one, two],
            "question": "<image>\nIs <image> another?",
            "answer": "no",
            "family": "counting",
        },
        {"id": "b#0", "images": [], "question": "Hi?", "answer": "Hello.", "family": "all"},
    ]
    assert [file.name for file in out.parent.iterdir()] == ["data.parquet"]


def test_all_right_answers_are_kept(source):
    reader = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    rows = [{**ROWS[0], "accepted": [["a fox", "fox"], ["no"]]}, ROWS[1]]
    source.write_text(json.dumps(rows))
    parquet.write_parquet(source, source.with_suffix(".parquet"))
    table = reader.read_table(source.with_suffix(".parquet"))
    assert table["accepted"].to_pylist() == [["a fox", "fox"], ["no"], None]
    assert (
        json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]["accepted"]["_type"] == "List"
    )


def test_images_of_another_folder(source, capsys):
    pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    moved = source.parent / "moved" / "data.json"
    moved.parent.mkdir()
    source.rename(moved)
    out = source.parent / "data.parquet"
    assert parquet.main([str(moved), str(out)]) == 2
    assert "no image" in capsys.readouterr().err and not out.exists()
    assert parquet.main([str(moved), str(out), f"images={source.parent}"]) == 0 and out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["data.json", "--images", "pictures"],
            "--images: settings are spelled KEY=VALUE; write images=pictures",
        ),
        (["data.json"], "expected python -m experiments.data.parquet DATA.json DATA.parquet"),
        (["data.json", "out.parquet", "image=pictures"], "did you mean 'images'?"),
    ],
)
def test_bad_command_lines(arguments, message, capsys):
    assert parquet.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_images_are_images_to_datasets(source):
    datasets = pytest.importorskip("datasets", reason="needs datasets")
    out = source.parent / "data.parquet"
    parquet.write_parquet(source, out)
    found = datasets.load_dataset("parquet", data_files=str(out), cache_dir=str(source.parent / "cache"))
    sizes = [[image.size for image in row["images"]] for row in found["train"]]
    assert sizes == [[(84, 84)], [(84, 84), (84, 84)], []]


def test_without_pyarrow(source, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="pip install pyarrow"):
        parquet.require_pyarrow()
    assert parquet.main([str(source), "out.parquet"]) == 2
    assert capsys.readouterr().err.startswith("error: Parquet files need pyarrow")


def test_picture_vqa_as_parquet(tmp_path):
    reader = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow")
    out = tmp_path / "picture_vqa"
    assert write_main([f"to={out}", "scale=0.001", "parquet=true"]) == 0
    assert sorted(file.stem for file in out.glob("*.parquet")) == ["test", "test_style", "tune"]
    records = json.loads((out / "test.json").read_text())
    rows = reader.read_table(out / "test.parquet").to_pylist()
    said = [message["value"] for record in records for message in record["conversations"]]
    assert [row["question"] for row in rows] == [text.removeprefix("<image>\n") for text in said[::2]]
    assert [row["answer"] for row in rows] == said[1::2] and all(len(row["images"]) == 1 for row in rows)


def test_picture_vqa_is_not_written_without_pyarrow(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert write_main([f"to={tmp_path / 'data'}", "parquet=true"]) == 2
    assert "pip install pyarrow" in capsys.readouterr().err and not (tmp_path / "data").exists()
