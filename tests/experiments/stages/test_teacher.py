"""A teacher: the loss is what one computes by hand, and a student comes to say what it says."""

import re
from types import SimpleNamespace

import pytest
import small_runs
import torch
from factories import byte_tokenizer, make_llm
from lightning.pytorch.callbacks import Callback
from PIL import Image
from small_runs import Losses
from torch.nn import functional as F

from compressors.errors import UsageError
from compressors.key_value import parse_settings
from experiments.config.cells import make_cells
from experiments.config.schema import Config
from experiments.runtime.memory import begin_request
from experiments.runtime.progress import Reporter
from experiments.stages import features, train
from experiments.stages.checks import check_cell_config
from experiments.stages.training.fit import fit_module
from experiments.stages.training.ranks import launch_processes
from llm_adapters.answers import compute_divergence
from llm_adapters.conversation import IGNORE
from llm_adapters.saved import load_saved_model

ROWS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Backbones, data, and `teacher`: an uncompressed model."""
    folder = tmp_path_factory.mktemp("teacher")
    small_runs.write_backbones(folder)
    small_runs.write_data(folder, ROWS, text_only=frozenset([3]))
    save_teacher(small_runs.make_config(folder, "identity"), folder / "teacher")
    return folder


def save_teacher(config: Config, folder) -> None:
    """A model that is as it was made, but for its last layer: it has something to say."""
    config.parts = {}
    model, processor = train.build_model(config)
    torch.manual_seed(7)
    with torch.no_grad():
        model.get_output_embeddings().weight.normal_(0, 0.5)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def make_config(folder, weight: float = 0.7, temperature: float = 2.0, **trainer) -> Config:
    config = small_runs.make_config(folder, **trainer)
    config.finetune.teacher = str(folder / "teacher")
    config.finetune.teacher_weight, config.finetune.teacher_temperature = weight, temperature
    return config


def make_module(config, inputs):
    """A module and its first micro-batch."""
    model, processor = train.prepare_model(config, "finetune", inputs)
    train.unfreeze_stage_parts(config, "finetune", model)
    module = train.make_module(config, "finetune", model, processor, inputs)
    module.trainer = SimpleNamespace(num_devices=1, world_size=1, global_rank=0, global_step=0)
    module.log = lambda *_, **__: None
    return module, next(iter(module.train_dataloader()))


def gather_logits(model, batch, answer_index):
    """The logits that predict answer tokens, of a pass with all logits."""
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "answer_index")}
    return model(**inputs).logits.flatten(0, 1)[answer_index]


def test_the_loss_is_what_one_computes_by_hand(folder, tmp_path):
    config = make_config(folder)
    module, batch = make_module(config, small_runs.align(config, tmp_path))
    batch = {name: value for name, value in batch.items() if name != "number"}
    taught = dict(batch["taught"])
    student_batch = {
        name: value for name, value in batch.items() if name not in ("taught", "pieces", "answer_tokens")
    }
    # 36 visual tokens for the teacher; 4 and three query tokens a turn for the student
    assert taught["input_ids"].shape != student_batch["input_ids"].shape
    logits = gather_logits(module.model, student_batch, batch["answer_index"])
    taught_logits = gather_logits(module.teacher.model, taught, taught["answer_index"])
    targets = batch["labels"][batch["labels"] != IGNORE]
    log_probabilities = F.log_softmax(logits / 2.0, -1)
    taught_probabilities = F.softmax(taught_logits / 2.0, -1)
    entropy = F.cross_entropy(logits, targets, reduction="sum")
    divergence = (taught_probabilities * (taught_probabilities.log() - log_probabilities)).sum()
    expected = (entropy + 0.7 * 4.0 * divergence) / batch["answer_tokens"]
    assert divergence / len(targets) > 0.1
    loss = module.training_step(dict(batch), 0) / batch["pieces"]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(module.step_divergence, 4.0 * divergence / batch["answer_tokens"])


def test_the_teacher_is_frozen_and_no_part_of_what_is_trained(folder, tmp_path):
    config = make_config(folder)
    module, batch = make_module(config, small_runs.align(config, tmp_path))
    teacher = module.teacher.model
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    own = {id(parameter) for parameter in module.parameters()}
    assert own.isdisjoint({id(parameter) for parameter in teacher.parameters()})
    assert not any("teacher" in name for name in module.state_dict())
    del batch["number"]
    module.training_step(batch, 0).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_weight_of_0_is_the_loss_without_a_teacher(folder, tmp_path):
    """Every loss and weight of a run, to the bit."""
    losses = []
    states = []
    for name, config in (("none", small_runs.make_config(folder)), ("zero", make_config(folder, weight=0.0))):
        config.finetune.max_steps, config.finetune.epochs = 10, 10
        report = Losses()
        inputs = small_runs.align(config, tmp_path)
        states.append(small_runs.run("finetune", config, inputs, tmp_path / name, report))
        losses.append(report.losses)
    assert losses[0] and losses[0] == losses[1]
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


class Divergences(Callback):
    """What every step says of the divergence."""

    def __init__(self):
        self.values = []

    def on_train_batch_end(self, trainer, *_):
        self.values.append(float(trainer.callback_metrics["divergence"]))


def test_a_student_learns_what_its_teacher_says(folder, tmp_path):
    config = make_config(folder, weight=1.0, temperature=1.0)
    config.finetune.lr, config.finetune.warmup = 0.01, 0.0
    config.finetune.batch_size, config.finetune.accumulate = ROWS, 1
    config.finetune.max_steps, config.finetune.epochs = 25, 25
    model, processor = train.prepare_model(config, "finetune", small_runs.align(config, tmp_path))
    train.unfreeze_stage_parts(config, "finetune", model)
    module = train.make_module(config, "finetune", model, processor, {})
    seen = Divergences()
    fit_module(config, module, tmp_path, Reporter(), callbacks=[seen])
    assert len(seen.values) == 25
    assert seen.values[-1] < 0.5 * seen.values[0]


def collect_first_gradients(config, folder, name, world=0):
    config.finetune.max_steps, config.finetune.clip = 1, 0.0
    out = folder / name
    out.mkdir()
    inputs = small_runs.align(config, folder)
    if world:
        launch_processes(small_runs.record, world, Reporter(), config, "finetune", inputs, out, world)
    else:
        small_runs.record(config, "finetune", inputs, out, 0, Reporter())
    return torch.load(out / "gradients.0")[0]


def assert_same_gradients(gradients, expected):
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_pieces_of_a_step_have_the_gradients_of_the_whole(folder, tmp_path):
    gradients = []
    for pieces in (1, 4):
        config = make_config(folder)
        config.finetune.accumulate = pieces
        gradients.append(collect_first_gradients(config, tmp_path, f"pieces{pieces}"))
    plain = small_runs.make_config(folder)
    untaught = collect_first_gradients(plain, tmp_path, "untaught")
    assert_same_gradients(gradients[1], gradients[0])
    name = "language_model.lm_head.weight"
    assert not torch.allclose(untaught[name], gradients[0][name], rtol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_have_the_gradients_of_one(folder, tmp_path, strategy):
    alone = collect_first_gradients(make_config(folder, devices="1"), tmp_path, "alone")
    config = make_config(folder, devices="2", strategy=strategy)
    assert_same_gradients(collect_first_gradients(config, tmp_path, strategy, world=2), alone)


def test_a_killed_run_goes_on_to_the_same_weights(folder, tmp_path):
    config = make_config(folder, checkpoint_every=1)
    inputs = small_runs.align(config, tmp_path)
    whole = small_runs.run("finetune", config, inputs, tmp_path / "whole")
    with pytest.raises(SystemExit):
        small_runs.run("finetune", config, inputs, tmp_path / "killed", Losses(die_at=2))
    resumed = small_runs.run("finetune", config, inputs, tmp_path / "killed")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


def cache_features(config, tmp_path, roles=("train",)):
    """The folder of a features stage over the images of these roles."""
    out = tmp_path / "features"
    out.mkdir()
    features.run(config, {}, out, Reporter(), roles=roles)
    return out


@pytest.mark.parametrize("compressor", ["sap+embq", "token_packer"])
def test_cached_features_serve_both_where_their_towers_are_the_same(folder, tmp_path, compressor):
    """Also behind a compressor that needs more of the tower than the teacher's."""
    config = make_config(folder)
    config.compressor = compressor
    if compressor == "token_packer":
        config.parts = {"token_packer": {"rate": 3, "levels": (-2,)}}
    inputs = small_runs.align(config, tmp_path)
    _, pixels = make_module(config, inputs)
    config.tower.cache = True
    out = cache_features(config, tmp_path, ("pretrain", "train"))
    module, cached = make_module(config, {**inputs, "features": out})
    assert module.teacher.shares_features
    assert "pixel_values" in pixels["taught"] and "pixel_values" not in cached["taught"]
    lessons = [module.teacher.make_lesson(batch["taught"], batch) for batch in (cached,)]
    module.teacher.shares_features = False
    lessons.append(module.teacher.make_lesson(pixels["taught"], pixels))
    torch.testing.assert_close(lessons[0].states.hidden, lessons[1].states.hidden, rtol=0.02, atol=0.02)


def test_a_teacher_of_other_crops_reads_pixels(folder, tmp_path):
    config = make_config(folder)
    config.image.tiles = 2
    config.tower.cache = True
    inputs = small_runs.align(config, tmp_path)
    module, batch = make_module(config, {**inputs, "features": cache_features(config, tmp_path)})
    assert not module.teacher.shares_features
    assert batch["vision_features"].shape[1] == 5 and batch["taught"]["pixel_values"].shape[1] == 1
    del batch["number"]
    assert module.training_step(batch, 0).isfinite()


@pytest.mark.parametrize("name", ["image_mean", "image_std", "resample"])
def test_a_teacher_of_other_pixels_reads_its_own(folder, tmp_path, name):
    """Its tower's weights are the student's, whose cached features are of other pixels."""
    model, processor = load_saved_model(folder / "teacher", torch.device("cpu"))
    images = processor.image_processor
    other = Image.Resampling.NEAREST if name == "resample" else [0.25, 0.5, 0.75]
    setattr(images, name, other)
    model.save_pretrained(tmp_path / "other")
    processor.save_pretrained(tmp_path / "other")
    config = make_config(folder)
    config.finetune.teacher = str(tmp_path / "other")
    config.tower.cache = True
    inputs = small_runs.align(config, tmp_path)
    module, batch = make_module(config, {**inputs, "features": cache_features(config, tmp_path)})
    assert not module.teacher.shares_features
    config.tower.cache = False
    _, pixels = make_module(config, inputs)
    torch.testing.assert_close(batch["taught"]["pixel_values"], pixels["taught"]["pixel_values"])
    assert not torch.allclose(pixels["taught"]["pixel_values"], pixels["pixel_values"])


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0, 3.0, 50.0])
@pytest.mark.parametrize("weight", [0.01, 1.0, 20.0])
def test_the_divergence_counts_as_its_formula_says(weight, temperature):
    """weight T^2 KL(teacher at T || student at T), summed over answer tokens; its gradient, too."""
    torch.manual_seed(1)
    taught = torch.randn(5, 11) * 3
    logits = (torch.randn(5, 11) * 3).requires_grad_()
    divergence = compute_divergence(logits, taught, temperature)
    probabilities = (taught.double() / temperature).softmax(-1)
    log_ratio = probabilities.log() - (logits.double() / temperature).log_softmax(-1)
    expected = temperature**2 * (probabilities * log_ratio).sum()
    torch.testing.assert_close(divergence.double(), expected, rtol=2e-3, atol=1e-5)
    (weight * divergence).backward()
    gap = (logits.detach().double() / temperature).softmax(-1) - probabilities
    expected_gradient = weight * temperature * gap
    torch.testing.assert_close(logits.grad.double(), expected_gradient, rtol=1e-3, atol=1e-4)


# ---- what is refused ----


@pytest.mark.parametrize(
    ("setting", "rule"),
    [
        ("teacher_temperature=0", "must be at least 0.001"),
        ("teacher_temperature=-1", "must be at least 0.001"),
        ("teacher_temperature=1e-40", "must be at least 0.001"),
        ("teacher_temperature=1000", "must be less than 1000"),
        ("teacher_temperature=nan", "expected float"),
        ("teacher_temperature=.nan", "must be"),
        ("teacher_temperature=.inf", "must be"),
        ("teacher_weight=-0.1", "must be at least 0"),
        ("teacher_weight=.nan", "must be"),
        ("teacher_weight=.inf", "must be"),
        ("teacher_weight=null", "expected"),
    ],
)
def test_limits(setting, rule):
    with pytest.raises(UsageError, match=rule) as caught:
        make_cells(parse_settings([f"finetune.{setting}", "finetune.teacher=x"]))
    assert setting.partition("=")[0] in str(caught.value)


def refuse(config) -> str:
    with pytest.raises(UsageError) as caught:
        check_cell_config(config)
    line = str(caught.value)
    assert line.startswith(f"finetune.teacher={config.finetune.teacher}: ") and "\n" not in line
    return line


def test_a_teacher_that_fits(folder):
    check_cell_config(make_config(folder))


def test_another_vocabulary(folder, tmp_path):
    model, processor = load_saved_model(folder / "teacher", torch.device("cpu"))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    small_runs.swap_tokens(tmp_path / "tokenizer.json", "<s>", "<unk>")
    config = make_config(folder)
    config.finetune.teacher = str(tmp_path)
    line = refuse(config)
    assert "another vocabulary than llm.source=" in line
    assert "2 tokens differ, such as '<unk>', id 2 there, 1 here" in line


def test_another_prompt(folder):
    config = make_config(folder)
    config.prompt.user = "Q:"
    assert "was trained with prompt.user='USER:', the cell has 'Q:'" in refuse(config)


def test_a_student_with_a_loss_of_its_router(folder, tmp_path):
    make_llm("mixtral", num_local_experts=4, output_router_logits=True).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    config = make_config(folder)
    config.llm.source = str(tmp_path)
    assert "MixtralForCausalLM with a loss of its router gives no answers' logits" in refuse(config)


def test_a_blind_teacher(folder, tmp_path):
    save_teacher(small_runs.make_config(folder, "none"), tmp_path / "blind")
    config = make_config(folder)
    config.finetune.teacher = str(tmp_path / "blind")
    assert "a blind model (compressor=none) sees no image" in refuse(config)


def test_a_teacher_without_weights(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "teacher/config.json").read_text())
    config = make_config(folder)
    config.finetune.teacher = str(tmp_path)
    assert "no weights in the folder" in refuse(config)


def test_patches_that_a_teacher_leaves_out_have_positions(folder, tmp_path):
    config = make_config(folder)
    inputs = small_runs.align(config, tmp_path)
    teacher = small_runs.make_config(folder, "random")
    teacher.parts = {"random": {"positions": "keep"}}
    model, processor = train.build_model(teacher)
    model.config.text_config.max_position_embeddings = 120
    model.save_pretrained(tmp_path / "short")
    processor.save_pretrained(tmp_path / "short")
    config.finetune.teacher = str(tmp_path / "short")
    with pytest.raises(
        UsageError, match="^finetune.teacher=.* of patches that are left out .* 120 positions"
    ):
        make_module(config, inputs)


def test_a_teacher_with_too_few_positions_is_refused_before_any_work(folder, tmp_path):
    """Of data files; rows that are written on the spot are looked at when they are there."""
    begin_request()
    config = make_config(folder)
    for positions, message in ((60, "36 visual.* do not fit .* 60 positions"), (30, "36 tokens for it")):
        model, processor = load_saved_model(folder / "teacher", torch.device("cpu"))
        model.config.text_config.max_position_embeddings = positions
        target = tmp_path / str(positions)
        model.save_pretrained(target)
        processor.save_pretrained(target)
        config.finetune.teacher = str(target)
        assert re.search(message, refuse(config))


def test_a_row_that_is_too_long_for_the_teacher(folder, tmp_path):
    config = make_config(folder)
    inputs = small_runs.align(config, tmp_path)
    model, processor = load_saved_model(folder / "teacher", torch.device("cpu"))
    model.config.text_config.max_position_embeddings = 60
    model.save_pretrained(tmp_path / "short")
    processor.save_pretrained(tmp_path / "short")
    config.finetune.teacher = str(tmp_path / "short")
    with pytest.raises(UsageError, match="^finetune.teacher=.*36 visual.* do not fit .* 60 positions"):
        make_module(config, inputs)
