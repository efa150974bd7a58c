"""Frozen parts in half their memory, what a process of FSDP2 gathers, and activations by stage."""

import pytest
import torch
import torch.distributed as dist
from factories import make_batch, make_model, make_processor, picture
from small_runs import Losses, align, make_config, run, write_backbones, write_data
from torch.distributed.device_mesh import init_device_mesh

from compressors.errors import UsageError
from experiments.runtime.progress import Reporter
from experiments.stages import train as training
from experiments.stages.checks import check_training_needs
from experiments.stages.training import fit
from experiments.stages.training.strategies import make_precision_policy, shard_model
from llm_adapters.adapter import decoder_layers
from llm_adapters.conversation import IMAGE, Turn


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    write_backbones(folder)
    write_data(folder, 12)
    return folder


class Spy:
    """What the parameters of a stage are while it trains."""

    def __init__(self, monkeypatch):
        self.dtypes: dict[str, torch.dtype] = {}
        self.bytes = 0
        self.checkpointing = None
        original = fit.StepProgress.on_train_batch_end

        def look(callback, trainer, module, *rest):
            for name, parameter in module.model.named_parameters():
                self.dtypes[name] = parameter.dtype
            self.bytes = sum(p.numel() * p.element_size() for p in module.model.parameters())
            layers = decoder_layers(module.model.language_model)
            self.checkpointing = any(layer.gradient_checkpointing for layer in layers)
            original(callback, trainer, module, *rest)

        monkeypatch.setattr(fit.StepProgress, "on_train_batch_end", look)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("devices", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_frozen_parts_are_small_and_come_back_whole(folder, tmp_path, monkeypatch, stage, devices):
    settings = {"precision": "bf16-mixed", "devices": devices, "strategy": "ddp"}
    spy, losses, saved, sizes = Spy(monkeypatch), [], [], []
    for number, frozen in enumerate(("float32", "bfloat16")):
        config = make_config(folder, frozen=frozen, **settings)
        config.pretrain.max_steps = config.finetune.max_steps = 10
        config.pretrain.epochs = config.finetune.epochs = 10
        (tmp_path / str(number)).mkdir()
        inputs = align(config, folder) if stage == "finetune" else {}
        report = Losses()
        saved.append(run(stage, config, inputs, tmp_path / str(number) / "out", report))
        losses.append(report.losses[-1])
        sizes.append(spy.bytes)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert {value.dtype for value in saved[1].values()} == {torch.float32}
    tower = [name for name in saved[0] if name.startswith("vision_tower")]
    assert all(torch.equal(saved[0][name], saved[1][name]) for name in tower)  # it has waited, unrounded
    if devices == "1":
        frozen_types = {"vision_tower": torch.bfloat16, "compressor": torch.float32}
        frozen_types["language_model"] = torch.bfloat16 if stage == "pretrain" else torch.float32
        for name, dtype in spy.dtypes.items():
            assert dtype == frozen_types.get(name.split(".")[0], dtype), name
        assert sizes[1] < sizes[0]


def test_what_makes_no_sense_is_refused(folder):
    for settings, wrong in (
        ({"precision": "32"}, "needs trainer.precision=bf16-mixed, not 32"),
        ({"precision": "auto", "accelerator": "cpu"}, "trainer.accelerator=cpu trains in float32"),
        ({"precision": "bf16-mixed", "strategy": "fsdp"}, "shards frozen weights already"),
    ):
        with pytest.raises(UsageError, match=f"^trainer.frozen=bfloat16: .*{wrong}"):
            check_training_needs(make_config(folder, frozen="bfloat16", **settings))


def test_activations_are_computed_again_in_the_stage_that_says_so(folder, tmp_path, monkeypatch):
    spy = Spy(monkeypatch)
    config = make_config(folder)
    config.finetune.checkpointing = True
    for stage in ("pretrain", "finetune"):
        inputs = align(config, folder) if stage == "finetune" else {}
        run(stage, config, inputs, tmp_path / stage)
        assert spy.checkpointing == (stage == "finetune")
    config.trainer.gradient_checkpointing = True
    config.finetune.checkpointing = False
    run("finetune", config, align(config, folder), tmp_path / "off", Reporter())
    assert spy.checkpointing is False


def test_fsdp_chooses_patches_by_unrounded_scores(tmp_path):
    model = make_model("llama", "visionzip", None)
    batch = make_batch(make_processor(model), [([Turn(f"{IMAGE}\nWhat is this?", "A dog.")], [picture()])])
    with torch.no_grad():
        features = model.get_image_features(batch.pop("pixel_values")).half()  # as the cache has them
    given = []
    model.compressor.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        shard_model(model, init_device_mesh("cpu", (1,)), make_precision_policy("bf16-mixed"))
        with torch.autocast("cpu", torch.bfloat16):
            model(**batch, vision_features=features).loss.backward()
    finally:
        dist.destroy_process_group()
    assert torch.equal(given[0], features[0].float())


@pytest.mark.slow
def test_fsdp_gathers_in_bfloat16_and_trains_alike(folder, tmp_path):
    assert make_precision_policy("bf16-mixed").param_dtype is torch.bfloat16
    assert make_precision_policy("bf16-mixed").reduce_dtype is torch.float32
    assert make_precision_policy("32-true").param_dtype is None
    losses = []
    for strategy in ("ddp", "fsdp"):
        config = make_config(folder, strategy=strategy, devices="2", precision="bf16-mixed")
        config.finetune.max_steps = config.finetune.epochs = 10
        report = Losses()
        weights = run("finetune", config, align(config, folder), tmp_path / strategy, report)
        assert {value.dtype for value in weights.values()} == {torch.float32}
        losses.append(report.losses[-1])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert training.TRAINED_FILE not in {path.name for path in (tmp_path / "fsdp").iterdir()}
