"""Query warm-up: in which steps and where visual tokens are hidden, and what a blank query module loses."""

import json

import pytest
import small_runs
import torch
from factories import make_batch, make_model, make_processor, picture

from experiments.config.schema import Config
from experiments.config.schema_sections import FinetuneSettings
from experiments.data.llava import load_samples, split_questions
from experiments.data.loader import SampleImages
from experiments.runtime.progress import Reporter
from experiments.stages import evaluate, train
from experiments.stages.training.fit import fit_module
from experiments.stages.training.query_warmup import QueryWarmup, make_query_warmup
from llm_adapters.conversation import IMAGE, Turn
from llm_adapters.modeling import FlashSlothForConditionalGeneration


def warmup(share: float, steps: int, form: str = "step", accumulate: int = 1, seed: int = 0) -> QueryWarmup:
    settings = FinetuneSettings(query_warmup=share, query_warmup_form=form, accumulate=accumulate)
    found = make_query_warmup(settings, steps, seed)
    assert found is not None
    return found


def test_none_is_made_where_none_is_set():
    assert make_query_warmup(FinetuneSettings(), 100, 0) is None
    assert make_query_warmup(FinetuneSettings(query_warmup_form="fade"), 100, 0) is None


@pytest.mark.parametrize(
    ("share", "steps", "hidden"),
    [
        (0.1, 100, 10),
        (0.07, 100, 7),  # 7.000000000000001 in floating point
        (0.29, 100, 29),  # 28.999999999999996
        (0.15, 30, 4),  # 4.5, to the even number
        (0.001, 100, 1),  # one step at least
        (0.99, 20, 19),  # and never all of them
        (0.5, 2, 1),
        (0.5, 1, 0),
    ],
)
def test_how_many_steps_are_without_visual_tokens(share, steps, hidden):
    found = warmup(share, steps)
    assert found.steps == hidden
    shown = [not found.draw_hidden(4, 9, step).any() for step in range(steps)]
    assert shown == [step >= hidden for step in range(steps)]
    for step in range(hidden):
        assert found.draw_hidden(4, 9, step).all()


def test_the_pieces_of_a_step_are_in_the_same_step():
    found = warmup(0.5, 4, accumulate=3)
    assert [found.draw_hidden(2, 9, number).tolist() for number in range(12)] == [
        *[[True, True]] * 6,
        *[[False, False]] * 6,
    ]


def test_fading_falls_from_all_rows_to_none():
    found = warmup(0.5, 8, "fade")
    assert [found.find_probability(step) for step in range(8)] == [1, 0.75, 0.5, 0.25, 0, 0, 0, 0]
    many = 20_000
    for step in range(8):
        share = found.draw_hidden(many, 9, step).double().mean().item()
        assert share == pytest.approx(found.find_probability(step), abs=0.02)
    assert found.draw_hidden(many, 9, 0).all() and not found.draw_hidden(many, 9, 4).any()


def test_a_thin_warmup_leaves_a_quarter_of_the_tokens():
    found = warmup(0.5, 8, "thin")
    draws = [found.draw_hidden(400, 60, step) for step in range(8)]
    assert [draw.shape for draw in draws] == [(400, 60)] * 8
    for draw in draws[:4]:
        assert draw.double().mean().item() == pytest.approx(0.75, abs=0.02)
    assert not torch.equal(draws[0], draws[1])
    assert not any(draw.any() for draw in draws[4:])


def test_rows_differ_between_steps_seeds_and_processes_and_follow_from_them():
    found = warmup(0.5, 1000, "fade")
    draws = [
        found.draw_hidden(64, 9, 250),
        found.draw_hidden(64, 9, 251),
        found.draw_hidden(64, 9, 250, rank=1),
        warmup(0.5, 1000, "fade", seed=1).draw_hidden(64, 9, 250),
    ]
    assert len({str(draw.tolist()) for draw in draws}) == 4
    torch.manual_seed(7)
    state = torch.get_rng_state()
    assert torch.equal(warmup(0.5, 1000, "fade").draw_hidden(64, 9, 250), draws[0])
    assert torch.equal(torch.get_rng_state(), state)  # other draws of the step stay what they are


# ---- whole stages ----


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("warmup")
    small_runs.write_backbones(folder)
    small_runs.write_data(folder, 12, text_only=frozenset([3]))
    return folder


def make_config(folder, form: str = "step", share: float = 0.5, **trainer) -> Config:
    """Six steps of two pieces of two rows; hidden in the first three."""
    config = small_runs.make_config(folder, **trainer)
    for stage in (config.pretrain, config.finetune):
        stage.batch_size, stage.max_steps, stage.epochs = 4, 6, 6
    config.finetune.query_warmup, config.finetune.query_warmup_form = share, form
    return config


@pytest.fixture
def hidden(monkeypatch):
    """What every forward is told of hidden rows."""
    told = []
    forward = FlashSlothForConditionalGeneration.forward

    def remember(self, *args, hidden_visual=None, **kwargs):
        told.append(None if hidden_visual is None else hidden_visual.tolist())
        return forward(self, *args, hidden_visual=hidden_visual, **kwargs)

    monkeypatch.setattr(FlashSlothForConditionalGeneration, "forward", remember)
    return told


def same_weights(one, other) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def test_stage_2_hides_and_stage_1_does_not(folder, tmp_path, hidden):
    config = make_config(folder)
    small_runs.run("finetune", config, small_runs.align(config, tmp_path), tmp_path / "two")
    assert hidden == [[True, True]] * 6 + [None] * 6
    hidden.clear()
    small_runs.run("pretrain", config, {}, tmp_path / "one")
    assert hidden == [None] * 12


def test_without_a_warmup_nothing_is_told(folder, tmp_path, hidden):
    config = make_config(folder, share=0.0)
    small_runs.run("finetune", config, small_runs.align(config, tmp_path), tmp_path / "two")
    assert hidden == [None] * 12


@pytest.mark.parametrize(("form", "die_at"), [("step", 2), ("fade", 5), ("thin", 2)])
def test_a_run_that_dies_hides_the_same(folder, tmp_path, hidden, form, die_at):
    config = make_config(folder, form, checkpoint_every=1)
    inputs = small_runs.align(config, tmp_path)
    undisturbed = small_runs.run("finetune", config, inputs, tmp_path / "whole")
    rows = list(hidden)
    assert len(rows) == 12 and rows[6:] == [None] * 6
    if form == "thin":
        assert 0 < torch.tensor(rows[0]).double().mean() < 1
    else:
        assert rows[:2] == [[True, True]] * 2
    hidden.clear()
    with pytest.raises(SystemExit):
        small_runs.run("finetune", config, inputs, tmp_path / "killed", small_runs.Losses(die_at))
    assert hidden == rows[: 2 * die_at]
    resumed = small_runs.run("finetune", config, inputs, tmp_path / "killed")
    # it goes on with the step after its last checkpoint
    again = hidden[2 * die_at :]
    assert 0 < len(again) < 12 and again == rows[-len(again) :]
    assert same_weights(resumed, undisturbed)


@pytest.mark.parametrize("trainer", [{"gradient_checkpointing": True}, {"lora": True}])
def test_with_checkpointing_and_adapters(folder, tmp_path, hidden, trainer):
    config = make_config(folder)
    if trainer.pop("lora", False):
        pytest.importorskip("peft")
        config.lora.rank = 2
    for name, value in trainer.items():
        setattr(config.trainer, name, value)
    trained = small_runs.run("finetune", config, small_runs.align(config, tmp_path), tmp_path / "two")
    assert all(value.isfinite().all() for value in trained.values())
    assert hidden == [[True, True]] * 6 + [None] * 6


def test_compressor_and_projector_stand_still_while_all_rows_are_hidden(folder, tmp_path):
    """And the query module moves: it alone brings the images."""
    config = make_config(folder)
    inputs = small_runs.align(config, tmp_path)
    model, processor = train.prepare_model(config, "finetune", inputs)
    train.unfreeze_stage_parts(config, "finetune", model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    module = train.make_module(config, "finetune", model, processor, inputs)
    module.steps = 3  # the warm-up was made for six
    (tmp_path / "out").mkdir()
    fit_module(config, module, tmp_path / "out", Reporter())
    moved = {name.split(".")[0] for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {"query_module", "language_model"}


# ---- what the query module gives ----


def test_blank_queries_are_those_without_the_module():
    model = make_model("llama", "sap", "embq")
    processor = make_processor(model)
    batch = make_batch(processor, [([Turn(f"{IMAGE}\nWhat is this?")], [picture(i)]) for i in range(2)])
    del batch["labels"]
    usual = model(**batch).logits
    blank = model(**{**batch, "query_index": batch["query_index"][:, :0]}).logits
    assert not torch.allclose(usual, blank)
    model.query_module.register_forward_hook(lambda _, args, output: args[0])  # noqa: ARG005
    assert torch.equal(model(**batch).logits, blank)


def test_an_evaluation_with_blank_queries(folder, tmp_path):
    cell = small_runs.make_config(folder)
    cell.data.test, cell.evaluate.max_new_tokens = cell.data.train, 4
    model, processor = train.build_model(cell)
    for parameter in model.query_module.parameters():
        torch.nn.init.normal_(parameter.data, std=0.5)  # so that it says something
    (tmp_path / "finetune").mkdir()
    model.save_pretrained(tmp_path / "finetune" / train.MODEL_FOLDER)
    processor.save_pretrained(tmp_path / "finetune" / train.MODEL_FOLDER)
    answers = {}
    for blank in (False, True):
        cell.evaluate.blank_queries = blank
        out = tmp_path / str(blank)
        out.mkdir()
        evaluate.run(cell, {"finetune": tmp_path / "finetune"}, out, Reporter())
        rows = (out / evaluate.PREDICTIONS_FILE).read_text().splitlines()
        answers[blank] = [json.loads(row)["prediction"] for row in rows]
    assert answers[False] != answers[True]
    model.query_module.register_forward_hook(lambda _, args, output: args[0])  # noqa: ARG005
    images = SampleImages(processor)
    questions = split_questions(load_samples(folder / "data.json"))
    model.eval()
    said: list[str] = [""] * len(questions)
    for numbers in evaluate.batch_by_length(questions, images, cell.evaluate.batch_size):
        ids = evaluate.generate_answers(
            model, evaluate.encode_questions(images, [questions[i] for i in numbers]), 4
        )
        for number, text in zip(numbers, processor.tokenizer.batch_decode(ids, skip_special_tokens=True)):
            said[number] = text.strip()
    assert said == answers[True]
