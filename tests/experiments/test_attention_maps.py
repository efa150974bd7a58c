"""Maps are the weights that the model itself uses, and lie where they belong on the picture."""

import numpy as np
import pytest
import torch
from factories import make_model, make_processor, picture
from torch.testing import assert_close

from compressors.errors import UsageError
from connectors.embq import Attention
from connectors.tiling import Tiling
from experiments import attention_maps
from experiments.data.llava import Sample
from experiments.inspection import attention_figure
from experiments.inspection.attention import record_attention
from experiments.inspection.attention_figure import DENSITY_POINTS, compute_density
from llm_adapters.conversation import Turn

QUESTIONS = ("What is this?", "And that?")


@pytest.mark.parametrize("fp32", [False, True])
def test_weights_are_what_attention_reads_with(fp32):
    attention = Attention(8, 12, 2, fp32)
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 12)
    mask = torch.rand(2, 3, 5) > 0.4
    mask[0, 0] = False  # reads all
    weights = attention.weights(query, key, mask)
    values = attention.v_proj(value).unflatten(2, (2, 6)).transpose(1, 2)  # (B, heads, K, 6)
    assert_close((weights @ values).transpose(1, 2).flatten(2), attention(query, key, value, mask))
    assert_close(weights.sum(-1), torch.ones(2, 2, 3))


@pytest.mark.parametrize("tiles", [1, 2])
def test_looking_changes_nothing_and_sums_to_one(model, tiles):
    processor = make_processor(model, tiles=tiles)
    crops = 1 if tiles == 1 else 5
    inputs = processor.apply_chat_template(
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": picture()}, {"type": "text", "text": QUESTIONS[0]}],
            }
        ],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    before = model(**inputs).logits
    seen = record_attention(model, processor, picture(), QUESTIONS[0], 5)
    assert torch.equal(model(**inputs).logits, before)
    assert not model.compressor._forward_pre_hooks
    out = model.generate(**inputs, do_sample=False, max_new_tokens=5)[0, inputs["input_ids"].shape[1] :]
    assert seen.answer == processor.tokenizer.decode(out, skip_special_tokens=True).strip()
    assert list(seen.queries) == ["EmbQ at decoder layer 2"]
    weights = seen.queries["EmbQ at decoder layer 2"]
    assert weights.shape == (4, crops, 6, 6) and seen.compressor.shape == (crops, 6, 6)
    assert_close(weights.sum((1, 2, 3)), torch.ones(4))
    features = model.get_image_features(inputs["pixel_values"])[0]
    assert_close(seen.compressor, model.compressor.attention(features) / crops)


def test_two_questions_look_elsewhere_and_the_compressor_does_not(model):
    processor = make_processor(model)
    one, other = (record_attention(model, processor, picture(), question, 2) for question in QUESTIONS)
    assert torch.equal(one.compressor, other.compressor)
    (first,), (second,) = one.queries.values(), other.queries.values()
    assert not torch.allclose(first, second)


@pytest.mark.parametrize(
    ("knobs", "names"),
    [
        ({"at": (1, 3)}, ["EmbQ at decoder layer 1", "EmbQ at decoder layer 3"]),
        (
            {"num_layers": 2, "stacked": True},
            ["EmbQ at decoder layer 2, its layer 1", "EmbQ at decoder layer 2, its layer 2"],
        ),
    ],
)
def test_insertions_and_layers_have_maps_of_their_own(knobs, names):
    model = make_model(**knobs)
    seen = record_attention(model, make_processor(model), picture(), QUESTIONS[0], 2)
    assert list(seen.queries) == names
    one, other = seen.queries.values()
    assert not torch.allclose(one, other)


def test_density_is_weight_per_area():
    weights = torch.rand(1, 6, 4).numpy()
    found = compute_density(weights / weights.sum(), Tiling(), 80, 60)
    assert found.shape == (DENSITY_POINTS * 3 // 4, DENSITY_POINTS)
    assert found.mean() * 80 * 60 == pytest.approx(1)
    one = np.zeros((1, 6, 4))
    one[0, 5, 0] = 1  # the lowest row's first patch: a sixth of the height, a quarter of the width
    lit = compute_density(one, Tiling(), 80, 60) > 0
    assert lit[-DENSITY_POINTS // 8 :, : DENSITY_POINTS // 4].all() and lit.mean() == pytest.approx(1 / 24)


def test_density_of_tiles_lies_on_the_padded_picture():
    """80 x 40 pixels in 2 x 2 square tiles: padded to 80 x 80, the picture from 20 to 60."""
    weights = np.zeros((5, 4, 4))
    weights[2, 2, 3] = 1  # right upper tile, third of four rows: pixels 20 to 30 below the canvas' top
    lit = compute_density(weights, Tiling(2, 84), 80, 40) > 0
    rows, columns = np.nonzero(lit)
    at = DENSITY_POINTS // 8  # points of ten pixels
    assert (rows.min(), rows.max() + 1) == (0, at) and (columns.min(), columns.max() + 1) == (7 * at, 8 * at)
    weights[:] = [[[1 / 3]], [[0]], [[0]], [[0]], [[0]]]
    # the thumbnail is all of it
    assert compute_density(weights, Tiling(2, 84), 80, 40).std() == pytest.approx(0)


def panels(figure) -> list[int]:
    """Drawn images of each panel in use: the picture, and the weights over it."""
    return [len(axes.images) for axes in figure.axes if axes.images]


def test_figure(model):
    looks = [record_attention(model, make_processor(model), picture(), q, 2) for q in QUESTIONS]
    figure = attention_figure.draw_attention(picture(), looks, Tiling())
    assert panels(figure) == [1, 2, 2, 2]
    *panel_axes, bar_axes = figure.axes
    assert [axes.get_title().splitlines()[0] for axes in panel_axes] == [
        "the picture",
        "sap: weights",
        "What is this?",
        "And that?",
    ]
    overlay = figure.axes[1].images[1].get_array()
    assert overlay[..., 3].max() == pytest.approx(0.8)
    assert [label.get_text() for label in bar_axes.get_xticklabels()] == ["0", "the map's largest"]
    assert bar_axes.get_xlabel() == "share of attention"
    largest = f"largest patch: {looks[0].compressor.max().item():.1%}"
    assert [text.get_text() for text in figure.axes[1].texts] == [largest]
    for axes in panel_axes:  # neither picture nor weights are stretched
        box = axes.get_position()
        panel_shape = box.width * figure.get_figwidth() / (box.height * figure.get_figheight())
        assert panel_shape == pytest.approx(picture().width / picture().height)
    assert panels(attention_figure.draw_attention(picture(), looks, Tiling(), heads=True)) == [
        1,
        2,
        *[2] * 2 * (1 + 4),
    ]


def test_dollars_are_no_formula(model, tmp_path):
    seen = record_attention(model, make_processor(model), picture(), "is it $5_ or $6^ ?", 2)
    seen.answer = "$x_{"
    attention_figure.draw_attention(picture(), [seen], Tiling()).savefig(tmp_path / "a.png")


def test_models_with_less_to_show():
    model = make_model(compressor="avg_pool")
    looks = [record_attention(model, make_processor(model), picture(), QUESTIONS[0], 2)]
    assert panels(attention_figure.draw_attention(picture(), looks, Tiling())) == [1, 2]
    model = make_model(query_module=None)
    looks = [record_attention(model, make_processor(model), picture(), QUESTIONS[0], 2)]
    figure = attention_figure.draw_attention(picture(), looks, Tiling())
    assert panels(figure) == [1, 2] and figure.axes[0].get_title().startswith(QUESTIONS[0])


def test_figures_of_a_report(model, tmp_path):
    picture().save(tmp_path / "a.png")
    asked = ("<image>\nWhat is this?", "What is that?", "What is it?")
    turns = tuple(Turn(question, "x") for question in asked)
    samples = [Sample("0", (tmp_path / "a.png",), turns, ("a", "a", "b")), Sample("1", (), turns[1:])]
    (figure,) = attention_maps.draw_report_maps(model, make_processor(model), samples)
    titles = [axes.get_title().splitlines()[0] for axes in figure.axes[2:-1]]
    assert titles == ["What is this?", "What is it?"]


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    out = tmp_path_factory.mktemp("model")
    model.save_pretrained(out)
    make_processor(model).save_pretrained(out)
    picture().save(out / "cat.png")
    return out


def test_the_command_writes_a_picture(folder, tmp_path, capsys):
    out = tmp_path / "new" / "map.png"
    asked = [str(folder / "cat.png"), *QUESTIONS[:2]]
    assert attention_maps.main([str(folder), *asked, f"to={out}"]) == 0
    assert capsys.readouterr().out == f"{out}\n" and out.read_bytes().startswith(b"\x89PNG")


def test_a_cell_by_its_name(folder, tmp_path):
    cell = tmp_path / "cells" / "sap_seed=0-12345678"
    cell.mkdir(parents=True)
    (cell / "stages.json").write_text('["finetune/abc"]')
    (tmp_path / "finetune" / "abc").mkdir(parents=True)
    (tmp_path / "finetune" / "abc" / "model").symlink_to(folder)
    to = tmp_path / "map.png"
    asked = ["sap", str(folder / "cat.png"), QUESTIONS[0]]
    assert attention_maps.main([*asked, f"out={tmp_path}", f"to={to}"]) == 0
    assert to.exists()


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ([], "found nothing"),
        (["{}", "{}/cat.png", "a", "a", "a"], "5 words"),
        (["{}", "{}/cat.png", "a", "to=a.jpg"], "to=a.jpg: must end in .png"),
        (["{}", "{}/cat.png", "a", "--to", "a.png"], "write to=a.png"),
        (
            ["sap", "{}/cat.png", "a", "out={}"],
            "nor a folder; no cell has finished there; give OUT/cells/CELL",
        ),
        (["{}", "{}/cat.png", "a", "--heads"], "--heads: settings are spelled KEY=VALUE; write heads=true"),
        (["{}", "--image", "{}/cat.png", "a"], "--image: no setting of this command"),
        (["{}", "{}/dog.png", "a"], "dog.png: no such picture"),
        (["{}/x", "{}/cat.png", "a"], "x: neither a finished cell below runs nor a folder"),
        (["{}", "{}/cat.png", " "], "turn 1 has an empty question"),
    ],
)
def test_bad_input_is_one_line(folder, arguments, wrong, capsys):
    assert attention_maps.main([word.replace("{}", str(folder)) for word in arguments]) == 2
    out, err = capsys.readouterr()
    assert wrong in err and err.count("\n") == 1 and not out


def test_models_with_nothing_to_show():
    model = make_model(compressor="avg_pool", query_module=None)
    processor = make_processor(model)
    with pytest.raises(UsageError, match="avg_pool weighs no patch more than another"):
        record_attention(model, processor, picture(), QUESTIONS[0], 2)
    processor.image_tokens = 0
    with pytest.raises(UsageError, match="blind"):
        record_attention(model, processor, picture(), QUESTIONS[0], 2)
