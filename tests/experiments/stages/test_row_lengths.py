"""A row that is longer than the language model's positions is told before any stage begins, with file and
sample; text, visual and query tokens count, in evaluation the answer's, too."""

import json

import pytest
import small_runs

from compressors.errors import UsageError
from experiments.data.llava import load_samples
from experiments.data.loader import ConversationDataset, SampleImages
from experiments.models import build
from experiments.runtime.memory import begin_request
from experiments.runtime.progress import Reporter
from experiments.stages import checks, row_lengths, train


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Backbones and data, whose sample 7 is the longest."""
    folder = tmp_path_factory.mktemp("rows")
    small_runs.write_backbones(folder)
    small_runs.write_data(folder, 9, text_only=frozenset([3]))
    records = json.loads((folder / "data.json").read_text())
    records[7]["conversations"][1]["value"] = "a dog " * 50
    records[7]["conversations"][0]["value"] += " really ?" * 30
    (folder / "data.json").write_text(json.dumps(records))
    return folder


def set_positions(folder, positions):
    path = folder / "llm" / "config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "max_position_embeddings": positions}))


def make_cell(folder, positions, compressor="sap+embq", **data):
    """A cell whose language model has so many positions."""
    set_positions(folder, positions)
    config = small_runs.make_config(folder, compressor)
    config.data.test = [str(folder / "data.json")]
    for name, value in data.items():
        setattr(config.data, name, value)
    begin_request()
    return config


def count_longest(config):
    """Tokens of the longest row, one by one."""
    model, processor = build.build_model(config)
    samples = load_samples(config.data.train[0])
    dataset = ConversationDataset(samples, SampleImages(processor), config.data.max_length)
    return max(len(dataset.encode(index).ids) for index in range(len(samples)))


@pytest.mark.parametrize("compressor", ["sap+embq", "sap", "identity", "none"])
def test_the_longest_row_just_fits(folder, compressor):
    config = make_cell(folder, 4000, compressor, max_length=4000)
    config.data.test = []
    longest = count_longest(config)
    set_positions(folder, longest)
    row_lengths.check_row_lengths(config)
    set_positions(folder, longest - 1)
    with pytest.raises(UsageError, match=r"data.json, sample 7 \(id 7\): .* tokens \(.* visual, .* query\)"):
        row_lengths.check_row_lengths(config)


def test_patches_that_are_left_out_have_positions(folder):
    config = make_cell(folder, 4000, "random", max_length=4000)
    config.data.test = []
    longest = count_longest(config)
    set_positions(folder, longest)
    row_lengths.check_row_lengths(config)
    config.parts["random"] = {"positions": "keep"}
    with pytest.raises(UsageError, match="and 32 positions of patches that are left out and 0 of an answer"):
        row_lengths.check_row_lengths(config)
    set_positions(folder, longest + 32)  # 36 patches, 4 of them tokens
    row_lengths.check_row_lengths(config)


def test_a_shorter_text_helps(folder):
    config = make_cell(folder, 300, max_length=4000)
    config.data.test = []
    with pytest.raises(UsageError, match="sample 7"):
        checks.check_cell_config(config)
    config.data.max_length = 100
    with pytest.raises(UsageError, match="cuts the whole answer away"):
        train.pretrain(config, {}, folder, Reporter())
    config.data.train = config.data.pretrain = []
    checks.check_cell_config(config)


def test_questions_leave_room_for_answers(folder):
    config = make_cell(folder, 4000)
    config.data.train = config.data.pretrain = []
    config.evaluate.max_new_tokens = 4000
    with pytest.raises(UsageError, match=r"data.json, sample 0 .* and 4000 of an answer to come"):
        checks.check_cell_config(config)
    config.evaluate.max_new_tokens = 16
    checks.check_cell_config(config)


def test_questions_that_are_not_asked_may_be_long(folder):
    config = make_cell(folder, 250)
    config.data.train = config.data.pretrain = []
    with pytest.raises(UsageError, match="data.json, sample"):
        checks.check_cell_config(config)
    config.evaluate.limit = 3
    checks.check_cell_config(config)


def test_an_image_alone_may_be_too_long(folder):
    """As far as data that are not written yet allow."""
    config = make_cell(folder, 20, "identity")
    config.data.dataset = "picture_vqa"
    config.data.pretrain, config.data.train, config.data.test = ["pretrain"], ["train"], ["test"]
    with pytest.raises(UsageError, match="an image and a query have 36 tokens, but llm.source=.* has 20"):
        checks.check_cell_config(config)


def test_a_stage_finds_what_was_not_there_before(folder, tmp_path):
    config = make_cell(folder, 300, max_length=4000)
    with pytest.raises(UsageError, match=r"sample 7 \(id 7\): .* do not fit into the language model's 300"):
        train.pretrain(config, {}, tmp_path, Reporter())
    assert not list(tmp_path.rglob("*.safetensors"))
