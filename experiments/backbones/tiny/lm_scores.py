"""How well a language model answers questions about described scenes, one question at a time."""

import random
from collections import defaultdict

import torch
from torch import Tensor
from transformers import PreTrainedModel

from experiments.backbones.tiny.lm_examples import TextExample, build_conversation, collate_examples
from experiments.picture_vqa.dataset import make_scene

ScoreTable = dict[str, dict[str, float]]  # "family", "kind", "objects" or "all" -> group -> accuracy


def embed_positions(model: PreTrainedModel, ids: Tensor, scales: Tensor) -> Tensor:
    """(B, T, SLOT_WIDTH) ids -> (B, T, D): the sum over a position's tokens, times its scale.

    Id 0 (`<pad>`) adds nothing.
    """
    vectors = model.get_input_embeddings()(ids) * (ids > 0).unsqueeze(-1)  # (B, T, SLOT_WIDTH, D)
    return vectors.sum(-2) * scales.unsqueeze(-1)


@torch.inference_mode()
def check_answers(model: PreTrainedModel, examples: list[TextExample]) -> list[bool]:
    """Whether greedy decoding gives each example's answer: every token of it is the most likely one."""
    arrays = collate_examples(examples)
    ids = torch.from_numpy(arrays["ids"])
    answer_mask = torch.from_numpy(arrays["weights"]) == 1  # (B, T)
    inputs = embed_positions(model, ids, torch.from_numpy(arrays["scales"]))
    hidden = model.get_decoder()(inputs_embeds=inputs).last_hidden_state
    guesses = model.get_output_embeddings()(hidden[:, :-1]).argmax(-1)  # (B, T - 1)
    wrong = (guesses != ids[:, 1:, 0]) & answer_mask[:, 1:]
    return [not row.any() for row in wrong]


def score_lm(model: PreTrainedModel, style: str, scenes: int) -> ScoreTable:
    """Exact-match accuracy by family, by kind and by number of objects, on unseen described scenes.

    `style` is how scenes are described, one of `lm_examples.STYLE_SHARES`.
    """
    verdicts: dict[str, dict[str, list[bool]]] = {
        "family": defaultdict(list),
        "kind": defaultdict(list),
        "objects": defaultdict(list),
    }
    all_verdicts: list[bool] = []
    rng = random.Random(style)
    model_was_training = model.training
    model.eval()
    for index in range(scenes):
        scene, turns = make_scene("tune", index)
        # a question each: in one conversation an answer could be copied from another
        examples = [build_conversation(scene, [turn], style, rng, caption=False) for turn in turns]
        for turn, right in zip(turns, check_answers(model, examples), strict=True):
            verdicts["family"][turn.family].append(right)
            verdicts["kind"][f"{turn.family}: {turn.kind}"].append(right)
            verdicts["objects"][str(len(scene.objects))].append(right)
            all_verdicts.append(right)
    model.train(model_was_training)
    verdicts["all"] = {"all": all_verdicts}
    return {key: _average_groups(groups) for key, groups in verdicts.items()}


def _average_groups(groups: dict[str, list[bool]]) -> dict[str, float]:
    """The share of right answers in each group, by name."""
    return {name: round(sum(group) / len(group), 4) for name, group in sorted(groups.items())}
