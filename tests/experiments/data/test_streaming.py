"""Data that are streamed: each row once an epoch, from any step on, whoever reads it; bad rows are named."""

import os
from collections import Counter

import pytest
from factories import make_model, make_processor

datasets = pytest.importorskip("datasets")

from fakes import stages  # noqa: E402
from shards import (  # noqa: E402
    FEATURES,
    SIZES,
    WRITERS,
    make_row,
    own_cache,
    write_lines,
    write_parquet,
)

from compressors.errors import UsageError  # noqa: E402
from experiments.config.schema import OptimisationSettings  # noqa: E402
from experiments.data import llava  # noqa: E402
from experiments.data.loader import SampleImages, StepLoader  # noqa: E402
from experiments.data.streaming import order as streaming_order  # noqa: E402
from experiments.data.streaming.dataset import StreamedDataset  # noqa: E402
from experiments.data.streaming.order import StreamEntry, StreamOrder  # noqa: E402
from experiments.data.streaming.rows import RowRules, check_first_rows, parse_row  # noqa: E402
from experiments.data.streaming.shards import open_stream  # noqa: E402
from experiments.runtime.memory import begin_request  # noqa: E402

ROWS = sum(SIZES)
RULES = RowRules(None, False, "</s>", "")
STEPS = ["data.streaming=true", "pretrain.max_steps=9", "finetune.max_steps=9"]


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    with own_cache(tmp_path, monkeypatch):
        yield


def make_order(*entries, buffer=8, seed=0, batch_size=5, steps=40, weights=None):
    weights = weights or [1.0] * len(entries)
    shards = [StreamEntry(name, open_stream(name).shards, weight) for name, weight in zip(entries, weights)]
    optimisation = OptimisationSettings(batch_size=batch_size, max_steps=steps)
    return StreamOrder(shards, optimisation, seed, buffer)


def draw(order, start=0):
    return [parse_row(row, RULES) for batch in order.iterate_batches(start) for row in batch]


def draw_ids(order, start=0):
    return [sample.id for sample in draw(order, start)]


def cut_epochs(ids, rows=ROWS):
    return [ids[first : first + rows] for first in range(0, len(ids) - rows + 1, rows)]


def describe(sample):
    sizes = [llava.read_image_size(sample, number) for number in range(len(sample.images))]
    pixels = [llava.open_image(sample, number).tobytes() for number in range(len(sample.images))]
    return sample.turns, sizes, pixels


@pytest.mark.parametrize("buffer", [1, 8, 1000])
@pytest.mark.parametrize("kind", WRITERS)
def test_an_epoch_has_the_rows_that_are_read_otherwise(tmp_path, kind, buffer):
    entry = WRITERS[kind](tmp_path / kind)
    files = [entry]
    if kind == "lines":
        files = sorted(map(str, (tmp_path / kind).glob("*.jsonl")))
    if kind == "parquet":
        files = [f"hf:{tmp_path / kind}"]
    read = [sample for file in files for sample in llava.load_samples(file)]
    wanted = {sample.id: describe(sample) for sample in read}
    assert len(wanted) == ROWS
    order = make_order(entry, buffer=buffer, batch_size=ROWS, steps=3)
    epochs = cut_epochs(draw(order))
    orders = []
    for epoch in epochs:
        assert {sample.id: describe(sample) for sample in epoch} == wanted and len(epoch) == ROWS
        orders.append([sample.id for sample in epoch])
    assert orders[0] != orders[1] != orders[2]
    assert orders[0] != sorted(orders[0], key=int)
    assert draw_ids(make_order(entry, buffer=buffer, batch_size=ROWS, steps=3)) == sum(orders, [])
    assert draw_ids(make_order(entry, buffer=buffer, batch_size=ROWS, steps=3, seed=1)) != sum(orders, [])


def test_json_lines_that_load_dataset_finds(tmp_path):
    """Lines of different forms in one file, and pictures elsewhere; the other split is left alone."""
    write_lines(tmp_path / "shards")
    (tmp_path / "pictures").mkdir()
    for path in (tmp_path / "shards").glob("*.png"):
        path.rename(tmp_path / "pictures" / path.name)
    (tmp_path / "shards" / "test.jsonl").write_text("{}")
    for path in (tmp_path / "shards").glob("part-*"):
        path.rename(path.with_name(f"train-{path.name[5]}-of-4.jsonl"))
    rules = RULES._replace(images=str(tmp_path / "pictures"))
    for entry in (str(tmp_path / "shards"), f"hf:{tmp_path / 'shards'}:train"):
        check_first_rows(entry, rules)
        [batch] = make_order(entry, batch_size=ROWS, steps=1).iterate_batches()
        samples = [parse_row(row, rules) for row in batch]
        assert sorted(int(sample.id) for sample in samples) == list(range(ROWS))
        assert all(llava.open_image(sample) for sample in samples if sample.images)


def test_rows_come_from_several_shards_at_a_time(tmp_path):
    entry = write_parquet(tmp_path / "shards", sizes=(30, 30, 30))
    first = draw_ids(make_order(entry, buffer=1, batch_size=30, steps=1))
    counts = Counter(int(name) // 30 for name in first)
    assert set(counts) == {0, 1, 2} and max(counts.values()) < 20


def test_entries_of_other_sizes_are_mixed_all_the_way(tmp_path):
    entries = [write_parquet(tmp_path / "a", sizes=(80,)), write_lines(tmp_path / "b", sizes=(20,))]
    [batch] = make_order(*entries, buffer=1, batch_size=100, steps=1).iterate_batches()
    for start in (0, 50):
        half = batch[start : start + 50]
        assert 4 <= sum(row.place.startswith(str(tmp_path / "b")) for row in half) <= 16


@pytest.mark.parametrize("buffer", [1, 8, 1000])
@pytest.mark.parametrize("shards", [2, 8])
def test_any_step_is_gone_on_with(tmp_path, monkeypatch, buffer, shards):
    monkeypatch.setattr(streaming_order, "INPUT_SHARDS", shards)
    entries = [write_parquet(tmp_path / "a"), write_lines(tmp_path / "b", sizes=(4, 5))]
    options = {"buffer": buffer, "steps": 30, "weights": [1.5, 2.0]}
    whole = list(make_order(*entries, **options).iterate_batches())
    assert len(whole) == 30  # of two epochs and a half
    undisturbed = make_order(*entries, **options)
    marks = {}
    ahead = 3  # steps that are drawn, but not yet trained on
    for step, _ in enumerate(undisturbed.iterate_batches(), 1):
        if step >= ahead:
            marks[step - ahead] = undisturbed.save_mark(step - ahead)
    for start, mark in list(marks.items())[::4]:
        resumed = make_order(*entries, **options)
        resumed.load_mark(mark)
        assert list(resumed.iterate_batches(start)) == whole[start:]
    assert len({mark[0] for mark in marks.values()}) > (1 if buffer < 1000 else 0)


@pytest.mark.parametrize(
    "content",
    [None, [], [1, 2, 3], "text", [0, 0, 0, 0, [["a", 1]]], [-1, 0, 0, 0, []], [0, 0, 1, 1, [[9, 0]]]],
)
def test_a_checkpoint_without_a_place_is_gone_on_with_by_reading_again(tmp_path, content):
    entry = write_parquet(tmp_path / "shards")
    whole = list(make_order(entry, steps=12).iterate_batches())
    resumed = make_order(entry, steps=12)
    resumed.load_mark(content)
    assert list(resumed.iterate_batches(7)) == whole[7:]
    assert not list(resumed.iterate_batches(12))


def test_a_mark_reads_no_more_than_its_block(tmp_path, monkeypatch):
    entry = write_parquet(tmp_path / "shards", sizes=(40,))
    order = make_order(entry, buffer=5, batch_size=5, steps=8)
    for step, _ in enumerate(order.iterate_batches(), 1):
        if step == 7:  # the rows of step 6, counted from 0, have been drawn
            mark = order.save_mark(6)
    starts = []
    draw_rows = streaming_order.draw_rows

    def note_start(shard, start=0):
        starts.append(start)
        return draw_rows(shard, start)

    monkeypatch.setattr(streaming_order, "draw_rows", note_start)
    resumed = make_order(entry, buffer=5, batch_size=5, steps=8)
    resumed.load_mark(mark)
    assert len(list(resumed.iterate_batches(6))) == 2 and starts == [30]


def test_weights_say_how_often_an_epoch_draws_rows(tmp_path):
    entries = [write_parquet(tmp_path / "a", sizes=(40,)), write_lines(tmp_path / "b", sizes=(10,))]
    order = make_order(*entries, weights=[2.5, 0.5], batch_size=1, steps=400)
    first_epoch = []
    second_epoch = []
    for position, block in order.iterate_blocks(streaming_order.Position()):
        if position.epoch > 1:
            break
        place = first_epoch if position.epoch == 0 else second_epoch
        place += [(row.place.startswith(str(tmp_path / "a")), row.number) for row in block]
    extras = []
    for epoch in (first_epoch, second_epoch):
        counts = Counter(number for is_first, number in epoch if is_first)
        assert set(counts.values()) == {2, 3} and len(counts) == 40
        extras.append({number for number, count in counts.items() if count == 3})
        others = Counter(number for is_first, number in epoch if not is_first)
        assert 0 < len(others) < 10 and set(others.values()) == {1}
    assert extras[0] != extras[1] and 8 <= len(extras[0]) <= 32


def make_dataset(max_length=None, positions=None):
    processor = make_processor(make_model("phi", "sap", "embq"))
    return StreamedDataset(SampleImages(processor), max_length, RULES, positions)


@pytest.mark.parametrize("workers", [0, 2])
def test_processes_and_workers_share_the_rows_of_a_step(tmp_path, workers):
    entry = write_parquet(tmp_path / "shards")
    dataset = make_dataset()

    def read(rank=0, world=1, workers=0):
        order = make_order(entry, batch_size=6, steps=8)
        pieces = list(StepLoader(dataset, order, workers, rank=rank, world=world))
        assert [piece["number"] for piece in pieces] == list(range(8))
        texts = []
        for piece in pieces:
            texts.append(Counter(tuple(row.tolist()) for row in piece["labels"]))
        return pieces, texts

    whole, texts = read()
    again, same_texts = read(workers=workers)
    assert same_texts == texts
    assert all((a["pixel_values"] == b["pixel_values"]).all() for a, b in zip(whole, again))
    shares = [read(rank, 2, workers)[0] for rank in (0, 1)]
    for step, piece in enumerate(whole):
        for name in ("tokens", "answer_tokens"):
            assert sum(share[step][name] for share in shares) == piece[name]
    # the first epoch: each row once, in whichever process
    order = make_order(entry, batch_size=6, steps=5)
    drawn = [row for batch in order.iterate_batches() for rank in (0, 1) for row in batch[rank::2]]
    assert len({row.place for row in drawn}) == 30


def write_bad(folder, number, change):
    """Shards of which the second one's row has been changed."""
    write_parquet(folder)
    rows = [make_row(row) for row in range(7, 19)]
    change(rows[number])
    path = folder / "train-00001.parquet"
    if rows[number]["images"] == ["bytes"]:
        rows[number]["images"] = [{"bytes": b"no picture", "path": None}]
    datasets.Dataset.from_list(rows, features=FEATURES).to_parquet(path)
    return f"{folder}/*.parquet"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda row: row["messages"][1].update(content=""),
            r"\(id 11\): message 1, from assistant, is empty",
        ),
        (lambda row: row.update(images=["bytes"]), r"\(id 11\): image .* is truncated or no image"),
        (
            lambda row: row["messages"][1].update(content="a dog " * 400),
            r"\(id 11\): \d+ tokens .* positions",
        ),
        (lambda row: row["messages"][0].update(content="a dog " * 400), r"\(id 11\): max_length=600 cuts"),
    ],
    ids=["empty", "picture", "positions", "cut"],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_row_is_named_by_its_shard(tmp_path, change, message, workers):
    entry = write_bad(tmp_path / "shards", 4, change)
    loader = StepLoader(make_dataset(600, 512), make_order(entry, steps=7), workers)
    with pytest.raises(UsageError, match=rf"train-00001.parquet, row 4 {message}") as caught:
        list(loader)
    assert "\n" not in str(caught.value)


def test_a_bad_line_is_named_by_its_shard(tmp_path):
    entry = write_lines(tmp_path / "lines")
    path = tmp_path / "lines" / "part-2.jsonl"
    path.write_text(path.read_text() + "\n{")
    with pytest.raises(UsageError, match=r"part-2.jsonl, line 5: not JSON"):
        list(StepLoader(make_dataset(), make_order(entry, steps=7)))
    (tmp_path / "lines" / "0.png").write_bytes(b"")
    os.remove(tmp_path / "lines" / "8.png")
    path.write_text(path.read_text()[:-2])
    with pytest.raises(UsageError, match=r"part-1.jsonl, line 3 \(id 8\): no image .*8.png"):
        list(StepLoader(make_dataset(), make_order(entry, steps=7)))


def test_a_shard_that_cannot_be_read(tmp_path):
    entry = write_parquet(tmp_path / "shards")
    path = tmp_path / "shards" / "train-00002.parquet"
    order = make_order(entry, steps=7)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(UsageError, match=r"train-00002.parquet: cannot be read \(") as caught:
        list(order.iterate_batches())
    assert "\n" not in str(caught.value)


def test_first_rows_are_looked_at_before_anything_runs(tmp_path):
    write_parquet(tmp_path / "shards")
    datasets.Dataset.from_dict({"question": ["what ?"], "answer": ["a fox"]}).to_parquet(
        tmp_path / "shards" / "train-00000.parquet"
    )
    entry = f"{tmp_path}/shards/train-00000.parquet"
    with pytest.raises(UsageError, match=r'train-00000.parquet, row 0: no "conversations" or "messages"'):
        stages(*STEPS, f"data.pretrain={entry}", f"data.train={entry}")
    lines = write_lines(tmp_path / "lines")
    os.remove(tmp_path / "lines" / "1.png")
    with pytest.raises(UsageError, match=r"part-0.jsonl, line 3 \(id 1\): no image"):
        check_first_rows(lines, RULES)
    begin_request()
    check_first_rows(lines, RULES, with_images=False)  # of a blind row
    check_first_rows(lines, RULES, bad_rows=1)
    for path in (tmp_path / "lines").glob("*.png"):
        path.unlink()
    with pytest.raises(UsageError, match="no image"):
        check_first_rows(lines, RULES, bad_rows=2)
