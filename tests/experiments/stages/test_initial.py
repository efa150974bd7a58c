"""Starting from a trained model: its weights to the bit, and one line for what does not fit."""

import json
import shutil
from types import SimpleNamespace

import pytest
import small_runs
import torch
from transformers import SiglipVisionModel

from compressors.errors import UsageError
from experiments.config.schema import Config
from experiments.models.build import build_model
from experiments.runtime.progress import Reporter
from experiments.stages import train
from experiments.stages.checks import check_cell_config
from experiments.stages.training.initial import PART_MODULES
from experiments.stages.training.teacher import TaughtLoader
from llm_adapters.saved import load_saved_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Backbones, data, and `trained`: a finished stage 2 of SAP and EmbQ."""
    folder = tmp_path_factory.mktemp("initial")
    small_runs.write_backbones(folder)
    small_runs.write_data(folder, 12)
    config = small_runs.make_config(folder)
    config.finetune.lr = 0.01
    small_runs.run("finetune", config, small_runs.align(config, folder), folder / "trained")
    return folder


def start(folder, *parts: str, stage: str = "finetune", compressor: str = "sap+embq") -> Config:
    """A cell of seed 1 that starts from the trained one."""
    config = small_runs.make_config(folder, compressor)
    config.seed = 1
    section = getattr(config, stage)
    section.init, section.init_parts = str(folder / "trained"), list(parts)
    return config


def read_trained(folder) -> dict[str, torch.Tensor]:
    return load_saved_model(folder / "trained", torch.device("cpu"))[0].state_dict()


def find_equal_parts(state, other) -> set[str]:
    """Parts of which all tensors are the same."""
    parts = set()
    for part, module in PART_MODULES.items():
        names = [name for name in state if name.partition(".")[0] == module]
        if names and all(torch.equal(state[name], other[name]) for name in names):
            parts.add(part)
    return parts


def test_all_is_taken_to_the_bit_and_nothing_else_is_needed(folder):
    model, processor = train.prepare_model(start(folder), "finetune", {})
    trained = read_trained(folder)
    assert model.state_dict().keys() == trained.keys()
    assert find_equal_parts(model.state_dict(), trained) == set(PART_MODULES)
    fresh = build_model(start(folder))[0].state_dict()
    assert find_equal_parts(fresh, trained) == {"tower"}  # it stayed frozen


def test_the_loss_of_the_first_step_is_the_trained_models(folder):
    config = start(folder)
    model, processor = train.prepare_model(config, "finetune", {})
    module = train.make_module(config, "finetune", model, processor, {})
    trained, _ = load_saved_model(folder / "trained", torch.device("cpu"))
    module.trainer = SimpleNamespace(num_devices=1, world_size=1, global_rank=0, global_step=0)
    loader = module.train_dataloader()
    assert not isinstance(loader, TaughtLoader)
    batch = next(iter(loader))
    answer_tokens = batch["answer_tokens"]
    for name in ("pieces", "answer_tokens", "number"):
        del batch[name]
    with torch.no_grad():
        first = model(**batch, num_items_in_batch=answer_tokens).loss
        expected = trained(**batch, num_items_in_batch=answer_tokens).loss
        untrained = build_model(config)[0](**batch, num_items_in_batch=answer_tokens).loss
    assert torch.equal(first, expected)
    assert untrained > first + 0.1


def test_parts_that_are_named_are_taken_alone(folder):
    model, _ = train.prepare_model(start(folder, "llm", "compressor"), "finetune", {})
    assert find_equal_parts(model.state_dict(), read_trained(folder)) == {"llm", "compressor", "tower"}


def test_new_query_tokens_are_the_dot_of_the_llm_that_is_taken(folder, tmp_path):
    trained, processor = load_saved_model(folder / "trained", torch.device("cpu"))
    with torch.no_grad():
        trained.get_input_embeddings().weight.mul_(2.0)
    trained.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    config = start(folder, "llm")
    config.finetune.init = str(tmp_path)
    model, _ = train.prepare_model(config, "finetune", {})
    dot = processor.tokenizer(" .", add_special_tokens=False)["input_ids"][-1]
    usual = build_model(start(folder))[0]
    moved = model.get_input_embeddings().weight[dot] - usual.get_input_embeddings().weight[dot]
    assert moved.abs().min() > 0
    # the same noise of the seed around the other dot
    torch.testing.assert_close(model.query_module.tokens, usual.query_module.tokens + moved)


@pytest.mark.parametrize(
    ("part", "section", "name", "value"),
    [("llm", "text_config", "hidden_act", "relu"), ("tower", "vision_config", "num_attention_heads", 2)],
)
def test_weights_of_right_shapes_and_another_meaning_are_refused(
    folder, tmp_path, part, section, name, value
):
    """Other heads or another activation: the tensors fit, what they compute would be another thing."""
    shutil.copytree(folder / "trained", tmp_path / "other")
    [path] = (tmp_path / "other").rglob("config.json")
    content = json.loads(path.read_text())
    assert content[section][name] != value
    content[section][name] = value
    path.write_text(json.dumps(content))
    config = start(folder)
    config.finetune.init = str(tmp_path / "other")
    with pytest.raises(UsageError, match=rf"{name} of its {part} is {value}, that of {part}\.source is "):
        check_cell_config(config)
    config.finetune.init_parts = [other for other in PART_MODULES if other != part]
    check_cell_config(config)


def test_a_stage_2_runs_from_it(folder, tmp_path):
    config = start(folder)
    check_cell_config(config)
    state = small_runs.run("finetune", config, {}, tmp_path / "two")
    assert find_equal_parts(state, read_trained(folder)) == {"tower"}


def test_stage_1_starts_from_it_and_stage_2_has_the_rest(folder, tmp_path):
    config = start(folder, stage="pretrain")
    check_cell_config(config)
    trained = read_trained(folder)
    model, _ = train.prepare_model(config, "pretrain", {})
    assert find_equal_parts(model.state_dict(), trained) == {"tower", "compressor", "projector", "llm"}
    aligned = small_runs.run("pretrain", config, {}, tmp_path / "one")
    assert not torch.equal(aligned["compressor.scorer.0.weight"], trained["compressor.scorer.0.weight"])
    model, _ = train.prepare_model(config, "finetune", {"pretrain": tmp_path / "one"})
    state = model.state_dict()
    assert find_equal_parts(state, trained) == {"tower", "query_module", "llm"}
    assert all(torch.equal(state[name], value) for name, value in aligned.items())


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_what_does_not_fit_is_named_and_what_fits_is_offered(folder, stage):
    config = start(folder, stage=stage, compressor="qformer")
    config.parts = {"qformer": {"num_queries": 4, "num_layers": 1, "heads": 2, "width": 8}}
    with pytest.raises(UsageError) as caught:
        check_cell_config(config)
    line = str(caught.value)
    assert line.startswith(f"{stage}.init={folder / 'trained'}: does not fit compressor=qformer ")
    for words in ("missing: compressor.", "unexpected: compressor.scorer.0.bias", "more", "query_module."):
        assert words in line
    assert "\n" not in line
    assert f"{stage}.init_parts=[tower,llm]" in line
    getattr(config, stage).init_parts = ["tower", "llm"]
    check_cell_config(config)


def test_another_shape_is_told_with_both(folder):
    config = start(folder)
    config.parts["embq"]["num_queries"] = 5
    with pytest.raises(UsageError, match=r"shape: query_module.tokens \(3, 32\) instead of \(5, 32\)"):
        check_cell_config(config)
    with pytest.raises(UsageError, match="query_module.tokens"):  # a folder may change after the plan
        train.prepare_model(config, "finetune", {})


def test_nothing_fits(folder):
    config = start(folder, "compressor", compressor="avg_pool")
    config.parts = {}
    with pytest.raises(UsageError, match="unexpected: compressor.*; start from another model"):
        check_cell_config(config)


def test_a_tower_that_differs_needs_features_of_its_own(folder, tmp_path):
    config = start(folder)
    config.tower.cache = True
    check_cell_config(config)  # the tower of the trained cell is tower.source's
    torch.manual_seed(3)
    other = SiglipVisionModel.from_pretrained(folder / "tower")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
    other.save_pretrained(tmp_path / "tower")
    config.tower.source = str(tmp_path / "tower")
    with pytest.raises(UsageError, match="its tower is not tower.source=.*tower.cache=false, or leave it"):
        check_cell_config(config)
    config.finetune.init_parts = ["compressor", "projector", "query_module", "llm"]
    check_cell_config(config)
    config.finetune.init_parts, config.tower.cache = [], False
    check_cell_config(config)


def test_a_trained_llm_brings_its_tokenizer(folder, tmp_path):
    """As a released checkpoint does, whose `</s>` has another id than load_tokenizer would give it."""
    shutil.copytree(folder / "trained", tmp_path / "trained")
    small_runs.swap_tokens(tmp_path / "trained/model/tokenizer.json", "<s>", "</s>")
    config = start(folder)
    config.finetune.init = str(tmp_path / "trained")
    model, processor = train.prepare_model(config, "finetune", {})
    assert processor.tokenizer.get_vocab()["</s>"] == 2 == model.generation_config.eos_token_id
    config.finetune.init_parts = ["projector"]
    model, processor = train.prepare_model(config, "finetune", {})
    assert processor.tokenizer.get_vocab()["</s>"] == 3 == model.generation_config.eos_token_id


def test_weights_that_are_not_finite_are_no_start(folder, tmp_path):
    model, processor = load_saved_model(folder / "trained", torch.device("cpu"))
    with torch.no_grad():
        model.projector[0].weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    processor.save_pretrained(tmp_path / "broken")
    config = start(folder)
    config.finetune.init = str(tmp_path / "broken")
    with pytest.raises(Exception, match="projector.0.weight is not finite; start from another model"):
        train.finetune(config, {}, tmp_path, Reporter())
