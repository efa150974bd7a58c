"""The efficiency command: known counts at full size, families of Table 1 at small ones, files, bad input."""

import copy
import json

import pytest
import torch
from factories import llm_config, picture
from fakes import cells
from text_towers import save_text_tower
from torch.nn.attention import SDPBackend, sdpa_kernel

from ablations.costs import prefill
from compressors.errors import UsageError
from connectors.versions import is_at_least
from experiments.config.cells import make_cells
from experiments.efficiency import collect, counting, measuring, report, table1, timing
from experiments.efficiency.__main__ import main
from experiments.efficiency.conditions import Machine, MeasuringPlan
from experiments.efficiency.row_numbers import find_reference_row
from experiments.efficiency.timing import OTHER_PART, count_flops_by_part
from experiments.models import build
from experiments.models.random_model import (
    fill_weights,
    make_random_batch,
    read_backbone_configs,
    set_placeholder_ids,
)
from llm_adapters.answers import index_answers

FLOPS = {  # label -> picture's side, visual tokens, TFLOPs by part, counted before with other code
    "FlashSloth": (384, 81, {"vision tower": 0.642, "language model": 0.660, "query module": 0.004}),
    "Imp-3B": (384, 729, {"vision tower": 0.642, "language model": 4.065}),
    "LLaVA-1.5-7B": (336, 576, {"vision tower": 0.382, "language model": 8.178}),
    "Qwen2-VL-2B": (448, 256, {"language model": 0.791}),  # tower and projector together: 1.481
    "InternVL2-2B": (448, 256, {"vision tower": 0.724, "language model": 0.911}),
}
PARAMETERS = {"LLaVA-1.5-7B": 7.06, "Qwen2-VL-2B": 2.21, "InternVL2-2B": 2.21}  # 1e9, as the hub shows them
SMALL_LLM = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SMALL_TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = {  # changes to a family's configuration
    "llava": (SMALL_TOWER, {}),
    "internvl": (SMALL_TOWER, {}),
    "qwen2_vl": (
        {"depth": 2, "embed_dim": 16, "num_heads": 2, "hidden_size": 32},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}},
    ),
}


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        (["compressor=identity,sap", "prune=fastv,null"], "identity prune=null"),
        (["compressor=identity", "evaluate.compressor=divprune,null"], "identity evaluate.compressor=null"),
        (["compressor=identity,sap", "prune=fastv"], None),
        (["compressor=sap,identity"], "identity"),
        (["compressor=identity+embq,identity,sap"], "identity"),
        (["compressor=sap,identity+embq"], None),
    ],
)
def test_the_uncompressed_model_is_neither_pruned_nor_compressed_in_evaluation(settings, label):
    """Nor has it a query module. Whatever stands first."""
    found = cells(*settings)
    assert {collect.find_uncompressed_label(cell, found) for cell in found} == {label}


@pytest.mark.parametrize("label", FLOPS)
def test_known_counts(label):
    side, visual, parts = FLOPS[label]
    with table1.build_table1_subject(label) as subject:
        found = counting.count_subject(subject, [[picture(size=(side, side))]])
    assert found.visual == visual
    assert {part: found.prefill[part] / 1e12 for part in parts} == pytest.approx(parts, abs=6e-4)
    assert found.prefill[OTHER_PART] == found.parameters[OTHER_PART] == 0
    if label == "Qwen2-VL-2B":
        encoded = found.prefill["vision tower"] + found.prefill["projector"]
        assert encoded / 1e12 == pytest.approx(1.481, abs=6e-4)
    if label in PARAMETERS:
        assert round(sum(found.parameters.values()) / 1e9, 2) == PARAMETERS[label]
    # all but the input embedding once for each token, two for a multiply-add, and attention
    read = (found.llm_bytes - found.cache_bytes) / torch.bfloat16.itemsize
    assert 2 * read * 0.99 <= found.decode <= 2 * read * 1.1


def test_rows_of_a_batch_add_up():
    with table1.make_weightless_cells(["compressor=sap+embq"]) as (cell,):
        subject = table1.build_cell_subject("", cell.config)
    one, two = (counting.count_subject(subject, [[picture()]] * rows, dtype=torch.float32) for rows in (1, 2))
    text = subject.model.config.text_config
    assert one.cache_bytes == text.num_hidden_layers * 2 * text.hidden_size * (16 + 4 + 40) * 4
    assert two.cache_bytes == 2 * one.cache_bytes and two.decode == one.decode
    twice = {part: 2 * count for part, count in one.prefill.items()}
    # before 5.19 angles of positions are a matrix product, the same for all rows
    assert two.prefill == (twice if is_at_least("5.19") else pytest.approx(twice, rel=1e-5))


@pytest.mark.parametrize("name", ["mmtok", "quecc"])
def test_a_compressor_reads_the_words_of_the_question(name):
    """Not all of a prompt's text tokens: it is counted as it is run."""
    with table1.make_weightless_cells([f"compressor={name}"]) as (cell,):
        subject = table1.build_cell_subject("", cell.config)
    counted = counting.count_cell_prefill_flops(subject, 40)["compressor"]
    fill_weights(subject.model, torch.device("cpu"), torch.float32)
    set_placeholder_ids(subject.model)
    batch = make_random_batch(subject.model, 1, subject.size, text=40)
    with sdpa_kernel(SDPBackend.MATH):
        run = count_flops_by_part(lambda: subject.model(**batch), subject.parts)
    assert counted == run["compressor"]


def count_small_llm(folder, name, dtype, **changes):
    """Counts, and FLOPs of a training step, of a cell whose LLM is a small one of this type."""
    llm_config(name, dtype=dtype, **changes).save_pretrained(folder)
    settings = ["compressor=sap+embq", f"llm.source={folder}", "embq.at=2"]
    with table1.make_weightless_cells(settings) as (cell,):
        subject = table1.build_cell_subject("", cell.config)
        trained = counting.count_training_flops(subject, cell.config, "finetune", 40, 1, cached=True)
        return counting.count_subject(subject, [[picture()]]), trained


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_experts_are_counted(dtype, tmp_path):
    """Those that a token is sent to, as one of their width together, and the router."""
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2}
    found, trained = count_small_llm(tmp_path / "moe", "mixtral", dtype, **sizes)
    dense, dense_trained = count_small_llm(tmp_path / "dense", "llama", dtype, intermediate_size=2 * 48)
    router = 2 * 32 * 4 * 4  # a multiply-add, width, experts, layers
    tokens = found.visual + found.query + found.text
    assert found.prefill["language model"] == dense.prefill["language model"] + tokens * router
    assert found.decode == dense.decode + router
    assert trained == dense_trained + 3 * tokens * router


LINEAR_ATTENTION = {
    "head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
STATE_SPACE = {
    "mamba_d_ssm": 32,
    "mamba_n_heads": 4,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
}


@pytest.mark.skipif(not is_at_least("5.24"), reason="earlier ones have caches of their own for each LLM")
@pytest.mark.parametrize(
    ("name", "sizes", "attending", "states"),
    [
        # three layers of four keep the last four inputs of a convolution (2 x 8 keys, as many queries, 4 x 8
        # values) and a matrix of keys by values a head
        ("qwen3_5_text", LINEAR_ATTENTION, 1, 3 * (4 * (16 + 16 + 32) + 4 * 8 * 8)),
        # all four have both: 32 channels and two states of 8
        ("falcon_h1", STATE_SPACE, 4, 4 * (4 * (32 + 8 + 8) + 4 * 8 * 8)),
    ],
)
def test_a_cache_holds_what_layers_keep_instead_of_keys_and_values(name, sizes, attending, states, tmp_path):
    found, _ = count_small_llm(tmp_path, name, "bfloat16", **sizes)
    tokens = found.visual + found.query + found.text
    keys_and_values = attending * 2 * 2 * 8 * tokens  # both, of two heads of 8
    assert found.cache_bytes == (keys_and_values + states) * torch.bfloat16.itemsize


def test_counting_leaves_experts_as_they_were():
    before = dict(timing.ALL_EXPERTS_FUNCTIONS)
    timing.count_flops(lambda: timing.count_flops(lambda: None))
    assert dict(timing.ALL_EXPERTS_FUNCTIONS) == before


def test_a_blind_model_weighs_what_it_runs_with():
    """Its tower and projector do not."""
    with table1.make_weightless_cells(["compressor=none"]) as (cell,):
        subject = table1.build_cell_subject("", cell.config)
    counts = counting.count_subject(subject, [[]], dtype=torch.float32)
    llm = sum(parameter.numel() for parameter in subject.model.language_model.parameters())
    assert counts.parameters == {"language model": llm, OTHER_PART: 0}
    assert counts.weight_bytes == 4 * llm
    fill_weights(subject.model, torch.device("cpu"), torch.float32)
    set_placeholder_ids(subject.model)
    case = measuring.BenchmarkCase(subject, [[]], text=10, new_tokens=1)
    with torch.inference_mode():
        assert 4 * llm < case.measure_peak() < subject.model.num_parameters() * 4


@pytest.mark.parametrize("name", ["visionzip", "trim"])
def test_what_a_compressor_asks_the_tower_for_is_the_towers(name, tmp_path):
    """Cues, and of the second the question by the tower's text encoder."""
    settings = ["compressor=identity", f"evaluate.compressor={name}", f"{name}.tokens=0.25", "image.size=84"]
    if name == "trim":
        settings.append(f"tower.source={save_text_tower(tmp_path, 'clip')}")
    with table1.make_weightless_cells(settings) as (cell,):
        subject = table1.build_cell_subject("", cell.config)
    pixels = torch.empty(1, 3, subject.size, subject.size, device="meta")
    plain = counting.count_flops(lambda: subject.model.vision_tower(pixels))
    found = counting.count_subject(subject, [[picture()]]).prefill
    assert found[OTHER_PART] == 0 and found["vision tower"] > plain


@pytest.mark.parametrize(
    ("label", "side", "visual"),
    [("Qwen2-VL-2B", 1344, 2304), ("InternVL2-2B", 896, 5 * 256), ("InternVL2-2B", 1344, 10 * 256)],
)
def test_dynamic_models_see_larger_pictures(label, side, visual):
    with table1.build_table1_subject(label) as subject:
        assert subject.count_visual_tokens(subject.prepare_pixels([[picture(size=(side, side))]])) == visual


@pytest.mark.parametrize("label", [label for label, each in table1.read_table1().items() if "kind" in each])
def test_families_answer(label):
    """Weights are whole, placeholders fit the pictures, and the first token comes after the prefill."""
    sizes = copy.deepcopy(table1.find_table1_entry(label))
    vision, text = SMALL[sizes["kind"]]
    sizes["config"]["vision_config"] |= vision
    sizes["config"]["text_config"] |= SMALL_LLM | text
    subject = table1.PUBLISHED_KINDS[sizes["kind"]](label, sizes)
    pictures = [[picture(size=(448, 448))] * 2]
    counts = counting.count_subject(subject, pictures, dtype=torch.float32)
    fill_weights(subject.model, torch.device("cpu"), torch.float32)
    case = measuring.BenchmarkCase(subject, pictures, 40, 3)
    assert case.prompt["input_ids"].shape == (1, counts.visual + 40)
    with torch.inference_mode():
        logits = subject.model(**case.prompt, **case.move_to_model(subject.prepare_pixels(pictures))).logits
    assert logits.isfinite().all()
    found = measuring.measure_cases({label: case}, 1)[label]
    assert found.ttft.low > 0 and found.decode.low > 0
    assert found.parts["vision tower"].low > 0 and found.parts["language model"].low > 0


@pytest.mark.parametrize("text", [2, 3, 10])
def test_images_of_any_size_have_text_between_them(text):
    """However little text there is, if it is enough for that."""
    with table1.build_table1_subject("Qwen2-VL-2B") as subject:
        pictures = [[picture(size=(56, 56))] * (text + 1)]
        pixels = subject.prepare_pixels(pictures)
        is_visual = subject.prompt(pixels, 1, text)["input_ids"][0] == subject.model.config.image_token_id
        assert (
            is_visual.sum() == subject.count_visual_tokens(pixels)
            and len(is_visual) == is_visual.sum() + text
        )
        assert is_visual.unique_consecutive().sum() == text + 1
        with pytest.raises(UsageError, match=f"text={text - 1}: Qwen2-VL-2B has a text token between"):
            subject.prompt(pixels, 1, text - 1)


def test_models_of_table1_say_where_they_are_from():
    for entry in table1.read_table1().values():
        assert entry["source"] and entry["resolutions"] in ("fixed", "dynamic")
    assert {"microsoft/phi-2", "google/siglip-so400m-patch14-384"} <= read_backbone_configs().keys()


def test_the_command_measures_and_writes(tmp_path, capsys):
    assert (
        main(
            [
                "compressor=sap+embq,identity",
                "rounds=1",
                "tokens=3",
                "batch=1,2",
                "images=2",
                "pictures=90x60",
                "device=cpu",
                f"to={tmp_path}",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert "x identity" in said and "TTFT: from pictures in memory" in said
    result = json.loads((tmp_path / "efficiency.json").read_text())
    made, rows = result["made"], result["rows"]
    assert [(row["label"], row["batch"]) for row in rows] == [
        ("sap+embq", 1),
        ("identity", 1),
        ("sap+embq", 2),
        ("identity", 2),
    ]
    assert [row["counts"]["visual"] for row in rows] == [32, 288, 32, 288]
    assert all(row["measured"]["ttft"][0] > 0 and row["images"] == 2 for row in rows)
    assert {"device_name", "dtype", "threads", "text_tokens", "torch"} <= made.keys()
    assert "## Measured" in (tmp_path / "efficiency.md").read_text()
    assert {path.stem for path in tmp_path.glob("*.svg")} == {"flops", "time", "ttft", "memory"}


def test_the_command_trains(tmp_path, capsys):
    assert (
        main(
            [
                "pretrain.batch_size=4",
                "pretrain.accumulate=2",
                "finetune.batch_size=2",
                "train=true",
                "rounds=2",
                "data_rows=100,1000",
                "device=cpu",
                f"to={tmp_path}",
            ]
        )
        == 0
    )
    assert "finetune (cached features)" in capsys.readouterr().out
    first, second = json.loads((tmp_path / "efficiency.json").read_text())["training"]
    assert "pretrain" in (tmp_path / "training.svg").read_text()
    assert first["stage"] == "pretrain" and (first["rows"], first["pieces"]) == (4, 2)
    assert first["hours"] == pytest.approx(100 / 4 * first["seconds"][0] / 3600)
    assert second["hours"] == pytest.approx(1000 / 2 * second["seconds"][0] / 3600)
    assert second["peak_bytes"] > first["peak_bytes"]  # stage 2 has gradients and AdamW's state of all


@pytest.mark.slow
def test_mixed_precision_tiles_and_checkpointing_train(capsys):
    """What the paper's presets train with, on small backbones: gradients are clipped in bf16 too."""
    assert (
        main(
            [
                "preset=flashsloth_hd",
                "tower.source=asset:tiny/tower",
                "tower.select_layer=-1",
                "llm.source=asset:tiny/llm",
                "embq.dim=64",
                "embq.at=3",
                "pretrain.batch_size=2",
                "pretrain.accumulate=2",
                "finetune.batch_size=2",
                "finetune.accumulate=2",
                "train=true",
                "rounds=1",
                "text=20",
                "device=cpu",
            ]
        )
        == 0
    )
    said = capsys.readouterr().out
    assert said.count("bf16-mixed") == 2 and "cached" not in said.split("A step:")[0]


@pytest.mark.slow
def test_a_model_that_cannot_be_measured_has_its_counts():
    nowhere = Machine(torch.device("meta"), torch.bfloat16)
    (row,) = collect.measure_in_process("FlashSloth", MeasuringPlan(((384, 384),)), nowhere)
    assert row["counts"]["visual"] == 81 and row["measured"] is None
    assert row["failed"] == "error: device=meta: expected cpu, or cuda where there is a GPU"


def test_flops_of_training_are_multiples_of_the_prefill():
    with table1.make_weightless_cells(["preset=tiny", "compressor=sap"]) as (cell,):
        subject = table1.build_cell_subject("", cell.config)
    forward = counting.count_cell_prefill_flops(subject, 40, 1, keep=8)  # the answer's of 40 text tokens
    tower, llm = forward["vision tower"], forward["language model"]
    own = sum(forward.values()) - tower - llm
    found = {
        (stage, cached): counting.count_training_flops(subject, cell.config, stage, 40, 1, cached)
        for stage in ("pretrain", "finetune")
        for cached in (False, True)
    }
    assert found["pretrain", False] == tower + 3 * own + 2 * llm
    assert found["finetune", True] == 3 * own + 3 * llm
    assert found["finetune", False] - found["finetune", True] == tower
    cell.config.lora.rank = 8
    assert counting.count_training_flops(subject, cell.config, "finetune", 40, 1, True) == 3 * own + 2 * llm


def test_flops_of_training_are_of_the_forward_that_a_step_runs():
    """Logits of answer tokens alone."""
    with table1.make_weightless_cells(["preset=tiny", "compressor=sap+embq"]) as (cell,):
        subject = table1.build_cell_subject("", cell.config)
    counted = counting.count_training_flops(subject, cell.config, "finetune", 40, 1, cached=False)
    model = subject.model
    fill_weights(model, torch.device("cpu"), torch.float32)
    set_placeholder_ids(model)
    batch = make_random_batch(model, 1, subject.size, text=40)
    batch["answer_index"] = index_answers(batch["labels"])
    with sdpa_kernel(SDPBackend.MATH):  # the operations of the CPU's own kernel are not counted
        run = count_flops_by_part(lambda: model(**batch), {"tower": [model.vision_tower]})
    assert counted == run["tower"] + 3 * run[OTHER_PART]


def test_an_llm_whose_head_is_not_split_trains_with_all_logits(monkeypatch):
    with table1.make_weightless_cells(["preset=tiny", "compressor=sap"]) as (cell,):
        subject = table1.build_cell_subject("", cell.config)
    forward = counting.count_cell_prefill_flops(subject, 40, 1, keep=0)
    monkeypatch.setattr(subject.model.language_model.config, "output_router_logits", True, raising=False)
    found = counting.count_training_flops(subject, cell.config, "finetune", 40, 1, cached=True)
    assert found == 3 * (sum(forward.values()) - forward["vision tower"])


@pytest.mark.parametrize(
    ("name", "bandwidth"),
    [
        ("NVIDIA A100-SXM4-40GB", 1.555e12),
        ("NVIDIA A100-SXM4-80GB", 2.04e12),
        ("NVIDIA H100 NVL", 3.9e12),
        ("NVIDIA H200", 4.8e12),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_the_peak_of_a_device(name, bandwidth):
    peak = report.find_device_peak(name)
    assert (peak.bandwidth if peak else None) == bandwidth


def test_a_row_is_compared_at_its_own_picture():
    def row(label, picture, flops):
        counts = {"prefill": {"language model": flops}}
        alike = {"batch": 1, "images": 1, "reference": "identity"}
        return {"label": label, "picture": picture, "counts": counts, **alike}

    rows = [row(label, picture, 1) for picture in ("144x144", "288x288") for label in ("identity", "sap")]
    for one in rows:
        found = find_reference_row(one, rows)
        assert (found["label"], found["picture"]) == ("identity", one["picture"])
    # of a model of one size there is one row, for any picture
    assert find_reference_row(rows[3], [row("identity", "any", 1), rows[3]])["picture"] == "any"
    assert find_reference_row(rows[3], rows[:2]) is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rounds=0"], "rounds=0: must be at least 1"),
        (["pictures=90"], "pictures=90: expected WIDTHxHEIGHT"),
        (["pictures=0x90"], "pictures=0x90: expected WIDTHxHEIGHT"),
        (["only=Qwen2-VL-2B", "pictures=10x4000", "count=true"], "pictures=10x4000: not for Qwen2-VL-2B"),
        (["only=Llama"], "only=Llama: no model of Table 1"),
        (["table1=true", "compressor=sap"], "compressor=sap: table1=true has its own models"),
        (["only=FlashSloth", "train=true"], "train=true: trains cells of this project"),
        (["count=true", "train=true"], "count=true: counts alone"),
        (["only=FlashSloth", "compile=true"], "compile=true: for answers of cells that are timed"),
        (["train=true", "compile=true"], "compile=true: for answers of cells that are timed"),
        (["train=true", "batch=8"], "batch=: is of models that answer"),
        (["train=true", "data_rows=7"], "data_rows=7: give two numbers"),
        (["train=true", "compressor=sap,none", "device=cpu"], "none: sees no image"),
        (
            ["compressor=sap", "prune=fastv", "static=true"],
            "static=true: a cache of fixed size has no layers",
        ),
        (["compressor=sapp", "count=true"], "sapp"),
        (["count=true", "device=tpu"], "device=tpu: expected cpu, or cuda"),
        (["--table1", "--measure"], "--table1: settings are spelled KEY=VALUE; write table1=true"),
        (["--data-rows", "7,8"], "--data-rows: settings are spelled KEY=VALUE; write data_rows=7,8"),
        (["--compressor=sap"], "--compressor=sap: no such flag; settings are spelled KEY=VALUE"),
    ],
)
def test_bad_input(arguments, message, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_scale_is_counted_as_it_is_evaluated():
    tokens, flops, shapes = [], [], set()
    for scale in ("null", "2", "4"):
        with table1.make_weightless_cells(["compressor=matryoshka", f"evaluate.scale={scale}"]) as (cell,):
            subject = table1.build_cell_subject("", cell.config)
            tokens.append(subject.count_visual_tokens(subject.prepare_pixels([[picture()]])))
            flops.append(sum(counting.count_cell_prefill_flops(subject, 40).values()))
            shapes.add(prefill.digest_prefill(cell.config))
    assert tokens == [16, 4, 1] and len(shapes) == 3 and flops == sorted(set(flops), reverse=True)


@pytest.mark.parametrize(
    ("compressor", "message"),
    [
        ("matryoshka", "evaluate.scale=3: choose one of 1, 2, 4"),
        ("sap", "evaluate.scale=3: sap is trained at one"),
    ],
)
def test_a_scale_that_is_not_there_is_refused_before_training(compressor, message):
    (cell,) = make_cells({"compressor": [compressor], "evaluate.scale": ["3"]})
    with pytest.raises(UsageError, match=message):
        build.check_model_config(cell.config)
