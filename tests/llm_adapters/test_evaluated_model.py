"""The model that a harness asks: a saved one, or a plain one with parts put into it for the evaluation."""

import pytest
import torch
from factories import make_model as make_composed
from factories import make_processor as make_composed_processor
from reuse_families import answers, attached, family_params, inputs, make_model, make_processor, two_rows
from reuse_models import VISION
from text_towers import save_text_tower

from compressors.errors import UsageError
from connectors.versions import is_at_least
from llm_adapters import reuse
from llm_adapters.adapter import find_position_limit
from llm_adapters.evaluated_model import NOT_NAMED, load_evaluated_model, read_parts, reads_videos

CPU = torch.device("cpu")
SETTINGS = ["compressor", "prune", "text_encoder"]


def save(folder, model, processor):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


def load(folder, compressor=NOT_NAMED, prune=NOT_NAMED, text_encoder=None, **knobs):
    dotted = {name.replace("__", "."): value for name, value in knobs.items()}
    return load_evaluated_model(folder, read_parts(compressor, prune, text_encoder, dotted, SETTINGS), CPU)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    return save(tmp_path_factory.mktemp("llava"), make_model("llava"), make_processor("llava"))


@pytest.mark.parametrize("family", family_params("llava", "qwen2_5_vl", "gemma3"))
def test_a_plain_model_is_as_it_is(family, tmp_path):
    folder = save(tmp_path, make_model(family), make_processor(family))
    model, processor = load(folder, prune="null")
    rows = two_rows(family)
    assert not hasattr(model, "slothkit") and not model.training
    same = inputs(make_processor(family), rows)
    assert answers(model, inputs(processor, rows)) == answers(make_model(family), same)


def test_a_compressor_and_a_pruner_are_put_in(plain):
    """As `reuse` puts them in, knobs as the harness reads them."""
    model, processor = load(
        plain,
        "visionzip",
        "pyramid_drop",
        visionzip__tokens=4,
        pyramid_drop__layers="[1,2]",
        pyramid_drop__ratio=0.5,
    )
    expected, its_processor = make_model("llava"), make_processor("llava")
    reuse.attach(expected, its_processor, "visionzip", tokens=4)
    reuse.prune(expected, "pyramid_drop", layers=(1, 2), ratio=0.5)
    batch = inputs(processor, two_rows("llava"))
    assert (batch["input_ids"] == model.config.image_token_id).sum(1).tolist() == [4, 4]
    assert answers(model, batch) == answers(expected, inputs(its_processor, two_rows("llava")))
    assert model.slothkit_pruning.pruner.layers == (1, 2)


def test_a_pruner_acts_in_what_was_saved(tmp_path):
    for name, pair in (("attached", attached("llava")), ("composed", (make_composed(), None))):
        model, processor = pair
        folder = save(tmp_path / name, model, processor or make_composed_processor(model))
        pruned, _ = load(folder, prune="fastv", fastv__layer=1, fastv__ratio=0.25)
        pruner = pruned.pruner if name == "composed" else pruned.slothkit_pruning.pruner
        assert pruner.registered_name == "fastv" and pruner.shares == (0.25,)
        kept, _ = load(folder)
        assert getattr(kept, "pruner", None) is None and not hasattr(kept, "slothkit_pruning")


def test_a_pruner_that_was_saved_is_taken_out_by_null(tmp_path):
    model = make_composed()
    processor = make_composed_processor(model)
    model.set_pruner("fastv", layer=1)
    folder = save(tmp_path, model, processor)
    assert load(folder)[0].pruner.registered_name == "fastv"
    for nothing in ("null", None):
        assert load(folder, prune=nothing)[0].pruner is None


def test_settings_of_the_caller_are_offered():
    with pytest.raises(UsageError, match="max_num_frame=4: .* did you mean 'max_num_frames'"):
        read_parts(NOT_NAMED, NOT_NAMED, None, {"max_num_frame": 4}, ["max_num_frames"])


@pytest.mark.parametrize(
    ("family", "put_in", "expected"),
    [
        ("llava", False, False),
        ("qwen2_5_vl", False, True),
        ("qwen2_5_vl", True, True),
        ("internvl", True, True),
        ("gemma4", False, True),
        ("gemma4", True, False),  # which would refuse them
    ],
)
def test_who_reads_videos(family, put_in, expected):
    if not is_at_least(reuse.FAMILIES[family].since):
        pytest.skip(f"{family} needs transformers {reuse.FAMILIES[family].since}")
    model, processor = make_model(family), make_processor(family)
    if put_in:
        reuse.attach(model, processor, "sap", rate=3, grid_policy="ceil")
    assert reads_videos(model, processor) == expected


def test_the_limit_of_positions(plain):
    model, _ = load(plain, prune="null")
    assert find_position_limit(model.config) == model.config.text_config.max_position_embeddings
    composed = make_composed()
    assert find_position_limit(composed.config) == composed.config.position_limit
    assert not reads_videos(composed, make_composed_processor(composed))


def test_what_is_no_model_is_called_so(tmp_path):
    """Also where a compressor is asked for."""
    (tmp_path / "config.json").write_text('{"model_type": "flashsloth"}')
    for folder, wrong in (
        (tmp_path / "nowhere", "no such folder"),
        (tmp_path, "python -m llm_adapters.released"),
    ):
        for settings in ({}, {"compressor": "visionzip"}, {"prune": "null"}):
            with pytest.raises(UsageError, match=wrong):
                load(str(folder), **settings)


def test_a_text_encoder_needs_no_training(plain, tmp_path):
    source = save_text_tower(tmp_path, "clip", **VISION)
    model, processor = load(plain, "cdpruner", text_encoder=str(source), cdpruner__tokens=4)
    assert answers(model, inputs(processor, two_rows("llava")))


@pytest.mark.parametrize(
    ("settings", "wrong"),
    [
        ({}, r"a model of type llava, not slothkit; .*prune=null"),
        (
            {"compressor": "sap"},
            r"compressor=sap: has weights that nobody has trained \(slothkit\.",
        ),
        ({"compressor": "visionsip"}, "did you mean 'visionzip'"),
        ({"compressor": "visionzip", "visionzip__token": 4}, "'visionzip' has no knob 'token'"),
        (
            {"compressor": "visionzip", "divprune__tokens": 4},
            r"divprune\.tokens=4: no setting .* visionzip\.KNOB",
        ),
        ({"compressor": "visionzip", "tokens": 4}, "tokens=4: no setting of this model"),
        ({"prune": "fastw"}, "did you mean 'fastv'"),
        ({"prune": True}, "prune"),
        ({"compressor": 5}, "compressor"),
        ({"prune": "fitprune"}, "prune=fitprune: has to be calibrated"),
        (
            {"prune": "pyramid_drop", "pyramid_drop__layers": "[1,2"},
            r"pyramid_drop\.layers=\[1,2: expected a list",
        ),
        ({"prune": "fastv", "text_encoder": "clip"}, "text_encoder=clip: of which compressor"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(plain, settings, wrong):
    with pytest.raises(UsageError, match=rf"\A(?!.*\n).*{wrong}"):
        load(plain, **settings)


def test_a_compressor_of_its_own_is_not_replaced(tmp_path):
    folder = save(tmp_path, *attached("llava"))
    with pytest.raises(UsageError, match="compressor=visionzip: .* was saved with a compressor of its own"):
        load(folder, "visionzip")


def test_a_new_projector_would_have_to_be_trained(tmp_path):
    folder = save(tmp_path, make_model("qwen2_5_vl"), make_processor("qwen2_5_vl"))
    with pytest.raises(UsageError, match=r"\A(?!.*\n)compressor=divprune: "):
        load(folder, "divprune", divprune__tokens=4)
