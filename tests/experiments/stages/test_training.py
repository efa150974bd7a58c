"""Training: what trains, what stage 2 starts from, accumulation, order, and runs that are killed."""

import copy
import json

import pytest
import torch
from factories import make_batch, make_model, make_processor, picture
from lightning import Trainer
from PIL import Image

from compressors.errors import UsageError
from connectors.versions import switch_checkpointing
from experiments.config.schema import Config
from experiments.config.schema_sections import OptimisationSettings, TrainerSettings
from experiments.data import llava
from experiments.data.loader import ConversationDataset, SampleImages, StepLoader
from experiments.data.order import SampleOrder
from experiments.runtime.progress import Reporter
from experiments.stages import train as training
from experiments.stages.training import fit
from experiments.stages.training.fit import resolve_precision
from experiments.stages.training.module import (
    SlothModule,
    choose_trainable_parts,
    compute_rate_factor,
    set_trainable,
)
from llm_adapters.adapter import decoder_layers
from llm_adapters.conversation import IMAGE, Turn


@pytest.fixture(scope="module")
def model():
    return make_model("phi", "sap", "embq")


@pytest.fixture(scope="module")
def processor(model):
    return make_processor(model)


@pytest.fixture
def samples(tmp_path):
    """Twelve conversations of one to three turns about noise."""
    records = []
    for i in range(12):
        noise = torch.Generator().manual_seed(i)
        pixels = torch.randint(0, 255, (20, 24, 3), dtype=torch.uint8, generator=noise)
        Image.fromarray(pixels.numpy()).save(tmp_path / f"{i}.png")
        turns = [
            turn
            for k in range(1 + i % 3)
            for turn in (
                {"from": "human", "value": f"what is {'a ' * k}this ?"},
                {"from": "gpt", "value": f"a dog {'and a cat' * k}"},
            )
        ]
        records.append({"id": str(i), "image": f"{i}.png", "conversations": turns})
    path = tmp_path / "data.json"
    path.write_text(json.dumps(records))
    return llava.load_samples(path)


def dataset(samples, processor, max_length=None):
    return ConversationDataset(samples, SampleImages(processor), max_length)


def step_gradients(model, pieces):
    model.zero_grad()
    module = SlothModule(model, OptimisationSettings(), 1, 0)
    module.log = lambda *_, **__: None
    for piece in pieces:
        (module.training_step(dict(piece), 0) / piece["pieces"]).backward()  # Lightning's division
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_four_pieces_of_a_step_give_the_gradients_of_the_whole(model, processor, samples):
    model = copy.deepcopy(model).double().eval()
    set_trainable(model, "finetune")
    data = dataset(samples, processor)
    gradients = []
    for accumulate in (1, 4):
        order = SampleOrder(len(samples), OptimisationSettings(batch_size=8, accumulate=accumulate), seed=0)
        loader = StepLoader(data, order)
        pieces = [
            {
                k: v.double() if torch.is_tensor(v) and v.is_floating_point() else v
                for k, v in p.items()
                if k != "number"
            }
            for p in list(loader)[:accumulate]
        ]
        gradients.append(step_gradients(model, pieces))
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("llm", ["phi", "llama", "gemma2"])
def test_training_needs_no_mask_of_the_padding(llm, samples):
    tuned = make_model(llm, "sap", "embq").eval()
    data = dataset(samples, make_processor(tuned))
    rows = [data[i] for i in range(6)]
    batch = StepLoader(data, SampleOrder(12, OptimisationSettings(batch_size=8), 0)).collate(rows)
    mask = data.images.processor.collate([encoded for encoded, _ in rows])["attention_mask"]
    assert "attention_mask" not in batch and not mask.all()
    tuned.requires_grad_(True)
    items = {"pieces": 1, "answer_tokens": int((batch["labels"] >= 0).sum())}
    bare, masked = (
        step_gradients(tuned, [{**batch, **items, **given}]) for given in ({}, {"attention_mask": mask})
    )
    for name, gradient in bare.items():
        torch.testing.assert_close(gradient, masked[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("train_tower", [False, True])
def test_gradients_reach_what_the_stage_trains_alone(model, processor, samples, stage, train_tower):
    model = copy.deepcopy(model)
    rows = set_trainable(model, stage, train_tower)
    wanted = choose_trainable_parts(stage, train_tower)
    assert {name for name, _, trained in rows if trained} == set(wanted)
    piece = next(
        iter(StepLoader(dataset(samples, processor), SampleOrder(12, OptimisationSettings(batch_size=8), 0)))
    )
    piece.pop("number")
    found = step_gradients(model, [piece])
    for name, parameter in model.named_parameters():
        inside = name.split(".")[0] in wanted
        assert (name in found) == parameter.requires_grad == inside, name
    # the scorer's last bias shifts a whole softmax; key biases of an attention do, too
    silent = [name for name, grad in found.items() if not grad.abs().sum() and not name.endswith("bias")]
    assert not silent


def test_frozen_parts_stay_in_evaluation_mode(model, processor):  # noqa: ARG001
    model = copy.deepcopy(model)
    set_trainable(model, "pretrain")
    module = SlothModule(model, OptimisationSettings(), 1, 0).train()
    module.on_train_start()
    assert model.compressor.training and not model.language_model.training and not model.vision_tower.training


def test_a_frozen_llm_whose_layers_hold_dropout_rates_draws_none_while_it_is_checkpointed():
    model = make_model("opt", "avg_pool", None)
    set_trainable(model, "pretrain")
    switch_checkpointing(model, "enable", {"use_reentrant": False})
    SlothModule(model, OptimisationSettings(), 1, 0).train().on_train_start()
    assert all(layer.training for layer in decoder_layers(model.language_model))
    batch = make_batch(make_processor(model), [([Turn(f"{IMAGE}\nWhat is this?", "A dog.")], [picture()])])
    losses = {model(**batch).loss.item() for _ in range(4)}
    assert losses == {model.eval()(**batch).loss.item()}


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_compressors_without_weights_draw_in_training(stage):
    """`random` other patches each time, `matryoshka` another scale, whose tokens alone are visible."""
    model = make_model("phi", "random", None, scale=0.3)
    set_trainable(model, stage)
    module = SlothModule(model, OptimisationSettings(), 1, 0)
    module.on_train_start()
    features = torch.randn(1, 6, 6, model.vision_tower.dim)
    assert len({str(model.compressor(features)) for _ in range(5)}) == 5
    module.model = make_model("phi", "matryoshka", None, compressor_knobs={"scales": (1, 2)})
    set_trainable(module.model, stage)
    module.on_train_start()
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    seen = set()
    for number in range(8):
        module.on_train_batch_start({"number": number}, 0)
        seen.add(module.model.compressor.visible(6, 6))
    assert seen == {4, 1}


def test_a_compressor_counts_steps_not_their_pieces():
    """Computed in pieces, a step is as soft as it is in one."""
    model = make_model("phi", "visionselector", None, compressor_knobs={"width": 8})
    set_trainable(model, "pretrain")
    module = SlothModule(model, OptimisationSettings(accumulate=2), 1, 0)
    module.on_train_start()
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    features = torch.randn(1, 6, 6, model.vision_tower.dim)
    counts = []
    for number in range(5):
        module.on_train_batch_start({"number": number}, 0)
        model.compressor(features)
        counts.append(int(model.compressor.steps))
    assert counts == [1, 1, 2, 2, 3]


def test_a_step_reads_the_same_rows_wherever_the_run_starts(processor, samples):
    order = SampleOrder(12, OptimisationSettings(batch_size=5, accumulate=2, epochs=3), seed=4)
    assert order.steps == 6
    whole = list(order.iterate_batches())
    for start in range(order.steps):
        assert list(order.iterate_batches(start)) == whole[start:]
    epoch = [i for batch in whole[:2] for i in batch]
    assert len(set(epoch)) == 10 and epoch != sorted(epoch) and whole[:2] != whole[2:4]
    assert SampleOrder(12, OptimisationSettings(batch_size=5, epochs=3, max_steps=4), 4).steps == 4
    assert SampleOrder(3, OptimisationSettings(batch_size=8, epochs=2), 0).steps == 2
    numbers = [piece["number"] for piece in StepLoader(dataset(samples, processor), order, start=4)]
    assert numbers == [8, 9, 10, 11]


def test_a_sample_whose_answer_is_cut_away_is_named_before_training(processor, samples):
    with pytest.raises(UsageError, match=r"sample 0 \(id 0\): max_length=8 cuts the whole answer away"):
        dataset(samples, processor, max_length=8).check_lengths()
    dataset(samples, processor, max_length=4000).check_lengths()


def make_config(stage_steps: int, **trainer) -> Config:
    config = Config(compressor="sap+embq")
    config.data.max_length = None
    for stage in (config.pretrain, config.finetune):
        stage.batch_size, stage.accumulate, stage.max_steps, stage.epochs = 4, 2, stage_steps, stage_steps
    config.trainer.accelerator, config.trainer.logger = "cpu", "none"
    for name, value in trainer.items():
        setattr(config.trainer, name, value)
    return config


@pytest.fixture
def stages(monkeypatch, model, processor, samples):
    """The stage functions over tiny random backbones and the samples above."""
    monkeypatch.setattr(
        training,
        "build_model",
        lambda config: (copy.deepcopy(model if config.query_module else without_queries(model)), processor),
    )
    monkeypatch.setattr(training.roles, "load_role_files", lambda *_: [samples])
    return training


def without_queries(model):
    other = make_model("phi", "sap", None)
    other.load_state_dict(model.state_dict(), strict=False)
    return other


def test_stage_two_starts_from_exactly_the_weights_of_stage_one(stages, monkeypatch, tmp_path):
    config, seen = make_config(2), {}
    (tmp_path / "one").mkdir(), (tmp_path / "two").mkdir()
    stages.pretrain(config, {}, tmp_path / "one", Reporter())
    trained = stages.load_file(tmp_path / "one" / training.ALIGNED_FILE)
    fresh = stages.collect_aligned_state(stages.build_model(config)[0])
    assert any(not torch.equal(trained[name], fresh[name]) for name in fresh)

    def remember(config, stage, model, *_):  # noqa: ARG001
        seen.update({name: value.clone() for name, value in stages.collect_aligned_state(model).items()})

    monkeypatch.setattr(stages, "train_stage", remember)
    stages.finetune(config, {"pretrain": tmp_path / "one"}, tmp_path / "two", Reporter())
    assert seen.keys() == trained.keys() and all(torch.equal(seen[name], trained[name]) for name in trained)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_a_run_that_dies_resumes_to_the_same_weights(stages, monkeypatch, tmp_path, stage):
    config = make_config(6, checkpoint_every=2)
    inputs = {"pretrain": tmp_path / "aligned"}
    inputs["pretrain"].mkdir()
    stages.save_file(
        stages.collect_aligned_state(stages.build_model(config)[0]),
        inputs["pretrain"] / training.ALIGNED_FILE,
    )

    def run(name):
        (tmp_path / name).mkdir(exist_ok=True)
        getattr(stages, stage)(config, inputs, tmp_path / name, Reporter())
        found = sorted((tmp_path / name).rglob("*.safetensors"))
        return [stages.load_file(path) for path in found]

    undisturbed = run("whole")
    step = fit.StepProgress.on_train_batch_end

    def die(self, trainer, module, *rest):
        step(self, trainer, module, *rest)
        if trainer.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fit.StepProgress, "on_train_batch_end", die)
        with pytest.raises(SystemExit):
            run("killed")
    assert (tmp_path / "killed/checkpoints/last.ckpt").exists()
    resumed = run("killed")
    assert len(resumed) == len(undisturbed) == 1
    for name, value in undisturbed[0].items():
        assert torch.equal(resumed[0][name], value), name


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_learning_rates_are_those_of_transformers(warmup):
    from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.zeros(1)])
    cosine = get_cosine_schedule_with_warmup(optimizer, warmup, 10).lr_lambdas[0]
    constant = get_constant_schedule_with_warmup(optimizer, warmup).lr_lambdas[0]
    for step in range(12):
        assert compute_rate_factor(step, warmup, 10, "cosine") == cosine(step)
        assert compute_rate_factor(step, warmup, 10, "constant") == constant(step)


@pytest.mark.parametrize(
    ("accelerator", "has_gpu", "expected"),
    [
        ("auto", True, "bf16-mixed"),
        ("gpu", True, "bf16-mixed"),
        ("cpu", True, "32-true"),
        ("auto", False, "32-true"),
    ],
)
def test_auto_precision_is_of_the_device_that_trains(monkeypatch, accelerator, has_gpu, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert resolve_precision(TrainerSettings(accelerator=accelerator)) == expected
    assert resolve_precision(TrainerSettings(accelerator=accelerator, precision="16-mixed")) == "16-mixed"


def test_a_stage_whose_data_are_over_before_max_steps_says_so(stages, tmp_path):
    class Notes(Reporter):
        def write_note(self, text):
            notes.append(text)

    for epochs, told in ((1, True), (50, False)):
        notes = []
        config = make_config(50)
        config.pretrain.epochs, config.pretrain.max_steps = epochs, 3
        config.pretrain.batch_size = len(stages.roles.load_role_files()[0])
        out = tmp_path / str(epochs)
        out.mkdir()
        stages.pretrain(config, {}, out, Notes())
        assert ("max_steps=3: the data are over after step 1 (epochs=1)" in notes) == told, notes
