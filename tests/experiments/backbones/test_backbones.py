"""The tiny backbones: the tokenizer, what they are trained on, resuming, and the weights that ship."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoImageProcessor, AutoTokenizer, PhiForCausalLM, SiglipVisionModel

from connectors.versions import is_at_least
from experiments.backbones.tiny import lm_examples, pretrain_lm, pretrain_tower, training
from experiments.backbones.tiny.dense_labels import (
    CHARACTER_CLASSES,
    OBJECT_CLASSES,
    TARGET_SIZES,
    label_patches,
    sample_crowded_scene,
)
from experiments.backbones.tiny.lm_scores import check_answers, embed_positions, score_lm
from experiments.backbones.tiny.slots import make_grid_slots, make_loose_slots
from experiments.backbones.tiny.tokenizer import build_tokenizer, build_vocabulary, save_tokenizer
from experiments.backbones.tiny.training import PretrainingPlan
from experiments.picture_vqa.captions import CAPTION_INSTRUCTIONS, describe_scene
from experiments.picture_vqa.dataset import make_scene
from experiments.picture_vqa.drawing import draw_scene

TINY = Path(pretrain_lm.__file__).parents[2] / "assets" / "tiny"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def language_model() -> PhiForCausalLM:
    return PhiForCausalLM.from_pretrained(TINY / "llm", dtype=torch.float32).eval()


def texts(split: str, scenes: int) -> list[str]:
    found = list(CAPTION_INSTRUCTIONS)
    for index in range(scenes):
        scene, turns = make_scene(split, index)
        found += [describe_scene(scene), *(t.question for t in turns), *(t.answer for t in turns)]
    return found


def test_tokenizer_gives_back_every_text_of_the_benchmark_in_whole_words(tokenizer):
    for text in texts("train", 200) + texts("test_style", 50):
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids) == text
        assert len(ids) == len(text.split()) and tokenizer.unk_token_id not in ids


def test_tokenizer_reads_the_conversation_format(tokenizer):
    ids = tokenizer("USER: <image>\nWhat is THIS? ASSISTANT: s t o p<query></s>").input_ids
    words = "user : <image> what is this ? assistant : s t o p <query> </s>"
    assert tokenizer.convert_ids_to_tokens(ids) == words.split()
    assert tokenizer.decode(tokenizer("Zebra").input_ids) == "zebra"  # an unknown word is spelled
    assert tokenizer.pad_token_id == 0 and tokenizer.eos_token == "</s>"


def test_shipped_tokenizer_is_the_one_that_the_code_builds():
    shipped = AutoTokenizer.from_pretrained(TINY / "llm")
    assert shipped.get_vocab() == build_tokenizer().get_vocab()
    assert len(shipped) == len(build_vocabulary()) == len(set(build_vocabulary()))


def test_training_text_is_what_the_tokenizer_makes_of_the_conversation(tokenizer):
    scene, turns = make_scene("train", 0)
    example = lm_examples.build_conversation(scene, turns[:2], "prose", random.Random(0), caption=False)
    text = f"USER: {describe_scene(scene)}\n{turns[0].question} ASSISTANT: {turns[0].answer}</s>"
    text += f"USER: {turns[1].question} ASSISTANT: {turns[1].answer}</s>"
    assert [ids[0] for ids in example.ids] == tokenizer(text).input_ids
    learnt = [ids[0] for ids, weight in zip(example.ids, example.weights, strict=True) if weight == 1]
    assert tokenizer.decode(learnt) == f"{turns[0].answer} </s> {turns[1].answer} </s>"


def test_slots_say_what_stands_where():
    scene, _ = make_scene("train", 1)
    expected = {" ".join(slot.words) for slot in make_loose_slots(scene, random.Random(0)) if slot.words}
    assert len(expected) == len(scene.objects) + sum(len(sign.text) for sign in scene.signs)
    grid = make_grid_slots(scene, random.Random(0))
    assert len(grid) == 144
    for item in scene.objects:
        column, row = int(item.x // 14), int(item.y // 14)
        words = f"{item.name} x{column} y{row}"
        assert words in expected and " ".join(grid[12 * row + column].words) == words


def test_dense_labels_are_under_the_things_they_name():
    scene = sample_crowded_scene(random.Random(3))
    labels = dict(zip(TARGET_SIZES, label_patches(scene).transpose(2, 0, 1), strict=True))
    for item in scene.objects:
        cell = int(item.y // 14), int(item.x // 14)
        assert OBJECT_CLASSES[labels["object"][cell]] == item.name and labels["role"][cell] == 1
    for sign in scene.signs:
        read = [CHARACTER_CLASSES[labels["character"][int(y // 14), int(x // 14)]] for x, y in sign.centres()]
        assert "".join(read) == sign.text
    assert (labels["object"] > 0).sum() > 3 * len(scene.objects)


def test_sum_of_words_is_the_embedding_of_a_slot():
    model = pretrain_lm.build_lm()
    table = model.get_input_embeddings().weight
    ids, scales = torch.tensor([[[7, 9, 0, 0], [0, 0, 0, 0]]]), torch.tensor([[0.5, 1.0]])
    torch.testing.assert_close(embed_positions(model, ids, scales)[0, 0], 0.5 * (table[7] + table[9]))
    assert embed_positions(model, ids, scales)[0, 1].abs().max() == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "train", "measure"),
    [(pretrain_lm, "train_lm", "score_lm"), (pretrain_tower, "train_tower", "probe_tower")],
)
def test_resumed_pretraining_equals_uninterrupted(module, train, measure, tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain_lm, "CONVERSATIONS_PER_ROUND", 2)
    monkeypatch.setattr(pretrain_tower, "SCENES_PER_BATCH", 2)
    monkeypatch.setattr(module, measure, lambda *_, **__: {"all": {"all": 0.0}})
    train_model = getattr(module, train)
    plan = PretrainingPlan(tmp_path / "whole", steps=3, lr=1e-3, every=1)
    train_model(plan)
    parts = replace(plan, to=tmp_path / "parts", state=tmp_path / "state")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "save_state", then_stop(training.save_state, after=2))
        train_model(parts)
    train_model(parts)
    assert torch.load(parts.state, weights_only=True)["step"] == 3
    whole, resumed = (
        (plan.to / file).read_bytes() for plan in (plan, parts) for file in ["model.safetensors"]
    )
    assert whole == resumed


@pytest.mark.parametrize("module", [pretrain_lm, pretrain_tower])
def test_pretraining_answers_old_flags_and_bad_input_in_one_line(module, capsys):
    for arguments, answer in (
        (["--out", "tower"], "write to=tower"),
        (["--steps=5"], "write steps=5"),
        ([], "to= is missing"),
        (["to=tower", "steps=0"], "steps=0: must be at least 1"),
        (["to=tower", "lr=0"], "must be more than 0"),
    ):
        assert module.main(arguments) == 2
        error = capsys.readouterr().err
        assert answer in error and error.startswith("error: ") and error.count("\n") == 1
    assert module.main(["--help"]) == 0
    assert f"steps={module.COMMAND.options.steps}" in capsys.readouterr().out


def then_stop(save, after: int):
    def save_and_stop(plan, step, *rest):
        save(plan, step, *rest)
        if step == after:
            raise KeyboardInterrupt

    return save_and_stop


def test_saving_replaces_a_folder_whole(tmp_path):
    model = pretrain_lm.build_lm()
    for text in ("first", "second"):
        training.save_model(model, tmp_path / "model", {"note": text})
    assert (tmp_path / "model" / "note").read_text() == "second"
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    loaded = PhiForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    weights = model.state_dict()
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, weights[name].half().float())


# --- the weights that ship


@pytest.mark.skipif(
    not is_at_least("5.6"), reason="saved with the names of transformers 5.6; load_tower knows"
)
def test_shipped_tower_loads_with_its_processor_and_sees_what_is_where():
    """Ridge regression on a hundred scenes' features names the objects under patches of fifty others."""
    tower = SiglipVisionModel.from_pretrained(TINY / "tower", dtype=torch.float32).eval()
    processor = AutoImageProcessor.from_pretrained(TINY / "tower")
    batch = pretrain_tower.stack_scenes([make_scene("tune", index)[0] for index in range(150)])
    pixels = pretrain_tower.to_pixels(batch["images"])
    first = processor(images=draw_scene(make_scene("tune", 0)[0]), return_tensors="pt").pixel_values
    torch.testing.assert_close(first, pixels[:1], atol=1e-5, rtol=0)
    with torch.inference_mode():
        features = tower(pixels, output_hidden_states=True).hidden_states[-1]
    assert features.shape == (150, 144, 128)
    features = torch.nn.functional.layer_norm(features, (128,))
    labels = batch["labels"][..., 0]  # (150, 144)
    train, test = (slice(0, 100), slice(100, 150))
    weights = ridge(features[train][labels[train] > 0], labels[train][labels[train] > 0], len(OBJECT_CLASSES))
    guesses = (features[test][labels[test] > 0] @ weights).argmax(-1)
    assert (guesses == labels[test][labels[test] > 0]).float().mean() > 0.5


def ridge(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """(n, c), (n,) -> (c, classes)."""
    targets = torch.nn.functional.one_hot(labels, classes).float()
    gram = features.T @ features + torch.eye(features.shape[1])
    return torch.linalg.solve(gram, features.T @ targets)


def test_shipped_language_model_answers_questions_about_described_scenes(language_model):
    for style in ("prose", "slots"):
        found = score_lm(language_model, style, scenes=25)
        assert found["all"]["all"] > 0.85, found
        assert min(found["family"].values()) > 0.65, found


def test_teacher_forced_score_is_what_generate_says(language_model, tokenizer):
    scene, turns = make_scene("test", 3)
    for turn in turns:
        prompt = f"USER: {describe_scene(scene)}\n{turn.question} ASSISTANT:"
        inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        output = language_model.generate(**inputs, max_new_tokens=6, do_sample=False)
        said = tokenizer.decode(output[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
        example = lm_examples.build_conversation(scene, [turn], "prose", random.Random(0), caption=False)
        assert check_answers(language_model, [example]) == [said == turn.answer]


def test_assets_are_small_and_half_precision():
    files = [file for file in TINY.parent.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 20e6
    for name in ("tower", "llm"):
        with safe_open(TINY / name / "model.safetensors", "pt") as weights:
            assert {weights.get_tensor(key).dtype for key in weights.keys()} == {torch.float16}  # noqa: SIM118
