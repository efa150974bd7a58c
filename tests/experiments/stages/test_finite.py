"""Nothing that is not finite is kept: what ends a stage, in which step, and what stays behind."""

import functools
import json
import re

import pytest
import torch
from factories import make_model
from lightning.pytorch.callbacks import Callback
from safetensors.torch import load_file, save_file
from small_runs import align, make_config, run, write_backbones, write_data
from torch import nn

from compressors.sap import SpatialAttentionPooling
from experiments.runtime.progress import Reporter
from experiments.stages import evaluate
from experiments.stages import train as training
from experiments.stages.finite import FiniteWatch, find_not_finite
from experiments.stages.training.checkpoints import find_checkpoint_fault
from experiments.stages.training.fit import fit_module
from experiments.store.store import NotFinite
from experiments.sweep import __main__ as sweep

INFINITY = float("inf")
TOO_FAST = 1e20


@pytest.fixture
def folder(tmp_path):
    write_backbones(tmp_path)
    write_data(tmp_path, 16, frozenset({3, 7}))
    return tmp_path


def kept(out) -> list[str]:
    return [path.name for path in out.rglob("*") if path.suffix in (".safetensors", ".pt", ".jsonl")]


def test_a_watch_tells_the_first_step_and_its_cause():
    watch = FiniteWatch()
    watch.check()  # nothing was noted
    for watch.step in (1, 2, 3, 4):
        watch.note("output", torch.tensor([1.0, float("nan") if watch.step == 3 else 0.0]))
        watch.note("loss", torch.tensor(-INFINITY if watch.step == 3 else 1.0, dtype=torch.float16))
        watch.note("norm", torch.tensor(INFINITY if watch.step > 3 else 1.0))
    assert watch.find_first() == ("output", 3)
    with pytest.raises(NotFinite, match="^step 3: the output is not finite$"):
        watch.check()


@pytest.mark.parametrize("value", [float("nan"), INFINITY, -INFINITY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_weight_of_many_is_found(value, dtype):
    tensors = {"count": torch.tensor(3), "empty": torch.empty(0), "fine": torch.ones(3)}
    tensors["bad"] = torch.full((50, 70), torch.finfo(dtype).max, dtype=dtype)
    assert find_not_finite(tensors) is None
    tensors["bad"][17, 5] = value
    assert find_not_finite(tensors) == "bad"
    # a mask of a part's own
    assert (find_not_finite(tensors, {"bad"}) is None) == (value == -INFINITY)


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_run_that_diverges_keeps_nothing(folder, stage, clip):
    config = make_config(folder)
    optimisation = getattr(config, stage)
    optimisation.lr, optimisation.warmup, optimisation.max_steps, optimisation.clip = TOO_FAST, 0, 4, clip
    with pytest.raises(NotFinite, match=rf"^step 2: the .* is not finite; lower {stage}.lr=1e\+20, or "):
        run(stage, config, align(config, folder), folder / "out")
    assert not kept(folder / "out")


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_of_several_processes_the_line_comes_out(folder, strategy):
    config = make_config(folder, devices="2", strategy=strategy)
    config.pretrain.lr, config.pretrain.warmup, config.pretrain.max_steps = TOO_FAST, 0, 12
    with pytest.raises(NotFinite, match=r"^step 2: the .* is not finite; lower pretrain.lr=1e\+20"):
        run("pretrain", config, {}, folder / "out")
    assert not kept(folder / "out")


def test_half_precision_without_a_scaler(folder):
    """Its largest number is 65504."""
    config = make_config(folder, precision="16-true")
    config.finetune.lr, config.finetune.warmup = 1e5, 0
    with pytest.raises(NotFinite, match="is not finite; .*trainer.precision=bf16-mixed instead of 16-true"):
        run("finetune", config, align(config, folder), folder / "out")
    assert not kept(folder / "out")


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
@pytest.mark.parametrize("value", [float("nan"), INFINITY])
def test_a_compressor_that_returns_no_number(folder, monkeypatch, stage, value):
    forward = SpatialAttentionPooling.forward
    monkeypatch.setattr(
        SpatialAttentionPooling, "forward", lambda self, *inputs: forward(self, *inputs).clamp(value, value)
    )
    config = make_config(folder)
    with pytest.raises(
        NotFinite, match="^step 1: the output of compressor 'sap' is not finite; .*, or mend the"
    ):
        run(stage, config, align(config, folder), folder / "out")
    assert not kept(folder / "out")


def test_a_gradient_alone(folder, monkeypatch):
    """sqrt at 0: the loss is as it should be, and its gradient is not."""
    forward = SpatialAttentionPooling.forward

    def forward_with_sqrt(self, *inputs):
        output = forward(self, *inputs)
        return output + (output - output.detach()).sqrt()

    monkeypatch.setattr(SpatialAttentionPooling, "forward", forward_with_sqrt)
    config = make_config(folder)
    with pytest.raises(NotFinite, match="^step 1: the gradient norm is not finite"):
        run("pretrain", config, {}, folder / "out")


class Scaled(Callback):
    """fp16 that begins with a scale of its own; on the CPU, where Lightning takes bf16 for it."""

    def __init__(self, scale: float):
        self.scale, self.skipped = scale, 0

    def setup(self, trainer, module, stage):  # noqa: ARG002
        trainer.precision_plugin.precision = "16-mixed"
        trainer.precision_plugin.scaler = torch.amp.GradScaler("cpu", init_scale=self.scale)

    def on_train_end(self, trainer, module):  # noqa: ARG002
        self.skipped = trainer.precision_plugin.scaler.get_scale() < self.scale


@pytest.mark.parametrize(("scale", "fails"), [(2.0**126, False), (2.0**-2, True)])
def test_steps_that_a_scaler_skips_are_not_meant(folder, scale, fails):
    config = make_config(folder, precision="16-mixed")
    config.pretrain.max_steps = 20
    config.pretrain.epochs = 20
    model, processor = training.prepare_model(config, "pretrain", {})
    training.unfreeze_stage_parts(config, "pretrain", model)
    module = training.make_module(config, "pretrain", model, processor, {})
    scaled = Scaled(scale)
    if fails:
        with pytest.raises(NotFinite, match="^step 10: fp16 gradients overflow at any scale$"):
            fit_module(config, module, folder, Reporter(), callbacks=[scaled])
    else:
        fit_module(config, module, folder, Reporter(), callbacks=[scaled])
        assert scaled.skipped


def test_a_diverged_run_that_is_begun_again_says_from_where(folder):
    config = make_config(folder, checkpoint_every=1)
    config.finetune.lr, config.finetune.warmup, config.finetune.max_steps = TOO_FAST, 0, 4
    inputs = align(config, folder)
    with pytest.raises(NotFinite) as first:
        run("finetune", config, inputs, folder / "out")
    checkpoint = folder / "out/checkpoints/last.ckpt"
    # the one before it diverged
    assert find_checkpoint_fault(checkpoint) is None and str(checkpoint) not in str(first.value)
    with pytest.raises(NotFinite, match=f"went on from {checkpoint}, delete it"):
        run("finetune", config, inputs, folder / "out")
    assert not kept(folder / "out")


def test_aligned_weights_of_an_older_version(folder):
    config = make_config(folder)
    inputs = align(config, folder)
    state = load_file(folder / training.ALIGNED_FILE)
    next(iter(state.values())).fill_(float("nan"))
    save_file(state, folder / training.ALIGNED_FILE)
    with pytest.raises(NotFinite, match=f"is not finite; delete {folder} to train stage 1 again"):
        run("finetune", config, inputs, folder / "out")


@pytest.mark.parametrize("bad", ["weights", "compressor"])
def test_an_evaluation(folder, monkeypatch, bad):
    config = make_config(folder)
    config.data.test, config.evaluate.max_new_tokens, config.evaluate.batch_size = config.data.train, 3, 4
    model, processor = training.build_model(config)
    if bad == "weights":
        nn.init.constant_(model.get_output_embeddings().weight, INFINITY)
    for part in (model, processor):
        part.save_pretrained(folder / training.MODEL_FOLDER)
    if bad == "compressor":
        forward = SpatialAttentionPooling.forward
        monkeypatch.setattr(
            SpatialAttentionPooling, "forward", lambda self, *inputs: forward(self, *inputs) * float("nan")
        )
    with pytest.raises(NotFinite, match=r"the (best logit|output of compressor 'sap') is not finite in 4 q"):
        evaluate.run(config, {"finetune": folder}, folder, Reporter())
    assert not (folder / "metrics.json").exists() and not (folder / "predictions.jsonl").exists()


def test_a_part_that_is_trained_may_have_a_mask_of_its_own(folder, monkeypatch):
    initialise = SpatialAttentionPooling.__init__

    @functools.wraps(initialise)
    def add_mask(self, *arguments, **knobs):
        initialise(self, *arguments, **knobs)
        self.register_buffer("mask", torch.tensor([0.0, -INFINITY]))

    monkeypatch.setattr(SpatialAttentionPooling, "__init__", add_mask)
    assert "compressor.mask" in make_model("phi", "sap", None).state_dict()
    config = make_config(folder, checkpoint_every=2)
    run("pretrain", config, {}, folder / "out")


@pytest.mark.slow
def test_a_shared_stage_that_diverges_leaves_the_other_cells_alone(tmp_path, capfd):
    """Blind cells have no stage 1: theirs is the only row."""
    small = ["data.scale=0.005", "evaluate.limit=8", "trainer.accelerator=cpu", "finetune.max_steps=2"]
    small += ["pretrain.epochs=12", "pretrain.max_steps=12", "pretrain.batch_size=4", "pretrain.warmup=0"]
    words = [f"out={tmp_path}", "compressor=sap,sap+embq", *small]
    assert sweep.main([*words, f"pretrain.lr={TOO_FAST}"]) == 1
    output = capfd.readouterr().out
    for cell in ("sap", "sap+embq"):
        assert f"failed: {cell} seed=0: pretrain/" in output
    assert re.search(r": step 2: the .* is not finite; lower pretrain.lr=1e\+20, or lower pretrain", output)
    assert "Traceback" not in output
    labels = [line.split(",")[1] for line in (tmp_path / "table.csv").read_text().splitlines()[1:]]
    assert labels == ["chance", "blind"], labels
    done = [json.loads(path.read_text())["stage"] for path in tmp_path.glob("*/*/done.json")]
    assert done.count("pretrain") == 0 and done.count("finetune") == done.count("evaluate") == 1
