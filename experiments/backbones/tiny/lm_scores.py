"""How well a language model answers questions about described scenes, one question at a time."""

import random
from collections import defaultdict

import torch
from transformers import PreTrainedModel

from experiments.backbones.tiny.lm_examples import TextExample, build_conversation, collate_examples
from experiments.picture_vqa.dataset import make_scene

ScoreTable = dict[str, dict[str, float]]


def embed_positions(model: PreTrainedModel, ids: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """(B, T, WIDTH) ids -> (B, T, D): the sum over a position's tokens; id 0 (`<pad>`) adds nothing."""
    vectors = model.get_input_embeddings()(ids) * (ids > 0).unsqueeze(-1)
    return vectors.sum(-2) * scales.unsqueeze(-1)


@torch.inference_mode()
def check_answers(model: PreTrainedModel, examples: list[TextExample]) -> list[bool]:
    """Whether greedy decoding gives each example's answer: every token of it is the most likely one."""
    batch = {name: torch.from_numpy(array) for name, array in collate_examples(examples).items()}
    hidden = model.get_decoder()(
        inputs_embeds=embed_positions(model, batch["ids"], batch["scales"])
    ).last_hidden_state
    guesses = model.get_output_embeddings()(hidden[:, :-1]).argmax(-1)  # (B, T - 1)
    wrong = (guesses != batch["ids"][:, 1:, 0]) & (batch["weights"][:, 1:] == 1)
    return [not row.any() for row in wrong]


def scores(model: PreTrainedModel, style: str, scenes: int = 150, split: str = "tune") -> ScoreTable:
    """Exact-match accuracy by family, by kind and by number of objects, on unseen described scenes."""
    hits: dict[str, dict[str, list[bool]]] = {key: defaultdict(list) for key in ("family", "kind", "objects")}
    rng, model_was_training = random.Random(style), model.training
    model.eval()
    for index in range(scenes):
        scene, turns = make_scene(split, index)
        examples = [build_conversation(scene, [turn], style, rng, caption=False) for turn in turns]
        for turn, right in zip(turns, check_answers(model, examples), strict=True):
            hits["family"][turn.family].append(right)
            hits["kind"][f"{turn.family}: {turn.kind}"].append(right)
            hits["objects"][str(len(scene.objects))].append(right)
    model.train(model_was_training)
    hits["all"] = {"all": [right for rights in hits["family"].values() for right in rights]}
    return {
        by: {k: round(sum(v) / len(v), 4) for k, v in sorted(groups.items())} for by, groups in hits.items()
    }
