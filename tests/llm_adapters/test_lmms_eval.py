"""The plug-in for lmms-eval. Where the harness is not installed, what needs it is skipped."""

import gc
import json
import os
import re
import subprocess
import sys
import weakref
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from factories import make_model, make_processor
from reuse_families import attached, family_params, over_families, picture
from reuse_families import make_model as make_family_model
from reuse_families import make_processor as make_family_processor
from reuse_videos import prepare

from compressors.errors import UsageError
from experiments.data import parquet
from experiments.metrics.choice import ChoiceAccuracy, read_choice
from experiments.metrics.yes_no import POPE
from experiments.sweep import __main__ as sweep
from llm_adapters.lmms_eval.requests import (
    batch_requests,
    collect_media,
    cut_answer,
    identify_pictures,
    make_message,
    read_generation_settings,
)

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "experiments/lmms_eval_tasks"
README = (ROOT / "llm_adapters/lmms_eval/README.md").read_text()
LISTED = re.search(r"--tasks (\S+)\n```\n\nThe harness downloads", README).group(1).split(",")
IMAGES = [picture(seed, 80, 80) for seed in (1, 2, 3)]
NEEDS = "needs lmms-eval: pip install -e '.[lmms-eval]' pytest, in an environment of its own"
in_the_harness = pytest.mark.skipif(not find_spec("lmms_eval"), reason=NEEDS)


def test_batches_have_one_setting_and_put_the_longest_first():
    short, long = {"max_new_tokens": 4, "until": ["\n"]}, {"max_new_tokens": 9}
    requests = [("aa", short), ("b", long), ("c", {**short}), ("dddd", short), ("eee", short)]
    assert list(batch_requests(requests, 3)) == [[3, 4, 0], [2], [1]]
    assert list(batch_requests(requests, 3, in_order=True)) == [[0, 2, 3], [4], [1]]


@pytest.mark.parametrize(
    ("context", "images", "parts"),
    [
        ("What?", 0, ["What?"]),
        ("What?", 2, [0, 1, "What?"]),
        ("Is <image> like <image>\n?", 2, ["Is", 0, "like", 1, "?"]),
        ("<image>\nWhat?", 1, [0, "What?"]),
        ("Look at <image>, <image> once more", 1, [0, "Look at , once more"]),
        ("See <image>", 0, ["See"]),
    ],
)
def test_images_stand_where_the_text_says(context, images, parts):
    content = make_message(context, IMAGES[:images])["content"]
    found = [IMAGES.index(part["image"]) if part["type"] == "image" else part["text"] for part in content]
    assert found == parts


def test_pictures():
    grey = IMAGES[0].convert("L")
    assert [image.mode for image in collect_media([grey, None, IMAGES[1]], "t", 8)] == ["RGB", "RGB"]
    assert collect_media(None, "t", 8) == collect_media([None], "t", 8) == []
    same = [identify_pictures([image]) for image in (IMAGES[0], IMAGES[0].copy(), IMAGES[1])]
    assert same[0] == same[1] != same[2]
    with pytest.raises(UsageError, match="task sounds shows a dict"):
        collect_media([{"array": []}], "sounds", 8)
    with pytest.raises(UsageError, match=r"gone\.mp4: no such file"):
        collect_media(["gone.mp4"], "clips", 8)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {"do_sample": False, "max_new_tokens": 128, "num_beams": 1}),
        (
            {"temperature": 0, "top_p": 1.0, "do_sample": True, "max_new_tokens": 16, "num_beams": 3},
            {"do_sample": False, "max_new_tokens": 16, "num_beams": 3},
        ),
        (
            {"temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.1, "image_aspect_ratio": "original"},
            {"do_sample": True, "temperature": 0.5, "top_p": 0.9, "repetition_penalty": 1.1},
        ),
        ({"do_sample": True}, {"do_sample": True}),
        ({"do_sample": False, "temperature": 1}, {"do_sample": False}),
    ],
)
def test_settings_of_generate(settings, wanted):
    assert read_generation_settings(settings) == {"max_new_tokens": 128, "num_beams": 1, **wanted}


def test_answers_end_at_the_first_stop():
    assert cut_answer(" a fox. USER: and\n\nyou", ["\n\n", "USER:"]) == "a fox."
    assert (
        cut_answer(" a fox\n", None) == "a fox"
        and cut_answer("one two", "two") == "one"
        and cut_answer("one", [""]) == "one"
    )


def test_the_readme_has_the_papers_benchmarks():
    table = re.findall(r"^\| [^|]+ \| `(\w+)` \| ", README, re.M)
    assert table == LISTED and len(set(table)) == 14


def requests(images: tuple[int, ...] = (0, 1, 2)) -> tuple[list, dict]:
    """Requests as the harness makes them, with so many images each; and the documents that they name."""
    from lmms_eval.api.instance import Instance

    questions = ["Hi there?", "What is this?", "Is <image> a cat, or is it <image> a dog?"]
    docs = [{"text": questions[count], "images": IMAGES[:count]} for count in images]
    told = {"task": "made", "repeats": 1}
    made = [
        Instance(
            request_type="generate_until",
            idx=0,
            metadata={**told, "doc_id": i},
            arguments=(doc["text"], {"max_new_tokens": 5}, lambda doc: doc["images"], i, "made", "test"),
        )
        for i, doc in enumerate(docs)
    ]
    return made, {"made": {"test": docs}}


def save(model, processor, folder: Path) -> Path:
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder


def opened(arguments: str, batch_size: int = 1):
    """The model as the harness makes it, by its entry point's name."""
    from lmms_eval import models

    options = {"batch_size": batch_size, "max_batch_size": None, "device": "cpu"}
    return models.get_model("slothkit").create_from_arg_string(arguments, options)


def answers(model, images: tuple[int, ...]) -> list[str]:
    made, model.task_dict = requests(images)
    return model.generate_until(made)


@in_the_harness
def test_batched_answers_are_single_ones(tmp_path):
    """And those of chat's way to the model: several images, inside the text too, and none."""
    tiny = make_model()
    folder = save(tiny, make_processor(tiny), tmp_path)
    model = opened(f"pretrained={folder},batch_size=4")
    assert model.batch_size == 4 and opened(f"pretrained={folder}", 3).batch_size == 3
    said = answers(model, (1, 0, 2, 1))
    assert said == [answers(model, (count,))[0] for count in (1, 0, 2, 1)] and len(set(said)) == 3
    inputs = model.processor.apply_chat_template(
        [make_message("What is this?", IMAGES[:1])], tokenize=True, return_dict=True, return_tensors="pt"
    )
    out = tiny.generate(**inputs, do_sample=False, max_new_tokens=5)[0, inputs["input_ids"].shape[1] :]
    assert model.processor.tokenizer.decode(out, skip_special_tokens=True).strip() == said[0]


@in_the_harness
def test_a_cleaned_model_is_held_by_nothing(tmp_path):
    """The harness frees a model so before it loads the next."""
    tiny = make_model(compressor="avg_pool")
    model = opened(f"pretrained={save(tiny, make_processor(tiny), tmp_path)},cache=static")
    answers(model, (1, 1))
    held = weakref.ref(model.model)
    model.clean()
    gc.collect()
    assert held() is None


@in_the_harness
@over_families
def test_other_models_with_a_compressor(family, tmp_path):
    model = opened(f"pretrained={save(*attached(family), tmp_path)}", 4)
    assert hasattr(model.model, "slothkit")
    counts = (1, 2, 1) if family == "paligemma" else (1, 0, 2, 1)  # PaliGemma reads no text without image
    assert answers(model, counts) == [answers(model, (count,))[0] for count in counts]


@in_the_harness
def test_a_plain_model_with_parts(tmp_path):
    """Knobs as the harness reads them, lists in brackets among them."""
    folder = save(make_family_model("llava"), make_family_processor("llava"), tmp_path)
    parts = "compressor=visionzip,visionzip.tokens=4,prune=pyramid_drop,pyramid_drop.layers=[1,2]"
    model = opened(f"pretrained={folder},{parts}", 4)
    pruner = model.model.slothkit_pruning.pruner
    assert model.model.slothkit.compressor.num_tokens(6, 6) == 4 and pruner.layers == (1, 2)
    counts = (1, 0, 2, 1)
    assert answers(model, counts) == [answers(model, (count,))[0] for count in counts]
    with pytest.raises(UsageError, match="tokens=4: no setting of this model"):
        opened(f"pretrained={folder},compressor=visionzip,tokens=4")


@in_the_harness
def test_a_prompt_beyond_the_positions_is_warned_of_once(tmp_path):
    folder = save(make_family_model("llava"), make_family_processor("llava"), tmp_path)
    model = opened(f"pretrained={folder},prune=null")
    model.position_limit = 20
    with pytest.warns(UserWarning, match="the LLM has positions for 20") as told:
        answers(model, (1, 2))
    assert len([warning for warning in told if "positions for" in str(warning.message)]) == 1


@in_the_harness
@pytest.mark.parametrize("family", [None, *family_params("llava", "qwen2_5_vl", "internvl")])
def test_videos_by_their_files(family, tmp_path):
    """Of one length or another, in one batch with questions about pictures and without any."""
    from made_videos import write_video

    if family is None:
        tiny = make_model()
        pair = (tiny, make_processor(tiny))
    else:
        pair = attached(family)
        if family != "llava":
            prepare(family, pair[1])
    model = opened(f"pretrained={save(*pair, tmp_path / 'model')},max_num_frames=4", 8)
    paths = [str(write_video(tmp_path / f"{frames}.mp4", frames)) for frames in (3, 12, 20)]
    visuals = [[paths[0]], [paths[1]], IMAGES[:1], [paths[2]], [], [paths[1], IMAGES[0]]]
    made, documents = requests((1,) * len(visuals))
    for document, visual in zip(documents["made"]["test"], visuals):
        document["images"] = visual
    model.task_dict = documents
    said = model.generate_until(made)
    assert said == [model.generate_until([request])[0] for request in made] and len(set(said)) > 2


@in_the_harness
@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ("pretrained=nowhere", "nowhere: no such folder"),
        ("pretrained={},batch_size=auto", "batch_size=auto"),
        ("pretrained={},dtype=int8", "dtype=int8: choose one of float32"),
        ("pretrained={},max_num_frames=few", "max_num_frames"),
        ("pretrained={},max_num_frame=4", "did you mean 'max_num_frames'"),
        ("pretrained={}", "a model of type llava, not slothkit"),
    ],
)
def test_bad_arguments(tmp_path, arguments, wrong):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UsageError, match=wrong):
        opened(arguments.replace("{}", str(tmp_path)))


@in_the_harness
def test_likelihoods_are_refused():
    from llm_adapters.lmms_eval.model import SlothKit

    asked = [SimpleNamespace(task_name="seedbench_ppl")]
    with pytest.raises(NotImplementedError, match="seedbench_ppl: slothkit answers in words"):
        SlothKit.loglikelihood(None, asked)
    with pytest.raises(NotImplementedError, match="one question at a time"):
        SlothKit.generate_until_multi_round(None, asked)


@in_the_harness
def test_multiple_choice_is_read_alike():
    """Answers in the forms that the harness's readings know."""
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
    from lmms_eval.tasks._task_utils.mmmu_mcq_utils import parse_mmmu_multi_choice_response
    from lmms_eval.tasks.scienceqa.utils import sqa_process_results
    from lmms_eval.tasks.seedbench.utils import seed_aggregation_result, seed_process_result

    options, letters = ["red fox", "owl", "lion", "cat"], ["A", "B", "C", "D"]
    short = ["{0}", "{0}.", "{0}. {1}"]
    for form in (*short, "({0})", "({0}) {1}", "The answer is {0}.", "The answer is ({0})"):
        metric, rights, seeds = ChoiceAccuracy(), [], []
        for number, (letter, option) in enumerate(zip(letters * 2, options * 2)):
            said, truth = form.format(letter, option), letters[number % 3]
            metric.update([said], [truth], [options])
            assert read_choice(said, options) == extract_mcq_answer(said, letters) == letter, said
            assert parse_mmmu_multi_choice_response(said, letters, dict(zip(letters, options))) == letter
            rights.append(letter == truth)
            doc = {"choices": options, "answer": letters.index(truth)}
            if form in short:
                assert sqa_process_results(doc, [said]) == {"exact_match": float(rights[-1])}
            seeds.append(
                seed_process_result({"answer": truth, "data_type": "image", "question_id": number}, [said])[
                    "seed_image"
                ]
            )
        assert 0 < metric.compute() == sum(rights) / len(rights) < 1
        if form in short:
            assert metric.compute() == seed_aggregation_result(seeds)


@in_the_harness
@pytest.mark.slow
def test_the_harness_knows_every_task():
    from lmms_eval.tasks import TaskManager

    manager = TaskManager("ERROR", include_path=str(TASKS))
    ours = ["picture_vqa", "picture_vqa_style", "picture_vqa_presence"]
    assert [name for name in (*LISTED, *ours) if name not in manager.all_tasks] == []


CELL = [
    "compressor=sap+embq",
    "blind=false",
    "data.scale=0.01",
    "trainer.accelerator=cpu",
    "pretrain.max_steps=20",
    "finetune.max_steps=60",
    "pretrain.epochs=20",
    "finetune.epochs=20",
]


@in_the_harness
@pytest.mark.slow
def test_a_trained_cell_in_the_harness(tmp_path):
    """The same answers and scores as our own evaluation, and the harness's POPE equals ours."""
    assert sweep.main([f"out={tmp_path}", *CELL]) == 0
    data = next(tmp_path.glob("data/*/picture_vqa/test.json"))
    parquet.write_parquet(data, tmp_path / "picture_vqa/test.parquet")
    cell = next(tmp_path.glob("cells/*/stages.json")).parent
    command = [
        sys.executable,
        "-m",
        "lmms_eval",
        "--model",
        "slothkit",
        "--model_args",
        f"pretrained={cell}",
        "--batch_size",
        "7",
        "--device",
        "cpu",
        "--tasks",
        "picture_vqa,picture_vqa_presence",
        "--include_path",
        str(TASKS),
        "--log_samples",
        "--output_path",
        "out",
    ]
    alone = {"HF_HUB_OFFLINE": "1", "HF_HOME": "hf", "HF_DATASETS_CACHE": str(tmp_path / "hf")}
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, **alone}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    evaluated = next(tmp_path.glob("evaluate/*/metrics.json"))
    ours = json.loads(evaluated.read_text())
    rows = lines(evaluated.with_name("predictions.jsonl"))
    assert said(tmp_path, "picture_vqa") == [row["prediction"] for row in rows]
    rows = [row for row in rows if row["family"] == "presence"]
    assert said(tmp_path, "picture_vqa_presence") == [row["prediction"] for row in rows]
    results = json.loads(next(tmp_path.glob("out/**/*_results.json")).read_text())["results"]
    found = {name: results["picture_vqa"][f"{name},none"] for name in ("accuracy", *ours["families"])}
    assert found == pytest.approx({"accuracy": ours["overall"], **ours["families"]})
    pope = POPE()
    pope.update([row["prediction"] for row in rows], [row["answer"] for row in rows])
    assert {row["prediction"] for row in rows} <= {"yes", "no"}  # what both read alike
    assert 0 < pope.compute()["accuracy"] < 1
    for theirs, mine in (
        ("accuracy", "accuracy"),
        ("precision", "precision"),
        ("recall", "recall"),
        ("f1_score", "f1"),
    ):
        scored = results["picture_vqa_presence"][f"pope_{theirs},none"]
        assert scored == pytest.approx(pope.compute()[mine]), theirs


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def said(folder: Path, task: str) -> list[str]:
    """What the harness logged as the model's answers, in the order of its documents."""
    rows = lines(next(folder.glob(f"out/**/*_samples_{task}.jsonl")))
    return [row["filtered_resps"] for row in sorted(rows, key=lambda row: row["doc_id"])]
