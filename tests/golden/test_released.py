"""Parity with the released model, through the command that converts its checkpoints.

GOLDEN_RELEASED names other folders of vectors. Those here are slimmed: no pixels of rows without an image; of
`flashsloth_hd` row 0 alone, without its padding, so that its loss is that of the expected logits.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from llm_adapters.adapter import decoder_layers
from llm_adapters.conversation import IGNORE
from llm_adapters.modeling import FlashSlothForConditionalGeneration
from llm_adapters.processing import pad_rows
from llm_adapters.released.__main__ import main

HERE = Path(__file__).parent
NAMED = os.environ.get("GOLDEN_RELEASED")
FOLDERS = (
    [Path(name) for name in NAMED.split(os.pathsep)]
    if NAMED
    else [HERE / "flashsloth", HERE / "flashsloth_hd"]
)
OUTPUT, LOGITS = 2e-5, 1e-4  # tolerances
NEWLINE, WORDS = 1, 2  # tokens between image and question, and between an answer and the next question


@dataclass
class Golden:
    """A converted model, what the original read and gave, and the batch in our words."""

    model: FlashSlothForConditionalGeneration
    io: dict[str, Tensor]
    sizes: dict
    batch: dict[str, Tensor]
    hidden: dict[str, Tensor]  # before and after EmbQ, and the model's output


@pytest.fixture(scope="module", params=FOLDERS, ids=lambda folder: folder.name)
def golden(request, tmp_path_factory) -> Golden:
    out = tmp_path_factory.mktemp("released") / "model"
    assert main(["convert", str(request.param / "weights.safetensors"), str(out)]) == 0
    model = AutoModelForImageTextToText.from_pretrained(out).eval()
    io = load_file(request.param / "io.safetensors")
    sizes = json.loads((request.param / "config.json").read_text())
    batch = expand(io["input_ids"], io["attention_mask"], io["labels"], sizes, model)
    batch["pixel_values"] = pixels(io, len(batch["input_ids"]))
    return Golden(model, io, sizes, batch, run(model, batch))


def pixels(io: dict[str, Tensor], rows: int) -> Tensor:
    """(B, crops, 3, h, w), with zeros for rows whose images are not kept."""
    images = io["images"] if io["images"].ndim == 5 else io["images"].unsqueeze(1)
    return torch.cat([images, images.new_zeros(rows - len(images), *images.shape[1:])])


def expand(ids: Tensor, mask: Tensor, labels: Tensor, sizes: dict, model) -> dict[str, Tensor]:
    """Rows with one placeholder an image and a slot -> our inputs. Spans are where the README says."""
    names = ("ids", "labels", "turns")
    rows, image_turn = {name: [] for name in names}, []
    crops = sizes["prompt"]["hd_tiles"]
    lengths = {
        sizes["placeholders"]["image"]: model.num_image_tokens() * crops,
        sizes["placeholders"]["queries"]: model.num_queries,
    }
    ours = dict(zip(lengths, (model.config.image_token_id, model.config.query_token_id)))
    for line, real, wanted in zip(ids, mask.bool(), labels):
        line, wanted = line[real].tolist(), wanted[real].tolist()
        turns, row = spans(line, wanted, sizes), {name: [] for name in names}
        for token, label, turn in zip(line, wanted, turns):
            count = lengths.get(token, 1)
            row["ids"] += [ours.get(token, token)] * count
            row["labels"] += [label] * count
            row["turns"] += [turn] * count
        for name in names:
            rows[name].append(row[name])
        image_turn.append([int(sizes["placeholders"]["image"] in line)] * crops)
    return {
        "input_ids": pad_rows(rows["ids"], 0, False),
        "labels": pad_rows(rows["labels"], IGNORE, False),
        "attention_mask": pad_rows([[1] * len(row) for row in rows["ids"]], 0, False),
        "turns": pad_rows(rows["turns"], 0, False),
        "image_turn": torch.tensor(image_turn),
    }


def spans(line: list[int], labels: list[int], sizes: dict) -> list[int]:
    """The turn of each question, image and slot token, 0 elsewhere."""
    turns, start = [0] * len(line), sizes["prompt"]["prefix_tokens"]
    slots = [i for i, token in enumerate(line) if token == sizes["placeholders"]["queries"]]
    for turn, slot in enumerate(slots, 1):
        if turn > 1:
            start = WORDS + 1 + max(i for i in range(slot) if labels[i] != IGNORE)
        elif line[start] == sizes["placeholders"]["image"]:
            turns[start] = turn
            start += 1 + NEWLINE
        turns[start : slot + 1] = [turn] * (slot + 1 - start)
    return turns


@torch.no_grad()
def run(model: FlashSlothForConditionalGeneration, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """One forward pass, and the hidden states on both sides of EmbQ."""
    seen = {}
    (layer,) = model.query_module.at

    def before(_, given):
        seen["before"] = given[0]

    def after(_, given, named):
        seen["after"] = given[0] if given else named["hidden_states"]

    handles = [
        model.query_module.register_forward_pre_hook(before),
        decoder_layers(model.language_model)[layer - 1].register_forward_pre_hook(after, with_kwargs=True),
    ]
    seen |= model(**batch)
    for handle in handles:
        handle.remove()
    return seen


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max().item() <= tolerance


def test_sizes(golden):
    model, sizes = golden.model, golden.sizes
    assert model.config.text_config.hidden_size == sizes["llm"]["hidden_size"]
    assert model.vision_tower.depth == sizes["vision"]["kept_layers"]
    assert model.query_module.at == (sizes["embq"]["insert_before_layer_number"],)
    assert model.num_queries == sizes["embq"]["num_queries"]


@torch.no_grad()
def test_tower_sap_and_projector(golden):
    model, io = golden.model, golden.io
    features = model.get_image_features(golden.batch["pixel_values"]).flatten(0, 1)
    features = features[: len(io["vision_out"])]
    assert_close(features.flatten(1, 2), io["vision_out"], OUTPUT)
    pooled = model.compressor(features)
    assert_close(pooled, io["sap_out"], OUTPUT)
    assert_close(model.projector(pooled), io["projected"], OUTPUT)


def test_embq_for_each_slot(golden):
    ids, count = golden.batch["input_ids"], golden.model.num_queries
    slots = [
        (row, where)
        for row, line in enumerate(ids)
        for where in (line == golden.model.config.query_token_id).nonzero().flatten().split(count)
    ]
    assert len(slots) == len(golden.io["embq_out"])
    compared = 0
    for (row, where), expected in zip(slots, golden.io["embq_out"]):
        if golden.batch["image_turn"][row].any():
            assert_close(golden.hidden["after"][row, where], expected, OUTPUT)
            assert not torch.allclose(golden.hidden["before"][row, where], expected, atol=1e-2)
            compared += 1
    assert compared


def test_rows_without_an_image_pass_embq_unchanged(golden):
    blind = ~golden.batch["image_turn"].any(1)
    assert torch.equal(golden.hidden["after"][blind], golden.hidden["before"][blind])
    assert not torch.equal(golden.hidden["after"][~blind], golden.hidden["before"][~blind])


@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance"), [("after", "layer8_in", OUTPUT), ("logits", "logits", LOGITS)]
)
def test_hidden_states_and_logits(golden, ours, theirs, tolerance):
    real, expected = golden.batch["attention_mask"].bool(), golden.io[theirs]
    assert golden.hidden[ours].shape == expected.shape
    assert_close(golden.hidden[ours][real], expected[real], tolerance)


def test_loss(golden):
    expected = golden.io.get("loss")
    if expected is None:
        flat, labels = golden.io["logits"][:, :-1].flatten(0, 1), golden.batch["labels"][:, 1:].flatten()
        expected = torch.nn.functional.cross_entropy(flat, labels, ignore_index=IGNORE)
    assert_close(golden.hidden["loss"], expected.squeeze(), LOGITS)


@torch.no_grad()
def test_prefill_and_greedy_tokens(golden):
    ids = golden.io["generate_input_ids"]
    nothing = torch.full_like(ids, IGNORE)
    prompt = expand(ids, torch.ones_like(ids), nothing, golden.sizes, golden.model)
    prompt.pop("labels")
    prompt["pixel_values"] = golden.batch["pixel_values"][:1]
    assert_close(golden.model(**prompt).logits, golden.io["prefill_logits"], LOGITS)
    said = golden.model.generate(**prompt, max_new_tokens=len(golden.io["generated"]), do_sample=False)
    assert said[0, prompt["input_ids"].shape[1] :].tolist() == golden.io["generated"].tolist()
